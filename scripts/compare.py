#!/usr/bin/env python3
"""Compare solutions by their flashinfer-bench traces: latency, speed-up, roofline, who wins.

Reads any number of trace folders and .jsonl files, of any definition. Each GPU, and each library,
driver or harness version of one, has a section of its own, this machine's first; --mix puts them
into one table, except for figures of harnesses that time differently. What is missing or failed is
shown as such and never averaged away.

    python scripts/compare.py --baseline torch_moe
    python scripts/compare.py before=old/traces after=new/traces --fail-slower 5%
    python scripts/compare.py h100/traces h200/traces --mix --format markdown
    python scripts/compare.py --readme README.md
"""

from __future__ import annotations

import argparse
import io
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from bundle.cli import add_format, add_solutions, exit_with, make_parser
from bundle.comparison import contest
from bundle.comparison.changes import change_sheets, changes_csv, chosen, compare_sides
from bundle.comparison.floor import Gpu, Rates
from bundle.comparison.render import markdown, terminal, to_csv_text, to_json_text
from bundle.comparison.sections import compare_sections
from bundle.comparison.table import Comparison
from bundle.comparison.traces import TraceRecord, load_traces
from bundle.files import replace_section, write_whole
from bundle.machine import this_hardware
from bundle.paths import ROOT, BadInput
from bundle.probes.roofline import known_rates
from bundle.sheets import WIDTH, Sheet, markdown_table, rich_table
from pydantic_core import to_json
from rich.console import Console


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="trace folder, .jsonl file or dataset root (default: the bundle's traces/); "
        "before=PATH and after=PATH compare two states of the same solutions",
    )
    parser.add_argument("--definition", help="only this definition (default: a table for each)")
    add_solutions(parser, default="all; the order is that of the columns")
    parser.add_argument("--baseline", metavar="SOLUTION", help="show latencies relative to it")
    parser.add_argument(
        "--mix",
        action="store_true",
        help="one table for all GPUs, library and harness versions, and sets of workloads",
    )
    parser.add_argument(
        "--skip-bad-lines",
        action="store_true",
        help="leave out malformed lines, listing them, instead of stopping",
    )
    parser.add_argument(
        "--bandwidth-tbs", type=float, metavar="TB/S", help="read bandwidth of the GPU (roofline)"
    )
    parser.add_argument(
        "--fp8-tflops", type=float, metavar="TFLOP/S", help="dense FP8 rate of the GPU (roofline)"
    )
    parser.add_argument(
        "--score",
        choices=("contest",),
        help="only the contest's score: the arithmetic mean speed-up over FlashInfer",
    )
    parser.add_argument(
        "--fail-slower",
        type=share,
        metavar="P%",
        help="with before= and after=: exit status 1 if a solution is slower on a workload by more "
        "than P percent and its spread, or has ceased to pass",
    )
    output = parser.add_mutually_exclusive_group()
    add_format(output, "csv")
    output.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="rewrite the part between <!-- results:begin --> and <!-- results:end --> in FILE",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there, not to the terminal")
    options = parser.parse_args(arguments)
    if options.readme and options.out:
        parser.error("--readme rewrites its own file: --out does not go with it")
    options.before, options.after = sides(options.paths)
    if bool(options.before) != bool(options.after) or (
        options.before and len(options.paths) > len(options.before) + len(options.after)
    ):
        parser.error("before=PATH and after=PATH: expected some of each, and no other path")
    if options.score and (
        options.before or options.baseline or options.readme or options.format in ("csv", "json")
    ):
        parser.error("--score: a table, without before=, --baseline, --readme, csv or json")
    if options.fail_slower is not None and not options.before:
        parser.error("--fail-slower: expected before=PATH and after=PATH")
    if options.before and (options.readme or options.baseline or options.mix):
        parser.error("--readme, --baseline and --mix do not go with before=PATH and after=PATH")
    figures = (options.bandwidth_tbs, options.fp8_tflops)
    if (figures[0] is None) != (figures[1] is None):
        parser.error("--bandwidth-tbs and --fp8-tflops only work together")
    if figures[0] is not None and not all(figure > 0 for figure in figures):
        parser.error(f"--bandwidth-tbs and --fp8-tflops: expected positive numbers, got {figures}")
    return options


def share(text: str) -> float:
    """5% or 5: 0.05."""
    percent = float(text.removesuffix("%"))
    if not 0 <= percent < math.inf:
        raise ValueError(text)
    return percent / 100


