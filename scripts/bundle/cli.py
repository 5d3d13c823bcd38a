"""What the command lines of all scripts share: the same options in the same words, and one way to
fail.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .console import open_output, printable
from .paths import ROOT, BadInput

DATA = ROOT / "docs" / "data"
WRONG_INPUT, INTERRUPTED = 2, 130  # exit statuses
LONGEST_MESSAGE = 4000


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """description: the script's docstring, shown as it is."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--local", type=Path, default=ROOT, metavar="ROOT", help="dataset (default: this bundle)"
    )


def add_solutions(parser: argparse.ArgumentParser, default: str = "all that can run here") -> None:
    parser.add_argument("--solutions", nargs="+", metavar="NAME", help=f"solutions ({default})")


def add_workloads(parser: argparse.ArgumentParser, default: str = "all") -> None:
    """A list of names, or None."""
    parser.add_argument(
        "--workloads",
        nargs="+",
        metavar="W",
        action=Listed,
        help=f"workloads, each a value of a variable axis (1,7: seq_len 1 and 7) or a uuid "
        f"({default})",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, default=DATA, metavar="DIR", help="folder of the reports (docs/data)"
    )


def add_format(parser, *more: str) -> None:
    """parser: also a group of one."""
    parser.add_argument(
        "--format", choices=("terminal", "markdown", *more, "json"), default="terminal"
    )


class Listed(argparse.Action):
    """A list of words, each of which may be several, joined by commas."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        words = [word for value in values for word in value.split(",") if word]
        setattr(namespace, self.dest, words)


def exit_with(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run a script's main on the command line, and exit with the status that it returns.

    What the user got wrong, or a file that cannot be read or written, is one line on stderr and
    status 2.
    """
    open_output()
    try:
        sys.exit(main(sys.argv[1:]))
    except (BadInput, OSError) as error:
        print(f"error: {printable_lines(error)}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def printable_lines(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return "\n".join(printable(line, LONGEST_MESSAGE) for line in lines)
