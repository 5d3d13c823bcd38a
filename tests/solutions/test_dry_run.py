"""scripts/run.py and scripts/compare.py on a B200 that is not there: the whole way to the launches
of every solution.

No figure comes from this, and nothing is run: kernels are compiled for the device and launched on a
list. See support/session_on_paper.py and support/dry_run.py.
"""

import json
from importlib.util import find_spec

import pytest
from bundle.dataset.packing import read_config, solution_folders
from bundle.paths import ROOT
from child import facts_of, run_child

ROUTING, GEMM = ["select_kernel", "permute_kernel"], "fp8_blockwise_scaled_grouped_mm"
PADDED = "solutions.common.cutedsl.sm100.padded_gemm.PaddedGemmKernel"
# in order; what is not listed must launch something
LAUNCHES = {
    "triton_fused_moe_v3": [
        *ROUTING, "gemm1_swiglu_kernel", "gemm2_weighted_kernel", "combine_kernel",
    ],
    "triton_fused_moe_v2": [
        *ROUTING, "gather_kernel", GEMM, "swiglu_quantize_kernel", GEMM, "combine_kernel",
    ],
    "sglang_fp8_blockwise_moe": [
        "moe_fused_gate", "permute_kernel", "gather_kernel", GEMM, "swiglu_quantize_kernel", GEMM,
        "apply_shuffle_mul_sum",
    ],
    "flashinfer_moe": ["trtllm_fp8_block_scale_moe"],
    "cutedsl_moe_fp8_v1": [*ROUTING, PADDED, "swiglu_quantize_kernel", PADDED, "combine_kernel"],
    "cutedsl_moe_fp8_v2": [*ROUTING, PADDED, "swiglu_quantize_kernel", PADDED, "combine_kernel"],
}  # fmt: skip


FLASHINFER = "flashinfer_moe"


def solutions_for(capability: int) -> list[str]:
    """That say they run on such a device, and have here what they need to get to a launch."""
    modules = {"cutedsl": "cutlass", "flashinfer": "flashinfer"}
    return [
        folder.name
        for folder in solution_folders(ROOT)
        if capability in read_config(folder).requires.compute_capabilities
        and find_spec(modules.get(folder.name.split("_")[0], "triton")) is not None
    ]


def check_session(capability: int, hardware: str, names: list[str], traces) -> None:
    """Run and compare these solutions and DeepGEMM, which is for Hopper alone."""
    done = run_child(
        "session_on_paper.py", str(capability), str(traces), "--workloads", "7",
        "--solutions", *names, "deepgemm_moe",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert f"On {hardware}, {len(names)} evaluations." in lines
    refused = f"deepgemm_moe cannot run here: needs sm_90, this is sm_{capability} ({hardware})"
    assert any(line.startswith(refused) for line in lines)
    assert any(line.startswith(f"Floor on {hardware}: 8 TB/s") for line in lines), "compare.py"
    facts = [json.loads(line) for line in lines if line.startswith('{"solution"')]
    launches = {fact["solution"]: fact["launches"] for fact in facts}
    assert set(launches) == set(names)
    for name, found in launches.items():
        kernels = [launch["name"] for launch in found]
        assert kernels == LAUNCHES.get(name, kernels)
        assert all(launch.get("arch", capability) == capability for launch in found)
        if name == "triton_fused_moe_v3":
            assert [launch["grid"] for launch in found[2:4]] == [[2 * 148, 1, 1]] * 2


def test_b200(tmp_path):
    check_session(100, "NVIDIA B200", solutions_for(100), tmp_path)


def test_b300(tmp_path):
    """One solution of ours, and one of a library with a list of devices of its own."""
    names = [name for name in solutions_for(103) if name in ("cutedsl_moe_fp8_v2", FLASHINFER)]
    check_session(103, "NVIDIA B300", names, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_all_on_b300(tmp_path):
    check_session(103, "NVIDIA B300", solutions_for(103), tmp_path)


def test_all_that_say_so_are_there():
    names = {
        folder.name
        for folder in solution_folders(ROOT)
        if {100, 103} <= set(read_config(folder).requires.compute_capabilities)
    }
    assert names == {
        "triton_fused_moe_v3", "triton_fused_moe_v2", "sglang_fp8_blockwise_moe", FLASHINFER,
        "cutedsl_moe_fp8_v1", "cutedsl_moe_fp8_v2", "cutedsl_moe_fp8_v3",
    }  # fmt: skip


def test_others_are_refused_by_name():
    """A solution for Hopper alone says what it needs, before it launches anything."""
    with pytest.raises(AssertionError, match="got 80"):
        facts_of("dry_run.py", "cutedsl_moe_fp8_v2", "80", "7")
