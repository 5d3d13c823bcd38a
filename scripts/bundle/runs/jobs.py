"""Feed the harness's Benchmark job by job.

Benchmark.run_all saves traces only after all workloads of a definition. Given one workload at a
time, an interrupted session loses at most the workload it was in.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from flashinfer_bench.bench import Benchmark
from flashinfer_bench.data import Definition, Solution, Trace

from ..hardware import unmarked
from ..harness import is_dead_baseline
from .provenance import facts
from .store import read_traces


@dataclass(frozen=True)
class Job:
    """One workload (in the harness, a Trace without a result) and the solutions to run on it."""

    definition: Definition
    workload: Trace
    solutions: list[Solution]


@dataclass(frozen=True)
class Started:
    """A worker has taken a job."""

    worker: str
    job: Job


@dataclass(frozen=True)
class Finished:
    """A job has its traces; a solution without one was not judged, as the reference failed."""

    worker: str
    job: Job
    traces: list[Trace]


@dataclass(frozen=True)
class Lost:
    """A worker takes no more jobs; what it had is not finished."""

    worker: str
    job: Job | None
    reason: str


Event = Started | Finished | Lost


def split(jobs: list[Job]) -> list[Job]:
    """The same work, one solution per job."""
    return [replace(job, solutions=[solution]) for job in jobs for solution in job.solutions]


def unfinished(jobs: list[Job], traces_dir: Path, hardware: str) -> list[Job]:
    """What is left of `jobs` on `hardware`: as with the harness's --resume, any trace of it counts,
    failed ones too.
    """
    left = []
    for job in jobs:
        traces = read_traces(traces_dir, job.definition)
        done = {
            trace.solution
            for trace in traces
            if _same_workload(trace, job.workload)
            and unmarked(trace.evaluation.environment.hardware) == hardware
        }
        solutions = [solution for solution in job.solutions if solution.name not in done]
        if solutions:
            left.append(replace(job, solutions=solutions))
    return left


def evaluate(benchmark: Benchmark, job: Job) -> list[Trace]:
    """Run one job; a solution without a trace was not judged: the reference failed, and the harness
    has logged why.

    The benchmark's trace set need only have a root: what is in it is replaced by the job.
    """
    finished: list[Trace] = []
    for trace in _evaluate(benchmark, job):
        if is_dead_baseline(trace.evaluation):
            alone = [solution for solution in job.solutions if solution.name == trace.solution]
            finished += _evaluate(benchmark, replace(job, solutions=alone))
        else:
            finished.append(trace)
    return finished


def _evaluate(benchmark: Benchmark, job: Job) -> list[Trace]:
    """Have the harness run exactly this job; its traces also say what it was run with."""
    trace_set = benchmark.get_trace_set()
    name = job.definition.name
    trace_set.definitions = {name: job.definition}
    trace_set.solutions = {name: job.solutions}
    trace_set.workloads = {name: [job.workload]}
    traces = benchmark.run_all(dump_traces=False).traces.get(name, [])
    for trace in traces:
        trace.evaluation.environment.libs.update(facts())
    return traces


def _same_workload(trace: Trace, workload: Trace) -> bool:
    return trace.workload.uuid == workload.workload.uuid
