#!/usr/bin/env python3
"""Whole-layer times of the solutions: on the GPU alone, and the host's part.

All solutions run in one process, in turn, on the same arguments; results are checked against the
reference on some tokens first. For each solution and workload:

  cold       median GPU time of a call with a cold L2 cache, its launches hidden
  sustained  mean time of calls without any pause, with clock and power at their end
  graph      median GPU time of the call replayed from a CUDA graph, cold L2 cache
  launched   host time from an idle GPU until the first kernel is launched (under the profiler)
  returned   host time from an idle GPU until the call returns

Workloads are those of the table, or with --routing and --seq-len any number of tokens.

    python scripts/layer.py
    python scripts/layer.py --solutions triton_fused_moe_v3 torch_moe --workloads 58 901
    python scripts/layer.py --routing uniform all-local --seq-len 1,128,4096 --budget 30
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from bundle.cli import add_solutions, add_workloads, exit_with
from bundle.probes.cases import ROUTINGS, Arguments, Case, named_cases, routed_case, solutions_here
from bundle.probes.layer import LayerReport, layer_sheets
from bundle.probes.layer_probe import LayerProbe
from bundle.probes.reporting import Task, report_parser, run_report
from bundle.probes.roofline import rates
from bundle.probes.timer import Timer
from bundle.runs.requirements import current_device
from bundle.sheets import Sheet

OF_TABLE = "workload"


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = report_parser(__doc__)
    add = parser.add_argument
    add_solutions(parser)
    add_workloads(parser)
    add("--routing", nargs="+", choices=ROUTINGS, help="workloads made so instead of the table's")
    add("--seq-len", type=seq_lens, metavar="T,T,...", help="their numbers of tokens")
    add(
        "--budget", type=float, default=60, metavar="S", help="seconds of timed calls (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if (options.routing is None) != (options.seq_len is None):
        parser.error("--routing and --seq-len only work together")
    if options.routing and options.workloads:
        parser.error("--routing makes workloads of its own: --workloads does not go with it")
    if not options.budget > 0:
        parser.error(f"--budget: expected a positive number, got {options.budget}")
    return options


def seq_lens(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers, got {text!r}") from None


def chosen_cases(options: argparse.Namespace) -> list[tuple[str, Case]]:
    """Routing and case of every workload."""
    if options.routing is None:
        return [(OF_TABLE, case) for case in named_cases(options.workloads)]
    return [(r, routed_case(r, t)) for r in options.routing for t in options.seq_len]


def plan(options: argparse.Namespace) -> list[Task]:
    """One task per workload: the solutions take turns in it."""
    cases = chosen_cases(options)
    solutions = solutions_here(current_device(), options.solutions)
    row_us = 1e6 * options.budget / (len(cases) * len(solutions))
    probe = LayerProbe(Timer(), Arguments("cuda"), solutions, row_us)
    return [
        Task(
            [(solution.name, case.uuid) for solution in solutions],
            partial(probe.measure, case, routing),
        )
        for routing, case in cases
    ]


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)

    def sheets(report: LayerReport) -> list[Sheet]:
        return layer_sheets(report, rates(options.data, report.provenance.hardware))

    return run_report(LayerReport, partial(plan, options), sheets, options, arguments)


if __name__ == "__main__":
    exit_with(main)
