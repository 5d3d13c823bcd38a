#!/usr/bin/env python3
"""Stage times of the solutions: where does a layer's time go?

Every solution is called as flashinfer-bench calls it (cold L2, idle GPU), once under CUDA events
and once under torch.profiler; its kernels are put into stages by their names
(bundle/probes/stages.py). Stages that share a kernel are shown as one. The gap is the time in
which no kernel ran.

    python scripts/stages.py --workloads 58 901
    python scripts/stages.py --seq-len 1024 --experts-active 2 --baseline torch_moe
    python scripts/stages.py --show --format markdown
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from bundle.cli import add_solutions, add_workloads, exit_with
from bundle.probes.cases import (
    Arguments,
    Case,
    Solution,
    named_cases,
    new_output,
    solutions_here,
    synthetic_case,
)
from bundle.probes.profiler import profile
from bundle.probes.reporting import Task, report_parser, run_report
from bundle.probes.stage_names import summarize
from bundle.probes.stages import StageReport, StageRow, stage_sheets
from bundle.probes.timer import Timer
from bundle.runs.requirements import current_device

WORKLOADS = ("58", "901", "14107")
PROFILED = 5  # calls of each solution


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = report_parser(__doc__)
    add = parser.add_argument
    add_solutions(parser)
    add_workloads(parser, default=", ".join(WORKLOADS))
    add("--seq-len", type=int, metavar="T", help="a synthetic workload of T tokens instead")
    add("--experts-active", type=int, metavar="N", help="local experts that its tokens go to")
    add("--baseline", metavar="SOLUTION", help="show times relative to it")
    options = parser.parse_args(arguments)
    if (options.seq_len is None) != (options.experts_active is None):
        parser.error("--seq-len and --experts-active only work together")
    if options.seq_len is not None and options.workloads:
        parser.error("--seq-len makes a workload of its own: --workloads does not go with it")
    return options


def plan(options: argparse.Namespace) -> list[Task]:
    """One task per workload and solution."""
    if options.seq_len is not None:
        cases = [synthetic_case(options.seq_len, options.experts_active)]
    else:
        cases = named_cases(options.workloads or WORKLOADS)
    solutions = solutions_here(current_device(), options.solutions)
    timer, maker = Timer(), Arguments("cuda")
    latest: dict[str, dict] = {}

    def arguments_of(case: Case) -> dict:
        if case.name not in latest:
            latest.clear()  # one workload's arguments at a time
            latest[case.name] = maker.of(case)
        return latest[case.name]

    def measure(case: Case, loads: list[int], solution: Solution) -> list[StageRow]:
        return [measure_stages(timer, solution, case, loads, arguments_of(case))]

    tasks = []
    for case in cases:
        loads = case.loads()
        for solution in solutions:
            key = solution.name, case.uuid
            tasks.append(Task([key], partial(measure, case, loads, solution)))
    return tasks


def measure_stages(
    timer: Timer, solution: Solution, case: Case, loads: list[int], arguments: dict
) -> StageRow:
    """The times of `solution` on these arguments; loads: rows of each local expert."""
    output = new_output(arguments)

    def call() -> None:
        solution(arguments, output)

    end_to_end_us = timer.median_us(call)
    (calls,) = profile([call], PROFILED)
    stages, kernels = summarize([each.launches for each in calls])
    return StageRow(
        definition=case.definition,
        solution=solution.name,
        uuid=case.uuid,
        workload=case.name,
        seq_len=case.seq_len,
        active_experts=sum(load > 0 for load in loads),
        pairs=sum(loads),
        end_to_end_us=end_to_end_us,
        stages=stages,
        kernels=kernels,
    )


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    return run_report(
        StageReport,
        partial(plan, options),
        partial(stage_sheets, baseline=options.baseline),
        options,
        arguments,
    )


if __name__ == "__main__":
    exit_with(main)
