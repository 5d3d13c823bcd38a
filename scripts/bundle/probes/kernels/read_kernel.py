"""A kernel that reads memory and nothing else, for the read bandwidth of a GPU."""

import torch
import triton
import triton.language as tl


@triton.jit
def read_kernel(source_ptr, sums_ptr, STEPS, BLOCK: tl.constexpr):
    """Every program adds up STEPS blocks of int32, a grid apart, and stores one number."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.int32)
    for step in range(STEPS):
        block = (step * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
        total += tl.load(source_ptr + block * BLOCK + lane)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(total, 0))


def read(source: torch.Tensor, programs: int = 8192, block: int = 4096) -> torch.Tensor:
    """Sums of int32 `source`, one per program; its length must be a multiple of what all of the
    programs read in a step.
    """
    steps, rest = divmod(source.numel(), programs * block)
    if rest:
        raise ValueError(
            f"source: expected a multiple of {programs * block} elements, got {source.numel()}"
        )
    sums = torch.empty(programs, dtype=torch.int32, device=source.device)
    read_kernel[(programs,)](source, sums, steps, block, num_warps=8)
    return sums
