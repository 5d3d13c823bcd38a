#!/usr/bin/env python3
"""One call of a solution under Nsight Compute, Nsight Systems or compute-sanitizer.

The call comes after others that compile and tune, with a cold L2 cache; nothing else is profiled.
The tool's own report is kept in build/profile/, and for each kernel of the call there is a line:

  ncu        time, percent of the DRAM's peak, percent of the tensor pipe's peak
             (clocks are fixed at their base and kernels run alone: times are longer than a call's)
  nsys       time and launches
  sanitizer  errors of memory access (memcheck) in the solution's first call instead of lines;
             exit status 1 if there are any. Without --kernel PyTorch's own kernels are left out;
             memcheck does not tell how many kernels it checked, so mind what --kernel matches.

    python scripts/profile_call.py cutedsl_moe_fp8_v3 901
    python scripts/profile_call.py cutedsl_moe_fp8_v3 901 --kernel kernel_cutlass
    python scripts/profile_call.py triton_fused_moe_v3 58 --tool sanitizer
"""

# Not profile.py: beside the other scripts that would hide Python's own module of that name, which
# torch._dynamo imports by way of cProfile.

from __future__ import annotations

import argparse
import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bundle.cli import exit_with, make_parser
from bundle.console import printable
from bundle.paths import ROOT, BadInput
from bundle.probes.cases import Case, named_cases, solutions_here
from bundle.runs.requirements import current_device
from bundle.sheets import number

REPORTS = ROOT / "build" / "profile"
EXECUTABLES = {"ncu": "ncu", "nsys": "nsys", "sanitizer": "compute-sanitizer"}
SUFFIXES = {"ncu": ".ncu-rep", "nsys": ".nsys-rep", "sanitizer": ".txt"}
WARM_UP_CALLS = 3
TIME, DRAM, TENSOR = METRICS = (
    "gpu__time_duration.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
)
ERRORS = re.compile(r"ERROR SUMMARY: (\d+) error")
LONGEST_NAME = 100


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("solution", metavar="SOLUTION", help="a folder of solutions/")
    add("workload", metavar="WORKLOAD", help="its seq_len or uuid")
    add("--tool", choices=EXECUTABLES, default="ncu", help="(%(default)s)")
    add("--kernel", metavar="REGEX", help="only kernels whose name matches (default: all)")
    options = parser.parse_args(arguments)
    try:
        re.compile(options.kernel or "")
    except re.error as error:
        parser.error(f"--kernel: expected a regular expression, got {options.kernel!r}: {error}")
    return options


def chosen_case(options: argparse.Namespace) -> Case:
    """The workload that is meant, if this machine can run the solution and has the tool."""
    try:
        cases = named_cases([options.workload])
        if len(cases) > 1:
            uuids = ", ".join(case.uuid for case in cases)
            raise BadInput(f"WORKLOAD: expected one of {uuids}; got {options.workload}")
        device = current_device()
        if not device.is_cuda:
            raise BadInput("expected a CUDA device, PyTorch finds none: nothing to profile")
        if shutil.which(EXECUTABLES[options.tool]) is None:
            raise BadInput(
                f"--tool {options.tool}: expected {EXECUTABLES[options.tool]} on PATH, found none"
            )
        solutions_here(device, [options.solution])
    except BadInput as error:  # as this command line calls them
        text = str(error).replace("--workloads:", "WORKLOAD:")
        raise BadInput(text.replace("--solutions:", "SOLUTION:")) from None
    return cases[0]


def command_line(tool: str, report: Path, kernel: str | None) -> list[str]:
    """The tool and its options; what it runs comes after them."""
    path = str(report)
    if tool == "ncu":
        chosen = ["--kernel-name", f"regex:{kernel}"] if kernel else []
        return [
            "ncu", "--profile-from-start", "off", "--target-processes", "all", *chosen,
            "--set", "full", "--metrics", ",".join(METRICS), "--force-overwrite", "--export", path,
        ]  # fmt: skip
    if tool == "nsys":
        return [
            "nsys", "profile", "--capture-range", "cudaProfilerApi", "--capture-range-end", "stop",
            "--trace", "cuda,nvtx", "--sample", "none", "--force-overwrite", "true",
            "--output", path,
        ]  # fmt: skip
    # Arguments are made by PyTorch's kernels (at::native), 1.4 GB of them.
    theirs = ["--kernel-name-exclude", "kns=at6native"]
    chosen = ["--kernel-name", f"regex={kernel}"] if kernel else theirs
    return [
        "compute-sanitizer", "--tool", "memcheck", "--target-processes", "all", *chosen,
        "--report-api-errors", "no",  # JITs ask the driver for functions that it may not have
        "--log-file", path,
    ]  # fmt: skip


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    scripts = str(ROOT / "scripts")
    before = os.environ.get("PYTHONPATH")
    path = f"{scripts}{os.pathsep}{before}" if before else scripts
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, cwd=ROOT, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip


def failed(command: list[str], done: subprocess.CompletedProcess[str], expected: str) -> BadInput:
    said = "\n".join(done.stdout.splitlines()[-20:])
    return BadInput(f"{command[0]}: expected {expected}, got status {done.returncode}:\n{said}")


