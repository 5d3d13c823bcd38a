"""Weighted combine: adds up each token's rows, pull style, without atomics."""

import torch
import triton
import triton.language as tl

from .launch import Launcher


@triton.jit
def combine_kernel(
    y_ptr,  # bf16 [max_rows, H]
    token_rows_ptr,  # int32 [T, TOP_K], -1 where there is no row
    row_weight_ptr,  # fp32 [max_rows], read if WEIGHTED
    output_ptr,  # bf16 [T, H]
    H: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    rows = tl.load(token_rows_ptr + token * TOP_K + tl.arange(0, TOP_K)).to(tl.int64)
    mask = (rows[:, None] >= 0) & (column[None, :] < H)
    y = tl.load(y_ptr + rows[:, None] * H + column[None, :], mask=mask, other=0.0).to(tl.float32)
    if WEIGHTED:
        y *= tl.load(row_weight_ptr + rows, mask=rows >= 0, other=0.0)[:, None]
    total = tl.sum(y, 0)
    tl.store(output_ptr + token * H + column, total.to(tl.bfloat16), mask=column < H)


_combine = Launcher(
    combine_kernel,
    y_ptr=torch.bfloat16,
    token_rows_ptr=torch.int32,
    row_weight_ptr=torch.float32,
    output_ptr=torch.bfloat16,
)


def combine(
    y, token_rows, top_k: int, output: torch.Tensor, pdl: bool = False, row_weight=None
) -> None:
    """output [T, H] bf16 = sum of y's rows (bf16 [max_rows, H]) listed in token_rows [T, top_k].

    Each row is multiplied by its row_weight (fp32 [max_rows]), or comes weighted if there is none.
    A token without rows gets zeros. With pdl, y is awaited with griddepcontrol.wait.
    """
    num_tokens, hidden_size = output.shape
    block_h = 1024
    weighted = row_weight is not None
    _combine(
        (num_tokens, triton.cdiv(hidden_size, block_h), 1),
        (y, token_rows, row_weight, output),
        (hidden_size, top_k, block_h, weighted, pdl),
        num_warps=4,
        launch_pdl=pdl,
    )
