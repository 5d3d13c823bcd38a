"""What a command line asks to be run, out of what a dataset has and this machine can run."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from flashinfer_bench.data import Solution, Trace, TraceSet
from rich.console import Console
from rich.markup import escape

from ..paths import BadInput
from .jobs import Job

CPU_WORKLOADS = 2


def select_jobs(
    trace_set: TraceSet,
    arguments: argparse.Namespace,
    refused_of: Callable[[list[Solution]], dict[str, str]],
    on_cpu: bool,
    console: Console,
) -> list[Job]:
    """One job per selected workload; solutions that cannot run there are listed and left out.

    arguments: with `definitions`, `solutions` and `workloads`, each a list of strings or None.
    refused_of: which of some solutions cannot run where they would, and why.
    on_cpu: by default a few workloads only.
    """
    definitions = list(trace_set.definitions.values())
    if arguments.definitions:
        check_known("--definitions", arguments.definitions, trace_set.definitions)
        definitions = [d for d in definitions if d.name in arguments.definitions]
    solutions = [s for d in definitions for s in trace_set.solutions.get(d.name, [])]
    if arguments.solutions:
        check_known("--solutions", arguments.solutions, [s.name for s in solutions])
        solutions = [s for s in solutions if s.name in arguments.solutions]
    refused = refused_of(solutions)
    for name, reason in refused.items():
        console.print(f"{name} cannot run here: {escape(reason)}", soft_wrap=True)
    runnable = [solution for solution in solutions if solution.name not in refused]
    if not runnable:
        raise BadInput(f"--solutions: none of {[s.name for s in solutions]} can run here")

    served = dict.fromkeys(solution.definition for solution in runnable)
    workloads = [row for name in served for row in trace_set.workloads.get(name, [])]
    if arguments.workloads:
        wanted = [token for item in arguments.workloads for token in item.split(",")]
        check_known("--workloads", wanted, [key for row in workloads for key in keys_of(row)])
        workloads = [row for row in workloads if keys_of(row) & set(wanted)]
    elif on_cpu:
        workloads = [row for name in served for row in smallest(trace_set.workloads.get(name, []))]
    if not workloads:
        raise BadInput(f"{trace_set.root} has no workloads of {', '.join(served)}")
    return [
        Job(
            trace_set.definitions[row.definition],
            row,
            [s for s in runnable if s.definition == row.definition],
        )
        for row in workloads
    ]


def check_known(option: str, given: list[str], known) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise BadInput(
            f"{option}: expected some of {', '.join(dict.fromkeys(known))}; "
            f"got {', '.join(unknown)}"
        )


def smallest(workloads: list[Trace]) -> list[Trace]:
    """The few workloads of one definition that a CPU can be asked to run."""
    return sorted(workloads, key=lambda row: sum(row.workload.axes.values()))[:CPU_WORKLOADS]


def keys_of(row: Trace) -> set[str]:
    """What selects a workload on the command line."""
    return {row.workload.uuid, *map(str, row.workload.axes.values())}
