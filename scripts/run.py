#!/usr/bin/env python3
"""Benchmark the solutions with flashinfer-bench and store the traces.

On a CUDA device the harness's own runner and evaluator do the work, with its defaults (10 warm-up
runs, 50 iterations, 3 trials) and all workloads, and traces go to traces/. Without one, every
solution that can is run on the CPU, once, on the two smallest workloads, and traces go to
traces_cpu/; Triton kernels are interpreted, those of CuTe DSL emulated (see emulator/README.md),
two solutions at a time where there are two cores and 6 GiB of free memory.

--gpus runs on several GPUs of this machine, --ray on those of a Ray cluster; all solutions of a
workload run on the same GPU. A GPU or a machine that is lost loses the workload that it had, no
other: --resume runs what is left.

A trace replaces an older one of the same solution, workload and GPU. Finished traces are kept when
the run is interrupted; --resume then skips whatever has a trace of this GPU, failed ones included.

Exit status: 0 if everything that ran PASSED, 1 if not, 2 if an argument or a file is wrong.
"""

import argparse
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from bundle.cli import Listed, add_dataset, add_solutions, add_workloads, make_parser
from bundle.console import open_output, printable
from bundle.dataset.loading import check_blobs, describe, load_dataset
from bundle.dataset.packing import pack_in_place, solution_folders
from bundle.hardware import Device
from bundle.harness import make_config
from bundle.paths import BadInput, check_root
from bundle.runs.cluster import connect, disconnect, ray_workers
from bundle.runs.cores import Cores
from bundle.runs.emulation import ARCHITECTURES
from bundle.runs.evaluator import Evaluator, Here, make_blobs
from bundle.runs.gpus import VISIBLE, gpu_processes, visible_gpus
from bundle.runs.jobs import Event, Finished, Lost, Started, split, unfinished
from bundle.runs.pool import Pool
from bundle.runs.provenance import KERNELS
from bundle.runs.selection import select_jobs
from bundle.runs.store import check_store, store_traces
from bundle.tolerances import ATOL, MATCHED_RATIO, RTOL
from flashinfer_bench.bench import BenchmarkConfig
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

# Option, on a GPU (the harness's own), on a CPU.
DEFAULTS = (
    ("warmup-runs", 10, 1),
    ("iterations", 50, 1),
    ("num-trials", 3, 1),
    ("timeout", 300, 900),
)


def main() -> int:
    open_output()
    count = torch.cuda.device_count()  # does not fix what is visible
    arguments = parse_arguments(bool(count))
    if arguments.where:
        print(arguments.traces)
        if arguments.solutions:
            print("--solutions", *arguments.solutions, sep="\n")
        return 0
    console = Console()
    logger = logging.getLogger("flashinfer_bench")
    logger.addHandler(RichHandler(logging.ERROR, console, show_path=False))
    logger.propagate = False
    try:
        return run(arguments, count, console)
    except (BadInput, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        console.print(f"Interrupted. Finished traces are in {arguments.traces}: see --resume.")
        return 130


def parse_arguments(has_gpu: bool) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_dataset(parser)
    add("--definitions", nargs="+", metavar="NAME", help="definitions to run (all)")
    add_solutions(parser)
    add_workloads(parser)
    add("--traces", type=Path, metavar="DIR", help="folder for the traces")
    add("--resume", action="store_true", help="skip what has a trace in --traces")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--gpus", nargs="+", metavar="N", action=Listed, help="these GPUs of this machine (0)"
    )
    where.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster (auto: the one here)")
    add("--gpu-type", metavar="TYPE", help="with --ray: GPUs of this type, as Ray names it (H100)")
    add("--rtol", type=float, default=RTOL, help="relative tolerance (%(default)s)")
    add("--atol", type=float, default=ATOL, help="absolute tolerance (%(default)s)")
    add(
        "--required-matched-ratio",
        type=float,
        default=MATCHED_RATIO,
        metavar="RATIO",
        help="share of elements that must be within either tolerance (%(default)s)",
    )
    # On a CPU interpreted Triton kernels take up to a minute a call, and an evaluation makes two.
    for name, on_gpu, on_cpu in DEFAULTS:
        add(f"--{name}", type=int, metavar="N", help=f"({on_gpu}; on a CPU {on_cpu})")
    if not has_gpu:
        add(
            "--arch",
            choices=ARCHITECTURES,
            default="sm_90a",
            help="what is emulated for solutions in CuTe DSL (%(default)s)",
        )
    add("--where", action="store_true", help="print compare.py's arguments for what this runs")
    arguments = parser.parse_args()
    if arguments.gpu_type and not arguments.ray:
        parser.error("--gpu-type: expected --ray, too")
    if arguments.traces is None:
        on_gpu = has_gpu or arguments.gpus or arguments.ray
        arguments.traces = arguments.local / ("traces" if on_gpu else "traces_cpu")
    return arguments


def open_places(arguments: argparse.Namespace, root: Path, count: int) -> Here | Pool | Cores:
    """Where the jobs run. count: the GPUs of this machine."""
    emulated = getattr(arguments, "arch", None)
    if arguments.ray:
        connect(arguments.ray)
        return Pool(ray_workers(arguments.gpu_type, root, emulated))
    if arguments.gpus or count:
        gpus = visible_gpus(arguments.gpus or ["0"], count)
        if len(gpus) > 1:
            return Pool(gpu_processes(gpus, root))
        os.environ[VISIBLE] = gpus[0]
        return Here(Evaluator(root, emulated))
    return Cores(root, emulated)


