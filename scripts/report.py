#!/usr/bin/env python3
"""The comparison page: one HTML file with all that was measured, and PNGs for the README.

Reads traces and the reports of layer.py, stages.py, gemm.py, precision.py and roofline.py; what is
not there is named in the page with the command that makes it. Needs no GPU.

    python scripts/report.py
    python scripts/report.py --traces h100/traces traces --readme README.md
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from bundle.cli import add_data, exit_with, make_parser
from bundle.comparison.traces import load_traces
from bundle.files import replace_section, write_whole
from bundle.page.choosing import choice_markdown
from bundle.page.headlines import headlines
from bundle.page.page import Machine, Page, machines_of, render, solutions_of
from bundle.page.plots import png, png_of_panels
from bundle.page.views import line_plots, ratio_panels
from bundle.paths import ROOT, BadInput
from bundle.probes.layer import LayerReport
from bundle.probes.store import report_path

TITLE = "DeepSeek-V3's FP8 MoE layer: solutions compared"


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_data(parser)
    add = parser.add_argument
    add("--traces", nargs="+", type=Path, metavar="PATH", help="trace folders or files (traces/)")
    add("--out", type=Path, default=ROOT / "docs/report.html", metavar="FILE", help="the page")
    add("--images", type=Path, default=ROOT / "docs/img", metavar="DIR", help="folder of the PNGs")
    add("--title", default=TITLE)
    add(
        "--readme",
        type=Path,
        metavar="FILE",
        help="rewrite the part between <!-- reports:begin --> and <!-- reports:end --> in FILE",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    committed = ROOT / "traces"
    paths = options.traces or ([committed] if any(committed.rglob("*.jsonl")) else [])
    records = load_traces(paths)[0] if paths else []
    machines = machines_of(records, options.data)
    page = Page(
        title=options.title,
        machines=machines,
        solutions=solutions_of(machines),
        command=shlex.join(["python", "scripts/report.py", *arguments]),
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.out, render(page, options.data))
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")

    compared = [machine for machine in machines if machine.comparisons]
    if compared:
        options.images.mkdir(parents=True, exist_ok=True)
        images = []
        for plot in line_plots(compared[0].comparisons[0], "main"):
            for mode in ("light", "dark"):
                image = options.images / f"{plot.id.removeprefix('main-')}-{mode}.png"
                image.write_bytes(png(plot, page.solutions, mode, compared[0].hardware))
                images.append(image)
        print(f"{options.images}: {', '.join(image.name for image in images)}")
    for machine in machines:
        write_ratios(machine, options, page.solutions)
    if options.readme:
        images = os.path.relpath(options.images, options.readme.parent)
        table = choice_markdown(compared[0].comparisons[0], compared[0].reports) if compared else ""
        section = headlines(page.machines, options.data, f"{images}/latency", table)
        try:
            text = replace_section(options.readme.read_text("utf-8"), section, "reports")
        except BadInput as error:
            raise BadInput(f"{options.readme}: {error}") from None
        write_whole(options.readme, text)
    return 0


def write_ratios(machine: Machine, options: argparse.Namespace, solutions: Sequence[str]) -> None:
    """Pictures of the machine's layer times over T, if it has a report of several routings."""
    report = machine.reports.get(LayerReport.kind)
    panels = ratio_panels(report, options.data) if isinstance(report, LayerReport) else []
    if len(panels) < 2:
        return
    options.images.mkdir(parents=True, exist_ok=True)
    title = f"GPU time over the best other solution's, {machine.hardware}"
    stem = report_path(options.images, LayerReport, machine.hardware).stem
    for mode in ("light", "dark"):
        image = options.images / f"{stem}-{mode}.png"
        image.write_bytes(png_of_panels(title, panels, solutions, mode))
        print(image)


if __name__ == "__main__":
    exit_with(main)
