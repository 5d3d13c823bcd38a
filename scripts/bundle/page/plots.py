"""Line plots over the workloads, drawn by matplotlib: SVG for the page, PNG for the README.

An SVG carries no colours of its own: every colour is a CSS variable of the page, so that one
drawing serves light and dark, and every series is a group that the page's filter can hide.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import matplotlib

matplotlib.use("Agg")  # never opens a window

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

SVG = "http://www.w3.org/2000/svg"
INK, MUTED, GRID, PAPER = "ink", "muted", "grid", "paper"
# Okabe and Ito's colours, told apart with any colour vision, a little darker or lighter by theme.
SERIES_LIGHT = (
    "#0072b2", "#d55e00", "#009e73", "#b8559a", "#9a7b00", "#8a8f98", "#6a3fb5", "#1f2937",
    "#c0334d", "#4f7f1f",
)  # fmt: skip
SERIES_DARK = (
    "#56b4e9", "#ff8a4c", "#2fd0a0", "#e58fc8", "#e6c229", "#8b95a3", "#b39bf0", "#f5f5f5",
    "#ff6b81", "#9ccc65",
)  # fmt: skip
LIGHT = {INK: "#1a1d21", MUTED: "#5c6470", GRID: "#e3e6ea", PAPER: "#ffffff"}
DARK = {INK: "#e8eaed", MUTED: "#9aa3af", GRID: "#2d333b", PAPER: "#14171a"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p")
MOST_MARKED = 60  # workloads; with more, markers would hide the lines
LEVEL_TICKS = (0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100)
WIDE, NARROW = (10.6, 4.3), (4.3, 4.3)  # inches; the page shows one or the other


@dataclass(frozen=True)
class Series:
    """One line: None where there is no value."""

    name: str
    values: list[float | None]


@dataclass(frozen=True)
class Plot:
    """Values over workloads, which stand at equal distances."""

    id: str
    title: str
    unit: str
    workloads: list[str]
    series: list[Series]
    log: bool = False
    floor: Series | None = None
    """Drawn as an area below, not as a line."""
    ceiling: float | None = None
    """The greatest value there can be, a dashed line."""
    level: float | None = None
    """A value to compare with, a dashed line."""


def theme(colours: dict[str, str], series: Sequence[str]) -> dict[str, str]:
    """All colours by name; the series' are s0, s1, ..."""
    return colours | {f"s{i}": colour for i, colour in enumerate(series)}


THEMES = {"light": theme(LIGHT, SERIES_LIGHT), "dark": theme(DARK, SERIES_DARK)}


def colour_name(index: int) -> str:
    """The colour of a solution, by its place among all solutions."""
    return f"s{index % len(SERIES_LIGHT)}"


def draw(plot: Plot, names: Sequence[str], size: tuple[float, float], colours: dict) -> Figure:
    """names: all solutions, of any plot; they decide over colours and markers."""
    figure = Figure(figsize=size, layout="constrained", facecolor=colours[PAPER])
    draw_on(figure.add_subplot(), plot, names, colours, narrow=size[0] < 6)
    return figure


