#!/usr/bin/env python3
"""What a solution costs besides its calls' time: its first call, and memory.

Each solution runs in a process of its own, with empty caches for compiled kernels, then in a second
one, which finds what the first has compiled. For each workload, in the order given:

  first call     until its result is there; of the first workload also importing and compiling
  peak, kept     memory of PyTorch's allocator beyond arguments and output, in and after the call
  not PyTorch's  memory that was taken from the GPU otherwise

    python scripts/footprint.py
    python scripts/footprint.py --solutions triton_fused_moe_v3 torch_moe --workloads 1,901
"""

from __future__ import annotations

import argparse
import json
import os
import site
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bundle.cli import add_solutions, add_workloads, exit_with
from bundle.paths import ROOT
from bundle.probes.cases import Case, named_cases, solutions_here
from bundle.probes.footprint import FootprintReport, FootprintRow, footprint_sheets
from bundle.probes.reporting import Task, report_parser, run_report
from bundle.runs.requirements import current_device

USUAL = ("1", "14107")
"""Workloads, the smallest and the largest."""
CACHES = (
    "TRITON_CACHE_DIR", "TRITON_HOME", "CUTE_DSL_CACHE_DIR", "DG_JIT_CACHE_DIR",
    "SGLANG_DG_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE", "XDG_CACHE_HOME", "CUDA_CACHE_PATH",
    "TORCHINDUCTOR_CACHE_DIR", "TVM_FFI_CACHE_DIR",
)  # fmt: skip
"""Where compilers keep kernels if it is not below the home or the temporary folder."""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = report_parser(__doc__)
    add_solutions(parser)
    add_workloads(parser, default=f"seq_len {' and '.join(USUAL)}")
    parser.add_argument(
        "--timeout", type=int, default=600, metavar="S", help="seconds per process (%(default)s)"
    )
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> list[Task]:
    """One task per solution."""
    cases = sorted(named_cases(options.workloads or USUAL), key=lambda case: case.seq_len)
    solutions = solutions_here(current_device(), options.solutions)
    return [
        Task(
            [(solution.name, case.uuid) for case in cases],
            partial(measure, solution.name, cases, options.timeout),
        )
        for solution in solutions
    ]


def measure(solution: str, cases: Sequence[Case], seconds: int) -> list[FootprintRow]:
    """Both processes; raises RuntimeError if one fails."""
    with tempfile.TemporaryDirectory(prefix="footprint_") as folder:
        rows = first_calls(solution, cases, seconds, Path(folder))
        again = first_calls(solution, cases[:1], seconds, Path(folder))
    rows[0]["again_s"] = again[0]["first_call_s"]
    return [
        FootprintRow(
            definition=case.definition,
            solution=solution,
            workload=case.name,
            seq_len=case.seq_len,
            **row,
        )
        for case, row in zip(cases, rows, strict=True)
    ]


def first_calls(solution: str, cases: Sequence[Case], seconds: int, home: Path) -> list[dict]:
    """What a process with `home` for its home and temporary folder has measured."""
    result = home / "result.json"
    command = [sys.executable, "-m", "bundle.probes.first_calls", solution, str(result)]
    try:
        done = subprocess.run(
            [*command, *(case.uuid for case in cases)], env=environment_at(home), cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"expected its first calls within {seconds} s") from None
    if done.returncode:
        said = done.stdout.strip().splitlines() or ["nothing said"]
        raise RuntimeError(f"exit status {done.returncode}: {said[-1]}")
    return json.loads(result.read_text("utf-8"))


def environment_at(home: Path) -> dict[str, str]:
    """This process's environment, but for the places where compiled kernels are kept."""
    kept = {name: value for name, value in os.environ.items() if name not in CACHES}
    path = [str(ROOT / "scripts"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONUSERBASE": site.getuserbase(),  # packages that the user has installed
        "PYTHONPATH": os.pathsep.join(path),
    }


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    return run_report(FootprintReport, partial(plan, options), footprint_sheets, options, arguments)


if __name__ == "__main__":
    exit_with(main)
