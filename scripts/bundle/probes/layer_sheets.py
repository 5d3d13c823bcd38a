"""Tables of the whole-layer times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from ..comparison.floor import Gpu, MoeGeometry
from ..dataset.replicas import DEFINITION
from ..sheets import BEST, DIM, FAILED, Entry, Heading, Sheet, number
from .reports import LayerReport, LayerRow

Figure = Callable[[LayerRow], float | None]


def cold(row: LayerRow) -> float | None:
    return row.cold_us


# Title, figure, and whether the table folds away.
FIGURES: tuple[tuple[str, Figure, bool], ...] = (
    ("GPU time of a call, cold L2, launches hidden, us (+: waits for the GPU)", cold, False),
    ("Calls without pause, us each", lambda row: row.sustained_us, False),
    ("Replayed from a CUDA graph, cold L2, us (-: cannot be captured)",
     lambda row: row.graph_us, True),
    ("Host until the first kernel is launched, us", lambda row: row.first_launch_us, True),
    ("Host until the call returns, us", lambda row: row.return_us, True),
    ("SM clock without pause, MHz", lambda row: row.sm_mhz, True),
    ("Power without pause, W", lambda row: row.watts, True),
)  # fmt: skip
UNRANKED = ("MHz", "W")


def layer_sheets(report: LayerReport, gpu: Gpu | None) -> list[Sheet]:
    """A sheet per figure, then each solution's cold time against the best of the others."""
    if all(row.error for row in report.rows):
        return []
    by_workload: dict[str, dict[str, LayerRow]] = defaultdict(dict)
    for row in report.rows:
        by_workload[row.workload][row.solution] = row
    solutions = [*dict.fromkeys(row.solution for row in report.rows)]
    sheets = [
        _figure_sheet(title, figure, by_workload, solutions, gpu, detail)
        for title, figure, detail in FIGURES
        if any(figure(row) is not None for row in report.rows)
    ]
    if len(solutions) > 1:
        sheets.insert(1, _ratio_sheet(by_workload, solutions))
    return sheets


def floor_us(row: LayerRow, gpu: Gpu | None) -> float | None:
    geometry = MoeGeometry.of_definition(DEFINITION)
    if gpu is None or geometry is None or not row.pairs:
        return None
    return geometry.floor_us(gpu, row.active_experts, row.pairs)


def ratio_to_best_other(row: LayerRow, others: Sequence[LayerRow]) -> float | None:
    """Cold time over the least cold time of the other solutions on the same workload."""
    times = [other.cold_us for other in others if other is not row and other.cold_us]
    return row.cold_us / min(times) if row.cold_us and times else None


def _figure_sheet(
    title: str,
    figure: Figure,
    by_workload: dict[str, dict[str, LayerRow]],
    solutions: Sequence[str],
    gpu: Gpu | None,
    detail: bool,
) -> Sheet:
    with_floor = figure is cold
    headings = [Heading("workload", left=True)]
    if with_floor:
        headings += [Heading("experts"), Heading("pairs"), Heading("floor")]
    headings += [Heading(name) for name in solutions]
    ranked = not title.endswith(UNRANKED)
    lines = []
    for name, rows in by_workload.items():
        line = [Entry(name)]
        if with_floor:
            some = next((row for row in rows.values() if row.error is None), None)
            texts = ("-", "-", "-")
            if some:
                floor = number(floor_us(some, gpu), ",.1f")
                texts = (f"{some.active_experts}", f"{some.pairs:,}", floor)
            line += [Entry(text, DIM) for text in texts]
        values = [figure(row) for row in rows.values()]
        least = min((value for value in values if value is not None), default=None)
        for solution in solutions:
            line.append(_entry(rows.get(solution), figure, least if ranked else None))
        lines.append(line)
    return Sheet(title, headings, lines, detail=detail)


def _entry(row: LayerRow | None, figure: Figure, least: float | None) -> Entry:
    if row is None:
        return Entry("-")
    if row.error is not None:
        return Entry("failed", FAILED)
    value = figure(row)
    waits = "+" if figure is cold and not row.hidden else ""
    return Entry(
        number(value, ",.1f") + waits, BEST if value is not None and value == least else ""
    )


def _ratio_sheet(by_workload: dict[str, dict[str, LayerRow]], solutions: Sequence[str]) -> Sheet:
    lines = []
    for name, rows in by_workload.items():
        line = [Entry(name)]
        for solution in solutions:
            row = rows.get(solution)
            ratio = row and ratio_to_best_other(row, [*rows.values()])
            line.append(Entry(number(ratio, ".3f"), BEST if ratio and ratio < 1 else ""))
        lines.append(line)
    headings = [Heading("workload", left=True), *(Heading(name) for name in solutions)]
    return Sheet("Cold time / the best other solution's", headings, lines)
