#!/usr/bin/env python3
"""Compare solutions by their flashinfer-bench traces: latency, speed-up, roofline, who wins.

Reads any number of trace folders and .jsonl files, of any definition. Each GPU, and each library,
driver or harness version of one, has a section of its own, this machine's first; --mix puts them
into one table, except for figures of harnesses that time differently. What is missing or failed is
shown as such and never averaged away.

    python scripts/compare.py --baseline torch_moe
    python scripts/compare.py h100/traces h200/traces --mix --format markdown
    python scripts/compare.py --readme README.md
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from bundle.cli import add_format, add_solutions, exit_with, make_parser
from bundle.comparison.figures import Comparison
from bundle.comparison.floor import Gpu, Rates
from bundle.comparison.render import markdown, terminal, to_csv_text, to_json_text
from bundle.comparison.sections import compare_sections
from bundle.comparison.traces import TraceRecord, load_traces
from bundle.files import replace_section, write_whole
from bundle.machine import this_hardware
from bundle.paths import ROOT, BadInput
from bundle.probes.roofline import known_rates
from bundle.sheets import WIDTH
from rich.console import Console


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="trace folder, .jsonl file or dataset root (default: the bundle's traces/)",
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
    figures = (options.bandwidth_tbs, options.fp8_tflops)
    if (figures[0] is None) != (figures[1] is None):
        parser.error("--bandwidth-tbs and --fp8-tflops only work together")
    if figures[0] is not None and not all(figure > 0 for figure in figures):
        parser.error(f"--bandwidth-tbs and --fp8-tflops: expected positive numbers, got {figures}")
    return options


def main(arguments: Sequence[str]) -> None:
    options = parse_arguments(arguments)
    records, bad_lines = load_traces(options.paths or [ROOT / "traces"], options.skip_bad_lines)
    for line in bad_lines:
        print(f"skipped: {line}", file=sys.stderr)
    rates: Rates = known_rates
    if options.bandwidth_tbs is not None:
        rates = given_rates(options.bandwidth_tbs, options.fp8_tflops, records)
    comparisons = compare_sections(
        records,
        root=ROOT,
        here=this_hardware(),
        definition=options.definition,
        solutions=options.solutions,
        baseline=options.baseline,
        mix=options.mix,
        rates=rates,
        skipped_lines=len(bad_lines),
    )
    command = shlex.join(["python", "scripts/compare.py", *arguments])
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
        if options.out:
            write_whole(options.out, text)
        else:
            sys.stdout.write(text)


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
