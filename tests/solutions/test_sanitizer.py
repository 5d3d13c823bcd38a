"""The kernels in CuTe DSL under compute-sanitizer, in every shipped configuration."""

import os
import shutil

import pytest
from child import run_child

pytest.importorskip("cutlass")
pytest.importorskip("tvm_ffi")

from solutions.common.cutedsl.config import CONFIGS
from solutions.common.cutedsl.sm90.padded_gemm import TILES

SANITIZER = shutil.which("compute-sanitizer")
CLEAN = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "initcheck": "ERROR SUMMARY: 0 errors",
    "synccheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
}
CASES = (
    *[f"layer {number}" for number in (*range(len(CONFIGS)), "choice")],
    *[f"padded {number}" for number in range(len(TILES))],
)


@pytest.mark.gpu
@pytest.mark.skipif(SANITIZER is None, reason="needs CUDA's compute-sanitizer on PATH")
@pytest.mark.parametrize("tool", CLEAN)
@pytest.mark.parametrize("case", CASES)
def test_clean(tool, case, monkeypatch):
    # each tensor gets memory of its own, so that its end is an end, and what was freed is undefined
    monkeypatch.setitem(os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    command = (
        SANITIZER, "--tool", tool,
        "--report-api-errors", "no",  # the JIT asks the driver for functions that it may not have
    )  # fmt: skip
    done = run_child("sanitized_layer.py", *case.split(), under=command)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "calls right" in said, said[-3000:]
    assert CLEAN[tool] in said, said[-3000:]
