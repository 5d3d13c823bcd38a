#!/usr/bin/env python3
"""Roofline: what this GPU can reach, measured, and how much of it the solutions do.

The floor of a workload is the larger of reading the hit experts' weights once at the best measured
read rate, and multiplying at the best measured dense FP8 rate
(bundle/comparison/floor.py). The rates are stored in the report; the solutions' times come from
traces.

    python scripts/roofline.py
    python scripts/roofline.py --show --format markdown --traces traces
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bundle.cli import exit_with
from bundle.comparison.sections import compare_sections
from bundle.comparison.summaries import percent_sheet
from bundle.comparison.traces import TraceRecord, load_traces
from bundle.paths import ROOT
from bundle.probes.reporting import Task, report_parser, run_report
from bundle.probes.roofline import RateRow, RooflineReport, measurements, roofline_sheets
from bundle.probes.timer import Timer
from bundle.sheets import Sheet


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = report_parser(__doc__)
    parser.add_argument(
        "--traces", type=Path, default=ROOT / "traces", metavar="DIR", help="traces to rate"
    )
    return parser.parse_args(arguments)


def plan() -> list[Task]:
    """One task per rate."""
    rates = measurements(Timer(warmups=3, iterations=12))

    def listed(measure: Callable[[], RateRow]) -> list[RateRow]:
        return [measure()]

    return [Task([(name,)], partial(listed, measure)) for name, measure in rates]


def reached_sheets(report: RooflineReport, records: Sequence[TraceRecord]) -> list[Sheet]:
    """Percent of the floor that each solution's traces reach on the report's GPU."""
    own = [r for r in records if r.environment["hardware"] == report.provenance.hardware]
    if not own or not report.gpu:
        return []
    comparisons = compare_sections(own, root=ROOT, rates=lambda _: report.gpu)
    return [sheet for comparison in comparisons if (sheet := percent_sheet(comparison))]


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)

    def sheets(report: RooflineReport) -> list[Sheet]:
        there = any(options.traces.rglob("*.jsonl"))
        records = load_traces([options.traces])[0] if there else []
        return roofline_sheets(report) + reached_sheets(report, records)

    return run_report(RooflineReport, plan, sheets, options, arguments)


if __name__ == "__main__":
    exit_with(main)
