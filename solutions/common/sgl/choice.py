"""Which of sgl-kernel's kernels each GEMM uses at which number of tokens."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from ..arguments import require_cuda
from .grouped_gemms import Kernel


@dataclass(frozen=True)
class Choice:
    """Kernels of both GEMMs for up to max_tokens tokens."""

    max_tokens: float
    gemm1: Kernel
    gemm2: Kernel


SMALL_M, LARGE_M, ES = Kernel.SMALL_M, Kernel.LARGE_M, Kernel.ES

SM_90 = (  # GEMMs alone measured on an H200 at T <= 80, T = 901 and T >= 11948
    Choice(640, SMALL_M, SMALL_M),
    Choice(1536, ES, ES),
    Choice(float("inf"), LARGE_M, LARGE_M),
)
SM_100 = (  # not measured: mean rows per expert are T / 32
    Choice(2048, SMALL_M, SMALL_M),
    Choice(float("inf"), LARGE_M, LARGE_M),
)


@lru_cache(maxsize=64)
def choice_for(num_tokens: int, device: torch.device) -> Choice:
    """First row of the device's table that covers num_tokens; ValueError for the CPU."""
    require_cuda(device)
    table = SM_90 if torch.cuda.get_device_capability(device) == (9, 0) else SM_100
    return next(choice for choice in table if num_tokens <= choice.max_tokens)
