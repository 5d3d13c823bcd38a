"""Load flashinfer-bench traces from any number of folders and .jsonl files."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError
from pydantic_core import from_json

from ..hardware import UNKNOWN, emulated, unmarked
from ..paths import BadInput
from ..trace_model import PASSED, trace_model

if TYPE_CHECKING:
    from flashinfer_bench.data import Trace, Workload

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


class Environment:
    """Where traces were made; one object for all that agree."""

    def __init__(self, hardware: str, libs: dict[str, str], harness: str) -> None:
        """As a trace has them; harness: what the folders tell of it."""
        self.libs = libs
        recorded = {name: libs[name] for name in sorted(libs) if name not in NOTES}
        harness = recorded.pop(HARNESS, harness)
        # what is emulated was run on the same machine as the rest
        self.facts = {"hardware": unmarked(hardware), HARNESS: harness, **recorded}
        """Everything that the figures may depend on, hardware first. The harness's own version
        counts, where it is recorded; the folders tell it else."""
        self.emulated = emulated(hardware)
        """The architecture that was emulated for the solution, such as sm_90a; None if none was."""


class TraceRecord(NamedTuple):
    """What is compared of one result, and where it was read."""

    definition: str
    workload: Workload
    solution: str
    status: str
    """An EvaluationStatus of the harness."""
    latency_ms: float | None
    reference_ms: float | None
    """0 if the reference was not timed. Both None unless it passed."""
    max_absolute_error: float | None
    max_relative_error: float | None
    """None where the harness compared nothing."""
    matched_ratio: float | None
    timestamp: datetime
    """Aware; the harness writes local time without a zone, taken as UTC."""
    where: Environment
    path: Path
    line: int

    @property
    def passed(self) -> bool:
        return self.latency_ms is not None

    @property
    def latency_us(self) -> float | None:
        """None if it did not pass."""
        return None if self.latency_ms is None else self.latency_ms * 1e3

    @property
    def environment(self) -> dict[str, str]:
        return self.where.facts

    @property
    def harness(self) -> str:
        return self.where.facts[HARNESS]

    @property
    def emulated(self) -> str | None:
        return self.where.emulated

    def note(self, name: str) -> str:
        """One of NOTES; `absent` where it was not recorded."""
        return self.where.libs.get(name, "absent")


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
    reader = Reader()
    with no_garbage_collection():
        for path, harness in _trace_files(paths).items():
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    try:
                        records.append(reader.record(line, harness, path, number))
                    except TraceError as error:
                        bad_lines.append(f"{path}:{number}: {error}")
    if bad_lines and not skip_bad_lines:
        shown = "\n  ".join(bad_lines[:10])
        more = f"\n  and {len(bad_lines) - 10} more" if len(bad_lines) > 10 else ""
        raise TraceError(f"{len(bad_lines)} unusable line(s):\n  {shown}{more}")
    if not records:
        raise TraceError(f"no traces in {', '.join(map(str, paths)) or 'an empty list of paths'}")
    return records, bad_lines


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For code that makes many objects and no cycles: the collector walks over all of them again
    and again, a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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


def whole_traces(records: Sequence[TraceRecord]) -> list[tuple[Trace, bytes]]:
    """The harness's own object of each record, and its line, which may hold more."""
    from flashinfer_bench.data import Trace

    lines = {path: path.read_bytes().split(b"\n") for path in {r.path for r in records}}
    own = [lines[record.path][record.line - 1] for record in records]
    return [(Trace.model_validate_json(line), line) for line in own]


