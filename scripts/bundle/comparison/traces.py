"""Load flashinfer-bench traces from any number of folders and .jsonl files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from math import inf
from pathlib import Path

from flashinfer_bench.data import Environment, EvaluationStatus, ScalarInput, Trace, Workload
from pydantic import ValidationError

from ..hardware import emulated, unmarked
from ..machine import UNKNOWN
from ..paths import BadInput

# flashinfer-bench itself writes no version into a trace, but its versions differ in where they put
# it. This matters: 0.1.2 reports mean latencies on fresh clones, its successor medians without.
LAYOUT_0_1 = "0.1.x, by its folders"  # traces/<op_type>/<definition>.jsonl
LAYOUT_BY_AUTHOR = "newer than 0.1.2, by its folders"  # traces/<author>/<op_type>/...
# Among the libraries of a trace's environment; the harness does not record them.
DRIVER = "driver"
HARNESS = "flashinfer_bench"
BUNDLE, KERNELS = "bundle", "kernels"
NOTES = (
    BUNDLE,
    KERNELS,
    "gpu_clocks",
    "gpu_power_limit",
    "machine",
)  # what was recorded, not what it was run with


# The harness's models take true and "12" for numbers; NaN and infinities are stored as strings.
NO_NUMBER = re.compile(
    rb'(?<!\\)"(latency_ms|reference_latency_ms|speedup_factor|max_relative_error|'
    rb'max_absolute_error)"\s*:\s*(true|false|"(?!(?:NaN|-?Infinity)")[^"]{0,40}"?)'
)


class TraceError(BadInput):
    """Trace data that cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class TraceRecord:
    """One result: a trace with a solution and an evaluation, and where it was read."""

    trace: Trace
    timestamp: datetime  # aware; the harness writes local time without a zone, taken as UTC
    harness: str
    path: Path
    line: int

    @property
    def solution(self) -> str:
        return self.trace.solution

    @property
    def passed(self) -> bool:
        return self.trace.is_successful()

    @property
    def environment(self) -> dict[str, str]:
        """Everything about where the trace was made that its figures may depend on, hardware first.

        The harness's own version counts, where it is recorded; the folders tell it else.
        """
        recorded = self.trace.evaluation.environment
        libs = {name: recorded.libs[name] for name in sorted(recorded.libs) if name not in NOTES}
        harness = libs.pop(HARNESS, self.harness)
        # what is emulated was run on the same machine as the rest
        return {"hardware": unmarked(recorded.hardware), HARNESS: harness, **libs}

    @property
    def emulated(self) -> str | None:
        """The architecture that was emulated for the solution, such as sm_90a; None if none was."""
        return emulated(self.trace.evaluation.environment.hardware)

    def note(self, name: str) -> str:
        """One of NOTES; `absent` where it was not recorded."""
        return self.trace.evaluation.environment.libs.get(name, "absent")


def load_traces(
    paths: Sequence[Path], skip_bad_lines: bool = False
) -> tuple[list[TraceRecord], list[str]]:
    """Read all traces below `paths` and return (records, one message per skipped line).

    A path is a .jsonl file, a folder searched for them, or the root of a dataset (a folder with
    a `traces` folder inside). A file reached twice is read once. Raises TraceError for a missing
    path, for a path without traces, and, unless `skip_bad_lines`, for lines that are no valid
    result: leaving them out would change every mean without a word.
    """
    records: list[TraceRecord] = []
    bad_lines: list[str] = []
    shared = Shared()
    for path, harness in _trace_files(paths).items():
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    records.append(_parse(line, harness, path, number, shared))
                except TraceError as error:
                    bad_lines.append(f"{path}:{number}: {error}")
    if bad_lines and not skip_bad_lines:
        shown = "\n  ".join(bad_lines[:10])
        more = f"\n  and {len(bad_lines) - 10} more" if len(bad_lines) > 10 else ""
        raise TraceError(f"{len(bad_lines)} unusable line(s):\n  {shown}{more}")
    if not records:
        raise TraceError(f"no traces in {', '.join(map(str, paths)) or 'an empty list of paths'}")
    return records, bad_lines