def table_of(command: list[str], first_column: str) -> list[dict[str, str]]:
    """The rows of CSV that the command prints, after lines of another kind."""
    done = run(command)
    lines = done.stdout.splitlines()
    starts = [i for i, line in enumerate(lines) if line.lstrip('"').startswith(first_column)]
    if done.returncode or not starts:
        raise failed(command, done, f"a table that begins with {first_column}")
    return list(csv.DictReader(lines[starts[0] :]))


def figure(row: dict[str, str], column: str) -> float | None:
    try:
        return float(row[column].replace(",", ""))
    except (KeyError, ValueError):  # this GPU has no such metric
        return None


def ncu_lines(report: Path) -> list[str]:
    """A line for each kernel, then one with the sum of the times and the means over that time."""
    command = ["ncu", "--import", str(report), "--csv", "--page", "raw", "--print-units", "base"]
    _units, *rows = table_of(command, "ID")
    names = [row["Kernel Name"] for row in rows]
    times = [figure(row, TIME) for row in rows]
    known = [time for time in times if time is not None]
    if not known or len(known) < len(rows):
        raise BadInput(f"{report}: expected kernels with {TIME}, got {len(known)} of {len(rows)}")
    columns: list[list[float | None]] = [[*(ns / 1e3 for ns in known), sum(known) / 1e3]]
    for metric in (DRAM, TENSOR):
        percents = [figure(row, metric) for row in rows]
        columns.append([*percents, mean_over(known, percents)])
    lines = [f"{'us':>10}{'DRAM %':>9}{'tensor %':>10}  kernel"]
    for name, us, dram, tensor in zip([*names, "the whole call"], *columns, strict=True):
        percents_shown = f"{number(dram, '.1f'):>9}{number(tensor, '.1f'):>10}"
        lines.append(f"{number(us, ',.1f'):>10}{percents_shown}  {printable(name, LONGEST_NAME)}")
    return lines


def mean_over(times: Sequence[float], values: Sequence[float | None]) -> float | None:
    """The mean over the time; None if a value is not known."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return sum(t * value for t, value in zip(times, known, strict=True)) / sum(times)


def nsys_lines(report: Path, kernel: str | None) -> list[str]:
    """A line for each kernel that matches, the longest first, then their sum."""
    table = ["nsys", "stats", "--report", "cuda_gpu_kern_sum", "--format", "csv"]
    rows = table_of([*table, "--force-export=true", str(report)], "Time (%)")
    lines, total_us, total_launches = [f"{'us':>10}{'launches':>10}  kernel"], 0.0, 0
    for row in rows:
        ns, launches = figure(row, "Total Time (ns)"), figure(row, "Instances")
        if ns is None or launches is None or not row.get("Name"):  # what follows the table
            continue
        if re.search(kernel or "", row["Name"]):
            name = printable(row["Name"], LONGEST_NAME)
            lines.append(f"{ns / 1e3:>10,.1f}{launches:>10.0f}  {name}")
            total_us, total_launches = total_us + ns / 1e3, total_launches + int(launches)
    if not total_launches:
        raise BadInput(f"{report}: expected kernels that match {kernel or 'anything'}, found none")
    return [*lines, f"{total_us:>10,.1f}{total_launches:>10}  all of these"]


def errors_in(report: Path) -> int | None:
    """What memcheck counted; None if it did not come to its summary."""
    if not report.exists():
        return None
    counts = ERRORS.findall(report.read_text("utf-8", errors="replace"))
    return sum(map(int, counts)) if counts else None


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    tool, kernel = options.tool, options.kernel
    case = chosen_case(options)
    REPORTS.mkdir(parents=True, exist_ok=True)
    name = f"{options.solution}-{case.seq_len}-{case.uuid[:8]}{SUFFIXES[tool]}"
    report, new = REPORTS / name, REPORTS / f"new-{name}"
    new.unlink(missing_ok=True)
    calls = 0 if tool == "sanitizer" else WARM_UP_CALLS  # it checks all calls: one is enough
    child = [sys.executable, "-m", "bundle.probes.one_call", options.solution, case.uuid]
    command = [*command_line(tool, new, kernel), *child, str(calls)]
    print(f"{options.solution}, {case.name}: {shlex.join(command)}", file=sys.stderr)
    done = run(command)
    errors = errors_in(new) if tool == "sanitizer" else None
    if not new.exists() or (done.returncode and not errors):  # errors may end the call, too
        raise failed(command, done, "a report")
    if tool == "sanitizer" and errors is None:
        raise failed(command, done, f"an error summary in {new}")
    new.replace(report)  # an older one is kept until there is another
    if tool == "ncu":
        lines = ncu_lines(report)
    elif tool == "nsys":
        lines = nsys_lines(report, kernel)
    else:
        checked = f"that match {kernel}" if kernel else "but PyTorch's own"
        lines = [f"{errors} errors in all kernels {checked}"]
    print("\n".join(lines))
    print(f"report: {report}")
    return int(bool(errors))


if __name__ == "__main__":
    exit_with(main)
