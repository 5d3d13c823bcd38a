"""The grouped FP8 GEMM on a padded batch (`padded_operands`), on the device's architecture."""

from __future__ import annotations

from functools import lru_cache

import torch

from ..once import once
from .architecture import backend_of
from .padded_operands import BLOCK, MAX_EXPERTS
from .sm90 import padded_gemm as sm90
from .sm100 import padded_gemm as sm100

KERNELS = {90: sm90, 100: sm100}  # by backend


@lru_cache
def _num_sms(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@once
def _compiled(tile, device: torch.device):
    kernel = KERNELS[backend_of(device)].PaddedGemmKernel(tile, _num_sms(device))
    # TVM-FFI: a call costs a few microseconds of host time instead of tens
    return kernel.compile(options="--enable-tvm-ffi")


def padded_gemm(a, a_scale, b, b_scale, offsets, tile=None) -> torch.Tensor:
    """c [E, max_m, N] bf16 of `padded_operands`, on a's device and its current stream.

    The arguments are contiguous CUDA tensors. tile: a GemmTile of the device's architecture, by
    default that of `tile_for`. Raises ValueError for more than 32 experts or a size that is no
    multiple of what it must be.
    """
    experts, max_m, k = a.shape
    n = b.shape[1]
    if experts > MAX_EXPERTS:
        raise ValueError(f"a: expected at most {MAX_EXPERTS} experts, got {experts}")
    for name, size, multiple in (("max_m", max_m, 4), ("N", n, BLOCK), ("K", k, BLOCK)):
        if size % multiple:
            raise ValueError(f"{name}: expected a multiple of {multiple}, got {size}")
    c = torch.empty(experts, max_m, n, dtype=torch.bfloat16, device=a.device)
    if tile is None:
        tile = KERNELS[backend_of(a.device)].tile_for(experts, max_m, n, _num_sms(a.device))
    _compiled(tile, a.device)(
        a.data_ptr(), a_scale.data_ptr(), b.data_ptr(), b_scale.data_ptr(), offsets.data_ptr(),
        c.data_ptr(), experts, max_m, n, k, torch.cuda.current_stream(a.device).cuda_stream,
    )  # fmt: skip
    return c
