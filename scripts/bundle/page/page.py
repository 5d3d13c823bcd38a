"""The comparison page: everything that was measured, in one HTML file without network access.

Line plots are matplotlib's; bars, heat maps and tables are HTML, so that they fit any width. The
template, its style sheet and its script stand beside this file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..comparison.figures import Comparison, compare
from ..comparison.render import LATENCY, SPEEDUP, record_sheet
from ..comparison.render import facts as trace_facts
from ..comparison.traces import TraceRecord
from ..paths import ROOT
from ..probes.report_tables import (
    GEMM_BASELINE,
    gemm_figures,
    gemm_ratios,
    gemm_sheets,
    metric_sheet,
    percent_of_floor,
    percent_sheet,
    pick_baseline,
    precision_sheets,
    roofline_sheets,
    stage_sheets,
    summary_sheet,
    workload_name,
)
from ..probes.reporting import facts, failures
from ..probes.reports import (
    KINDS,
    GemmReport,
    PrecisionReport,
    Report,
    RooflineReport,
    StageReport,
    load_all,
    rates,
)
from ..probes.stages import JOIN, STAGES, SWIGLU, position
from ..sheets import BEST, DIM, FAILED, Sheet
from . import plots
from .plots import NARROW, WIDE, Plot, Series

FOLDER = Path(__file__).parent
GROUPING = ("solution", "workload", "stage", "case", "cases")  # columns that leave out repetitions
GAP = "gap"  # the time in which no kernel ran
LONG = 2.0  # a bar longer than this times the median is cut


@dataclass(frozen=True)
class Machine:
    """Everything measured on one GPU (or CPU)."""

    hardware: str
    comparisons: list[Comparison]
    reports: dict[str, Report]
    """By kind; kinds that were not run are not there."""


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


@dataclass(frozen=True)
class HeatMap:
    """Percent of the floor (or TFLOP/s) of one kernel over the sweep."""

    kernel: str
    unit: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[float, str] | None]]]
    """Name and, by column, value with a text for hovering; None where it was not measured."""
    most: float


@dataclass
class Page:
    """What the template shows."""

    title: str
    machines: list[Machine]
    solutions: list[str]
    command: str


def machines_of(records: Sequence[TraceRecord], folder: Path) -> list[Machine]:
    """All GPUs with traces or reports, the most thoroughly measured first."""
    by_hardware: dict[str, list[TraceRecord]] = defaultdict(list)
    for record in records:
        by_hardware[record.environment["hardware"]].append(record)
    reports: dict[str, dict[str, Report]] = defaultdict(dict)
    for kind in KINDS:
        for report in load_all(kind, folder):
            reports[report.provenance.hardware][kind.kind] = report
    machines = []
    names = sorted(by_hardware.keys() | reports.keys())
    names.sort(key=lambda name: (-len(by_hardware[name]), -len(reports[name])))
    for hardware in names:
        comparisons = []
        if own := by_hardware[hardware]:
            comparisons = compare(own, root=ROOT, mix=True, gpu=rates(folder, hardware))
        machines.append(Machine(hardware, comparisons, reports[hardware]))
    return machines


def solutions_of(machines: Sequence[Machine]) -> list[str]:
    """All solutions that were timed anywhere; their order decides over colours."""
    names = {c.solution for m in machines for each in m.comparisons for c in each.columns}
    for machine in machines:
        if stages := machine.reports.get(StageReport.kind):
            names |= {row.solution for row in stages.rows}
    return sorted(names)


def line_plots(comparison: Comparison, prefix: str) -> list[Plot]:
    """Latency, speed-up and percent of the floor, where the traces tell."""
    workloads = [workload_name(row.label) for row in comparison.rows]

    def series(value) -> list[Series]:
        columns = comparison.columns
        all_series = [
            Series(c.solution, [value(row.cells[c.label]) for row in comparison.rows])
            for c in columns
        ]
        return [each for each in all_series if any(v is not None for v in each.values)]

    floors = [next(iter(row.cells.values())).floor_us for row in comparison.rows]
    floor = Series("roofline floor", floors) if all(floors) else None
    percents = percent_of_floor(comparison)
    plot = partial(Plot, workloads=workloads)
    found = [
        plot(f"{prefix}-latency", "Latency", "us", series=series(lambda cell: cell.latency_us),
             log=True, floor=floor),
        plot(f"{prefix}-speedup", "Speed-up versus the reference", "x",
             series=series(lambda cell: cell.speedup), log=True),
        plot(f"{prefix}-floor", "Percent of the roofline reached", "%",
             series=[Series(column.solution, percents[column.label])
                     for column in comparison.columns if any(percents[column.label])],
             ceiling=100.0),
    ]  # fmt: skip
    return [each for each in found if each.series]


def stage_bars(report: StageReport) -> list[Bars]:
    """The solutions' bars of each workload, the fastest first."""
    by_workload: dict[str, list[Bar]] = defaultdict(list)
    titles = {}
    for row in report.rows:
        if row.error is None:
            segments = [*row.stages.items(), (GAP, max(0.0, row.gap_us))]
            by_workload[row.workload].append(Bar(row.solution, row.end_to_end_us, segments))
            titles[row.workload] = (
                f"{row.workload}: {row.pairs:,} pairs, {row.active_experts} experts"
            )
    return [
        Bars(titles[workload], sorted(bars, key=lambda bar: bar.end_to_end_us))
        for workload, bars in by_workload.items()
    ]


