"""Rendering of comparisons: terminal (rich), Markdown, CSV and JSON.

The terminal and Markdown share one step: a comparison becomes a few sheets of text cells, split
until each fits the width. CSV and JSON carry the unrounded numbers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from math import inf

from pydantic_core import to_json
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..sheets import (
    BEST,
    DIM,
    FAILED,
    SCOPE,
    Entry,
    Heading,
    Sheet,
    escaped,
    markdown_table,
    natural_width,
    number,
    rich_table,
)
from ..tolerances import MATCHED_RATIO, NEAR
from ..trace_model import PASSED
from .compatibility import recorded
from .table import COMMON, Accuracy, Aggregate, Cell, Comparison, Record, Row
from .traces import DRIVER

MARKDOWN_WIDTH = 130


@dataclass(frozen=True)
class Metric:
    """One figure of a cell: its heading in a group of figures, its title on a sheet of its own."""

    name: str
    title: str
    format: Callable[[Cell], str]


LATENCY = Metric("us", "Latency, us", lambda cell: number(cell.latency_us, ",.1f"))
SPEEDUP = Metric(
    "speed-up", "Speed-up versus the reference", lambda cell: number(cell.speedup, ",.1f")
)
RATIO = Metric(
    "ratio",
    "Latency / latency of {baseline} (below 1 is faster)",
    lambda cell: number(cell.baseline_ratio, ".3f"),
)
OVER_FLOOR = Metric(
    "us over", "Microseconds over the floor", lambda cell: number(cell.over_floor_us, ",.1f")
)
FLOOR_RATIO = Metric("x floor", "Latency / floor", lambda cell: number(cell.floor_ratio, ",.2f"))


# Sheets ----------------------------------------------------------------------------------------


def sheets(comparison: Comparison, width: int) -> list[Sheet]:
    """Workload tables at most `width` characters wide if that can be, then the summaries."""
    scores = [] if comparison.simulated else [_score_sheet(comparison)]
    return [*_workload_sheets(comparison, width), *scores, record_sheet(comparison)]


def _workload_sheets(comparison: Comparison, width: int) -> list[Sheet]:
    """As many figures to a sheet as fit with all columns; if one does not, columns are split.

    What is known of the workloads themselves stands beside the latencies, or before them if all
    solutions' latencies would not fit beside it.
    """
    labels = [column.label for column in comparison.columns]
    context = _context(comparison.rows)

    def sheet(metrics: list[Metric], labels: list[str]) -> Sheet:
        return _workload_sheet(comparison, metrics, labels, context if LATENCY in metrics else [])

    def fits(metrics: list[Metric], labels: list[str]) -> bool:
        return natural_width(sheet(metrics, labels)) <= width

    sheets = []
    if context and not fits([LATENCY], labels):
        sheets.append(_workload_sheet(comparison, [], [], context))
        context = []
    for metrics in _chunks(_metrics(comparison), lambda metrics: fits(metrics, labels)):
        sheets += [sheet(metrics, part) for part in _chunks(labels, partial(fits, metrics))]
    return sheets


def _chunks(items: list, fits: Callable[[list], bool]) -> list[list]:
    """Cut `items` into runs that fit, as long as can be, of one item at least."""
    if fits(items):
        return [items]
    chunks: list[list] = []
    for item in items:
        if chunks and fits([*chunks[-1], item]):
            chunks[-1].append(item)
        else:
            chunks.append([item])
    return chunks


def _metrics(comparison: Comparison) -> list[Metric]:
    """The figures that these traces give."""
    cells = [cell for row in comparison.rows for cell in row.cells.values()]
    metrics = [LATENCY]
    if any(cell.speedup is not None for cell in cells):
        metrics.append(SPEEDUP)
    if comparison.baseline and len(comparison.columns) > 1:
        metrics.append(RATIO)
    if any(cell.over_floor_us is not None for cell in cells):
        metrics += [OVER_FLOOR, FLOOR_RATIO]
    return metrics


def _workload_sheet(
    comparison: Comparison,
    metrics: Sequence[Metric],
    labels: Sequence[str],
    context: Sequence[tuple[str, Callable[[Row], str]]],
) -> Sheet:
    """The workloads' names, their `context`, and `metrics` of the columns called `labels`."""
    headings = [Heading(name) for name in comparison.rows[0].label]
    headings += [Heading(name) for name, _ in context]
    if len(metrics) == 1:
        headings += [Heading(label) for label in labels]
        title = metrics[0].title.format(baseline=comparison.baseline)
    else:
        headings += [Heading(metric.name, label) for label in labels for metric in metrics]
        title = ": ".join(filter(None, ["Workloads", ", ".join(metric.name for metric in metrics)]))
    rows = []
    for row in comparison.rows:
        entries = [Entry("" if value is None else f"{value}") for value in row.label.values()]
        entries += [Entry(value(row), DIM) for _, value in context]
        for label in labels:
            entries += _cell_entries(row.cells[label], metrics)
        rows.append(entries)
    regimes = [row.regime for row in comparison.rows]
    breaks = frozenset(i for i in range(1, len(rows)) if regimes[i] != regimes[i - 1])
    return Sheet(title, headings, rows, breaks, detail=LATENCY not in metrics)


