"""Permutation of the local (token, expert) pairs: moe_fused_gate's picks -> rows by local expert.

sgl-kernel's prepare_moe_input and shuffle_rows know of no expert parallelism: they leave the
entries of non-local pairs uninitialised and copy as many rows as the buffer has, eight times what
there is. Here a pair of another rank's expert gets no row; what is read for it is a row of zeros.
The combine weights are computed here, too, because moe_fused_gate divides by the plain sum of a
token's scores: NaN for very negative logits, and too much before that.

Rows are ordered by local expert, then by pair. With few tokens every program counts all pairs
itself; with many, `count_kernel` counts them by blocks beforehand.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..common.geometry import Geometry, max_rows
from ..common.triton_stages.launch import Launcher
from ..common.triton_stages.routing import (
    Blocks,
    first_rows,
    sigmoid,
    store_offsets,
    sum_block_counts,
)

COUNT_ALL_TOKENS = 256  # up to here every program counts all pairs itself


class Permutation(NamedTuple):
    """Where the rows come from and go to, on the device; tensors or addresses."""

    expert_offsets: Any  # int32 [E + 1], prefix sums of the rows per local expert
    pair_row: Any  # int32 [T * top_k], row of each pair; max_rows if it is not local
    pair_weight: Any  # bf16 [T * top_k], combine weight of each pair; 0 if it is not local
    block_counts: Any  # int32 [blocks, E], scratch


@triton.jit
def _one_hot(expert, local_expert_offset, NUM_LOCAL: tl.constexpr):
    """int32 [pairs, NUM_LOCAL]: 1 at each pair's local expert, all 0 where there is none."""
    local = tl.arange(0, NUM_LOCAL) + local_expert_offset
    return (expert[:, None] == local[None, :]).to(tl.int32)


