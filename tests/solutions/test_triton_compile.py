"""Every shipped Triton configuration compiles for Hopper and Blackwell, without a GPU."""

import pytest
from child import facts_of

SHARED_LIMIT = 232_448  # bytes a block may use on sm_90 and sm_100


@pytest.mark.parametrize("capability, mma, count", [(90, "QGMMA", 30), (100, "UTCQMMA", 21)])
def test_compiles(capability, mma, count):
    kernels = facts_of("compile_triton.py", str(capability))
    assert len(kernels) == count
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_LIMIT, kernel
        if kernel["kernel"].startswith("gemm"):
            assert kernel[mma] and kernel["UTMALDG"], kernel
            # sm_90: Triton 3.6 spills nothing, 3.9 this much of GEMM1's large tiles. sm_100: of the
            # largest ones of both GEMMs (see tiles.py), of no other
            spills = capability == 90 or kernel["kernel"].endswith("_inf")
            assert kernel["stack"] <= (256 if spills else 0), kernel
