#!/usr/bin/env python3
"""Generate the routing tensors of the 19 workloads, the same bytes on every machine.

Blobs that are missing or damaged are written to blob/ (a few seconds); whole ones stay as they are.
The exit status is 1 if --check finds a bad blob, and 2 if the table or the digests are wrong.

For maintainers: --sync rewrites the committed files that follow from others. Run it after a change
of definitions/moe/<DEF>.py (the reference's source, copied into the definition), of
workloads/moe/<DEF>.csv (the table behind the workloads) or of bundle/dataset/replicas.py (the
generator, whose results the digests pin).
"""

import json
import sys
from pathlib import Path

from bundle.cli import add_dataset, make_parser
from bundle.dataset.replicas import (
    digests_path,
    find_bad_blobs,
    reference_route,
    serialize_routing,
    tensors_digest,
    write_blobs,
)
from bundle.dataset.workload_table import DEFINITION, read_table, workload_lines
from rich.console import Console
from rich.progress import track


def main() -> int:
    parser = make_parser(__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="only say which blobs are bad")
    mode.add_argument("--sync", action="store_true", help="rewrite the derived committed files")
    add_dataset(parser)
    arguments = parser.parse_args()
    root, console = arguments.local.resolve(), Console(soft_wrap=True, highlight=False)
    try:
        if arguments.sync:
            for path in sync(root, console):
                console.print(f"wrote {path}")
            return 0
        bad = find_bad_blobs(root)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row, reason in bad.items():
        console.print(f"{row.name}: {root / row.blob}: {reason}")
    if arguments.check:
        return 1 if bad else 0
    if bad:
        written = write_blobs(root, track(bad, description="Generating", console=console))
        console.print(f"{len(written)} blobs written to {written[0].parent}")
    return 0


def sync(root: Path, console: Console) -> list[Path]:
    """Rewrite reference, workloads and digests from their sources; the paths written."""
    definition_path = root / f"definitions/moe/{DEFINITION}.json"
    definition = json.loads(definition_path.read_text(encoding="utf-8"))
    definition["reference"] = definition_path.with_suffix(".py").read_text(encoding="utf-8")
    workloads_path = root / f"workloads/moe/{DEFINITION}.jsonl"
    rows = read_table(root)
    texts = {
        definition_path: json.dumps(definition, indent=2) + "\n",
        workloads_path: workload_lines(rows),
    }
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")

    route = reference_route(root)
    lines = ["uuid,tensors_sha256\n"]
    for row in track(rows, description="Digests", console=console):
        lines.append(f"{row.uuid},{tensors_digest(serialize_routing(row, route))}\n")
    digests_path(root).write_text("".join(lines), encoding="utf-8")
    return [*texts, digests_path(root)]


if __name__ == "__main__":
    sys.exit(main())
