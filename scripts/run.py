#!/usr/bin/env python3
"""Benchmark the solutions with flashinfer-bench and store the traces.

On a CUDA device the harness's own runner and evaluator do the work, with its defaults (10 warm-up
runs, 50 iterations, 3 trials) and all workloads, and traces go to traces/. Without one, every
solution that can is run on the CPU, once, on the two smallest workloads, and traces go to
traces_cpu/; Triton kernels are interpreted, those of CuTe DSL emulated (see emulator/README.md).

A trace replaces an older one of the same solution, workload and GPU. Finished traces are kept when
the run is interrupted; --resume then skips whatever has a trace of this GPU, failed ones included.

Exit status: 0 if everything that ran PASSED, 1 if not, 2 if an argument or a file is wrong.
"""

import argparse
import logging
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from bundle.cli import add_dataset, add_solutions, add_workloads, make_parser
from bundle.console import open_output, printable
from bundle.dataset.loading import check_blobs, describe, load_dataset
from bundle.dataset.packing import pack_in_place, solution_folders
from bundle.dataset.replicas import prepare
from bundle.machine import this_hardware
from bundle.paths import BadInput, check_root
from bundle.runs.cpu_runner import cpu_benchmark
from bundle.runs.emulation import ARCHITECTURES
from bundle.runs.harness import make_config
from bundle.runs.jobs import Job, run_job, split, unfinished
from bundle.runs.requirements import Device, current_device
from bundle.runs.selection import select_jobs
from bundle.runs.store import check_store
from bundle.tolerances import ATOL, MATCHED_RATIO, RTOL
from flashinfer_bench.bench import Benchmark, BenchmarkConfig
from flashinfer_bench.data import EvaluationStatus, Trace, TraceSet
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def main() -> int:
    open_output()
    # With several visible GPUs, 0.1.2 lets two solutions talk over one worker's pipe.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    device = current_device()
    arguments = parse_arguments(device)
    if not device.is_cuda:
        device = replace(device, emulated=arguments.arch)
    if arguments.where:
        print(arguments.traces)
        if arguments.solutions:
            print("--solutions", *arguments.solutions, sep="\n")
        return 0
    if not device.is_cuda:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which is later
    console = Console()
    logger = logging.getLogger("flashinfer_bench")
    logger.addHandler(RichHandler(logging.ERROR, console, show_path=False))
    logger.propagate = False
    try:
        return run(arguments, device, console)
    except (BadInput, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        console.print(f"Interrupted. Finished traces are in {arguments.traces}: see --resume.")
        return 130


def parse_arguments(device: Device) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_dataset(parser)
    add("--definitions", nargs="+", metavar="NAME", help="definitions to run (all)")
    add_solutions(parser)
    add_workloads(parser)
    add("--traces", type=Path, metavar="DIR", help="folder for the traces")
    add("--resume", action="store_true", help="skip what has a trace in --traces")
    add("--rtol", type=float, default=RTOL, help="relative tolerance (%(default)s)")
    add("--atol", type=float, default=ATOL, help="absolute tolerance (%(default)s)")
    add(
        "--required-matched-ratio",
        type=float,
        default=MATCHED_RATIO,
        metavar="RATIO",
        help="share of elements that must be within either tolerance (%(default)s)",
    )
    runs = (10, 50, 3) if device.is_cuda else (1, 1, 1)
    for name, value in zip(("warmup-runs", "iterations", "num-trials"), runs, strict=True):
        add(f"--{name}", type=int, default=value, metavar="N", help=f"(here: {value})")
    # interpreted Triton kernels take up to 82 s a call, and an evaluation makes two
    seconds = 300 if device.is_cuda else 900
    add(
        "--timeout",
        type=int,
        default=seconds,
        metavar="S",
        help="seconds per solution (here: %(default)s)",
    )
    if not device.is_cuda:
        add(
            "--arch",
            choices=ARCHITECTURES,
            default="sm_90a",
            help="what is emulated for solutions in CuTe DSL (%(default)s)",
        )
    add("--where", action="store_true", help="print compare.py's arguments for what this runs")
    arguments = parser.parse_args()
    measured = arguments.local / "traces"
    if arguments.traces is None:
        arguments.traces = measured if device.is_cuda else arguments.local / "traces_cpu"
    elif not device.is_cuda and arguments.traces.resolve() == measured.resolve():
        parser.error(f"--traces: {measured} is for GPUs; without one, expected another folder")
    return arguments


def run(arguments: argparse.Namespace, device: Device, console: Console) -> int:
    """Pack, prepare, select, run; returns the exit status."""
    if torch.cuda.device_count() > 1:
        raise BadInput(
            f"CUDA_VISIBLE_DEVICES: expected one GPU, got {os.environ['CUDA_VISIBLE_DEVICES']!r}"
        )
    config = configure(arguments)
    root = check_root(arguments.local)
    problems = pack_in_place(solution_folders(root), root)
    try:
        prepare(root)
    except (OSError, ValueError) as error:
        raise BadInput(f"blobs of {root}: {error}") from error
    packed = len(problems)
    trace_set = load_dataset(root, problems)
    for number, problem in enumerate(problems):
        what = "does not pack" if number < packed else "cannot be used"
        line = f"[red]{what}:[/] {escape(printable(problem))}"
        console.print(line, highlight=False, soft_wrap=True)

    jobs = select_jobs(trace_set, arguments, device, console)
    check_store(
        arguments.traces, list({job.definition.name: job.definition for job in jobs}.values())
    )
    if arguments.resume:
        jobs = unfinished(jobs, arguments.traces, this_hardware())
    if not jobs:
        console.print(f"Nothing left to run: everything has a trace in {arguments.traces}")
        return 0
    if not device.is_cuda:
        # the CPU runner keeps the baseline, so it costs nothing to store each trace at once
        jobs = split(jobs)
    for job in jobs:
        check_blobs(job.definition, job.workload.workload, root)
    console.print(f"On {device.name}, {sum(len(job.solutions) for job in jobs)} evaluations.")
    if device.is_cuda:
        benchmark = Benchmark(TraceSet(root=root), config)
    else:
        benchmark = cpu_benchmark(TraceSet(root=root), config, emulated=device.emulated)
    try:
        passed, total = run_jobs(benchmark, jobs, arguments.traces, console)
    finally:
        benchmark.close()
    console.print(f"{passed} of {total} PASSED. Traces are in {arguments.traces}")
    return 0 if passed == total and (arguments.solutions or not problems) else 1


def configure(arguments: argparse.Namespace) -> BenchmarkConfig:
    """Raises BadInput for values that the harness refuses, and for tolerances that accept zeros."""
    for name in ("rtol", "atol"):
        value = getattr(arguments, name)
        if not 0 < value < math.inf:
            raise BadInput(f"--{name}: expected a positive, finite number, got {value}")
    if arguments.rtol >= 1:
        raise BadInput(
            f"--rtol: expected less than 1, got {arguments.rtol}: an output of zeros would pass"
        )
    try:
        return make_config(
            warmup_runs=arguments.warmup_runs,
            iterations=arguments.iterations,
            num_trials=arguments.num_trials,
            rtol=arguments.rtol,
            atol=arguments.atol,
            required_matched_ratio=arguments.required_matched_ratio,
            timeout_seconds=arguments.timeout,
        )
    except ValueError as error:
        raise BadInput(str(error)) from error


def run_jobs(
    benchmark: Benchmark, jobs: list[Job], traces_dir: Path, console: Console
) -> tuple[int, int]:
    """Run all jobs under a progress bar, print a line per result; returns (passed, total)."""
    total = sum(len(job.solutions) for job in jobs)
    passed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn())
    with Progress(*columns, *times, console=console) as progress:
        task = progress.add_task("", total=total)
        for job in jobs:
            workload = describe(job.workload.workload)
            progress.update(task, description=workload)
            missing = {solution.name for solution in job.solutions}
            for trace in run_job(benchmark, job, traces_dir):
                console.print(result_line(trace), highlight=False, soft_wrap=True)
                missing.discard(trace.solution)
                passed += trace.is_successful()
                progress.advance(task)
            for name in sorted(missing):
                console.print(f"{workload}  {name}  [red]not run: the reference failed[/]")
                progress.advance(task)
    return passed, total


def result_line(trace: Trace) -> str:
    """Workload, solution, status, and what was measured or the last line of the log."""
    evaluation = trace.evaluation
    line = f"{describe(trace.workload)}  {trace.solution}  "
    if evaluation.status is EvaluationStatus.PASSED:
        performance = evaluation.performance
        line += (
            f"[green]PASSED[/]  {performance.latency_ms:.3f} ms, "
            f"{performance.speedup_factor:.2f}x the reference"
        )
    else:
        line += f"[red]{evaluation.status.value}[/]"
    if evaluation.correctness and evaluation.correctness.extra:
        line += f", matched ratio {evaluation.correctness.extra['matched_ratio']:.4f}"
    if evaluation.status is not EvaluationStatus.PASSED and evaluation.log.strip():
        line += f"  {escape(printable(evaluation.log.strip().splitlines()[-1]))}"
    return line


if __name__ == "__main__":
    sys.exit(main())
