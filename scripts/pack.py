#!/usr/bin/env python3
"""Pack solutions/<name>/ folders into the JSON files that flashinfer-bench reads.

Each folder's files, and the files of solutions/common/ that they import, go into
solutions/<name>/solution.json; with --into PATH, into a clone of the official dataset as
PATH/solutions/<author>/<op_type>/<definition>/<name>.json. Every folder that packs is packed; the
exit status is 1 if one does not, and 2 if an argument is wrong.

With --apply NAME, one solution becomes a small dataset (in build/apply/NAME, or PATH) from which
an engine substitutes it, by flashinfer_bench.apply or FlashInfer's trace_apply.
"""

import sys
from pathlib import Path

from bundle.cli import add_dataset, add_solutions, make_parser
from bundle.comparison.traces import load_traces, whole_traces
from bundle.console import open_output, printable
from bundle.dataset.engine import write_engine_dataset
from bundle.dataset.exporting import author_of, export_traces
from bundle.dataset.loading import load_definition
from bundle.dataset.packing import PACKED_FILE, pack_folders, pack_in_place, solution_folders
from bundle.dataset.untrusted import is_plain_name
from bundle.files import replace_file
from bundle.paths import BadInput, check_root


def main() -> int:
    open_output()
    parser = make_parser(__doc__)
    add_solutions(parser, default="all")
    parser.add_argument("--apply", metavar="NAME", help="the solution for an engine to apply")
    parser.add_argument(
        "--into",
        type=Path,
        metavar="PATH",
        help="a clone of the dataset that has the definition; with --apply, a new folder",
    )
    parser.add_argument(
        "--traces",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="with --into: traces to be written there, too, those of its workloads",
    )
    add_dataset(parser)
    arguments = parser.parse_args()
    if arguments.traces and (arguments.apply or not arguments.into):
        parser.error("--traces: expected --into PATH, without --apply")
    try:
        names = [arguments.apply] if arguments.apply else arguments.solutions or []
        option = "--apply" if arguments.apply else "--solutions"
        folders = _select(check_root(arguments.local), names, option)
        if arguments.apply:
            into = arguments.into or arguments.local / "build" / "apply" / arguments.apply
            problems: list[str] = []
            written = write_engine_dataset(folders[0], arguments.local, into)
        elif arguments.into:
            written, problems = _pack_into(folders, check_root(arguments.into), arguments.traces)
        else:
            problems = pack_in_place(folders, arguments.local.resolve())
            written = [path for path in (f / PACKED_FILE for f in folders) if path.exists()]
    except (BadInput, OSError) as error:
        print(f"error: {printable(str(error), 4000)}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    return 1 if problems else 0


def _select(root: Path, names: list[str], option: str) -> list[Path]:
    """The folders of the named solutions, or all."""
    folders = {folder.name: folder for folder in solution_folders(root)}
    unknown = sorted(set(names) - set(folders))
    if unknown:
        raise BadInput(f"{option}: expected some of {', '.join(folders)}, got {', '.join(unknown)}")
    return [folders[name] for name in names or folders]


def _pack_into(
    folders: list[Path], dataset: Path, traces: list[Path]
) -> tuple[list[Path], list[str]]:
    """Write the packed solutions into another dataset, in the official one's layout."""
    solutions, problems = pack_folders(folders, dataset)
    written = []
    for solution in solutions.values():
        op_type = load_definition(dataset, solution.definition).op_type
        if not is_plain_name(op_type):
            raise BadInput(f"{solution.definition}: op_type: expected a name, got {op_type!r}")
        author = author_of(solution.name, solution.author)
        folder = dataset / "solutions" / author / op_type / solution.definition
        path = folder / f"{solution.name}.json"
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(
            path,
            solution.model_copy(update={"author": author})
            .model_dump_json(indent=2, exclude_unset=True)
            .encode(),
        )
        written.append(path)
    for name in {solution.definition for solution in solutions.values()} if traces else ():
        authors = {s.name: author_of(s.name, s.author) for s in solutions.values()}
        own = [trace for trace, _ in whole_traces(load_traces(traces)[0])]
        paths, left_out = export_traces(own, authors, load_definition(dataset, name), dataset)
        written += paths
        if left_out:
            problems.append(
                f"--traces: {left_out} of workloads that {dataset} has not, or not so, left out"
            )
    return written, problems


if __name__ == "__main__":
    sys.exit(main())