class Reader:
    """Turns lines into records.

    The harness's model of a trace takes a tenth of a millisecond and 4 kB to make. So it judges one
    line of a kind; others of that kind, which differ in their figures only, are read here. Whatever
    is not like a line that was accepted before goes to the harness.
    """

    def __init__(self) -> None:
        self._heads: dict[bytes, tuple[str, Workload]] = {}
        """Definition and workload by the bytes of a line before its solution."""
        self._workloads: dict[str, tuple[Workload, dict[str, float], str]] = {}
        """By uuid, with the scalars and the line where it was first seen."""
        self._solutions: dict[str, str] = {}
        self._environments: dict[tuple, Environment] = {}
        self._kinds: set[tuple] = set()

    def record(self, line: bytes, harness: str, path: Path, number: int) -> TraceRecord:
        """Raises TraceError, which says what is wrong with the line."""
        return self._quickly(line, harness, path, number) or self._carefully(
            line, harness, path, number
        )

    def _quickly(self, line: bytes, harness: str, path: Path, number: int) -> TraceRecord | None:
        """None for what is not like an earlier line in everything but figures, time and log."""
        cut = line.find(SOLUTION)
        head = self._heads.get(line[:cut])
        if head is None:
            return None
        try:
            text = line[cut:]
            rest = from_json(b"{" + text)
            evaluation = rest["evaluation"]
            if type(evaluation["log"]) is not str or _kind(rest, text) not in self._kinds:
                return None
            solution = self._solutions[rest["solution"]]
            where = self._environments[_environment_key(evaluation["environment"], harness)]
            timestamp = _timestamp(evaluation["timestamp"])
            latency = reference = absolute = relative = matched = None
            if performance := evaluation.get("performance"):
                latency, reference = performance["latency_ms"], performance["reference_latency_ms"]
                speedup = performance["speedup_factor"]
                if not (_are_figures(latency, reference, speedup) and latency):
                    return None
            if correctness := evaluation.get("correctness"):
                absolute = correctness["max_absolute_error"]
                relative = correctness["max_relative_error"]
                if (extra := correctness.get("extra")) and "matched_ratio" in extra:
                    matched = extra["matched_ratio"]
                ratio = 0.0 if matched is None else matched
                if not (_are_figures(absolute, relative, ratio) and ratio <= 1):
                    return None
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return TraceRecord(
            *head, solution, evaluation["status"], latency, reference, absolute, relative, matched,
            timestamp, where, path, number,
        )  # fmt: skip

    def _carefully(self, line: bytes, harness: str, path: Path, number: int) -> TraceRecord:
        """As the harness reads it, and with figures that are figures."""
        trace = _parse(line)
        evaluation = trace.evaluation
        try:
            timestamp = _timestamp(evaluation.timestamp)
        except ValueError:
            raise TraceError(
                f"evaluation.timestamp: expected an ISO 8601 time, got {evaluation.timestamp!r}"
            ) from None
        _check_names(trace)
        workload = self._workload(trace, f"{path}:{number}")
        key = _environment_key(evaluation.environment.model_dump(), harness)
        where = self._environments.get(key)
        if where is None:
            made = evaluation.environment
            where = self._environments[key] = Environment(made.hardware, made.libs, harness)
        self._learn(line, trace, workload)
        correctness, performance = evaluation.correctness, None
        if evaluation.status == PASSED:
            performance = evaluation.performance
        return TraceRecord(
            trace.definition,
            workload,
            trace.solution,
            evaluation.status.value,
            performance and performance.latency_ms,
            performance and performance.reference_latency_ms,
            correctness and correctness.max_absolute_error,
            correctness and correctness.max_relative_error,
            correctness and (correctness.extra or {}).get("matched_ratio"),
            timestamp,
            where,
            path,
            number,
        )

    def _workload(self, trace: Trace, source: str) -> Workload:
        """Its only object; raises TraceError for a workload whose uuid was another's before."""
        workload = trace.workload
        scalars = scalars_of(workload)
        known, known_scalars, first = self._workloads.setdefault(
            workload.uuid, (workload, scalars, source)
        )
        if known.axes != workload.axes or known_scalars != scalars:
            raise TraceError(
                f"workload.uuid {workload.uuid}: expected that of {first}, {known.axes} and "
                f"{known_scalars}, got {workload.axes} and {scalars}"
            )
        return known

    def _learn(self, line: bytes, trace: Trace, workload: Workload) -> None:
        """Take other lines with the same beginning and the same kind of rest for good ones.

        Only if both are objects of their own: then the line is nothing but the two.
        """
        cut = line.find(SOLUTION)
        try:
            head = from_json(line[:cut].rstrip().removesuffix(b",") + b"}")
            rest = from_json(b"{" + line[cut:])
            if head.keys() == {"definition", "workload"}:
                self._kinds.add(_kind(rest, line[cut:]))
                self._heads[line[:cut]] = trace.definition, workload
                self._solutions[trace.solution] = trace.solution
        except (KeyError, TypeError, ValueError, AttributeError):
            pass  # in another order, which is as good