def _context(rows: Sequence[Row]) -> list[tuple[str, Callable[[Row], str]]]:
    """Columns on the workloads themselves: routing, floor, time of the reference."""
    context: list[tuple[str, Callable[[Row], str]]] = []
    if any(row.routing for row in rows):
        context += [
            ("experts", lambda row: f"{row.routing.active_experts}" if row.routing else "-"),
            ("pairs", lambda row: f"{row.routing.pairs:,}" if row.routing else "-"),
        ]
    floors = [{cell.floor_us for cell in row.cells.values()} for row in rows]
    if all(len(values) == 1 for values in floors) and floors != [{None}] * len(rows):
        context.append(("floor", _floor))
    if any(cell.reference_us for row in rows for cell in row.cells.values()):
        context.append(("reference", _reference))
    return context


def _floor(row: Row) -> str:
    return number(next(iter(row.cells.values())).floor_us, ",.1f")


def _reference(row: Row) -> str:
    """The reference's time, or its range if the solutions' runs timed it differently."""
    times = [cell.reference_us for cell in row.cells.values() if cell.reference_us is not None]
    if not times:
        return "-"
    texts = list(dict.fromkeys(f"{time:,.0f}" for time in (min(times), max(times))))
    return "-".join(texts)


def _cell_entries(cell: Cell, metrics: Sequence[Metric]) -> list[Entry]:
    """A cell's figures, the fastest marked; or its status, and nothing in the other columns."""
    if cell.status != PASSED:
        return [Entry(cell.status, FAILED, spans=True), *[Entry("")] * (len(metrics) - 1)]
    first, *others = (Entry(metric.format(cell)) for metric in metrics)
    return [Entry(first.text, BEST) if cell.winner else first, *others]


def _score_sheet(comparison: Comparison) -> Sheet:
    """Means and wins of every solution in every scope, each scope under a line with its name."""
    several = len(comparison.columns) > 1
    with_ratio = bool(comparison.baseline) and several
    headings = [Heading("solution", left=True), Heading("passed")]
    if several:
        headings += [Heading("wins"), Heading("beyond noise")]
    headings += [Heading("geom.", "speed-up"), Heading("arith.", "speed-up")]
    if with_ratio:
        group = f"latency / {comparison.baseline}"
        headings += [Heading("geom.", group), Heading("arith.", group)]
    rows: list[list[Entry]] = []
    breaks: set[int] = set()
    for scope in comparison.scopes:
        breaks.add(len(rows))
        name = scope.label
        if name == COMMON:
            name = f"{COMMON} ({scope.workloads}/{len(comparison.rows)})"
        rows.append([Entry(name, SCOPE), *[Entry("")] * (len(headings) - 1)])
        scores = scope.scores.values()
        most = max(score.speedup_geometric.value or 0 for score in scores)
        least = min(score.ratio_geometric.value or inf for score in scores)
        most_wins = max(score.wins for score in scores)
        for label, score in scope.scores.items():
            passed = f"{score.passed}/{score.total}"
            entries = [
                Entry(f"  {label}"),
                Entry(passed, FAILED if score.passed < score.total else ""),
            ]
            if several:
                entries.append(Entry(f"{score.wins}", BEST if score.wins == most_wins else ""))
                entries.append(Entry(f"{score.clear_wins}"))
            entries += [
                _aggregate(score.speedup_geometric, ",.2f", most if several else None),
                _aggregate(score.speedup_arithmetic, ",.2f"),
            ]
            if with_ratio:
                entries += [
                    _aggregate(score.ratio_geometric, ".3f", least),
                    _aggregate(score.ratio_arithmetic, ".3f"),
                ]
            rows.append(entries)
    return Sheet("Geometric and arithmetic means", headings, rows, frozenset(breaks - {0}))