def draw_on(axes: Axes, plot: Plot, names: Sequence[str], colours: dict, narrow: bool) -> None:
    """narrow: there is no room for much text."""
    axes.set_facecolor(colours[PAPER])
    x = range(len(plot.workloads))
    if plot.log:
        axes.set_yscale("log")
    if plot.floor:
        lowest = min(value for value in plot.floor.values if value)
        axes.fill_between(
            x, [value or lowest for value in plot.floor.values], lowest * 0.7,
            color=colours[GRID], linewidth=0,
        )  # fmt: skip
        axes.annotate(
            plot.floor.name, (len(x) - 1, lowest * 0.75), ha="right", va="bottom",
            color=colours[MUTED], fontsize=9,
        )  # fmt: skip
    for level in filter(None, (plot.ceiling, plot.level)):
        axes.axhline(level, color=colours[MUTED], linewidth=1, linestyle=(0, (4, 3)))
    for series in plot.series:
        index = names.index(series.name)
        nan = float("nan")
        (line,) = axes.plot(
            x,
            [nan if value is None else value for value in series.values],
            color=colours[colour_name(index)],
            marker=MARKERS[index % len(MARKERS)] if len(x) <= MOST_MARKED else None,
            markersize=4.5 if narrow else 5.5,
            linewidth=1.6,
            label=series.name,
        )
        line.set_gid(f"{plot.id}--{series.name}")
    # limits that are set before the lines are drawn would not grow with them
    if plot.floor:
        axes.set_ylim(bottom=lowest * 0.7)
    if plot.ceiling:
        axes.set_ylim(0, plot.ceiling * 1.05)
    if plot.level:
        axes.yaxis.set_major_locator(FixedLocator(LEVEL_TICKS))
    shown = [*x][:: -(-len(x) // (7 if narrow else 20))]
    axes.set_xticks(shown, [plot.workloads[i].removeprefix("T=") for i in shown])
    axes.set_xlabel("tokens (T), one workload each", color=colours[MUTED])
    axes.set_ylabel(plot.unit, color=colours[MUTED])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=colours[GRID], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.tick_params(colors=colours[MUTED], length=0, labelsize=9, which="both")
    for spine in axes.spines.values():
        spine.set_visible(False)


def svg(plot: Plot, names: Sequence[str], size: tuple[float, float]) -> str:
    """The plot as an SVG element for HTML, coloured by CSS variables, each point with a title."""
    # stand-ins that no other part of the drawing uses
    standins = {name: f"#{i + 0x0A0B01:06x}" for i, name in enumerate(THEMES["light"])}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.id + str(size)}):
        figure = draw(plot, names, size, standins)
        out = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(out.getvalue())
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for series in plot.series:
        _name_points(root, plot, series)
    for size_attribute in ("width", "height"):
        del root.attrib[size_attribute]
    root.set("role", "img")
    root.set("aria-label", plot.title)
    text = ElementTree.tostring(root, encoding="unicode")
    for name, standin in standins.items():
        text = text.replace(standin, f"var(--{name})")
    text = re.sub(r" font-family: [^;]*;", "", text)
    # ids of both sizes stand in one page
    suffix = f"{plot.id}-{'wide' if size == WIDE else 'narrow'}"
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{suffix}-", text)


def _name_points(root: ElementTree.Element, plot: Plot, series: Series) -> None:
    """Mark the series' group for the filter and give its markers titles, shown on hovering."""
    group = next(e for e in root.iter() if e.get("id") == f"{plot.id}--{series.name}")
    group.set("data-solution", series.name)
    marks = group.findall(f".//{{{SVG}}}use")
    if not marks:
        return
    there = [(w, v) for w, v in zip(plot.workloads, series.values, strict=True) if v is not None]
    for mark, (workload, value) in zip(marks, there, strict=True):
        title = ElementTree.SubElement(mark, f"{{{SVG}}}title")
        title.text = f"{series.name}, {workload}: {value:,.4g} {plot.unit}"


def png(plot: Plot, names: Sequence[str], mode: str, hardware: str) -> bytes:
    """The plot with legend and a title that names the GPU, as a PNG for `mode` light or dark."""
    colours = THEMES[mode]
    figure = draw(plot, names, WIDE, colours)
    figure.axes[0].set_title(
        f"{plot.title}, {hardware}", loc="left", color=colours[INK], fontsize=13
    )
    figure.legend(loc="outside right upper", frameon=False, labelcolor=colours[INK], fontsize=9)
    return _png(figure)


def png_of_panels(
    title: str, panels: Sequence[tuple[str, Plot]], names: Sequence[str], mode: str
) -> bytes:
    """Plots with a name each, two beside each other, with one legend and one scale."""
    colours = THEMES[mode]
    rows = -(-len(panels) // 2)
    size = WIDE[0], 0.4 + 2.9 * rows
    figure = Figure(figsize=size, layout="constrained", facecolor=colours[PAPER])
    grid = figure.subplots(rows, 2, sharey=True, squeeze=False).flatten()
    lines: dict[str, Line2D] = {}
    for axes, (name, plot) in zip(grid, panels, strict=False):
        draw_on(axes, plot, names, colours, narrow=True)
        axes.set_title(name, loc="left", color=colours[INK], fontsize=10)
        lines |= {str(line.get_label()): line for line in axes.get_lines() if line.get_gid()}
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", color=colours[INK], fontsize=13)
    shown = [name for name in names if name in lines]
    figure.legend(
        [lines[name] for name in shown], shown, loc="outside right upper", frameon=False,
        labelcolor=colours[INK], fontsize=9,
    )  # fmt: skip
    return _png(figure)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130, metadata={"Software": None})
    return out.getvalue()
