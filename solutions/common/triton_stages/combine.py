"""Weighted combine: adds up each token's rows, pull style, without atomics."""

from functools import lru_cache

import torch
import triton
import triton.language as tl

from .launch import Launch, Launcher, addresses


@triton.jit
def combine_kernel(
    y_ptr,  # bf16 [max_rows, H]
    token_rows_ptr,  # int32 [T, TOP_K], each token's rows from the left, then -1
    row_weight_ptr,  # fp32 [max_rows], read if WEIGHTED
    output_ptr,  # bf16 [T, H]
    H: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PDL: tl.constexpr,
):
    """A token's rows are added in their order, two at a step, so that two loads are in flight."""
    tl.static_assert(TOP_K % 2 == 0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    places = token_rows_ptr + token * TOP_K
    num_rows = tl.sum((tl.load(places + tl.arange(0, TOP_K)) >= 0).to(tl.int32), 0)
    total = tl.zeros([BLOCK_H], tl.float32)
    for place in range(0, num_rows, 2):
        row = tl.load(places + place).to(tl.int64)
        next_row = tl.load(places + place + 1).to(tl.int64)
        next_columns = tl.where(next_row >= 0, H, 0)
        y = tl.load(y_ptr + row * H + column, mask=column < H, other=0.0)
        next_y = tl.load(y_ptr + next_row * H + column, mask=column < next_columns, other=0.0)
        y, next_y = y.to(tl.float32), next_y.to(tl.float32)
        if WEIGHTED:
            y *= tl.load(row_weight_ptr + row)
            next_y *= tl.load(row_weight_ptr + next_row, mask=next_row >= 0, other=0.0)
        total += y
        total += next_y
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
    token_rows lists them from the left, then -1. They are added in fp32 in that order, which is
    ascending; a token without rows gets zeros. With pdl, y is awaited with griddepcontrol.wait.
    """
    launch = prepare_combine(*output.shape, top_k, row_weight is not None, pdl)
    launch(y, token_rows, row_weight, *addresses(output))


@lru_cache(maxsize=1024)
def prepare_combine(
    num_tokens: int, hidden_size: int, top_k: int, weighted: bool, pdl: bool
) -> Launch:
    """The launch of `combine`: it takes y, token_rows, row_weight or None, and output's address."""
    block_h = 1024
    return _combine.prepare(
        (num_tokens, -(-hidden_size // block_h), 1),
        (hidden_size, top_k, block_h, weighted, pdl),
        num_warps=4,
        launch_pdl=pdl,
    )
