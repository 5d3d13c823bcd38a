"""Where the time of a layer goes: a report's rows, tables and bars."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ..sheets import DIM, Entry, Heading, Sheet, number_entry
from .baseline import pick_baseline, verdict
from .stage_names import OTHER, KernelTime, comparable_us, position
from .store import Report, Row

USUAL_BASELINE = "sglang_fp8_blockwise_moe"
GAP = "gap"  # the time in which no kernel ran
LONG = 2.0  # a bar longer than this times the median is cut


class StageRow(Row):
    """One solution on one workload; times in microseconds, medians."""

    identity = ("solution", "uuid")
    solution: str
    uuid: str
    """Of the workload."""
    workload: str
    """Its name: T=58."""
    seq_len: int
    active_experts: int
    pairs: int
    end_to_end_us: float
    """By CUDA events around the call, host launch time included, cold L2."""
    stages: dict[str, float]
    """By stage; stages in one kernel are one entry, joined by ` + `."""
    kernels: list[KernelTime]

    @property
    def sum_us(self) -> float:
        return sum(self.stages.values())

    @property
    def gap_us(self) -> float:
        """Time in which no kernel ran: launch latency and host work."""
        return self.end_to_end_us - self.sum_us


class StageReport(Report[StageRow]):
    kind = "stages"
    script = "stages.py"
    row_types = (StageRow,)


def stage_sheets(report: StageReport, baseline: str | None = None) -> list[Sheet]:
    """A sheet per workload, and one of the kernels that no rule knows."""
    rows = report.rows
    if not rows:
        return []
    baseline = pick_baseline(baseline, USUAL_BASELINE, (row.solution for row in rows))
    by_workload: dict[str, list[StageRow]] = defaultdict(list)
    for row in rows:
        by_workload[row.uuid].append(row)
    sheets = [_stage_sheet(group, baseline) for group in by_workload.values()]
    unknown = [
        [Entry(row.solution), Entry(row.workload), number_entry(kernel.us), Entry(kernel.name[:90])]
        for row in rows
        for kernel in row.kernels
        if kernel.stage == OTHER
    ]
    if unknown:
        headings = [Heading("solution", left=True), Heading("workload", left=True), Heading("us")]
        headings.append(Heading("kernel", left=True))
        sheets.append(Sheet("Kernels that no stage claims (other)", headings, unknown, detail=True))
    return sheets


def _stage_sheet(rows: Sequence[StageRow], baseline: str) -> Sheet:
    against = next((row for row in rows if row.solution == baseline), None)
    headings = [
        Heading("solution", left=True),
        Heading("stage", left=True),
        Heading("us"),
        Heading("share"),
        Heading("ratio"),
        Heading("verdict", left=True),
    ]
    lines: list[list[Entry]] = []
    breaks: set[int] = set()
    for row in rows:
        breaks.add(len(lines))
        compared = [
            (name, us, against and comparable_us(name, against.stages))
            for name, us in row.stages.items()
        ]
        compared += [
            ("gap", row.gap_us, None),
            ("end to end", row.end_to_end_us, against and against.end_to_end_us),
        ]
        for i, (name, us, base) in enumerate(compared):
            ratio = us / base if base and row is not against else None
            total = name == "end to end"
            lines.append(
                [
                    Entry(row.solution if i == 0 else ""),
                    Entry(name),
                    number_entry(us),
                    Entry("" if total else f"{us / row.end_to_end_us:.0%}", DIM),
                    Entry("" if ratio is None else f"{ratio:.3f}"),
                    Entry(("baseline" if row is against else verdict(ratio)) if total else ""),
                ]
            )
    first = rows[0]
    title = f"{first.workload}: {first.pairs:,} pairs on {first.active_experts} local experts"
    return Sheet(f"{title}; ratio to {baseline}", headings, lines, frozenset(breaks - {0}))


@dataclass(frozen=True)
class Bar:
    """One solution's stages on one workload."""

    solution: str
    end_to_end_us: float
    segments: list[tuple[str, float]]
    """Stage and microseconds; the gap is the last."""


@dataclass(frozen=True)
class Bars:
    title: str
    bars: list[Bar]

    @property
    def longest_us(self) -> float:
        times = [bar.end_to_end_us for bar in self.bars]
        return min(max(times), LONG * median(times))


def stage_bars(report: StageReport) -> list[Bars]:
    """The solutions' bars of each workload, the fastest first."""
    bars_of: dict[str, list[Bar]] = defaultdict(list)
    titles = {}
    for row in report.rows:
        segments = [*row.stages.items(), (GAP, max(0.0, row.gap_us))]
        bars_of[row.uuid].append(Bar(row.solution, row.end_to_end_us, segments))
        titles[row.uuid] = f"{row.workload}: {row.pairs:,} pairs, {row.active_experts} experts"
    return [
        Bars(titles[workload], sorted(bars, key=lambda bar: bar.end_to_end_us))
        for workload, bars in bars_of.items()
    ]


def stage_names(bars: Sequence[Bars]) -> list[str]:
    """All stages in some bars in pipeline order, for the legend."""
    segments = [segment for each in bars for bar in each.bars for segment in bar.segments]
    stages = {stage for stage, _ in segments} - {GAP}
    return [*sorted(stages, key=lambda stage: (position(stage), stage)), GAP]