def heat_maps(report: GemmReport, folder: Path) -> list[HeatMap]:
    """One map per kernel: N x K by E x m."""
    gpu = rates(folder, report.provenance.hardware)
    key, unit = ("percent", "% of the floor") if gpu else ("tflops", "TFLOP/s")
    rows = [row for row in report.rows if row.error is None and row.is_sweep]
    if not rows:
        return []
    baseline = pick_baseline(None, GEMM_BASELINE, (row.kernel for row in rows))
    ratios = gemm_ratios(rows, baseline)
    cells: dict[str, dict[tuple[str, str], tuple[float, str]]] = defaultdict(dict)
    for row in rows:
        figures = gemm_figures(row, gpu)
        hint = (
            f"{row.case}: {row.us:,.1f} us, {figures['tflops']:,.0f} TFLOP/s, "
            f"{figures['gbs']:,.0f} GB/s"
        )
        if (ratio := ratios.get((row.kernel, row.case))) and row.kernel != baseline:
            hint += f", {ratio:.2f}x the time of {baseline}"
        place = f"{row.n} x {row.k}", f"{row.experts} x {max(row.rows_per_expert)}"
        cells[row.kernel][place] = figures[key], hint
    most = 100.0 if gpu else max(value for by in cells.values() for value, _ in by.values())
    names = [dict.fromkeys(place[i] for by in cells.values() for place in by) for i in (0, 1)]
    return [
        HeatMap(
            kernel,
            unit,
            [*names[1]],
            [(name, [by.get((name, column)) for column in names[1]]) for name in names[0]],
            most,
        )
        for kernel, by in cells.items()
    ]


def report_sheets(report: Report, folder: Path) -> list[Sheet]:
    """The sheets of a stored report, as its script shows them."""
    if isinstance(report, StageReport):
        return stage_sheets(report)
    if isinstance(report, GemmReport):
        return gemm_sheets(report, None, rates(folder, report.provenance.hardware))
    if isinstance(report, PrecisionReport):
        return precision_sheets(report)
    return roofline_sheets(report)


def comparison_sheets(comparison: Comparison) -> dict[str, list[Sheet]]:
    """Tables beside each plot, by the end of the plot's id."""
    percent = percent_sheet(comparison)
    return {
        "latency": [metric_sheet(comparison, LATENCY, "Latency, us")],
        "speedup": [
            summary_sheet(comparison),
            metric_sheet(comparison, SPEEDUP, "Speed-up by workload"),
        ],
        "floor": [percent] if percent else [],
        "errors": [record_sheet(comparison)],
    }


@dataclass(frozen=True)
class Headline:
    """The best solution of a GPU, in figures."""

    solution: str
    speedup: float
    wins: int
    workloads: int
    percent: float | None


