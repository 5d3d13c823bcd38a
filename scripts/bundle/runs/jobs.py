"""Feed the harness's Benchmark job by job, and keep every trace as soon as it is finished.

Benchmark.run_all saves traces only after all workloads of a definition. Given one workload at a
time, an interrupted session loses at most the workload it was in.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from flashinfer_bench.bench import Benchmark
from flashinfer_bench.data import (
    Definition,
    EvaluationStatus,
    Solution,
    Trace,
    save_jsonl_file,
)

from ..comparison.traces import DRIVER, load_traces
from ..machine import driver_version

# flashinfer-bench 0.1.2: after a worker's restart, the other solutions of that workload are given
# the dead worker's baseline. The failure is not theirs.
DEAD_BASELINE = "Unexpected error: Baseline handle not found"


@dataclass(frozen=True)
class Job:
    """One workload (in the harness, a Trace without a result) and the solutions to run on it."""

    definition: Definition
    workload: Trace
    solutions: list[Solution]


def split(jobs: list[Job]) -> list[Job]:
    """The same work, one solution per job."""
    return [replace(job, solutions=[solution]) for job in jobs for solution in job.solutions]


def unfinished(jobs: list[Job], traces_dir: Path) -> list[Job]:
    """What is left of `jobs`: as with the harness's --resume, any trace counts, failed ones too."""
    left = []
    for job in jobs:
        traces = read_traces(traces_dir, job.definition)
        done = {trace.solution for trace in traces if _same_workload(trace, job.workload)}
        solutions = [solution for solution in job.solutions if solution.name not in done]
        if solutions:
            left.append(replace(job, solutions=solutions))
    return left


def run_job(benchmark: Benchmark, job: Job, traces_dir: Path) -> Iterator[Trace]:
    """Run one job and yield its traces, each already stored.

    The benchmark's trace set need only have a root: what is in it is replaced by the job.
    A solution without a trace was not judged: the reference failed, and the harness has logged why.
    """
    victims = []
    finished = []
    for trace in _evaluate(benchmark, job):
        (victims if _is_victim(trace) else finished).append(trace)
    store_traces(traces_dir, job.definition, finished)
    yield from finished
    for victim in victims:
        alone = [solution for solution in job.solutions if solution.name == victim.solution]
        again = _evaluate(benchmark, replace(job, solutions=alone))
        store_traces(traces_dir, job.definition, again)
        yield from again


def trace_path(traces_dir: Path, definition: Definition) -> Path:
    """The file that flashinfer-bench 0.1.2 keeps a definition's traces in."""
    return traces_dir / definition.op_type / f"{definition.name}.jsonl"


def read_traces(traces_dir: Path, definition: Definition) -> list[Trace]:
    """All stored traces of a definition; raises TraceError, naming the line, for a damaged file."""
    path = trace_path(traces_dir, definition)
    return [record.trace for record in load_traces([path])[0]] if path.exists() else []


def store_traces(traces_dir: Path, definition: Definition, new: list[Trace]) -> None:
    """Add traces, each in place of an older one of the same solution on the same workload.

    The file is replaced as a whole: a crash leaves the old one or the new one.
    """
    if not new:
        return
    replaced = {(trace.solution, trace.workload.uuid) for trace in new}
    kept = [
        trace
        for trace in read_traces(traces_dir, definition)
        if (trace.solution, trace.workload.uuid) not in replaced
    ]
    path = trace_path(traces_dir, definition)
    temporary = path.with_suffix(".jsonl.new")
    save_jsonl_file(kept + new, temporary)
    temporary.replace(path)


def _evaluate(benchmark: Benchmark, job: Job) -> list[Trace]:
    """Have the harness run exactly this job; its traces also name the driver."""
    trace_set = benchmark.get_trace_set()
    name = job.definition.name
    trace_set.definitions = {name: job.definition}
    trace_set.solutions = {name: job.solutions}
    trace_set.workloads = {name: [job.workload]}
    traces = benchmark.run_all(dump_traces=False).traces.get(name, [])
    if driver := driver_version():
        for trace in traces:
            trace.evaluation.environment.libs[DRIVER] = driver
    return traces


def _is_victim(trace: Trace) -> bool:
    evaluation = trace.evaluation
    return evaluation.status is EvaluationStatus.RUNTIME_ERROR and DEAD_BASELINE in evaluation.log


def _same_workload(trace: Trace, workload: Trace) -> bool:
    return trace.workload.uuid == workload.workload.uuid
