#!/usr/bin/env python3
"""Start a new solution: a copy of solutions/torch_moe that runs as it is."""

import argparse
import os
import re
import shutil
import sys

from bundle.console import open_output
from bundle.dataset.manifest import CONFIG_FILE
from bundle.dataset.packing import PACKED_FILE, pack_in_place
from bundle.paths import ROOT, BadInput

TEMPLATE = "torch_moe"


def main() -> int:
    open_output()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", metavar="NAME", help="a Python identifier; the folder's name")
    name = parser.parse_args().name
    try:
        create(name)
    except (BadInput, OSError, shutil.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"solutions/{name}/ is ready. Edit {CONFIG_FILE} and the code, then try:")
    print(f"    python scripts/run.py --solutions {name}")
    return 0


def create(name: str, root=ROOT) -> None:
    """Copy the template to `root`/solutions/`name`, rename it in its config, and pack it."""
    folder = root / "solutions" / name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name == "common":
        raise BadInput(f"NAME: expected letters, digits and underscores, got {name!r}")
    if os.path.lexists(folder):
        raise BadInput(f"NAME: {folder} exists already")
    try:
        shutil.copytree(
            root / "solutions" / TEMPLATE,
            folder,
            ignore=shutil.ignore_patterns("__pycache__", PACKED_FILE),
        )
        config = folder / CONFIG_FILE
        text = config.read_text("utf-8")
        config.write_text(text.replace(f'name = "{TEMPLATE}"', f'name = "{name}"', 1), "utf-8")
        if problems := pack_in_place([folder], root):
            raise BadInput("\n".join(problems))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
