"""Traces on disk: added one by one, by several runs at once, whole at every moment."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from flashinfer_bench.data import Definition, Trace

from ..comparison.traces import load_traces, whole_traces
from ..files import replace_file
from ..paths import BadInput

LOCK_SECONDS = 60
"""A store takes milliseconds; somebody who holds the lock longer has been stopped."""


class StoreError(BadInput):
    """Finished traces could not be stored; the text says where they are instead."""


def trace_path(traces_dir: Path, definition: Definition) -> Path:
    """The file that flashinfer-bench 0.1.2 keeps a definition's traces in."""
    return traces_dir / definition.op_type / f"{definition.name}.jsonl"


def read_traces(traces_dir: Path, definition: Definition) -> list[Trace]:
    """All stored traces of a definition; raises TraceError, naming the line, for a damaged file."""
    return [trace for trace, _ in _read(trace_path(traces_dir, definition))]


def check_store(traces_dir: Path, definitions: Sequence[Definition]) -> None:
    """Before anything is run: what is stored can be read, and there can be stored more.

    Raises BadInput.
    """
    for definition in {definition.name: definition for definition in definitions}.values():
        path = trace_path(traces_dir, definition)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                read_traces(traces_dir, definition)
        except OSError as error:
            raise BadInput(f"--traces {traces_dir}: cannot store traces: {error}") from error


def store_traces(traces_dir: Path, definition: Definition, new: Sequence[Trace]) -> None:
    """Add traces, each in place of an older one of the same solution, workload and hardware.

    The file is replaced as a whole, under a lock: a crash leaves the old one or the new one, and
    two runs lose nothing of each other's. Raises StoreError if that fails, with the traces kept in
    a file elsewhere.
    """
    if not new:
        return
    path = trace_path(traces_dir, definition)
    replaced = set(map(_identity, new))
    try:
        with _locked(path):
            lines = [line for trace, line in _read(path) if _identity(trace) not in replaced]
            lines += [_line(trace) for trace in new]
            replace_file(path, b"".join(lines))
    except OSError as error:
        raise StoreError(f"{path}: {error}; {_rescue(new)}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The lock stays beside the file: removing it would let two runs hold one each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with FileLock(lock, timeout=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise OSError(f"{lock} has been locked by another run for {LOCK_SECONDS} s") from error


def _read(path: Path) -> list[tuple[Trace, bytes]]:
    """Each trace with its line, which may hold more than the harness's schema."""
    if not path.exists():
        return []
    content = path.read_bytes()
    if not content.strip():
        return []
    return [(trace, line + b"\n") for trace, line in whole_traces(load_traces([path])[0])]


def _identity(trace: Trace) -> tuple[str | None, str, str]:
    hardware = trace.evaluation.environment.hardware if trace.evaluation else ""
    return trace.solution, trace.workload.uuid, hardware


def _line(trace: Trace) -> bytes:
    return trace.model_dump_json().encode() + b"\n"


def _rescue(traces: Sequence[Trace]) -> str:
    """Put traces where there is room, and say where that is."""
    try:
        with tempfile.NamedTemporaryFile(
            prefix="traces_", suffix=".jsonl", delete=False
        ) as file:  # fmt: skip
            file.writelines(map(_line, traces))
        return f"{len(traces)} finished trace(s) are in {file.name}"
    except OSError:
        return "finished traces, to be kept by hand:\n" + b"".join(map(_line, traces)).decode()
