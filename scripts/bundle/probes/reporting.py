"""What the report scripts share: options, the measuring loop, and printing.

A script measures on this machine, stores its rows one by one, and prints them. Without a GPU, or
with --show, it prints what is stored.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ..cli import DATA, add_data, add_format, make_parser
from ..hardware import UNKNOWN
from ..machine import bundle_version, now, provenance
from ..paths import ROOT, BadInput
from ..sheets import DIM, WIDTH, Sheet, escaped, markdown_table, rich_table
from .store import AnyReport, Failed, Key, Report, Row, load_all, report_path, resumed, save

CPU_DATA = ROOT / "build" / "data"
NO_GPU = "No CUDA device here: nothing can be measured, these are stored results."


@dataclass(frozen=True)
class Task:
    """A measurement, and the keys of the rows that it gives or, failing, does not."""

    keys: Sequence[Key]
    measure: Callable[[], Sequence[Row | Failed]]


def report_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of all report scripts."""
    parser = make_parser(description)
    add_data(parser)
    add = parser.add_argument
    add("--resume", action="store_true", help="keep what the stored report has, measure the rest")
    add("--show", action="store_true", help="only print what is stored")
    add_format(parser)
    return parser


def run_report(
    kind: type[AnyReport],
    plan: Callable[[], list[Task]],
    sheets: Callable[[AnyReport], list[Sheet]],
    options: argparse.Namespace,
    arguments: Sequence[str],
    measures_on_cpu: bool = False,
) -> int:
    """Measure what `plan` lists, store it and print it; returns the exit status.

    0: all is there; 1: some rows failed; 130: interrupted, the finished rows are stored.
    """
    progress_console = Console(stderr=True, highlight=False, soft_wrap=True)
    status = 0
    out = options.data
    if out == DATA and not torch.cuda.is_available() and not options.show:
        out = CPU_DATA  # a machine without a GPU has no place among the published ones
    if options.show or not (measures_on_cpu or torch.cuda.is_available()):
        if not options.show:
            progress_console.print(NO_GPU)
        reports = load_all(kind, options.data)
        if not reports:
            raise BadInput(
                f"{options.data}: no {kind.kind} report there; on a machine with a GPU make one "
                f"with `python scripts/{kind.script}`"
            )
    else:
        lasting = [argument for argument in arguments if argument != "--resume"]
        command = shlex.join(["python", f"scripts/{kind.script}", *lasting])
        report = kind(provenance=provenance(command), planned=0)
        path = report_path(out, kind, report.provenance.hardware)
        if options.resume:
            report = resumed(report, path)
        tasks = plan()
        finished = collect(report, path, tasks, progress_console)
        status = 1 if report.failed else 0
        if not finished:
            status = 130
            progress_console.print(f"Interrupted; --resume continues {path}")
        reports = [report] if report.rows or report.failed else []
    show(reports, sheets, options.format)
    return status


def collect(report: Report, path: Path, tasks: Sequence[Task], console: Console) -> bool:
    """Run the tasks that have rows missing in `report` and store it after each.

    A task that raises leaves rows that say so. False if interrupted. The stored file stays as it
    is until there is something to put in its place.
    """
    done = {row.key for row in report.rows}
    open_tasks = [task for task in tasks if any(key not in done for key in task.keys)]
    report.planned = len({key for task in tasks for key in task.keys} | done)
    commit = bundle_version()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn())
    with Progress(*columns, *times, console=console) as progress:
        bar = progress.add_task("", total=len(open_tasks))
        for task in open_tasks:
            progress.update(bar, description=escape(described(task.keys[0])))
            results: Sequence[Row | Failed]
            try:
                results = task.measure()
            except KeyboardInterrupt:
                return False
            except Exception as error:  # noqa: BLE001  a solution's failure is a result
                reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
                results = [Failed(key=key, reason=reason) for key in task.keys]
            for result in results:
                if isinstance(result, Failed):
                    console.print(f"{described(result.key)}: [red]{escape(result.reason)}[/]")
            report.add([result.model_copy(update={"commit": commit}) for result in results])
            report.provenance.finished = now()
            save(report, path)
            progress.advance(bar)
    return True


def described(key: Key) -> str:
    return " ".join(str(part) for part in key if part is not None)


# Printing --------------------------------------------------------------------------------------


def facts(report: Report) -> list[tuple[str, str]]:
    """The head of a report: where, with what, when, and the command that makes it."""
    source = report.provenance
    hardware = source.hardware + (f", driver {source.driver}" if source.driver else "")
    dates = dict.fromkeys(f"{time:%Y-%m-%d %H:%M}" for time in (source.started, source.finished))
    counts = f"{len(report.rows)}"
    commits = sorted({result.commit for result in (*report.rows, *report.failed)} - {""})
    if report.missing:
        counts += f" of {report.planned}: unfinished, --resume continues"
    if report.failed:
        counts += f", {len(report.failed)} more failed"
    return [
        ("hardware", hardware),
        ("libraries", ", ".join(f"{name} {value}" for name, value in source.libs.items())),
        ("flashinfer-bench", source.flashinfer_bench),
        ("measured", f"{' to '.join(dates)} UTC"),
        ("rows", counts),
        ("bundle", ", ".join(commits) or UNKNOWN),
        ("command", source.command),
    ]


def failures(report: Report) -> list[str]:
    return [f"{described(each.key)}: {each.reason}" for each in report.failed]


def markdown(report: Report, sheets: Sequence[Sheet]) -> str:
    """A report as Markdown; sheets of details fold away."""
    lines = [f"### {report.kind}: {escaped(report.provenance.hardware)}", ""]
    for name, value in facts(report):
        lines.append(f"- {name}: " + (f"`{value}`" if name == "command" else escaped(value)))
    lines += [f"- failed: {escaped(failure)}" for failure in failures(report)]
    for sheet in sheets:
        title = escaped(sheet.title)
        opening = f"<details><summary>{title}</summary>" if sheet.detail else f"**{title}**"
        lines += ["", opening, "", *markdown_table(sheet)]
        lines += ["", "</details>"] if sheet.detail else []
    return "\n".join(lines) + "\n"


def show(
    reports: Sequence[AnyReport], sheets: Callable[[AnyReport], list[Sheet]], output_format: str
) -> None:
    """Print reports to stdout."""
    for report in reports:
        if output_format == "json":
            sys.stdout.write(report.model_dump_json(indent=1) + "\n")
        elif output_format == "markdown":
            sys.stdout.write(markdown(report, sheets(report)) + "\n")
        else:
            console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
            lines = [Text(f"{name:>16}  {value}", style=DIM) for name, value in facts(report)]
            lines += [Text(failure, style="red") for failure in failures(report)]
            console.print(Group(*lines))
            for sheet in sheets(report):
                console.print()
                console.print(Text(sheet.title, style="bold cyan"))
                console.print(rich_table(sheet))
