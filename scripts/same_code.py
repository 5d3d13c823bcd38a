#!/usr/bin/env python3
"""Tell which CuTe DSL kernels two commits compile to the same machine code; needs no GPU.

Every kernel that the bundle ships for sm_90a is compiled at both commits, by the compile_*.py that
the commit's own tests have: cutedsl_moe_fp8_v3's routing and GEMMs in each configuration and with
the choice of several, the padded GEMM of v1 and v2 in each tile, and v3's GEMM2 alone. Compared are
a kernel's registers and the bytes of its code, so that a class or a module may be renamed. Exits
with 1 if they differ.

Examples:
    python scripts/same_code.py main            # the working tree against main
    python scripts/same_code.py HEAD~3 HEAD
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bundle.paths import ROOT, BadInput


def main(arguments: list[str] | None = None) -> int:
    """Compare and report; returns the process's exit code: 0 same, 1 different, 2 bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", metavar="COMMIT", help="anything git takes for a commit")
    parser.add_argument("after", metavar="COMMIT", nargs="?", help="default: the working tree")
    options = parser.parse_args(arguments)
    try:
        before = code_of_commit(options.before)
        after = code_of_commit(options.after) if options.after else code_of(ROOT)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    different = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    for name in different:
        print(f"{name}\n  before: {before.get(name)}\n  after:  {after.get(name)}")
    kernels = len({**before, **after})
    print(f"{kernels - len(different)} of {kernels} kernels have the same code and registers")
    return 1 if different else 0


def code_of_commit(commit: str) -> dict[str, str]:
    """As `code_of`, for a commit of this repository."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _run("git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), commit)
        try:
            return code_of(tree)
        finally:
            _run("git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree))


def code_of(tree: Path) -> dict[str, str]:
    """Registers, size and hash of each kernel's code, named by script, number of configuration and
    function."""
    support = tree / "tests" / "support"
    if not support.is_dir():
        support = tree / "tests"
    paths = [tree, tree / "scripts", support]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    code: dict[str, str] = {}
    for script in sorted(support.glob("compile_*.py")):
        if "fingerprints" in script.read_text("utf-8"):
            lines = _run(sys.executable, str(script), env=environment, cwd=tree).splitlines()
            for number, line in enumerate(lines):
                # a commit may have kernels that it prints no fingerprints of
                for function, fingerprint in json.loads(line).get("code", {}).items():
                    code[f"{script.stem} {number} {function}"] = fingerprint
    if not code:
        raise BadInput(f"{support}: expected a compile_*.py that prints fingerprints, got none")
    return code


def _run(*command: str, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise BadInput(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