def headline(comparison: Comparison) -> Headline | None:
    """Of the solutions that passed everything, the one with the best geometric mean."""
    scope = comparison.scopes[0]
    whole = {
        label: score.speedup_geometric.value
        for label, score in scope.scores.items()
        if score.passed == score.total and score.speedup_geometric.value is not None
    }
    if not whole:
        return None
    best = max(whole, key=whole.__getitem__)
    percents = percent_of_floor(comparison)[best]
    percent = geometric_mean(percents) if all(percents) else None
    wins = scope.scores[best].wins
    return Headline(best, whole[best], wins, scope.workloads, percent)


def headlines(page: Page, data: Path, picture: str) -> str:
    """A Markdown list for the README: the picture, then each report in a line.

    picture: the latency plot's path as the README sees it, without `-light.png`.
    """
    machines = [machine for machine in page.machines if machine.comparisons]
    if not machines:
        return "Nothing has been measured yet: run `scripts/bench` on a machine with a GPU."
    machine = machines[0]
    lines = [
        "<picture>",
        f'  <source media="(prefers-color-scheme: dark)" srcset="{picture}-dark.png">',
        f'  <img alt="Latency of all solutions by workload" src="{picture}-light.png">',
        "</picture>",
        "",
        f"On the {machine.hardware}:",
        "",
    ]
    if best := headline(machine.comparisons[0]):
        lines.append(
            f"- Workloads: `{best.solution}` is the fastest, {best.speedup:.1f}x the reference in "
            f"the geometric mean, first on {best.wins} of {best.workloads}."
        )
    makers = {
        StageReport: _stage_headline,
        GemmReport: partial(_gemm_headline, data=data),
        PrecisionReport: _precision_headline,
        RooflineReport: _roofline_headline,
    }
    for kind, headline_of in makers.items():
        report = machine.reports.get(kind.kind)
        text = headline_of(report) if report else None
        name = kind.kind.capitalize()
        lines.append(f"- {name}: {text or f'not measured, see `scripts/{kind.script}`.'}")
    return "\n".join(lines) + "\n"


def _stage_headline(report: StageReport) -> str | None:
    """The fastest solution of each workload and its longest stage."""
    parts = []
    for bars in stage_bars(report):
        bar = bars.bars[0]
        stage, us = max(bar.segments, key=lambda segment: segment[1])
        name = bars.title.split(":")[0]
        parts.append(f"{name} `{bar.solution}` {stage} {us / bar.end_to_end_us:.0%}")
    return f"the longest of the fastest: {'; '.join(parts)}." if parts else None


def _gemm_headline(report: GemmReport, data: Path) -> str | None:
    """Median rates of the kernels over the sweep."""
    gpu = rates(data, report.provenance.hardware)
    figures: dict[str, list[dict]] = defaultdict(list)
    for row in report.rows:
        if row.error is None and row.is_sweep:
            figures[row.kernel].append(gemm_figures(row, gpu))
    parts = []
    for kernel, values in figures.items():
        text = f"`{kernel}` {median(each['tflops'] for each in values):,.0f} TFLOP/s"
        if gpu:
            text += f", {median(each['percent'] for each in values):.0f} % of the floor"
        parts.append(f"{text} (median of {len(values)})")
    return "; ".join(parts) + "." if parts else None


def _precision_headline(report: PrecisionReport) -> str | None:
    """The error that fp8 itself costs, and the solutions' own."""
    outputs = [row for row in report.rows if row.error is None and row.stage == "output"]
    spans = {}
    for against in dict.fromkeys(row.against for row in outputs):
        errors = [row.errors.relative_l2 for row in outputs if row.against == against]
        spans[against] = f"{min(errors):.1e} to {max(errors):.1e} against {against}"
    return f"relative L2 errors of {', '.join(spans.values())}." if spans else None


def _roofline_headline(report: RooflineReport) -> str | None:
    if not report.is_complete:
        return None
    return (
        f"measured, it reads {report.bandwidth_tbs:.2f} TB/s and multiplies "
        f"{report.fp8_tflops:,.0f} TFLOP/s in dense FP8."
    )


# Rendering -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HtmlCell:
    text: str
    style: str
    solution: str
    repeats: bool


