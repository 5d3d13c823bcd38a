#!/usr/bin/env python3
"""Grouped GEMM sweep: FP8 block-scaled kernels alone, on 81 shapes and on the real layers.

The sweep is E experts x m rows each x N x K; then come both GEMMs of the layer with the rows per
expert of the 19 workloads. Times are medians with a cold L2 cache, without the host's launch time,
and every result is checked against fp32. The kernels, those of all solutions whose grouped GEMM
can be called alone, are listed in bundle/probes/grouped_gemms.py.

    python scripts/gemm.py
    python scripts/gemm.py --experts 8 --m 64 --baseline triton_v3_gemm
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from bundle.cli import exit_with
from bundle.paths import ROOT, BadInput
from bundle.probes.cases import Case, named_cases, use_solutions
from bundle.probes.gemm import GemmReport, GemmRow, gemm_sheets
from bundle.probes.grouped_gemms import NOT_ALONE, Kernel, kernels
from bundle.probes.problem import BLOCK, FP8, Launch, Problem
from bundle.probes.reporting import Task, report_parser, run_report
from bundle.probes.roofline import rates
from bundle.probes.timer import Timer
from bundle.runs.requirements import current_device, why_not

EXPERTS = (1, 4, 8)
ROWS = (64, 128, 512)
SIZES = (2048, 4096, 7168)
LAYER = {"GEMM1": (4096, 7168), "GEMM2": (7168, 2048)}  # N, K
CHECKED_ROWS = 32


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = report_parser(__doc__)
    add = parser.add_argument
    add("--kernels", nargs="+", metavar="NAME", help="kernels to run (all that can run here)")
    add("--experts", nargs="+", type=int, default=EXPERTS, metavar="E", help="of the sweep")
    add("--m", nargs="+", type=int, default=ROWS, metavar="M", help="rows per expert")
    add("--n", nargs="+", type=int, default=SIZES, metavar="N", help="columns of the result")
    add("--k", nargs="+", type=int, default=SIZES, metavar="K", help="columns multiplied")
    add("--no-layers", action="store_true", help="only the sweep, not the real layers")
    add("--baseline", metavar="KERNEL", help="show times relative to it")
    options = parser.parse_args(arguments)
    for name in ("n", "k"):
        if bad := [size for size in getattr(options, name) if size <= 0 or size % (2 * BLOCK)]:
            parser.error(f"--{name}: expected multiples of {2 * BLOCK}, got {bad}")
    for name in ("experts", "m"):
        if bad := [count for count in getattr(options, name) if count < 1]:
            parser.error(f"--{name}: expected positive numbers, got {bad}")
    return options


@dataclass(frozen=True)
class Shape:
    """One grouped GEMM: rows_per_expert[e] x K times K x N for each expert e."""

    name: str
    rows_per_expert: list[int]
    n: int
    k: int
    case: Case | None = None
    """The workload that it is of; None in the sweep."""

    @property
    def uuid(self) -> str | None:
        return self.case.uuid if self.case else None

    @property
    def sizes(self) -> tuple[list[int], int, int]:
        return self.rows_per_expert, self.n, self.k


def shapes_of(options: argparse.Namespace) -> Iterator[Shape]:
    """The sweep, then both GEMMs of every workload."""
    for experts, m, n, k in product(options.experts, options.m, options.n, options.k):
        yield Shape(f"E={experts} m={m} N={n} K={k}", [m] * experts, n, k)
    if not options.no_layers:
        for case in named_cases():
            loads = case.loads()
            for gemm, (n, k) in LAYER.items():
                yield Shape(f"{gemm} {case.name}", loads, n, k, case)


class Operands:
    """Random operands, drawn once and cut to the size of each problem."""

    def __init__(self, shapes: Sequence[tuple[list[int], int, int]], device: str) -> None:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, dtype=torch.bfloat16, device=device)

        torch.manual_seed(0)
        self.a = normal(max(sum(rows) * k for rows, _, k in shapes)).to(FP8)
        self.b = normal(max(len(rows) * n * k for rows, n, k in shapes)).to(FP8)
        self.a_scale = torch.rand(self.a.numel() // BLOCK, device=device) + 0.5
        self.b_scale = torch.rand(self.b.numel() // BLOCK**2, device=device) + 0.5

    def problem(self, rows: list[int], n: int, k: int) -> Problem:
        def cut(source: torch.Tensor, *shape: int) -> torch.Tensor:
            return source[: torch.Size(shape).numel()].view(shape)

        return Problem(
            tuple(rows),
            cut(self.a, sum(rows), k),
            cut(self.a_scale, sum(rows), k // BLOCK),
            cut(self.b, len(rows), n, k),
            cut(self.b_scale, len(rows), n // BLOCK, k // BLOCK),
        )


def relative_error(problem: Problem, result: torch.Tensor) -> float:
    """Of the first rows of the largest expert, against fp32."""
    rows = problem.rows_per_expert
    expert = rows.index(max(rows))
    first, count = sum(rows[:expert]), min(CHECKED_ROWS, rows[expert])
    expected = problem.exact(expert, slice(0, count))
    error = result[first : first + count].float() - expected
    return (error.norm() / expected.norm()).item()


def plan(options: argparse.Namespace) -> list[Task]:
    """One task per problem and kernel, after compiling for all of them."""
    chosen = choose_kernels(options.kernels)
    shapes = [*shapes_of(options)]
    operands = Operands([shape.sizes for shape in shapes], "cuda")
    timer = Timer(warmups=2, iterations=8)

    def measure(kernel: Kernel, shape: Shape) -> list[GemmRow]:
        problem = operands.problem(*shape.sizes)
        launch: Launch = kernel.make(problem)
        row = GemmRow(
            definition=shape.case.definition if shape.case else None,
            kernel=kernel.name,
            case=shape.name,
            uuid=shape.uuid,
            rows_per_expert=shape.rows_per_expert,
            n=shape.n,
            k=shape.k,
            relative_error=relative_error(problem, kernel.extract(problem, launch())),
            us=timer.median_us(launch, count_launch=False),
        )
        return [row]

    for kernel in chosen:
        if kernel.compile_ahead:
            print(f"Compiling {kernel.name} for all shapes ...", file=sys.stderr)
            kernel.compile_ahead([operands.problem(*shape.sizes) for shape in shapes])
    tasks = []
    for shape in shapes:
        for kernel in chosen:
            key = kernel.name, shape.name, shape.uuid
            tasks.append(Task([key], partial(measure, kernel, shape)))
    return tasks


def choose_kernels(wanted: Sequence[str] | None) -> list[Kernel]:
    """The kernels that can run here; says which cannot, and why."""
    use_solutions(ROOT)
    known = {kernel.name: kernel for kernel in kernels()}
    if unknown := [name for name in wanted or () if name not in known]:
        raise BadInput(f"--kernels: expected some of {', '.join(known)}; got {', '.join(unknown)}")
    device, chosen = current_device(), []
    for kernel in known.values():
        if wanted and kernel.name not in wanted:
            continue
        if reason := why_not(kernel.requires, device):
            print(f"{kernel.name} cannot run here: {reason}", file=sys.stderr)
        else:
            chosen.append(kernel)
    if not wanted:
        for solution, reason in NOT_ALONE.items():
            print(f"{solution} has no kernel here: {reason}", file=sys.stderr)
    if not chosen:
        raise BadInput("--kernels: none can run here")
    return chosen


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)

    def sheets(report: GemmReport) -> list:
        gpu = rates(options.data, report.provenance.hardware)
        return gemm_sheets(report, options.baseline, gpu)

    return run_report(GemmReport, partial(plan, options), sheets, options, arguments)


if __name__ == "__main__":
    exit_with(main)
