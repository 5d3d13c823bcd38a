#!/usr/bin/env python3
"""Precision of the solutions: how much of an error is the kernel's own, how much that of fp8?

Outputs are compared with the layer in fp32, and with a model in fp64 that requantises the
intermediate to e4m3 as the solution does (scales for 128 or 64 columns, or not at all: whichever
is nearest). What is left against that model is the kernel's own error. Stage by stage, on one
local expert per token: grouped GEMM kernels on GEMM1's operands; the requantised intermediate of
every solution, read through a GEMM2 whose weights are the identity; the output. Outputs of all
solutions are compared with each other bit by bit.

Runs on the CPU, too (one token of the real layer; minutes for interpreted kernels).

    python scripts/precision.py --workloads 58 901
    python scripts/precision.py --solutions cutedsl_moe_fp8_v1 cutedsl_moe_fp8_v2 --no-stages
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from bundle.dataset.replicas import NUM_LOCAL_EXPERTS, reference_route
from bundle.paths import ROOT
from bundle.probes.cases import (
    Arguments,
    Solution,
    named_cases,
    new_output,
    solutions_here,
    synthetic_case,
)
from bundle.probes.grouped_gemms import Kernel, kernels
from bundle.probes.numerics import (
    Layer,
    code_mismatch,
    differing_share,
    errors_of,
    identity_gemm2,
    seen_intermediate,
    simulate,
)
from bundle.probes.problem import Problem
from bundle.probes.report_tables import precision_sheets
from bundle.probes.reporting import Task, exit_with, report_parser, run_report
from bundle.probes.reports import PrecisionReport, PrecisionRow
from bundle.runs.requirements import current_device, why_not

MODEL = "fp8 model"  # the fp64 model with requantisation, as a solution
FP32, FP64 = "fp32", "own fp64 model"  # what results are compared with
GEMM1, REQUANT, OUTPUT, BITS = "GEMM1", "requantised", "output", "bits"
BLOCKS = (128, 64, 0)  # columns per scale of the requantised intermediate; 0: not requantised


def parse_arguments(arguments: Sequence[str], on_gpu: bool) -> argparse.Namespace:
    parser = report_parser(__doc__)
    add = parser.add_argument
    workloads, probe = ((1, 58, 901), 256) if on_gpu else ((1,), 1)
    add("--solutions", nargs="+", metavar="NAME", help="solutions to run (all that can run here)")
    add(
        "--workloads", nargs="+", type=int, default=workloads, metavar="T",
        help=f"seq_lens of workloads (here: {workloads})",
    )  # fmt: skip
    add("--no-stages", action="store_true", help="only outputs")
    add("--probe-tokens", type=int, default=probe, metavar="T", help=f"for stages (here: {probe})")
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> list[Task]:
    """One task per workload and solution, then those of the stages."""
    device = current_device()
    solutions = solutions_here(device, options.solutions)
    place = "cuda" if device.is_cuda else "cpu"
    maker, route = Arguments(place), reference_route(ROOT)
    tasks = []
    for case in named_cases(options.workloads):
        tasks += output_tasks(case.name, partial(maker.of, case), solutions, route)
    if not options.no_stages:
        active = min(NUM_LOCAL_EXPERTS, options.probe_tokens)
        probe = synthetic_case(options.probe_tokens, active, per_token=1)
        named = replace(probe, name=f"T={probe.seq_len} probe")
        gemms = [kernel for kernel in kernels() if why_not(kernel.requires, device) is None]
        tasks += stage_tasks(named.name, partial(maker.of, named), solutions, gemms, route)
    return tasks


class Outputs:
    """One workload: arguments, references and every solution's output, made when first asked."""

    def __init__(self, make: Callable[[], dict], route: Callable) -> None:
        self._make, self._route = make, route
        self._arguments: dict | None = None
        self._layers: dict = {}
        self._outputs: dict[str, torch.Tensor] = {}

    @property
    def arguments(self) -> dict:
        if self._arguments is None:
            self._arguments = self._make()
        return self._arguments

    def layer(self, block: int, dtype: torch.dtype = torch.float64) -> Layer:
        key = block, dtype
        if key not in self._layers:
            self._layers[key] = simulate(self.arguments, self._route, block, dtype)
        return self._layers[key]

    def of(self, solution: Solution) -> torch.Tensor:
        if solution.name not in self._outputs:
            output = solution(self.arguments, new_output(self.arguments))
            self._outputs[solution.name] = output
        return self._outputs[solution.name]


