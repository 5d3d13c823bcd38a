#!/usr/bin/env python3
"""Verify solutions: does each compute what it is given, when it is called, in the time it shows?

flashinfer-bench runs all solutions in one process, on inputs that stay the same, and believes that
process's clock. This runs every solution in a process of its own (bundle/runs/verification.py):
every input changes in turn at the same address, under the default and another stream, behind work
that has to be waited for; outputs are poisoned; inputs, clocks, the harness's functions and left
processes are looked at afterwards. A solution that is not honest is named, with what gave it away.

    python scripts/verify.py
    python scripts/verify.py --solutions my_moe --workloads 58 --format markdown

Exit status: 0 if nothing was found, 1 if a solution failed, 2 if an argument or a file is wrong.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bundle.cli import add_dataset, add_solutions, add_workloads, exit_with
from bundle.console import open_output, printable
from bundle.dataset.loading import describe, load_dataset
from bundle.dataset.packing import pack_in_place, solution_folders
from bundle.dataset.replicas import prepare
from bundle.harness import make_config, settings_for
from bundle.paths import BadInput, check_root
from bundle.probes.reporting import Task, report_parser, run_report
from bundle.probes.store import Failed
from bundle.probes.verification import (
    VerificationReport,
    VerificationRow,
    verification_sheets,
)
from bundle.runs.cpu_runner import MEMORY_SHARE, free_memory
from bundle.runs.jobs import Job
from bundle.runs.requirements import current_device, refusals
from bundle.runs.selection import keys_of, select_jobs
from bundle.runs.verification import Plan, make_plan, verify
from bundle.sandbox.confinement import hide_memory
from bundle.sandbox.contract import Limits
from bundle.sandbox.launcher import Launcher, LauncherError
from bundle.tolerances import ATOL, MATCHED_RATIO, RTOL
from flashinfer_bench.data import Solution, TraceSet
from rich.console import Console

# Those of scripts/run.py.
TOLERANCES = {"rtol": RTOL, "atol": ATOL, "required_matched_ratio": MATCHED_RATIO}


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = report_parser(__doc__)
    add = parser.add_argument
    add_dataset(parser)
    add_solutions(parser)
    add_workloads(parser, default="the smallest, and seq_len 58")
    add("--timeout", type=int, default=600, metavar="S", help="seconds per solution (%(default)s)")
    return parser.parse_args(arguments, argparse.Namespace(definitions=None))


def plan(options: argparse.Namespace) -> list[Task]:
    """One task per workload and solution; each solution in a process of its own."""
    device = current_device()
    if not device.is_cuda:
        os.environ["TRITON_INTERPRET"] = "1"
    root = check_root(options.local)
    problems = pack_in_place(solution_folders(root), root)
    prepare(root)
    dataset = load_dataset(root, problems)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(f"does not pack: {printable(problem)}", markup=False)
    asked = options.workloads
    if asked is None:
        options.workloads = default_workloads(dataset)
    where = "cuda:0" if device.is_cuda else "cpu"
    verifier = Verifier(root, where, options.timeout)
    refused = partial(refusals, root=root, device=device)
    tasks = []
    for job in select_jobs(dataset, options, refused, not device.is_cuda, console):
        for solution in job.solutions:
            key = solution.name, job.workload.workload.uuid
            tasks.append(Task([key], partial(verifier.check, job, solution)))
    return tasks


def default_workloads(dataset: TraceSet) -> list[str]:
    """The smallest workload of each definition, and one in which most experts have tokens."""
    chosen = []
    for rows in dataset.workloads.values():
        by_size = sorted(rows, key=lambda row: sum(row.workload.axes.values()))
        chosen += [by_size[0].workload.uuid]
        chosen += [row.workload.uuid for row in by_size if "58" in keys_of(row)][:1]
    return chosen


class Verifier:
    """Keeps the plan of the latest workload, which all solutions are checked against."""

    def __init__(self, root: Path, device: str, seconds: int) -> None:
        hide_memory()
        self.root = root
        self.device = device
        memory = None if device != "cpu" else int(MEMORY_SHARE * free_memory())
        self.limits = Limits(seconds, memory)
        self.planned: tuple[str, Plan] | None = None
        try:
            self.launcher = Launcher.start(device)
        except LauncherError as error:
            raise BadInput(str(error)) from error

    def check(self, job: Job, solution: Solution) -> list[VerificationRow | Failed]:
        """The row with what was found."""
        if not self.launcher.alive:
            self.launcher.close()
            self.launcher = Launcher.start(self.device)
        plan = self._plan(job)
        start = time.monotonic()
        found = verify(plan, solution, self.launcher, self.limits)
        workload = job.workload.workload
        if found.problem or found.seen_us is None or found.claimed_us is None:
            reason = found.problem or "no call was timed"
            return [Failed(key=(solution.name, workload.uuid), reason=reason)]
        return [
            VerificationRow(
                definition=job.definition.name,
                solution=solution.name,
                uuid=workload.uuid,
                workload=describe(workload),
                calls=found.calls,
                inputs=plan.changed,
                matched_ratio=found.verdict.matched_ratio,
                seen_us=found.seen_us,
                claimed_us=found.claimed_us,
                seconds=time.monotonic() - start,
            )
        ]

    def _plan(self, job: Job) -> Plan:
        uuid = job.workload.workload.uuid
        if self.planned is None or self.planned[0] != uuid:
            self.planned = None
            settings = settings_for(make_config(**TOLERANCES), job.definition)
            workload = job.workload.workload
            tools = self.launcher, self.limits, self.device
            self.planned = uuid, make_plan(job.definition, workload, self.root, settings, *tools)
        return self.planned[1]


def main(arguments: Sequence[str]) -> int:
    open_output()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    options = parse_arguments(arguments)
    return run_report(
        VerificationReport,
        partial(plan, options),
        verification_sheets,
        options,
        arguments,
        measures_on_cpu=True,
    )


if __name__ == "__main__":
    exit_with(main)