def _aggregate(aggregate: Aggregate, pattern: str, best: float | None = None) -> Entry:
    """A figure; with how many of its cells gave one if not all did."""
    count = f"{aggregate.count}/{aggregate.total}"
    if aggregate.value is None:
        return Entry(count, FAILED)
    text = number(aggregate.value, pattern)
    if aggregate.count < aggregate.total:
        return Entry(f"{text} ({count})")
    return Entry(text, BEST if aggregate.value == best else "")


def record_sheet(comparison: Comparison) -> Sheet:
    """Statuses and worst errors of every solution."""
    headings = [
        Heading("solution", left=True),
        Heading("statuses", left=True),
        Heading("compared"),
        Heading("least matched ratio"),
        Heading("largest abs. error"),
        Heading("largest rel. error"),
    ]
    rows = []
    for label, record in comparison.records.items():
        statuses = "\n".join(f"{count} {status}" for status, count in record.statuses.items())
        failed = record.statuses.keys() != {PASSED}
        compared = record.max_absolute_error
        rows.append(
            [
                Entry(label),
                Entry(statuses, FAILED if failed else ""),
                Entry(f"{compared.count}/{compared.total}"),
                matched_ratio(record),
                Entry(number(compared.value, ".4g")),
                Entry(number(record.max_relative_error.value, ".4g")),
            ]
        )
    return Sheet("Correctness", headings, rows)


def matched_ratio(record: Record) -> Entry:
    """The least, flagged where it is close to the ratio that the bundle's runs require."""
    # Only some evaluators record one, and those not for output with NaN or Inf.
    least = replace(record.matched_ratio_min, total=record.max_absolute_error.count)
    if not least.count or least.value is None:
        return Entry("-")
    entry = _aggregate(least, ".4f")
    if least.value < MATCHED_RATIO + NEAR:
        what = "near" if least.value >= MATCHED_RATIO else "below"
        return Entry(f"{entry.text} ({what} {MATCHED_RATIO:g})", FAILED)
    return entry


def title(comparison: Comparison) -> str:
    """Which section this is."""
    return f"{comparison.definition} on {', '.join(comparison.provenance.environment['hardware'])}"


def facts(comparison: Comparison, command: str) -> list[tuple[str, str]]:
    """The head of every report: what was measured, where and when, and how to get the table."""
    provenance = comparison.provenance
    environment = dict(provenance.environment)
    hardware = ", ".join(environment.pop("hardware"))
    harness = ", ".join(environment.pop("flashinfer_bench"))
    if drivers := recorded(DRIVER, environment.pop(DRIVER, ())):
        hardware += f", driver {' | '.join(drivers)}"
    dates = " to ".join(dict.fromkeys([provenance.first[:16], provenance.last[:16]]))
    count = f"{provenance.traces}"
    if provenance.superseded:
        count += f", {provenance.superseded} more superseded by later ones"
    if provenance.skipped_lines:
        count += f", {provenance.skipped_lines} unusable line(s) skipped"
    return [
        ("hardware", hardware),
        ("libraries", ", ".join(f"{name} {' | '.join(v)}" for name, v in environment.items())),
        ("flashinfer-bench", harness),
        ("measured", dates.replace("T", " ")),
        ("traces", count),
        ("command", command),
    ]