def output_tasks(
    workload: str, make: Callable[[], dict], solutions: Sequence[Solution], route: Callable
) -> list[Task]:
    """The fp8 model itself, every solution's output, and every pair of outputs bit by bit."""
    outputs = Outputs(make, route)

    def expected(name: str, *against: str) -> list[PrecisionRow]:
        return [
            PrecisionRow(solution=name, workload=workload, stage=OUTPUT, against=reference)
            for reference in against
        ]

    def of_model(rows: list[PrecisionRow]) -> list[PrecisionRow]:
        result = outputs.layer(BLOCKS[0]).output.bfloat16()
        fp32 = outputs.layer(0, torch.float32).output
        return [rows[0].model_copy(update={"errors": errors_of(result, fp32)})]

    def of_solution(solution: Solution, rows: list[PrecisionRow]) -> list[PrecisionRow]:
        result = outputs.of(solution)
        fp32 = errors_of(result, outputs.layer(0, torch.float32).output)
        # a solution is measured by the model that requantises as it does
        models = {block: errors_of(result, outputs.layer(block).output) for block in BLOCKS}
        block = min(BLOCKS, key=lambda block: models[block].relative_l2)
        return [
            rows[0].model_copy(update={"errors": fp32}),
            rows[1].model_copy(update={"errors": models[block], "block": block}),
        ]

    def bits(one: Solution, other: Solution, rows: list[PrecisionRow]) -> list[PrecisionRow]:
        share = differing_share(outputs.of(one), outputs.of(other))
        return [rows[0].model_copy(update={"differing": share})]

    rows = expected(MODEL, FP32)
    tasks = [Task(rows, partial(of_model, rows))]
    for solution in solutions:
        rows = expected(solution.name, FP32, FP64)
        tasks.append(Task(rows, partial(of_solution, solution, rows)))
    for i, one in enumerate(solutions):
        for other in solutions[i + 1 :]:
            row = PrecisionRow(solution=one.name, workload=workload, stage=BITS, against=other.name)
            tasks.append(Task([row], partial(bits, one, other, [row])))
    return tasks


def stage_tasks(
    workload: str,
    make: Callable[[], dict],
    solutions: Sequence[Solution],
    gemms: Sequence[Kernel],
    route: Callable,
) -> list[Task]:
    """Errors after GEMM1 and after requantisation; every token must have one local expert."""
    real = Outputs(make, route)
    probe = Outputs(lambda: identity_gemm2(real.arguments), route)

    def of_gemm(kernel: Kernel, rows: list[PrecisionRow]) -> list[PrecisionRow]:
        problem = gemm1_problem(real.arguments, real.layer(0).tokens, route)
        result = kernel.extract(problem, kernel.make(problem)())
        errors = []
        for dtype in (torch.float32, torch.float64):
            exact = [
                problem.exact(expert, slice(0, count), dtype)
                for expert, count in enumerate(problem.rows_per_expert)
                if count
            ]
            errors.append(errors_of(result, torch.cat(exact)))
        return [
            row.model_copy(update={"errors": error})
            for row, error in zip(rows, errors, strict=True)
        ]

    def of_solution(solution: Solution, rows: list[PrecisionRow]) -> list[PrecisionRow]:
        fp64 = real.layer(0)
        seen = seen_intermediate(probe.of(solution), fp64)
        models = {block: errors_of(seen, real.layer(block).requantized) for block in BLOCKS}
        block = min(BLOCKS, key=lambda block: models[block].relative_l2)
        return [
            rows[0].model_copy(update={"errors": errors_of(seen, fp64.activation)}),
            rows[1].model_copy(
                update={
                    "errors": models[block],
                    "differing": code_mismatch(seen, fp64, block) if block else None,
                    "block": block,
                }
            ),
        ]

    def of_model(rows: list[PrecisionRow]) -> list[PrecisionRow]:
        model = real.layer(BLOCKS[0])
        errors = errors_of(model.requantized, model.activation)
        return [rows[0].model_copy(update={"errors": errors})]

    def expected(name: str, stage: str, *against: str) -> list[PrecisionRow]:
        return [
            PrecisionRow(solution=name, workload=workload, stage=stage, against=reference)
            for reference in against
        ]

    tasks = []
    for kernel in gemms:
        rows = expected(kernel.name, GEMM1, FP32, FP64)
        tasks.append(Task(rows, partial(of_gemm, kernel, rows)))
    rows = expected(MODEL, REQUANT, FP32)
    tasks.append(Task(rows, partial(of_model, rows)))
    for solution in solutions:
        rows = expected(solution.name, REQUANT, FP32, FP64)
        tasks.append(Task(rows, partial(of_solution, solution, rows)))
    return tasks + output_tasks(workload, lambda: real.arguments, solutions, route)


def gemm1_problem(arguments: dict, tokens: torch.Tensor, route: Callable) -> Problem:
    """GEMM1 with its rows gathered: `tokens`, of one expert after the other."""
    ids, _ = route(
        arguments["routing_logits"], arguments["routing_bias"], arguments["routed_scaling_factor"]
    )
    experts = arguments["gemm1_weights"].shape[0]
    local = ids.flatten() - arguments["local_expert_offset"]
    loads = local[(local >= 0) & (local < experts)].bincount(minlength=experts)
    return Problem(
        tuple(loads.tolist()),
        arguments["hidden_states"][tokens].contiguous(),
        arguments["hidden_states_scale"].t()[tokens].contiguous(),
        arguments["gemm1_weights"],
        arguments["gemm1_weights_scale"],
    )


def main(arguments: Sequence[str]) -> int:
    device = current_device()
    if not device.is_cuda:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which is later
    options = parse_arguments(arguments, device.is_cuda)
    return run_report(
        PrecisionReport,
        partial(plan, options),
        precision_sheets,
        options,
        arguments,
        measures_on_cpu=True,
    )


if __name__ == "__main__":
    exit_with(main, "precision.py")