def _trace_files(paths: Iterable[Path]) -> dict[Path, str]:
    """The .jsonl files to read, each with the harness version that its layout tells."""
    files: dict[Path, str] = {}
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise TraceError(f"{path}: no such file or folder")
        if path.is_dir():
            root = path / "traces" if (path / "traces").is_dir() else path
            found = sorted(root.rglob("*.jsonl"))
            if not found:
                raise TraceError(f"{root}: no .jsonl file in this folder")
        else:
            root, found = None, [path]
        for file in found:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                files[file] = _harness_of(file.resolve(), root and root.resolve())
    return files


def _harness_of(file: Path, root: Path | None) -> str:
    """Tell the harness version from the folders between the traces folder and the file."""
    inside_traces = [folder for folder in file.parents if folder.name == "traces"]
    if inside_traces:
        root = inside_traces[0]
    depth = len(file.relative_to(root).parts) if root else 0
    return {2: LAYOUT_0_1, 3: LAYOUT_BY_AUTHOR}.get(depth, UNKNOWN)


class Shared:
    """What many traces have in common, kept once: most of the memory of a trace."""

    def __init__(self) -> None:
        self._workloads: dict[str, tuple[Workload, dict[str, float], str]] = {}
        self._environments: dict[tuple, Environment] = {}

    def share(self, trace: Trace, source: str) -> None:
        """Raises TraceError for a workload whose uuid was another's before."""
        workload = trace.workload
        scalars = {n: i.value for n, i in workload.inputs.items() if isinstance(i, ScalarInput)}
        known, known_scalars, first = self._workloads.setdefault(
            workload.uuid, (workload, scalars, source)
        )
        if known.axes != workload.axes or known_scalars != scalars:
            raise TraceError(
                f"workload.uuid {workload.uuid}: expected that of {first}, {known.axes} and "
                f"{known_scalars}, got {workload.axes} and {scalars}"
            )
        trace.workload = known
        environment = trace.evaluation.environment
        key = environment.hardware, *sorted(environment.libs.items())
        trace.evaluation.environment = self._environments.setdefault(key, environment)


def _check_names(trace: Trace) -> None:
    environment = trace.evaluation.environment
    names = [("solution", trace.solution), ("definition", trace.definition)]
    names += [("workload.uuid", trace.workload.uuid), ("hardware", environment.hardware)]
    names += [("workload.axes", name) for name in trace.workload.axes]
    names += [("libs", text) for pair in environment.libs.items() for text in pair]
    for what, name in names:
        if not name.isprintable() or not name.strip():
            raise TraceError(f"{what}: expected a name in printable characters, got {name!r}")


def _parse(line: bytes, harness: str, path: Path, number: int, shared: Shared) -> TraceRecord:
    """Turn one line into a record or raise TraceError saying what is wrong with it."""
    if lax := NO_NUMBER.search(line):
        figure, value = (group.decode(errors="replace") for group in lax.groups())
        raise TraceError(f"{figure}: expected a number, got {value}")
    try:
        trace = Trace.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise TraceError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    if trace.solution is None or trace.evaluation is None:
        raise TraceError("a workload, not a result: solution or evaluation is missing")
    evaluation = trace.evaluation
    if evaluation.status is EvaluationStatus.PASSED:
        latency = evaluation.performance.latency_ms
        if not 0 < latency < inf:
            raise TraceError(
                f"solution {trace.solution}: PASSED with latency_ms {latency}, expected a positive "
                "number (a run without timing?)"
            )
    if evaluation.correctness and evaluation.correctness.extra:
        matched_ratio = evaluation.correctness.extra.get("matched_ratio")
        is_number = isinstance(matched_ratio, int | float) and not isinstance(matched_ratio, bool)
        if matched_ratio is not None and not (is_number and 0 <= matched_ratio <= 1):
            raise TraceError(
                "evaluation.correctness.extra.matched_ratio: expected a number from 0 to 1, "
                f"got {matched_ratio!r}"
            )
    try:
        # Python 3.10 does not read the ISO suffix Z.
        timestamp = datetime.fromisoformat(evaluation.timestamp.replace("Z", "+00:00"))
    except ValueError:
        raise TraceError(
            f"evaluation.timestamp: expected an ISO 8601 time, got {evaluation.timestamp!r}"
        ) from None
    if timestamp.tzinfo is None:
        timestamp = timestamp.replace(tzinfo=timezone.utc)
    _check_names(trace)
    shared.share(trace, f"{path}:{number}")
    return TraceRecord(trace, timestamp, harness, path, number)