@triton.jit(do_not_specialize=["num_pairs", "local_expert_offset"])
def count_kernel(
    expert_ptr,  # int32 [num_pairs], global experts
    block_counts_ptr,  # out
    num_pairs,
    local_expert_offset,
    PAIRS: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    expert = tl.load(expert_ptr + pair, mask=pair < num_pairs, other=-1)
    counts = tl.sum(_one_hot(expert, local_expert_offset, NUM_LOCAL), 0)
    tl.store(block_counts_ptr + tl.program_id(0) * NUM_LOCAL + tl.arange(0, NUM_LOCAL), counts)


@triton.jit
def _combine_weights(
    logits_ptr, pair, expert, in_range, factor, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr
):
    """fp32 [pairs]: each pair's share of its token's scores times factor; whole tokens."""
    # for NaN logits the gate's experts may be out of range
    known = in_range & (expert >= 0) & (expert < NUM_EXPERTS)
    logit = tl.load(logits_ptr + pair // TOP_K * NUM_EXPERTS + expert, mask=known, other=0.0)
    scores = tl.reshape(sigmoid(logit), [pair.shape[0] // TOP_K, TOP_K])
    weights = scores / (tl.sum(scores, 1, keep_dims=True) + 1e-20) * factor
    return tl.reshape(weights, [pair.shape[0]])


@triton.jit(do_not_specialize=["num_pairs", "num_blocks", "no_row", "local_expert_offset"])
def permute_kernel(
    expert_ptr,  # int32 [num_pairs], global experts
    logits_ptr,  # fp32 [num_pairs / TOP_K, NUM_EXPERTS]
    expert_offsets_ptr,
    pair_row_ptr,
    pair_weight_ptr,
    block_counts_ptr,  # read if COUNTED
    y_ptr,  # out: bf16 [no_row + 1, H], the last row is set to 0
    num_pairs,
    num_blocks,
    no_row,
    local_expert_offset,
    factor,
    PAIRS: tl.constexpr,
    CHUNK: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    TOP_K: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    COUNTED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Numbers the rows of one block of pairs."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    block = tl.program_id(0)
    if COUNTED:
        counts, before = sum_block_counts(block_counts_ptr, block, num_blocks, CHUNK, NUM_LOCAL)
    else:
        totals = tl.zeros([CHUNK, NUM_LOCAL], tl.int32)
        earlier = tl.zeros([CHUNK, NUM_LOCAL], tl.int32)
        for start in range(0, num_pairs, CHUNK):
            other = start + tl.arange(0, CHUNK)
            expert = tl.load(expert_ptr + other, mask=other < num_pairs, other=-1)
            picked = _one_hot(expert, local_expert_offset, NUM_LOCAL)
            totals += picked
            earlier += tl.where((other < block * PAIRS)[:, None], picked, 0)
        counts = tl.sum(totals, 0)
        before = tl.sum(earlier, 0)
    first_row = first_rows(counts, 1)
    if block == 0:
        store_offsets(expert_offsets_ptr, counts, first_row, NUM_LOCAL)
        column = tl.arange(0, BLOCK_H)
        zeros = tl.zeros([BLOCK_H], tl.bfloat16)
        tl.store(y_ptr + no_row.to(tl.int64) * H + column, zeros, mask=column < H)

    pair = block * PAIRS + tl.arange(0, PAIRS)
    in_range = pair < num_pairs
    expert = tl.load(expert_ptr + pair, mask=in_range, other=-1)
    taken = _one_hot(expert, local_expert_offset, NUM_LOCAL)
    next_row = first_row + before
    rank = tl.cumsum(taken, 0) - taken
    row = tl.sum(taken * (next_row[None, :] + rank), 1)
    is_local = tl.sum(taken, 1) == 1
    tl.store(pair_row_ptr + pair, tl.where(is_local, row, no_row), mask=in_range)
    weight = _combine_weights(logits_ptr, pair, expert, in_range, factor, NUM_EXPERTS, TOP_K)
    weight = tl.where(is_local, weight, 0.0)
    tl.store(pair_weight_ptr + pair, weight.to(tl.bfloat16), mask=in_range)


_INT = torch.int32
_count = Launcher(count_kernel, expert_ptr=_INT, block_counts_ptr=_INT)
_permute = Launcher(
    permute_kernel,
    expert_ptr=_INT,
    logits_ptr=torch.float32,
    expert_offsets_ptr=_INT,
    pair_row_ptr=_INT,
    pair_weight_ptr=torch.bfloat16,
    block_counts_ptr=_INT,
    y_ptr=torch.bfloat16,
)


def blocks_for(num_tokens: int) -> Blocks:
    """Few tokens: a program each. Many: larger blocks, so that the counts stay short."""
    return Blocks(1, 4, 256) if num_tokens <= COUNT_ALL_TOKENS else Blocks(32, 8, 64)


def permute(
    geometry: Geometry,
    experts,
    logits,
    local_expert_offset: int,
    factor: float,
    out: Permutation,
    y,
    pdl: bool,
) -> None:
    """Fill `out` from experts int32 [T, top_k] and logits fp32 [T, num_experts]; zero y's last row.

    T > 0; y is bf16 [max_rows + 1, H]. With pdl, experts are awaited with griddepcontrol.wait, and
    the kernel launched next must await this one likewise.
    """
    num_tokens, top_k = experts.shape
    blocks = blocks_for(num_tokens)
    programs = triton.cdiv(num_tokens, blocks.tokens)
    pairs, local = blocks.tokens * top_k, geometry.num_local_experts
    counted = num_tokens > COUNT_ALL_TOKENS
    if counted:
        _count(
            (programs, 1, 1),
            (experts, out.block_counts, num_tokens * top_k, local_expert_offset),
            (pairs, local, pdl),
            num_warps=blocks.warps,
            launch_pdl=pdl,
        )
    _permute(
        (programs, 1, 1),
        (experts, logits, *out, y, num_tokens * top_k, programs,
         max_rows(geometry, num_tokens), local_expert_offset, factor),
        (pairs, blocks.chunk, geometry.num_experts, local, top_k, geometry.hidden_size,
         triton.next_power_of_2(geometry.hidden_size), counted, pdl),
        num_warps=blocks.warps,
        launch_pdl=pdl,
    )  # fmt: skip
