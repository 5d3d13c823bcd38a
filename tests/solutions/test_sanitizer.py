"""cutedsl_moe_fp8_v3 under compute-sanitizer, in every shipped configuration."""

import shutil

import pytest
from child import run_child

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
    command = (
        SANITIZER, "--tool", tool, "--kernel-regex", "kns=kernel_cutlass",
        "--report-api-errors", "no",  # the JIT asks the driver for functions that it may not have
    )  # fmt: skip
    done = run_child("sanitized_layer.py", under=command)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "10 calls" in said, said[-3000:]
    assert CLEAN[tool] in said, said[-3000:]
