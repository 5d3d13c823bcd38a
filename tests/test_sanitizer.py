"""cutedsl_moe_fp8_v3 under compute-sanitizer, in every shipped configuration."""

import os
import shutil
import subprocess
import sys

import pytest
from bundle.paths import ROOT

pytest.importorskip("cutlass")
pytest.importorskip("tvm_ffi")

SANITIZER = shutil.which("compute-sanitizer")
CLEAN = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
}


@pytest.mark.gpu
@pytest.mark.skipif(SANITIZER is None, reason="needs CUDA's compute-sanitizer on PATH")
@pytest.mark.parametrize("tool", CLEAN)
@pytest.mark.timeout(600)
def test_v3(tool):
    command = [
        SANITIZER, "--tool", tool, "--kernel-regex", "kns=kernel_cutlass",
        "--report-api-errors", "no",  # the JIT asks the driver for functions that it may not have
        sys.executable, str(ROOT / "tests" / "sanitized_layer.py"),
    ]  # fmt: skip
    paths = os.pathsep.join([str(ROOT), str(ROOT / "scripts"), *filter(None, sys.path)])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "10 calls" in said, said[-3000:]
    assert CLEAN[tool] in said, said[-3000:]