def legend(comparison: Comparison, best: str) -> str:
    """What the figures and marks mean; `best` is how the medium marks the best."""
    parts = ["Times in us."]
    if len(comparison.columns) > 1 and not comparison.simulated:
        parts.append(f"{best}: the fastest of a row, the best of a block.")
    metrics = _metrics(comparison)
    if SPEEDUP in metrics:
        parts.append("speed-up: reference / latency.")
    if RATIO in metrics:
        parts.append(f"ratio: latency / latency of {comparison.baseline}, below 1 is faster.")
    if OVER_FLOOR in metrics:
        parts.append("us over, x floor: latency - floor, latency / floor.")
    overall = comparison.scopes[0].scores
    if any(score.passed < score.total for score in overall.values()):
        parts.append("k/n instead of a mean: only k of n workloads give a figure.")
    for scope in comparison.scopes:
        if scope.label == COMMON:
            parts.append("common: workloads that all of the solutions listed there passed.")
    return " ".join(parts)


# Terminal --------------------------------------------------------------------------------------


def terminal(comparison: Comparison, command: str, width: int) -> RenderableType:
    """The whole report as one rich renderable for a terminal of `width` columns."""
    head = Table.grid(padding=(0, 2))
    for name, value in facts(comparison, command):
        head.add_row(Text(name, style=DIM), Text(value))
    parts: list[RenderableType] = [Text(title(comparison), style="bold"), head]
    parts += [Text(note, style="yellow") for note in comparison.notes]
    parts.append(Text(legend(comparison, best="*"), style=DIM))
    for sheet in sheets(comparison, width):
        parts += [Text(), Text(sheet.title, style="bold cyan"), rich_table(sheet)]
    return Group(*parts)


# Markdown --------------------------------------------------------------------------------------


def markdown(comparison: Comparison, command: str) -> str:
    """The whole report as Markdown; sheets of a single figure but the latency fold away."""
    lines = [f"### {title(comparison)}", ""]
    for name, value in facts(comparison, command):
        lines.append(f"- {name}: " + (f"`{value}`" if name == "command" else escaped(value)))
    lines += [f"- {note}" for note in [*comparison.notes, legend(comparison, best="bold")]]
    for sheet in sheets(comparison, MARKDOWN_WIDTH):
        lines.append("")
        if sheet.detail:
            lines += [f"<details><summary>{sheet.title}</summary>", ""]
        else:
            lines += [f"**{sheet.title}**", ""]
        lines += markdown_table(sheet)
        if sheet.detail:
            lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


# Data ------------------------------------------------------------------------------------------


def to_json_text(comparisons: Sequence[Comparison], command: str) -> str:
    """Everything there is; NaN and infinities as strings, as flashinfer-bench writes them."""
    report = {"command": command, "comparisons": comparisons}
    return to_json(report, indent=2, inf_nan_mode="strings").decode() + "\n"


def to_csv_text(comparisons: Sequence[Comparison]) -> str:
    """One line per workload and solution, missing ones included; absent figures are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for comparison in comparisons:
        for row in comparison.rows:
            for column in comparison.columns:
                cell = row.cells[column.label]
                line = {name: getattr(cell, name) for name in _CELL_FIELDS}
                line |= asdict(cell.accuracy) if cell.accuracy else {}
                line |= {
                    "definition": comparison.definition,
                    "uuid": row.uuid,
                    "workload": " ".join(f"{name}={value}" for name, value in row.label.items()),
                    "regime": row.regime,
                    "active_experts": row.routing and row.routing.active_experts,
                    "pairs": row.routing and row.routing.pairs,
                    "solution": column.solution,
                    "environment": " ".join(f"{k}={v}" for k, v in column.environment.items()),
                }
                writer.writerow(line)
    return out.getvalue()


_CELL_FIELDS = [entry.name for entry in fields(Cell) if entry.name != "accuracy"]
_CSV_FIELDS = [
    *("definition", "uuid", "workload", "regime", "active_experts", "pairs", "solution"),
    *_CELL_FIELDS,
    *(entry.name for entry in fields(Accuracy)),
    "environment",
]
