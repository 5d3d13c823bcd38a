"""Whole-layer times: a report's rows and tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median

from ..comparison.floor import Gpu, MoeGeometry
from ..sheets import BEST, DIM, FAILED, Entry, Heading, Sheet, number, number_entry
from .store import Report, Row


class LayerRow(Row):
    """One solution on one workload; times in microseconds."""

    identity = ("solution", "uuid")
    solution: str
    uuid: str
    """Of the workload."""
    workload: str
    """Its name: T=58, or uniform T=128."""
    routing: str
    """What the tokens do: `workload`, or one of cases.ROUTINGS."""
    seq_len: int
    active_experts: int
    pairs: int
    largest_load: int
    """Rows of the local expert that has most."""
    relative_error: float
    """L2, of some tokens, against the reference."""
    cold_us: float
    """Median with a cold L2 cache, launches hidden."""
    spread_us: float
    """Of those, between the quartiles."""
    hidden: bool
    """False for a solution that waits for the GPU: its times contain the host's work."""
    sustained_us: float
    """Mean of calls without pause."""
    sm_mhz: float | None = None
    watts: float | None = None
    """Meanwhile; None where NVML does not tell."""
    graph_us: float | None = None
    """Median of a CUDA graph's replays, cold L2 cache."""
    not_captured: str | None = None
    """Why there is none."""
    first_launch_us: float | None = None
    """Of the host until the first kernel is launched, on an idle GPU, under the profiler; None
    where that saw no launch, and for calls too slow for it to matter."""
    return_us: float
    """Of the host until the call returns, on an idle GPU."""

    def floor_us(self, gpu: Gpu | None) -> float | None:
        """None for a GPU whose rates are not known, and where no expert is hit."""
        geometry = MoeGeometry.of_definition(self.definition or "")
        if gpu is None or geometry is None or not self.pairs:
            return None
        return geometry.floor_us(gpu, self.active_experts, self.pairs)


class LayerReport(Report[LayerRow]):
    kind = "layer"
    script = "layer.py"
    row_types = (LayerRow,)


Figure = Callable[[LayerRow], float | None]
Workload = dict[str, LayerRow]
"""The rows of one workload by solution."""


def cold(row: LayerRow) -> float:
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
    """Each solution's cold time against the best of the others, by routing where there are several
    workloads; then a sheet per figure, the ratios of each workload behind the first."""
    workloads = by_workload(report)
    if not workloads:
        return []
    names = solutions_of(report)
    sheets = [
        _figure_sheet(title, figure, workloads, names, gpu, detail)
        for title, figure, detail in FIGURES
        if any(figure(row) is not None for row in report.rows)
    ]
    if len(names) > 1:
        sheets.insert(1, _ratio_sheet(workloads, names))
        summary = _routing_sheet(by_routing(workloads), names)
        if len(workloads) > 1 and summary.rows:
            sheets.insert(0, summary)
    return sheets


def by_workload(report: LayerReport) -> list[Workload]:
    """The rows of each workload that has any, in the order of the run."""
    found: dict[str, Workload] = defaultdict(dict)
    for row in report.rows:
        found[row.uuid][row.solution] = row
    return [*found.values()]


def by_routing(workloads: Sequence[Workload]) -> dict[str, list[Workload]]:
    """The workloads of each routing, those with fewer tokens first."""
    found: dict[str, list[Workload]] = defaultdict(list)
    for rows in workloads:
        found[next(iter(rows.values())).routing].append(rows)
    for several in found.values():
        several.sort(key=lambda rows: next(iter(rows.values())).seq_len)
    return found


def solutions_of(report: LayerReport) -> list[str]:
    """Every solution of the run, those without a time last."""
    failed = [str(each.key[0]) for each in report.failed]
    return [*dict.fromkeys([*(row.solution for row in report.rows), *failed])]


def ratio_to_best_other(solution: str, workload: Workload) -> float | None:
    """A solution's cold time over the least of the others; None without either."""
    others = [row.cold_us for name, row in workload.items() if name != solution]
    if solution not in workload or not others:
        return None
    return workload[solution].cold_us / min(others)


def _figure_sheet(
    title: str,
    figure: Figure,
    workloads: Sequence[Workload],
    solutions: Sequence[str],
    gpu: Gpu | None,
    detail: bool,
) -> Sheet:
    with_floor = figure is cold
    headings = [Heading("workload", left=True)]
    if with_floor:
        headings += [Heading("experts"), Heading("pairs"), Heading("floor")]
    headings += [Heading(name) for name in solutions]
    lines = []
    for rows in workloads:
        some = next(iter(rows.values()))
        line = [Entry(some.workload)]
        if with_floor:
            floor = number(some.floor_us(gpu), ",.1f")
            line += [Entry(t, DIM) for t in (f"{some.active_experts}", f"{some.pairs:,}", floor)]
        values = [value for row in rows.values() if (value := figure(row)) is not None]
        best = None if title.endswith(UNRANKED) else min(values, default=None)
        line += [_entry(rows.get(name), figure, best) for name in solutions]
        lines.append(line)
    return Sheet(title, headings, lines, detail=detail)


def _entry(row: LayerRow | None, figure: Figure, best: float | None) -> Entry:
    if row is None:
        return Entry("failed", FAILED)
    value = figure(row)
    waits = "+" if figure is cold and not row.hidden else ""
    return Entry(number(value, ",.1f") + waits, BEST if value is not None and value == best else "")


def _ratio_sheet(workloads: Sequence[Workload], solutions: Sequence[str]) -> Sheet:
    lines = []
    for rows in workloads:
        line = [Entry(next(iter(rows.values())).workload)]
        for name in solutions:
            ratio = ratio_to_best_other(name, rows)
            line.append(Entry(number(ratio, ".3f"), BEST if ratio and ratio < 1 else ""))
        lines.append(line)
    headings = [Heading("workload", left=True), *(Heading(name) for name in solutions)]
    return Sheet("Cold time / the best other solution's", headings, lines)


def _routing_sheet(routings: dict[str, list[Workload]], solutions: Sequence[str]) -> Sheet:
    """For each routing and solution: on how many workloads it is first, and the least, the median
    and the greatest ratio to the best other, with the workload of the greatest."""
    lines: list[list[Entry]] = []
    breaks = set()
    for routing, workloads in routings.items():
        breaks.add(len(lines))
        for name in solutions:
            ratios = {
                rows[name].seq_len: ratio
                for rows in workloads
                if (ratio := ratio_to_best_other(name, rows)) is not None
            }
            if not ratios:
                continue
            worst = max(ratios, key=lambda seq_len: ratios[seq_len])
            firsts = sum(ratio < 1 for ratio in ratios.values())
            figures = min(ratios.values()), median(ratios.values()), ratios[worst]
            lines.append([
                Entry(routing), Entry(name), Entry(f"{firsts} of {len(ratios)}"),
                *(number_entry(figure, ".3f") for figure in figures), Entry(f"T={worst}"),
            ])  # fmt: skip
    headings = [
        Heading("routing", left=True), Heading("solution", left=True), Heading("first on"),
        Heading("least"), Heading("median"), Heading("greatest"), Heading("at"),
    ]  # fmt: skip
    title = "Cold time / the best other solution's, by routing"
    return Sheet(title, headings, lines, frozenset(breaks - {0}))
