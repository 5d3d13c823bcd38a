"""What a comparison is made of: cells, the workloads' rows, and figures over several of them.

A result that is not there stays visible: a cell always has a status, and a mean over an incomplete
set has no value, only a count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from statistics import fmean, geometric_mean

from ..trace_model import PASSED
from .floor import Routing
from .spread import Measured

MISSING = "missing"
COMMON = "common"  # the scope of the workloads passed by all solutions that passed any


@dataclass(frozen=True)
class Accuracy:
    """Errors against the reference; NaN and infinity are values like any other here."""

    matched_ratio: float | None  # None: the evaluator recorded none
    max_absolute_error: float
    max_relative_error: float


@dataclass(frozen=True)
class Cell:
    """One solution on one workload. Without a latency all derived figures are None."""

    status: str  # an EvaluationStatus of the harness, or MISSING
    latency_us: float | None = None
    reference_us: float | None = None  # None also if the reference was not timed
    speedup: float | None = None  # reference / latency
    baseline_ratio: float | None = None  # latency / latency of the baseline: below 1 is faster
    winner: bool = False
    clear: bool = False  # wins by more than the spread of the runs
    spread: Measured | None = None  # of the runs with this commit of the bundle
    floor_us: float | None = None  # given without a latency too; None without a roofline
    over_floor_us: float | None = None
    floor_ratio: float | None = None  # latency / floor
    accuracy: Accuracy | None = None
    timestamp: str | None = None  # ISO 8601
    source: str | None = None  # file:line of the trace


@dataclass(frozen=True)
class Row:
    """One workload."""

    uuid: str
    label: dict[str, float | str | None]  # what tells it apart: axes, then scalar inputs
    axes: dict[str, int]
    scalars: dict[str, float]
    routing: Routing | None
    regime: str | None
    cells: dict[str, Cell]  # by column label


@dataclass(frozen=True)
class Column:
    """One solution, in one environment where several are compared."""

    label: str
    solution: str
    environment: dict[str, str]


@dataclass(frozen=True)
class Aggregate:
    """A figure over the cells of a scope: how many of them gave a value, and the figure.

    A mean has a value only if all did; an extreme is that of the cells that did.
    """

    value: float | None
    count: int
    total: int

    @classmethod
    def mean(
        cls, mean: Callable[[list[float]], float], values: Sequence[float | None]
    ) -> Aggregate:
        there = [value for value in values if value is not None]
        complete = len(there) == len(values)
        return cls(mean(there) if complete else None, len(there), len(values))

    @classmethod
    def worst(
        cls, pick: Callable[[list[float]], float], values: Sequence[float | None]
    ) -> Aggregate:
        """A NaN is worse than any number (min and max would hide it)."""
        there = [value for value in values if value is not None]
        worst = pick(there) if there else None
        if any(isnan(value) for value in there):
            worst = nan
        return cls(worst, len(there), len(values))


@dataclass(frozen=True)
class Score:
    """One solution over the workloads of one scope."""

    passed: int
    total: int
    wins: int
    clear_wins: int  # those beyond the spread of the runs
    speedup_geometric: Aggregate
    speedup_arithmetic: Aggregate
    ratio_geometric: Aggregate
    ratio_arithmetic: Aggregate

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Score:
        speedups = [cell.speedup for cell in cells]
        ratios = [cell.baseline_ratio for cell in cells]
        return cls(
            passed=sum(cell.status == PASSED for cell in cells),
            total=len(cells),
            wins=sum(cell.winner for cell in cells),
            clear_wins=sum(cell.clear for cell in cells),
            speedup_geometric=Aggregate.mean(geometric_mean, speedups),
            speedup_arithmetic=Aggregate.mean(fmean, speedups),
            ratio_geometric=Aggregate.mean(geometric_mean, ratios),
            ratio_arithmetic=Aggregate.mean(fmean, ratios),
        )


@dataclass(frozen=True)
class Scope:
    """Workloads that are averaged together: all, a regime, or those that everybody passed."""

    label: str
    workloads: int
    scores: dict[str, Score]  # by column label

    @classmethod
    def of(cls, label: str, rows: Sequence[Row], columns: Sequence[str]) -> Scope:
        scores = {name: Score.of([row.cells[name] for row in rows]) for name in columns}
        return cls(label, len(rows), scores)


@dataclass(frozen=True)
class Record:
    """One solution's statuses and worst errors over all workloads."""

    statuses: dict[str, int]
    matched_ratio_min: Aggregate
    max_absolute_error: Aggregate
    max_relative_error: Aggregate

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Record:
        def worst(pick: Callable[[list[float]], float], name: str) -> Aggregate:
            found = [getattr(cell.accuracy, name) if cell.accuracy else None for cell in cells]
            return Aggregate.worst(pick, found)

        return cls(
            statuses=dict(Counter(cell.status for cell in cells).most_common()),
            matched_ratio_min=worst(min, "matched_ratio"),
            max_absolute_error=worst(max, "max_absolute_error"),
            max_relative_error=worst(max, "max_relative_error"),
        )


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from."""

    environment: dict[str, list[str]]  # hardware, flashinfer_bench, torch, ...: values seen
    first: str  # ISO 8601
    last: str
    traces: int  # used in the table
    superseded: int  # left out for a later trace of the same solution and workload
    skipped_lines: int  # in all files read, whatever their definition


@dataclass(frozen=True)
class Comparison:
    """Everything about one definition."""

    definition: str
    baseline: str | None
    provenance: Provenance
    columns: list[Column]
    rows: list[Row]
    scopes: list[Scope]
    records: dict[str, Record]  # by column label
    notes: list[str] = field(default_factory=list)
    simulated: bool = False
    """Kernels were interpreted or emulated: times are shown, but nothing is made of them."""


def workload_name(label: dict) -> str:
    """T=58 where seq_len alone tells workloads apart, else all of the label."""
    rest = {k: v for k, v in label.items() if k not in ("seq_len", "local_expert_offset")}
    if "seq_len" in label and not rest:
        return f"T={label['seq_len']}"
    return " ".join(f"{name}={value}" for name, value in label.items())