def html_rows(sheet: Sheet, solutions: Sequence[str]) -> list[tuple[str, list[HtmlCell]]]:
    """A sheet's rows for HTML, each with the solution that it is about.

    Repeated names, which the terminal leaves out, are filled in: a sorted table needs them.
    """
    styles = {BEST: "best", FAILED: "failed", DIM: "dim"}
    of_column = [heading_solution(heading.name, solutions) for heading in sheet.headings]
    rows, above = [], [""] * len(sheet.headings)
    for entries in sheet.rows:
        cells, subject = [], ""
        for i, (heading, entry) in enumerate(zip(sheet.headings, entries, strict=True)):
            repeats = not entry.text and heading.name in GROUPING
            text = above[i] if repeats else entry.text
            above[i] = text
            if heading.name == "solution":
                subject = heading_solution(text, solutions)
            cells.append(HtmlCell(text, styles.get(entry.style, ""), of_column[i], repeats))
        rows.append((subject, cells))
    return rows


def heading_solution(name: str, solutions: Sequence[str]) -> str:
    """The solution that a column or row is about: its label may name an environment, too."""
    solution = name.split(" @ ", maxsplit=1)[0]
    return solution if solution in solutions else ""


def stage_class(stage: str) -> str:
    """Style class of a stage; a fused one has those of its parts, joined."""
    names = {name: f"st{i}" for i, name in enumerate(STAGES)} | {GAP: "gap"}
    whole = stage.replace(SWIGLU, "SWIGLU")  # its name has the joint in it
    return "-".join(names[part.replace("SWIGLU", SWIGLU)] for part in whole.split(JOIN))


def fused_styles(machines: Sequence[Machine]) -> str:
    """Style rules of the fused stages there are: stripes in their parts' colours."""
    rules = {}
    for machine in machines:
        for row in getattr(machine.reports.get(StageReport.kind), "rows", []):
            for stage in row.stages:
                parts = (name := stage_class(stage)).split("-")
                if len(parts) > 1:
                    stops = ", ".join(
                        f"var(--{part}) {i * 9}px {i * 9 + 9}px" for i, part in enumerate(parts)
                    )
                    stripes = f"repeating-linear-gradient(115deg, {stops})"
                    rules[name] = f".{name} {{ background: {stripes} }}"
    return "\n".join(rules.values())


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def stage_names(bars: Sequence[Bars]) -> list[str]:
    """All stages in some bars in pipeline order, for the legend."""
    segments = [segment for each in bars for bar in each.bars for segment in bar.segments]
    stages = {stage for stage, _ in segments} - {GAP}
    return [*sorted(stages, key=lambda stage: (position(stage), stage)), GAP]


def render(page: Page, folder: Path) -> str:
    """The whole HTML text."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def drawing(plot: Plot) -> Markup:
        """Both sizes; the style sheet shows the one that fits."""
        return Markup(
            "".join(
                f'<div class="{name}">{plots.svg(plot, page.solutions, size)}</div>'
                for name, size in (("wide", WIDE), ("narrow", NARROW))
            )
        )

    def colours(mode: str) -> str:
        return " ".join(f"--{name}: {value};" for name, value in plots.THEMES[mode].items())

    environment.globals.update(
        drawing=drawing,
        colours=colours,
        colour_name=lambda name: plots.colour_name(page.solutions.index(name)),
        line_plots=line_plots,
        comparison_sheets=comparison_sheets,
        headline=headline,
        trace_facts=trace_facts,
        facts=facts,
        failures=failures,
        report_sheets=partial(report_sheets, folder=folder),
        stage_bars=stage_bars,
        stage_names=stage_names,
        stage_class=stage_class,
        fused_styles=lambda: Markup(fused_styles(page.machines)),
        heat_maps=partial(heat_maps, folder=folder),
        html_rows=lambda sheet: html_rows(sheet, page.solutions),
        heading_solution=lambda name: heading_solution(name, page.solutions),
        slug=slug,
        kinds={kind.kind: kind for kind in KINDS},
    )
    return environment.get_template("report.html.j2").render(page=page)
