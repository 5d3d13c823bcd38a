"""What another flashinfer-bench dataset gets of this bundle: authors and traces, in its layout."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from flashinfer_bench.data import Definition, ScalarInput, Trace, Workload

from ..files import replace_file
from ..paths import BadInput

BASELINE_AUTHOR = "baseline"
"""Whose solution the harness's `report summary` and `visualize` take the others' speed-ups over."""
BASELINES = ("flashinfer_moe",)


def author_of(solution: str, author: str) -> str:
    """The author under which a solution stands in another dataset."""
    return BASELINE_AUTHOR if solution in BASELINES else author


def export_traces(
    traces: list[Trace], authors: dict[str, str], definition: Definition, dataset: Path
) -> tuple[list[Path], int]:
    """Write the traces of `definition` that belong to workloads of `dataset`.

    authors: of the solutions whose traces are wanted. The files are traces/<author>/<op_type>/
    <definition>.jsonl; a trace replaces an older one of the same solution, workload and hardware.
    Returns the files and how many traces were left out: of workloads that the dataset has not, as
    the bundle's replicas of official ones, which have uuids of their own.
    """
    known = _workloads(definition, dataset)
    by_author: dict[str, list[Trace]] = defaultdict(list)
    left_out = 0
    for trace in traces:
        if trace.definition != definition.name or trace.solution not in authors:
            continue
        theirs = known.get(trace.workload.uuid)
        if theirs is None or _identity(theirs) != _identity(trace.workload):
            left_out += 1
        else:
            by_author[authors[trace.solution]].append(trace)
    written = []
    for author, own in by_author.items():
        path = dataset / "traces" / author / definition.op_type / f"{definition.name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        merged = {_key(trace): trace for trace in [*_read(path), *own]}
        lines = (trace.model_dump_json().encode() + b"\n" for trace in merged.values())
        replace_file(path, b"".join(lines))
        written.append(path)
    return written, left_out


def _workloads(definition: Definition, dataset: Path) -> dict[str, Workload]:
    path = dataset / "workloads" / definition.op_type / f"{definition.name}.jsonl"
    return {trace.workload.uuid: trace.workload for trace in _read(path)}


def _read(path: Path) -> list[Trace]:
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().splitlines()
        return [Trace.model_validate_json(line) for line in lines if line.strip()]
    except ValueError as error:
        raise BadInput(f"{path}: {str(error).splitlines()[0]}") from error


def _identity(workload: Workload) -> tuple:
    """What must agree for a uuid to mean the same."""
    scalars = {n: i.value for n, i in workload.inputs.items() if isinstance(i, ScalarInput)}
    return workload.axes, scalars


def _key(trace: Trace) -> tuple:
    hardware = trace.evaluation.environment.hardware if trace.evaluation else None
    return trace.solution, trace.workload.uuid, hardware
