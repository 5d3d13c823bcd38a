"""What was measured on a GPU, and the one line that the README says of each report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from ..comparison.summaries import percent_of_floor
from ..comparison.table import Comparison
from ..probes.gemm import GemmReport, gemm_figures
from ..probes.layer import LayerReport, by_workload, ratio_to_best_other
from ..probes.precision import PrecisionReport, PrecisionRow
from ..probes.roofline import RooflineReport, rates
from ..probes.stages import StageReport, stage_bars
from ..probes.store import Report


@dataclass(frozen=True)
class Machine:
    """Everything measured on one GPU (or CPU)."""

    hardware: str
    comparisons: list[Comparison]
    reports: dict[str, Report]
    """By kind; kinds that were not run are not there."""


@dataclass(frozen=True)
class Headline:
    """The best solution of a GPU, in figures."""

    solution: str
    speedup: float
    wins: int
    clear_wins: int
    """Those by more than the spread of the runs."""
    workloads: int
    percent: float | None


def headline(comparison: Comparison) -> Headline | None:
    """Of the solutions that passed everything, the one with the best geometric mean; None without
    one, and where times mean nothing."""
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
    there = [percent for percent in percents if percent]
    percent = geometric_mean(there) if len(there) == len(percents) else None
    score = scope.scores[best]
    return Headline(best, whole[best], score.wins, score.clear_wins, scope.workloads, percent)


def headlines(machines: Sequence[Machine], data: Path, picture: str, table: str) -> str:
    """Markdown for the README: the picture, a table of the first GPU, then each report in a line.

    picture: the latency plot's path as the README sees it, without `-light.png`.
    """
    machines = [machine for machine in machines if machine.comparisons]
    if not machines:
        return "Nothing has been measured yet: run `scripts/bench` on a machine with a GPU."
    machine = machines[0]
    lines = [
        "<picture>",
        f'  <source media="(prefers-color-scheme: dark)" srcset="{picture}-dark.png">',
        f'  <img alt="Latency of all solutions by workload" src="{picture}-light.png">',
        "</picture>",
        "",
        table,
        "",
        f"On the {machine.hardware}:",
        "",
    ]
    if best := headline(machine.comparisons[0]):
        lines.append(
            f"- Workloads: `{best.solution}` is the fastest, {best.speedup:.1f}x the reference in "
            f"the geometric mean, first on {best.wins} of {best.workloads}, on "
            f"{best.clear_wins} by more than the spread of the runs."
        )
    makers: dict[type[Report], Callable[[Any], str | None]] = {
        LayerReport: _layer_headline,
        StageReport: _stage_headline,
        GemmReport: partial(_gemm_headline, data=data),
        PrecisionReport: _precision_headline,
        RooflineReport: _roofline_headline,
    }
    missing = []
    for kind, headline_of in makers.items():
        report = machine.reports.get(kind.kind)
        if text := headline_of(report) if report else None:
            lines.append(f"- {kind.kind.capitalize()}: {text}")
        else:
            missing.append(f"`scripts/{kind.script}`")
    if missing:
        lines.append(f"- Not measured on it: {', '.join(missing)}.")
    return "\n".join(lines) + "\n"


def _layer_headline(report: LayerReport) -> str | None:
    """For each solution that is ever the fastest: on how many workloads, and how clearly."""
    workloads = [rows for rows in by_workload(report) if len(rows) > 1]
    won: dict[str, list[float]] = defaultdict(list)
    for rows in workloads:
        best = min(rows.values(), key=lambda row: row.cold_us).solution
        if ratio := ratio_to_best_other(best, rows):
            won[best].append(ratio)
    parts = [
        f"`{name}` has the least GPU time on {len(ratios)} of {len(workloads)}, "
        f"{geometric_mean(ratios):.2f}x that of the best other"
        for name, ratios in sorted(won.items(), key=lambda item: -len(item[1]))
    ]
    return "; ".join(parts) + "." if parts else None


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
        if row.is_sweep:
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
    rows = [row for row in report.rows if isinstance(row, PrecisionRow)]
    outputs = [row for row in rows if row.stage == "output"]
    spans = {}
    for against in dict.fromkeys(row.against for row in outputs):
        errors = [row.errors.relative_l2 for row in outputs if row.against == against]
        spans[against] = f"{min(errors):.1e} to {max(errors):.1e} against {against}"
    return f"relative L2 errors of {', '.join(spans.values())}." if spans else None


def _roofline_headline(report: RooflineReport) -> str | None:
    if not (gpu := report.gpu):
        return None
    return (
        f"measured, it reads {gpu.bandwidth_tbs:.2f} TB/s and multiplies "
        f"{gpu.fp8_tflops:,.0f} TFLOP/s in dense FP8."
    )
