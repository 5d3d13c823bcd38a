"""Gather: copies each token to its rows, for a GEMM that reads them one after the other."""

import torch
import triton
import triton.language as tl

from ..geometry import Geometry
from .launch import Launcher


@triton.jit(do_not_specialize=["num_tokens"])
def gather_kernel(
    hidden_ptr,  # fp8 [T, H]
    hidden_scale_ptr,  # fp32 [H / 128, T]
    expert_offsets_ptr,  # int32 [E + 1]
    token_rows_ptr,  # int32 [T, TOP_K]
    x_ptr,  # out: fp8 [max_rows, H]
    x_scale_ptr,  # out: fp32 [max_rows, H / 128]
    gemm1_sizes_ptr,  # out: int32 [E, 3], rows, columns and depth of each expert's GEMM1
    gemm2_sizes_ptr,  # out: int32 [E, 3]
    num_tokens,
    H: tl.constexpr,
    I: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    """x, x_scale = the rows' tokens; the rows past the last expert's are left alone.

    A program reads one token, if it has rows at all, and writes all of them.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    if token == 0:
        expert = tl.arange(0, NUM_LOCAL)
        rows = tl.load(expert_offsets_ptr + expert + 1) - tl.load(expert_offsets_ptr + expert)
        tl.store(gemm1_sizes_ptr + expert * 3, rows)
        tl.store(gemm1_sizes_ptr + expert * 3 + 1, 2 * I)
        tl.store(gemm1_sizes_ptr + expert * 3 + 2, H)
        tl.store(gemm2_sizes_ptr + expert * 3, rows)
        tl.store(gemm2_sizes_ptr + expert * 3 + 1, H)
        tl.store(gemm2_sizes_ptr + expert * 3 + 2, I)

    K_BLOCKS: tl.constexpr = H // BLOCK
    column = tl.arange(0, BLOCK_H)
    block = tl.arange(0, BLOCK_H // BLOCK)
    num_rows = tl.load(expert_offsets_ptr + NUM_LOCAL)
    places = token_rows_ptr + token * TOP_K
    rows = tl.load(places + tl.arange(0, TOP_K))
    if tl.max(((rows >= 0) & (rows < num_rows)).to(tl.int32), 0) == 1:
        x = tl.load(hidden_ptr + token * H + column, mask=column < H)
        scale = tl.load(hidden_scale_ptr + block * num_tokens + token, mask=block < K_BLOCKS)
        for place in range(TOP_K):
            row = tl.load(places + place).to(tl.int64)
            if (row >= 0) & (row < num_rows):
                tl.store(x_ptr + row * H + column, x, mask=column < H)
                tl.store(x_scale_ptr + row * K_BLOCKS + block, scale, mask=block < K_BLOCKS)


_INT, _FP8, _FP32 = torch.int32, torch.float8_e4m3fn, torch.float32
_gather = Launcher(
    gather_kernel,
    hidden_ptr=_FP8,
    hidden_scale_ptr=_FP32,
    expert_offsets_ptr=_INT,
    token_rows_ptr=_INT,
    x_ptr=_FP8,
    x_scale_ptr=_FP32,
    gemm1_sizes_ptr=_INT,
    gemm2_sizes_ptr=_INT,
)


def gather(
    geometry: Geometry, hidden, hidden_scale, expert_offsets, token_rows, outputs: tuple, pdl: bool
) -> None:
    """Copy hidden [T, H] fp8 and hidden_scale [H / 128, T] fp32 to rows grouped by expert.

    expert_offsets int32 [E + 1]: prefix sums of the rows per expert. token_rows int32 [T, top_k]:
    rows of each token in any order; a number outside [0, expert_offsets[E]) stands for none.
    outputs: x [max_rows, H] fp8, x_scale [max_rows, H / 128] fp32, and int32 [E, 3] each for GEMM1
    and GEMM2: rows, columns, depth. With pdl, the routing is awaited with griddepcontrol.wait.
    """
    num_tokens, h = hidden.shape
    _gather(
        (num_tokens, 1, 1),
        (hidden, hidden_scale, expert_offsets, token_rows, *outputs, num_tokens),
        (h, geometry.intermediate_size, geometry.num_local_experts, geometry.top_k, geometry.block,
         triton.next_power_of_2(h), pdl),
        num_warps=4,
        launch_pdl=pdl,
    )  # fmt: skip
