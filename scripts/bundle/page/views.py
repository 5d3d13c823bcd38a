"""What the page shows of comparisons and reports: plots, bars, heat maps and tables."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..comparison.render import LATENCY, SPEEDUP, record_sheet
from ..comparison.summaries import (
    figure_sheet,
    percent_of_floor,
    percent_sheet,
    summary_sheet,
)
from ..comparison.table import Comparison, workload_name
from ..probes.baseline import pick_baseline
from ..probes.footprint import FootprintReport, footprint_sheets
from ..probes.gemm import USUAL_BASELINE, GemmReport, gemm_figures, gemm_ratios, gemm_sheets
from ..probes.layer import (
    LayerReport,
    by_routing,
    by_workload,
    layer_sheets,
    ratio_to_best_other,
    solutions_of,
)
from ..probes.precision import PrecisionReport, precision_sheets
from ..probes.roofline import RooflineReport, rates, roofline_sheets
from ..probes.stages import StageReport, stage_sheets
from ..probes.store import Report
from ..probes.verification import VerificationReport, verification_sheets
from ..sheets import Sheet
from .plots import Plot, Series

FAR = 2.0
TOP = 4.0  # of the picture: a line far above would flatten all others


@dataclass(frozen=True)
class HeatMap:
    """Percent of the floor (or TFLOP/s) of one kernel over the sweep."""

    kernel: str
    unit: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[float, str] | None]]]
    """Name and, by column, value with a text for hovering; None where it was not measured."""
    most: float


def line_plots(comparison: Comparison, prefix: str) -> list[Plot]:
    """Latency, speed-up and percent of the floor, where the traces tell."""
    workloads = [workload_name(row.label) for row in comparison.rows]

    def series(value) -> list[Series]:
        columns = comparison.columns
        all_series = [
            Series(c.solution, [value(row.cells[c.label]) for row in comparison.rows])
            for c in columns
        ]
        return _some(all_series)

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


def layer_plots(report: LayerReport, prefix: str, folder: Path) -> list[tuple[str, list[Plot]]]:
    """For each routing its name, the cold times over T and their ratios to the best other."""
    gpu = rates(folder, report.provenance.hardware)
    found = []
    for routing, workloads in by_routing(by_workload(report)).items():
        first = [next(iter(rows.values())) for rows in workloads]
        names = [f"T={row.seq_len}" for row in first]
        floors = [row.floor_us(gpu) for row in first]
        times, ratios = [], []
        for name in solutions_of(report):
            rows_of = [rows.get(name) for rows in workloads]
            times.append(Series(name, [row.cold_us if row else None for row in rows_of]))
            ratios.append(Series(name, [ratio_to_best_other(name, rows) for rows in workloads]))
        floor = Series("roofline floor", floors) if all(floors) else None
        title = f"{prefix}-{routing}"
        plots = [
            Plot(f"{title}-time", "GPU time of the layer", "us", names, _some(times), True, floor),
            Plot(
                f"{title}-ratio",
                "Time over the best other solution's",
                "x",
                names,
                _some(ratios),
                log=True,
                level=1.0,
            ),
        ]
        found.append((routing, [plot for plot in plots if plot.series]))
    return found


def ratio_panels(report: LayerReport, folder: Path) -> list[tuple[str, Plot]]:
    """For each routing with several workloads, its name and the ratios of the solutions that come
    within FAR of the best other somewhere: a picture for a document. What is above TOP is not
    drawn, and the axis says so."""
    panels = []
    for routing, plots in layer_plots(report, "panel", folder):
        for plot in plots:
            if plot.level is None or len(plot.workloads) < 2:
                continue
            near = [
                series
                for series in plot.series
                if min(value for value in series.values if value is not None) < FAR
            ]
            below = [
                Series(each.name, [x if x and x <= TOP else None for x in each.values])
                for each in near
            ]
            unit = plot.unit if below == near else f"{plot.unit}, up to {TOP:g}"
            panels.append((routing, replace(plot, series=below, unit=unit)))
    return panels


def _some(all_series: list[Series]) -> list[Series]:
    """Those that have a value."""
    return [each for each in all_series if any(value is not None for value in each.values)]


def heat_maps(report: GemmReport, folder: Path) -> list[HeatMap]:
    """One map per kernel: N x K by E x m."""
    gpu = rates(folder, report.provenance.hardware)
    key, unit = ("percent", "% of the floor") if gpu else ("tflops", "TFLOP/s")
    rows = [row for row in report.rows if row.is_sweep]
    if not rows:
        return []
    baseline = pick_baseline(None, USUAL_BASELINE, (row.kernel for row in rows))
    ratios = gemm_ratios(rows, baseline)
    cells: dict[str, dict[tuple[str, str], tuple[float, str]]] = defaultdict(dict)
    for row in rows:
        figures = gemm_figures(row, gpu)
        hint = (
            f"{row.case}: {row.us:,.1f} us, {figures['tflops']:,.0f} TFLOP/s, "
            f"{figures['gbs']:,.0f} GB/s"
        )
        if (ratio := ratios.get(row.key)) and row.kernel != baseline:
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
    gpu = rates(folder, report.provenance.hardware)
    match report:
        case LayerReport():
            return layer_sheets(report, gpu)
        case StageReport():
            return stage_sheets(report)
        case GemmReport():
            return gemm_sheets(report, None, gpu)
        case PrecisionReport():
            return precision_sheets(report)
        case VerificationReport():
            return verification_sheets(report)
        case FootprintReport():
            return footprint_sheets(report)
        case RooflineReport():
            return roofline_sheets(report)
        case _:
            raise TypeError(f"report: expected one of KINDS, got {type(report).__name__}")


def comparison_sheets(comparison: Comparison) -> dict[str, list[Sheet]]:
    """Tables beside each plot, by the end of the plot's id."""
    percent = percent_sheet(comparison)
    return {
        "latency": [figure_sheet(comparison, LATENCY.format, "Latency, us")],
        "speedup": [
            summary_sheet(comparison),
            figure_sheet(comparison, SPEEDUP.format, "Speed-up by workload"),
        ],
        "floor": [percent] if percent else [],
        "errors": [record_sheet(comparison)],
    }