def sides(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The paths that are called before= and after=."""
    texts = [str(path) for path in paths]
    before, after = (
        [Path(text.removeprefix(side)) for text in texts if text.startswith(side)]
        for side in ("before=", "after=")
    )
    return before, after


def read(paths: Sequence[Path], options: argparse.Namespace) -> tuple[list[TraceRecord], int]:
    """The records, and how many lines were skipped."""
    records, bad_lines = load_traces(paths, options.skip_bad_lines)
    for line in bad_lines:
        print(f"skipped: {line}", file=sys.stderr)
    return records, len(bad_lines)


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    if options.before:
        return show_changes(options)
    records, skipped_lines = read(options.paths or [ROOT / "traces"], options)
    rates: Rates = known_rates
    if options.bandwidth_tbs is not None:
        rates = given_rates(options.bandwidth_tbs, options.fp8_tflops, records)
    comparisons = compare_sections(
        records,
        root=ROOT,
        here=this_hardware,
        definition=options.definition,
        solutions=options.solutions,
        baseline=contest.BASELINE if options.score else options.baseline,
        mix=options.mix,
        rates=rates,
        skipped_lines=skipped_lines,
    )
    command = shlex.join(["python", "scripts/compare.py", *arguments])
    if options.score:
        sheets = [contest.contest_sheet(comparison) for comparison in comparisons]
        write(tables_text(sheets, [contest.NOTE], options.format), options.out)
        return 0
    if options.readme:
        readme = options.readme
        section = "\n".join(markdown(comparison, command) for comparison in comparisons)
        try:
            text = replace_section(readme.read_text(encoding="utf-8"), section)
        except BadInput as error:
            raise BadInput(f"{readme}: {error}") from None
        write_whole(readme, text)
    elif options.format == "terminal":
        print_terminal(comparisons, command, options.out)
    else:
        text = {
            "markdown": lambda: "\n".join(markdown(each, command) for each in comparisons),
            "csv": lambda: to_csv_text(comparisons),
            "json": lambda: to_json_text(comparisons, command),
        }[options.format]()
        write(text, options.out)
    return 0


def write(text: str, out: Path | None) -> None:
    if out:
        write_whole(out, text)
    else:
        sys.stdout.write(text)


def tables_text(sheets: Sequence[Sheet], notes: Sequence[str], form: str) -> str:
    """Sheets, each under its title, and the notes; as Markdown or for a terminal."""
    if form == "markdown":
        tables = ["\n".join([f"### {s.title}", "", *markdown_table(s)]) for s in sheets]
        return "\n\n".join([*tables, *notes]) + "\n"
    file = io.StringIO()
    console = Console(file=file, width=WIDTH, highlight=False)
    for sheet in sheets:
        console.print(sheet.title, rich_table(sheet), "", sep="\n")
    for note in notes:
        console.print(note)
    return file.getvalue()


def show_changes(options: argparse.Namespace) -> int:
    """Before and after; 1 if --fail-slower finds something."""
    changes = compare_sides(
        *(
            chosen(read(paths, options)[0], options.definition, options.solutions)
            for paths in (options.before, options.after)
        )
    )
    sheets = change_sheets(changes)
    if options.format == "json":
        text = to_json(changes, indent=2).decode() + "\n"
    elif options.format == "csv":
        text = changes_csv(changes)
    else:
        text = tables_text(sheets, changes.notes, options.format)
    write(text, options.out)
    failures = [] if options.fail_slower is None else changes.failures(options.fail_slower)
    for failure in failures:
        print(f"slower: {failure}", file=sys.stderr)
    return 1 if failures else 0


def given_rates(tbs: float, tflops: float, records: Sequence[TraceRecord]) -> Rates:
    """The rates of the command line, which can be those of one GPU only."""
    hardware = sorted({record.environment["hardware"] for record in records})
    if len(hardware) > 1:
        raise BadInput(
            f"--bandwidth-tbs and --fp8-tflops: expected traces of one GPU, got {len(hardware)}: "
            f"{', '.join(hardware)}"
        )
    given = Gpu(tbs, tflops, source="given on the command line")
    return lambda _: given


def print_terminal(comparisons: Sequence[Comparison], command: str, out: Path | None) -> None:
    """Print in the terminal's width; into a file or a pipe as text of the usual width."""
    text = io.StringIO()
    file: TextIO = text if out else sys.stdout
    told = "COLUMNS" in os.environ or (file.isatty() and not out)
    console = Console(file=file, width=None if told else WIDTH, highlight=False)
    for comparison in comparisons:
        console.print(terminal(comparison, command, console.width))
        console.print()
    if out:
        write_whole(out, text.getvalue())


if __name__ == "__main__":
    exit_with(main)
