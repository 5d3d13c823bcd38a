"""Every shipped CuTe DSL configuration compiles for Hopper, without a GPU, to what was meant."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bundle.paths import ROOT

from solutions.common.cutedsl.config import TABLE, GemmConfig

pytest.importorskip("cutlass")

SHARED_LIMIT = 232_448  # bytes a block may use on sm_90
REGISTERS = 65_536  # of a multiprocessor


@pytest.fixture(scope="module")
def kernels():
    script = Path(__file__).with_name("compile_cutedsl.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_configurations(kernels):
    assert [kernel["config"] for kernel in kernels] == [str(config) for _, config in TABLE]


def test_resources(kernels):
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_LIMIT, kernel
        assert kernel["registers"] * kernel["threads"] <= REGISTERS, kernel
        for registers, threads in kernel["routing"]:
            assert registers * threads <= REGISTERS, kernel
        assert kernel["stack"] == 0, kernel
        if kernel["threads"] == 384:  # what setmaxnreg redistributes (moe_gemms.py)
            assert kernel["registers"] == 168, kernel


def test_instructions(kernels):
    for kernel in kernels:
        count = kernel["instructions"]
        assert count["UTMALDG.5D"] == count["UTMALDG.3D"] == 1, kernel
        assert count["LDGSTS"] > 0, kernel
        # weights of the first tiles go to L2 ahead of the routing's results
        assert count.get("UTMAPF", 0) == ("swap_ab=True" in kernel["config"]), kernel
        assert "LDL" not in count and "STL" not in count, kernel
        # one wait per wgmma instead of one per chain: the compiler serialised them
        assert count["QGMMA"] >= 2 * count["WARPGROUP.DEPBAR"] > 0, kernel


def test_weight_rows_of_a_warpgroup():
    with pytest.raises(ValueError, match="weight_rows must be 128 .* one warpgroup, got 256"):
        GemmConfig(swap_ab=True, tokens=80, weight_rows=256, warpgroups=1, stages=4)
