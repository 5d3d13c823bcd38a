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
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from bundle.cli import add_solutions, add_workloads, exit_with
from bundle.dataset.replicas import NUM_LOCAL_EXPERTS, reference_route
from bundle.paths import ROOT
from bundle.probes.cases import (
    Arguments,
    Case,
    Solution,
    named_cases,
    new_output,
    solutions_here,
    synthetic_case,
)
from bundle.probes.grouped_gemms import Kernel, kernels
from bundle.probes.numerics import (
    Errors,
    Layer,
    code_mismatch,
    differing_share,
    errors_of,
    identity_gemm2,
    seen_intermediate,
    simulate,
)
from bundle.probes.precision import (
    BITS,
    BitsRow,
    PrecisionReport,
    PrecisionRow,
    precision_sheets,
)
from bundle.probes.problem import Problem
from bundle.probes.reporting import Task, report_parser, run_report
from bundle.probes.store import Key
from bundle.runs.requirements import current_device, why_not

MODEL = "fp8 model"  # the fp64 model with requantisation, as a solution
FP32, FP64 = "fp32", "own fp64 model"  # what results are compared with
GEMM1, REQUANT, OUTPUT = "GEMM1", "requantised", "output"
BLOCKS = (128, 64, 0)  # columns per scale of the requantised intermediate; 0: not requantised


def parse_arguments(arguments: Sequence[str], on_gpu: bool) -> argparse.Namespace:
    parser = report_parser(__doc__)
    add = parser.add_argument
    workloads, probe = (["1", "58", "901"], 256) if on_gpu else (["1"], 1)
    add_solutions(parser)
    add_workloads(parser, default=f"here: {', '.join(workloads)}")
    parser.set_defaults(workloads=workloads)
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
        tasks += output_tasks(case, partial(maker.of, case), solutions, route)
    if not options.no_stages:
        active = min(NUM_LOCAL_EXPERTS, options.probe_tokens)
        probe = synthetic_case(options.probe_tokens, active, per_token=1)
        named = replace(probe, name=f"T={probe.seq_len} probe")
        gemms = [kernel for kernel in kernels() if why_not(kernel.requires, device) is None]
        tasks += stage_tasks(named, partial(maker.of, named), solutions, gemms, route)
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


@dataclass(frozen=True)
class Maker:
    """Makes the keys and rows of one workload."""

    case: Case

    def keys(self, name: str, stage: str, *against: str) -> list[Key]:
        return [(name, self.case.uuid, stage, reference) for reference in against]

    def row(
        self,
        name: str,
        stage: str,
        against: str,
        errors: Errors,
        differing: float | None = None,
        block: int | None = None,
    ) -> PrecisionRow:
        common = self._common(name, stage, against)
        return PrecisionRow(errors=errors, differing=differing, block=block, **common)

    def bits(self, one: str, other: str, differing: float) -> BitsRow:
        return BitsRow(differing=differing, **self._common(one, BITS, other))

    def _common(self, name: str, stage: str, against: str) -> dict[str, Any]:
        case = self.case
        return {
            "definition": case.definition,
            "solution": name,
            "uuid": case.uuid,
            "workload": case.name,
            "stage": stage,
            "against": against,
        }


def output_tasks(
    case: Case, make: Callable[[], dict], solutions: Sequence[Solution], route: Callable
) -> list[Task]:
    """The fp8 model itself, every solution's output, and every pair of outputs bit by bit."""
    outputs, maker = Outputs(make, route), Maker(case)

    def of_model() -> list[PrecisionRow]:
        result = outputs.layer(BLOCKS[0]).output.bfloat16()
        fp32 = outputs.layer(0, torch.float32).output
        return [maker.row(MODEL, OUTPUT, FP32, errors_of(result, fp32))]

    def of_solution(solution: Solution) -> list[PrecisionRow]:
        result = outputs.of(solution)
        fp32 = errors_of(result, outputs.layer(0, torch.float32).output)
        # a solution is measured by the model that requantises as it does
        models = {block: errors_of(result, outputs.layer(block).output) for block in BLOCKS}
        block = min(BLOCKS, key=lambda block: models[block].relative_l2)
        return [
            maker.row(solution.name, OUTPUT, FP32, fp32),
            maker.row(solution.name, OUTPUT, FP64, models[block], block=block),
        ]

    def bits(one: Solution, other: Solution) -> list[BitsRow]:
        share = differing_share(outputs.of(one), outputs.of(other))
        return [maker.bits(one.name, other.name, share)]

    tasks = [Task(maker.keys(MODEL, OUTPUT, FP32), of_model)]
    for solution in solutions:
        keys = maker.keys(solution.name, OUTPUT, FP32, FP64)
        tasks.append(Task(keys, partial(of_solution, solution)))
    for i, one in enumerate(solutions):
        for other in solutions[i + 1 :]:
            tasks.append(Task(maker.keys(one.name, BITS, other.name), partial(bits, one, other)))
    return tasks


def stage_tasks(
    case: Case,
    make: Callable[[], dict],
    solutions: Sequence[Solution],
    gemms: Sequence[Kernel],
    route: Callable,
) -> list[Task]:
    """Errors after GEMM1 and after requantisation; every token must have one local expert."""
    real, maker = Outputs(make, route), Maker(case)
    probe = Outputs(lambda: identity_gemm2(real.arguments), route)

    def of_gemm(kernel: Kernel) -> list[PrecisionRow]:
        problem = gemm1_problem(real.arguments, real.layer(0).tokens, route)
        result = kernel.extract(problem, kernel.make(problem)())
        rows = []
        for against, dtype in ((FP32, torch.float32), (FP64, torch.float64)):
            exact = [
                problem.exact(expert, slice(0, count), dtype)
                for expert, count in enumerate(problem.rows_per_expert)
                if count
            ]
            errors = errors_of(result, torch.cat(exact))
            rows.append(maker.row(kernel.name, GEMM1, against, errors))
        return rows

    def of_solution(solution: Solution) -> list[PrecisionRow]:
        fp64 = real.layer(0)
        seen = seen_intermediate(probe.of(solution), fp64)
        models = {block: errors_of(seen, real.layer(block).requantized) for block in BLOCKS}
        block = min(BLOCKS, key=lambda block: models[block].relative_l2)
        differing = code_mismatch(seen, fp64, block) if block else None
        name = solution.name
        return [
            maker.row(name, REQUANT, FP32, errors_of(seen, fp64.activation)),
            maker.row(name, REQUANT, FP64, models[block], differing=differing, block=block),
        ]

    def of_model() -> list[PrecisionRow]:
        model = real.layer(BLOCKS[0])
        errors = errors_of(model.requantized, model.activation)
        return [maker.row(MODEL, REQUANT, FP32, errors)]

    tasks = [Task(maker.keys(k.name, GEMM1, FP32, FP64), partial(of_gemm, k)) for k in gemms]
    tasks.append(Task(maker.keys(MODEL, REQUANT, FP32), of_model))
    for solution in solutions:
        keys = maker.keys(solution.name, REQUANT, FP32, FP64)
        tasks.append(Task(keys, partial(of_solution, solution)))
    return tasks + output_tasks(case, lambda: real.arguments, solutions, route)


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
    exit_with(main)
