"""The kernels in CuTe DSL under compute-sanitizer, in every shipped configuration."""

import os
import shutil

import pytest
import torch
from child import run_child

pytest.importorskip("cutlass")
pytest.importorskip("tvm_ffi")

from conftest import HAS_CUDA

from solutions.common.cutedsl.config import CONFIGS, CONFIGS_100
from solutions.common.cutedsl.padded_gemm import KERNELS

SANITIZER = shutil.which("compute-sanitizer")
CLEAN = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "initcheck": "ERROR SUMMARY: 0 errors",
    "synccheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
}
BACKEND = 100 if HAS_CUDA and torch.cuda.get_device_capability()[0] == 10 else 90
CASES = (
    *[f"layer {n}" for n in range(len(CONFIGS if BACKEND == 90 else CONFIGS_100))],
    "layer choice",
    *[f"padded {n}" for n in range(len(KERNELS[BACKEND].TILES))],
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