def scalars_of(workload: Workload) -> dict[str, float]:
    """Its inputs that are numbers."""
    return {name: each.value for name, each in workload.inputs.items() if each.type == "scalar"}


SOLUTION = b'"solution":'
USUAL_TIME = len("2026-11-20T13:00:00.123456")


def _kind(rest: dict, text: bytes) -> tuple:
    """Everything about a line's solution and evaluation that decides whether the harness takes it,
    but figures, names, time and log. How often a key ends tells whether one is there twice."""
    evaluation = rest["evaluation"]
    correctness, performance = evaluation.get("correctness"), evaluation.get("performance")
    extra = correctness and correctness.get("extra")
    return (
        text.count(b'":') - evaluation["log"].count('":'),
        *rest,
        *evaluation,
        evaluation["status"],
        None if correctness is None else tuple(correctness),
        None if extra is None else tuple(extra),
        None if performance is None else tuple(performance),
    )


def _environment_key(environment: dict, harness: str) -> tuple:
    return environment["hardware"], harness, len(environment), *environment["libs"].items()


def _are_figures(a: object, b: object, c: object) -> bool:
    """Whether all are floats, finite and not negative."""
    if type(a) is type(b) is type(c) is float:
        return 0 <= a < inf and 0 <= b < inf and 0 <= c < inf
    return False


def _timestamp(text: str) -> datetime:
    """Raises ValueError."""
    if len(text) == USUAL_TIME:  # giving it a zone afterwards takes longer than reading it
        try:
            return datetime.fromisoformat(text + "+00:00")
        except ValueError:
            pass
    # Python 3.10 does not read the ISO suffix Z.
    timestamp = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return timestamp.replace(tzinfo=timezone.utc) if timestamp.tzinfo is None else timestamp


def _check_names(trace: Trace) -> None:
    environment = trace.evaluation.environment
    names = [("solution", trace.solution), ("definition", trace.definition)]
    names += [("workload.uuid", trace.workload.uuid), ("hardware", environment.hardware)]
    names += [("workload.axes", name) for name in trace.workload.axes]
    names += [("libs", text) for pair in environment.libs.items() for text in pair]
    for what, name in names:
        if not name.isprintable() or not name.strip():
            raise TraceError(f"{what}: expected a name in printable characters, got {name!r}")


def _no_key_twice(pairs: list[tuple[str, object]]) -> None:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise TraceError(f"{name!r:.100}: expected this key once")
        seen.add(name)


def _parse(line: bytes) -> Trace:
    """The harness's object; raises TraceError saying what is wrong with the line."""
    if lax := NO_NUMBER.search(line):
        figure, value = (group.decode(errors="replace") for group in lax.groups())
        raise TraceError(f"{figure}: expected a number, got {value}")
    try:
        trace = trace_model().model_validate_json(line)
        json.loads(line, object_pairs_hook=_no_key_twice)
    except RecursionError:
        raise TraceError("nested too deeply") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise TraceError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    if trace.solution is None or trace.evaluation is None:
        raise TraceError("a workload, not a result: solution or evaluation is missing")
    evaluation = trace.evaluation
    if evaluation.status == PASSED:
        latency = evaluation.performance.latency_ms
        if not 0 < latency < inf:
            raise TraceError(
                f"solution {trace.solution}: PASSED with latency_ms {latency}, expected a positive "
                "number (a run without timing?)"
            )
        if not evaluation.performance.reference_latency_ms < inf:
            raise TraceError(f"solution {trace.solution}: reference_latency_ms: expected a number")
    if evaluation.correctness and evaluation.correctness.extra:
        matched_ratio = evaluation.correctness.extra.get("matched_ratio")
        is_number = isinstance(matched_ratio, int | float) and not isinstance(matched_ratio, bool)
        if matched_ratio is not None and not (is_number and 0 <= matched_ratio <= 1):
            raise TraceError(
                "evaluation.correctness.extra.matched_ratio: expected a number from 0 to 1, "
                f"got {matched_ratio!r}"
            )
    return trace
