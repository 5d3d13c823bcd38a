"""Short tables of a comparison: percent of the floor, one figure at a time, who wins."""

from __future__ import annotations

from collections.abc import Callable
from statistics import geometric_mean

from ..sheets import BEST, DIM, FAILED, Entry, Heading, Sheet, number_entry
from ..trace_model import PASSED
from .table import COMMON, MISSING, Cell, Comparison, Row, workload_name


def percent_of_floor(comparison: Comparison) -> dict[str, list[float | None]]:
    """100 * floor / latency of each column, for each row; None where either is not there."""
    return {
        column.label: [
            100 / cell.floor_ratio if (cell := row.cells[column.label]).floor_ratio else None
            for row in comparison.rows
        ]
        for column in comparison.columns
    }


def percent_sheet(comparison: Comparison) -> Sheet | None:
    """Percent of the floor by workload, geometric means last; None without any floor."""
    percents = percent_of_floor(comparison)
    if not any(value for values in percents.values() for value in values):
        return None
    headings = [Heading(name) for name in ("workload", "experts", "floor, us", *percents)]
    lines = []
    for i, row in enumerate(comparison.rows):
        floor = next(iter(row.cells.values())).floor_us
        best = max((values[i] or 0 for values in percents.values()), default=0)
        entries = [Entry(workload_name(row.label)), _experts(row), number_entry(floor)]
        for label, values in percents.items():
            if values[i] is None:
                missing = row.cells[label].status == MISSING
                entries.append(Entry(MISSING if missing else "failed", FAILED))
            else:
                entries.append(Entry(f"{values[i]:.0f}", BEST if values[i] == best else ""))
        lines.append(entries)
    means = [Entry("mean", DIM), Entry(""), Entry("")]
    for values in percents.values():
        there = [value for value in values if value is not None]
        complete = len(there) == len(values)
        means.append(Entry(f"{geometric_mean(there):.0f}" if complete else "-", DIM))
    lines.append(means)
    return Sheet("Percent of the floor reached", headings, lines, frozenset({len(comparison.rows)}))


def figure_sheet(comparison: Comparison, figure: Callable[[Cell], str], title: str) -> Sheet:
    """One figure of all solutions on all workloads, the fastest of a row marked."""
    routed = any(row.routing for row in comparison.rows)
    headings = [Heading("workload"), *[Heading("experts")] * routed]
    headings += [Heading(column.label) for column in comparison.columns]
    lines = []
    for row in comparison.rows:
        entries = [Entry(workload_name(row.label)), *[_experts(row)] * routed]
        for column in comparison.columns:
            cell = row.cells[column.label]
            if cell.status == PASSED:
                entries.append(Entry(figure(cell), BEST if cell.winner else ""))
            else:
                entries.append(Entry(cell.status, FAILED))
        lines.append(entries)
    return Sheet(title, headings, lines)


def summary_sheet(comparison: Comparison) -> Sheet:
    """Who wins: workloads passed and won, geometric mean speed-ups over all and by regime."""
    headings = [
        Heading(name, left=name == "solution")
        for name in ("solution", "passed", "wins", "beyond noise")
    ]
    scopes = [scope for scope in comparison.scopes if scope.label != COMMON]
    headings += [Heading(f"speed-up, {scope.label}") for scope in scopes]
    best = {
        scope.label: max((s.speedup_geometric.value or 0 for s in scope.scores.values()), default=0)
        for scope in scopes
    }
    lines = []
    for column in comparison.columns:
        overall = comparison.scopes[0].scores[column.label]
        failed = FAILED if overall.passed < overall.total else ""
        entries = [Entry(column.label), Entry(f"{overall.passed}/{overall.total}", failed)]
        entries += [Entry(f"{overall.wins}"), Entry(f"{overall.clear_wins}")]
        for scope in scopes:
            mean = scope.scores[column.label].speedup_geometric
            if mean.value is None:
                entries.append(Entry(f"{mean.count} of {mean.total}", FAILED))
            else:
                style = BEST if mean.value == best[scope.label] else ""
                entries.append(Entry(f"{mean.value:,.2f}", style))
        lines.append(entries)
    return Sheet("Geometric mean speed-up versus the reference", headings, lines)


def _experts(row: Row) -> Entry:
    """How many local experts are hit: what a small workload's time goes by, not its tokens."""
    return Entry(f"{row.routing.active_experts}" if row.routing else "-", DIM)
