"""Scripts of this folder in a process of their own."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from bundle.paths import ROOT
from filelock import FileLock

SESSION = "BUNDLE_TEST_SESSION"
"""Names a folder that all processes of a test session share, see conftest.py."""


def run_child(
    name: str, *arguments: str, under: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
    """Run script `name`, as the argument of the command `under` if one is given, with the bundle on
    its path and Triton compiling, not interpreting."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = [str(ROOT), str(ROOT / "scripts"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return subprocess.run(
        [*under, sys.executable, str(Path(__file__).with_name(name)), *arguments],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip


def facts_of(name: str, *arguments: str) -> list[dict]:
    """The JSON lines that the script prints.

    It is run once in a test session, for the first of its processes that asks.
    """
    key = hashlib.sha256(json.dumps([name, *arguments]).encode()).hexdigest()
    told = Path(os.environ[SESSION]) / f"{key}.jsonl"
    with FileLock(told.with_suffix(".lock")):
        if not told.exists():
            done = run_child(name, *arguments)
            assert done.returncode == 0, done.stderr[-3000:]
            told.write_text(done.stdout, "utf-8")
    return [json.loads(line) for line in told.read_text("utf-8").splitlines()]
