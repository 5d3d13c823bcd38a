"""A short run of tests/soak.py; the long one is for a person to start."""

import json
import os
import subprocess
import sys

import pytest
from bundle.paths import ROOT

pytest.importorskip("cutlass")


@pytest.mark.gpu
def test_no_mismatch_and_flat_memory():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "soak.py", "--calls", "600", "--seconds", "25"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["calls"] >= 50 and told["worst"] > 0
    assert told["memory_growth"] <= 1 << 20
