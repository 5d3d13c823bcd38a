"""Every solution on a B200 that is not there: the whole way to its launches.

No figure comes from this, and nothing is run: kernels are compiled for the device and launched on a
list. See support/dry_run.py.
"""

from importlib.util import find_spec

import pytest
from bundle.dataset.packing import read_config, solution_folders
from bundle.paths import ROOT
from child import facts_of

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


def solutions_for(capability: int) -> list:
    """That say they run on such a device, with what they need to get to a launch here."""
    found = []
    for folder in solution_folders(ROOT):
        capabilities = read_config(folder).requires.compute_capabilities
        if capability not in capabilities:
            continue
        module = {"cutedsl": "cutlass", "flashinfer": "flashinfer"}.get(folder.name.split("_")[0])
        absent = module is not None and find_spec(module) is None
        marks = pytest.mark.skipif(absent, reason=f"needs the module {module}")
        found.append(pytest.param(folder.name, capability, marks=marks))
    return found


B300 = [case for case in solutions_for(103) if case.values[0] == "cutedsl_moe_fp8_v2"]


@pytest.mark.parametrize("name, capability", [*solutions_for(100), *B300])
def test_walks_to_its_launches(name, capability):
    launches = facts_of("dry_run.py", name, str(capability), "7")
    assert launches
    assert [launch["name"] for launch in launches] == LAUNCHES.get(
        name, [launch["name"] for launch in launches]
    )
    kernels = [launch for launch in launches if launch["kind"] == "triton"]
    assert all(kernel["arch"] == capability for kernel in kernels)
    if name == "triton_fused_moe_v3":
        gemm1, gemm2 = kernels[2:4]
        assert gemm1["grid"] == gemm2["grid"] == [2 * 148, 1, 1]


def test_all_that_say_so_are_there():
    names = {parameters.values[0] for parameters in solutions_for(100)}
    assert names >= {"triton_fused_moe_v3", "triton_fused_moe_v2", "sglang_fp8_blockwise_moe",
                     "flashinfer_moe", "cutedsl_moe_fp8_v1", "cutedsl_moe_fp8_v2"}  # fmt: skip


def test_others_are_refused_by_name():
    """A solution for Hopper alone says what it needs, before it launches anything."""
    with pytest.raises(AssertionError, match="got 80"):
        facts_of("dry_run.py", "cutedsl_moe_fp8_v2", "80", "7")
