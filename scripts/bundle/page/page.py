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

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..comparison.render import facts as trace_facts
from ..comparison.sections import compare_sections
from ..comparison.traces import TraceRecord
from ..machine import this_hardware
from ..paths import ROOT
from ..probes.kinds import KINDS
from ..probes.layer import LayerReport
from ..probes.reporting import facts, failures
from ..probes.roofline import rates
from ..probes.stage_names import JOIN, STAGES, SWIGLU
from ..probes.stages import GAP, StageReport, stage_bars, stage_names
from ..probes.store import Report, load_all
from ..sheets import BEST, DIM, FAILED, Sheet
from . import plots
from .choosing import NOTE as CHOICE_NOTE
from .choosing import choice_sheet, unmeasured
from .headlines import Machine, headline
from .plots import NARROW, WIDE, Plot
from .views import (
    comparison_sheets,
    heat_maps,
    layer_plots,
    line_plots,
    report_sheets,
)

FOLDER = Path(__file__).parent
GROUPING = ("solution", "workload", "stage", "case", "cases")  # columns that leave out repetitions


@dataclass
class Page:
    """What the template shows."""

    title: str
    machines: list[Machine]
    solutions: list[str]
    command: str


def machines_of(records: Sequence[TraceRecord], folder: Path) -> list[Machine]:
    """All GPUs with traces or reports: this machine's first, then by how much was measured."""
    by_hardware: dict[str, list[TraceRecord]] = defaultdict(list)
    for record in records:
        by_hardware[record.environment["hardware"]].append(record)
    reports: dict[str, dict[str, Report]] = defaultdict(dict)
    for kind in KINDS:
        for report in load_all(kind, folder):
            reports[report.provenance.hardware][kind.kind] = report
    machines = []
    names = sorted(by_hardware.keys() | reports.keys())
    here = this_hardware()
    names.sort(key=lambda name: (name != here, -len(by_hardware[name]), -len(reports[name])))
    for hardware in names:
        comparisons = []
        if own := by_hardware[hardware]:
            comparisons = compare_sections(own, root=ROOT, rates=partial(rates, folder))
        machines.append(Machine(hardware, comparisons, reports[hardware]))
    return machines


def solutions_of(machines: Sequence[Machine]) -> list[str]:
    """All solutions that were timed anywhere; their order decides over colours."""
    names = {c.solution for m in machines for each in m.comparisons for c in each.columns}
    for machine in machines:
        for kind in (LayerReport, StageReport):
            if report := machine.reports.get(kind.kind):
                names |= {row.solution for row in report.rows}
    return sorted(names)


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


def breakable(text: str) -> Markup:
    """Text that a narrow screen may break after each `_`."""
    return Markup("_<wbr>").join(text.split("_"))


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


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
        choice_sheet=choice_sheet,
        unmeasured=unmeasured,
        choice_note=CHOICE_NOTE,
        trace_facts=trace_facts,
        facts=facts,
        failures=failures,
        report_sheets=partial(report_sheets, folder=folder),
        layer_plots=partial(layer_plots, folder=folder),
        stage_bars=stage_bars,
        stage_names=stage_names,
        stage_class=stage_class,
        fused_styles=lambda: Markup(fused_styles(page.machines)),
        heat_maps=partial(heat_maps, folder=folder),
        html_rows=lambda sheet: html_rows(sheet, page.solutions),
        heading_solution=lambda name: heading_solution(name, page.solutions),
        slug=slug,
        breakable=breakable,
        kinds={kind.kind: kind for kind in KINDS},
    )
    return environment.get_template("report.html.j2").render(page=page)