def run(arguments: argparse.Namespace, count: int, console: Console) -> int:
    """Pack, prepare, select, run; returns the exit status."""
    root = check_root(arguments.local)
    problems = pack_in_place(solution_folders(root), root)
    make_blobs(root)
    packed = len(problems)
    trace_set = load_dataset(root, problems)
    for number, problem in enumerate(problems):
        what = "does not pack" if number < packed else "cannot be used"
        line = f"[red]{what}:[/] {escape(printable(problem))}"
        console.print(line, highlight=False, soft_wrap=True)
    places = open_places(arguments, root, count)
    try:
        passed, total = run_at(places, trace_set, arguments, console)
    finally:
        places.close()
        if arguments.ray:
            disconnect()
    if not total:
        console.print(f"Nothing left to run: everything has a trace in {arguments.traces}")
        return 0
    console.print(f"{passed} of {total} PASSED. Traces are in {arguments.traces}")
    return 0 if passed == total and (arguments.solutions or not problems) else 1


def run_at(
    places: Here | Pool | Cores,
    trace_set: TraceSet,
    arguments: argparse.Namespace,
    console: Console,
) -> tuple[int, int]:
    """How many evaluations passed, of how many there were to make."""
    device = places.machine.device
    measured = arguments.local / "traces"
    if not device.is_cuda and arguments.traces.resolve() == measured.resolve():
        raise BadInput(f"--traces: {measured} is for GPUs; without one, expected another folder")
    config = configure(arguments, device)
    jobs = select_jobs(trace_set, arguments, places.refusals, not device.is_cuda, console)
    check_store(
        arguments.traces, list({job.definition.name: job.definition for job in jobs}.values())
    )
    if arguments.resume:
        jobs = unfinished(jobs, arguments.traces, places.machine.hardware)
    if not jobs:
        return 0, 0
    if isinstance(places, Cores):
        # the CPU runner keeps the baseline, so it costs little to store each trace at once
        jobs = split(jobs)
    for job in jobs:
        check_blobs(job.definition, job.workload.workload, trace_set.root)
    total = sum(len(job.solutions) for job in jobs)
    console.print(f"On {places.description}, {total} evaluations.")
    with_traces = store_each(places.run(jobs, config), arguments.traces)
    return show_events(with_traces, total, console), total


def store_each(events: Iterable[Event], traces_dir: Path) -> Iterator[Event]:
    """The events, those with traces when these are stored."""
    for event in events:
        if isinstance(event, Finished):
            store_traces(traces_dir, event.job.definition, event.traces)
        yield event


def configure(arguments: argparse.Namespace, device: Device) -> BenchmarkConfig:
    """Raises BadInput for values that the harness refuses, and for tolerances that accept zeros."""
    for name, on_gpu, on_cpu in DEFAULTS:
        key = name.replace("-", "_")
        if getattr(arguments, key) is None:
            setattr(arguments, key, on_gpu if device.is_cuda else on_cpu)
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


def show_events(events: Iterable[Event], total: int, console: Console) -> int:
    """Show what runs where under a progress bar, and a line per result; returns how many passed."""
    passed = done = 0
    running: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn())
    with Progress(*columns, *times, console=console) as progress:
        task = progress.add_task("", total=total)
        for event in events:
            at = f"{escape(event.worker)}: " if event.worker else ""
            workload = event.job and describe(event.job.workload.workload)
            running.pop(event.worker, None)
            if isinstance(event, Started):
                running[event.worker] = f"{at}{workload}"
            elif isinstance(event, Lost):
                lost = f", and {workload} with it" if workload else ""
                line = f"{at}[red]lost{lost}:[/] {escape(printable(event.reason))}"
                console.print(line, highlight=False, soft_wrap=True)
            else:
                for line in result_lines(event, at):
                    console.print(line, highlight=False, soft_wrap=True)
                passed += sum(trace.is_successful() for trace in event.traces)
                done += len(event.job.solutions)
                progress.advance(task, len(event.job.solutions))
            progress.update(task, description="\n".join(running.values()))
    if done < total:
        console.print(f"{total - done} evaluations were lost: --resume runs them.")
    return passed


def result_lines(event: Finished, at: str) -> list[str]:
    workload = describe(event.job.workload.workload)
    judged = {trace.solution for trace in event.traces}
    names = sorted(solution.name for solution in event.job.solutions)
    missing = [name for name in names if name not in judged]
    return [at + result_line(trace) for trace in event.traces] + [
        f"{at}{workload}  {name}  [red]not run: the reference failed[/]" for name in missing
    ]


def result_line(trace: Trace) -> str:
    """Workload, solution, status, and what was measured or the last line of the log."""
    evaluation = trace.evaluation
    line = f"{describe(trace.workload)}  {trace.solution}  "
    if evaluation.status is EvaluationStatus.PASSED:
        performance = evaluation.performance
        line += "[green]PASSED[/]"
        if KERNELS in evaluation.environment.libs:  # the time of a simulation says nothing
            line += f"  {performance.latency_ms / 1e3:.1f} s on the CPU"
        else:
            line += (
                f"  {performance.latency_ms:.3f} ms, "
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
