"""FP8 block-scaled grouped GEMMs over ragged rows, fused with the layer's pointwise stages.

Both kernels walk the tiles of all experts with a persistent grid and read the rows per expert
from `expert_offsets`, so the host never waits for them. A program multiplies BLOCK_T rows with two
BLOCK-row weight tiles at once (BLOCK = 128, the edge of a scale block): up and gate of the same
columns in GEMM1, neighbours in GEMM2.

The tensor core adds up the 128 products of one scale block only; each partial sum is then scaled
and added in fp32 (DeepSeek-V3 technical report, section 3.3.2). SWAP_AB puts the weights on the
tensor core's M side, whose atom is 64 rows, and the few tokens on N.
"""

import triton
import triton.language as tl

from ..common.triton_stages.quantize import e4m3_values, operands, quantize_e4m3


@triton.jit
def _tiles_of_experts(expert_offsets_ptr, TILES_N, BLOCK_T: tl.constexpr, NUM_LOCAL: tl.constexpr):
    """Row ranges and tile counts of all experts."""
    expert = tl.arange(0, NUM_LOCAL)
    start = tl.load(expert_offsets_ptr + expert)
    end = tl.load(expert_offsets_ptr + expert + 1)
    return start, end, tl.cdiv(end - start, BLOCK_T) * TILES_N


@triton.jit
def _locate(tile, start, end, tiles, BLOCK_T: tl.constexpr, NUM_LOCAL: tl.constexpr):
    """Tile number -> expert, its first row, its end row, column tile.

    Tiles of one weight tile follow each other, so that it is read from L2 all but once.
    """
    last = tl.cumsum(tiles, 0)
    expert = tl.sum((last <= tile).to(tl.int32), 0)
    chosen = tl.arange(0, NUM_LOCAL) == expert
    within = tile - tl.sum(tl.where(chosen, last - tiles, 0), 0)
    first = tl.sum(tl.where(chosen, start, 0), 0)
    stop = tl.sum(tl.where(chosen, end, 0), 0)
    tiles_t = tl.cdiv(stop - first, BLOCK_T)
    return expert, first + (within % tiles_t) * BLOCK_T, stop, within // tiles_t


@triton.jit
def _two_weight_tiles(
    x_ptr,  # fp8, first K element of each of the tile's rows, [BLOCK_T]
    x_scale_ptr,  # fp32, scale of each row's first K block, [BLOCK_T]
    x_scale_stride,  # to the next K block
    w,  # fp8 weights: a tensor descriptor over [E * N, K]
    w_row0,
    w_row1,
    w_scale0_ptr,  # fp32, scales of the two weight tiles' first K block
    w_scale1_ptr,
    first_block,  # of K
    num_blocks,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SWAP_AB: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """x @ w0.T and x @ w1.T over num_blocks blocks of K, transposed if SWAP_AB."""
    k = tl.arange(0, BLOCK)
    values = e4m3_values()
    if SWAP_AB:
        acc0 = tl.zeros([BLOCK, BLOCK_T], tl.float32)
        acc1 = tl.zeros([BLOCK, BLOCK_T], tl.float32)
    else:
        acc0 = tl.zeros([BLOCK_T, BLOCK], tl.float32)
        acc1 = tl.zeros([BLOCK_T, BLOCK], tl.float32)
    for block in tl.range(first_block, first_block + num_blocks, num_stages=NUM_STAGES):
        x = tl.load(x_ptr[:, None] + (block * BLOCK + k)[None, :])
        x_scale = tl.load(x_scale_ptr + block * x_scale_stride)
        w0 = w.load([w_row0, block * BLOCK])
        w1 = w.load([w_row1, block * BLOCK])
        x, w0, w1 = operands(x, w0, w1, values)
        w_scale0 = tl.load(w_scale0_ptr + block)
        if SWAP_AB:
            acc0 = acc0 + tl.dot(w0, tl.trans(x)) * (x_scale * w_scale0)[None, :]
        else:
            acc0 = acc0 + tl.dot(x, tl.trans(w0)) * (x_scale * w_scale0)[:, None]
        w_scale1 = tl.load(w_scale1_ptr + block)
        if SWAP_AB:
            acc1 = acc1 + tl.dot(w1, tl.trans(x)) * (x_scale * w_scale1)[None, :]
        else:
            acc1 = acc1 + tl.dot(x, tl.trans(w1)) * (x_scale * w_scale1)[:, None]
    return acc0, acc1


@triton.jit
def _add_other_half(halves_ptr, counter_ptr, tile, half, acc0, acc1):
    """Leave one half of K's sums in memory; the second program to come gets the whole sums.

    Returns whether this is the second. Two addends: the order of arrival does not change the bits.
    """
    ROWS: tl.constexpr = acc0.shape[0]
    COLUMNS: tl.constexpr = acc0.shape[1]
    SIZE: tl.constexpr = ROWS * COLUMNS
    place = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mine = halves_ptr + (tile * 2 + half) * (2 * SIZE)
    tl.store(mine + place, acc0)
    tl.store(mine + SIZE + place, acc1)
    tl.debug_barrier()  # all warps' stores come before the release below
    second = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel") == 1
    if second:
        other = halves_ptr + (tile * 2 + 1 - half) * (2 * SIZE)
        acc0 += tl.load(other + place, cache_modifier=".cg")
        acc1 += tl.load(other + SIZE + place, cache_modifier=".cg")
    return second, acc0, acc1


@triton.jit(do_not_specialize=["num_tokens", "max_rows"])
def gemm1_swiglu_kernel(
    hidden_ptr,  # fp8 [T, H]
    hidden_scale_ptr,  # fp32 [H / 128, T]
    w,  # fp8 [E * 2I, H], per expert up rows, then gate rows
    w_scale_ptr,  # fp32 [E, 2I / 128, H / 128]
    expert_offsets_ptr,
    row_token_ptr,
    act_ptr,  # out: fp8 [max_rows, I]
    act_scale_ptr,  # out: fp32 [I / 128, max_rows]
    halves_ptr,  # scratch if HALVES: fp32 [tiles, 2, 2, BLOCK_T * BLOCK]
    counters_ptr,  # scratch if HALVES: int32 [tiles] of zeros
    num_tokens,
    max_rows,
    H: tl.constexpr,
    I: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SWAP_AB: tl.constexpr,
    HALVES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """act = quantised silu(gate) * up of the rows' gathered tokens.

    HALVES lets two programs share a tile's K where that shortens the end, when less than a third
    of the programs would have a last tile: with few tiles, or just more than programs.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    TILES_N: tl.constexpr = I // BLOCK
    K_BLOCKS: tl.constexpr = H // BLOCK
    start, end, tiles = _tiles_of_experts(expert_offsets_ptr, TILES_N, BLOCK_T, NUM_LOCAL)
    total = tl.sum(tiles, 0)
    parts = 1
    if HALVES:
        tail = total % tl.num_programs(0)
        parts = tl.where((tail > 0) & (3 * tail <= tl.num_programs(0)), 2, 1)
    for item in range(tl.program_id(0), total * parts, tl.num_programs(0)):
        tile = item // parts
        half = item % parts
        blocks = K_BLOCKS // parts
        expert, first, stop, n = _locate(tile, start, end, tiles, BLOCK_T, NUM_LOCAL)
        row = first + tl.arange(0, BLOCK_T)
        # rows past the end repeat the last one: a valid load, never stored
        token = tl.load(row_token_ptr + tl.minimum(row, stop - 1))
        up = expert * (2 * TILES_N) + n
        acc_up, acc_gate = _two_weight_tiles(
            hidden_ptr + token.to(tl.int64) * H, hidden_scale_ptr + token, num_tokens,
            w, up * BLOCK, (up + TILES_N) * BLOCK,
            w_scale_ptr + up * K_BLOCKS, w_scale_ptr + (up + TILES_N) * K_BLOCKS,
            half * blocks, blocks, BLOCK, BLOCK_T, SWAP_AB, NUM_STAGES,
        )  # fmt: skip
        complete = parts == 1
        if HALVES:
            if parts == 2:
                complete, acc_up, acc_gate = _add_other_half(
                    halves_ptr, counters_ptr, tile, half, acc_up, acc_gate
                )
        if complete:
            act = acc_gate / (1.0 + tl.exp(-acc_gate)) * acc_up
            if SWAP_AB:
                act = tl.trans(act)
            quantized, scale = quantize_e4m3(act)
            column = n * BLOCK + tl.arange(0, BLOCK)
            tl.store(
                act_ptr + row.to(tl.int64)[:, None] * I + column[None, :],
                quantized,
                mask=(row < stop)[:, None],
            )
            tl.store(act_scale_ptr + n * max_rows + row, scale, mask=row < stop)


@triton.jit(do_not_specialize=["max_rows"])
def gemm2_weighted_kernel(
    act_ptr,  # fp8 [max_rows, I]
    act_scale_ptr,  # fp32 [I / 128, max_rows]
    w,  # fp8 [E * H, I]
    w_scale_ptr,  # fp32 [E, H / 128, I / 128]
    expert_offsets_ptr,
    row_weight_ptr,  # fp32 [max_rows]
    y_ptr,  # out: [max_rows, H]
    max_rows,
    H: tl.constexpr,
    I: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SWAP_AB: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """y = (act @ w.T) times the row's combine weight."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    TILES_N: tl.constexpr = H // (2 * BLOCK)
    K_BLOCKS: tl.constexpr = I // BLOCK
    start, end, tiles = _tiles_of_experts(expert_offsets_ptr, TILES_N, BLOCK_T, NUM_LOCAL)
    for tile in range(tl.program_id(0), tl.sum(tiles, 0), tl.num_programs(0)):
        expert, first, stop, n = _locate(tile, start, end, tiles, BLOCK_T, NUM_LOCAL)
        row = first + tl.arange(0, BLOCK_T)
        source = tl.minimum(row, stop - 1)
        left = (expert * TILES_N + n) * 2
        acc0, acc1 = _two_weight_tiles(
            act_ptr + source.to(tl.int64) * I, act_scale_ptr + source, max_rows,
            w, left * BLOCK, (left + 1) * BLOCK,
            w_scale_ptr + left * K_BLOCKS, w_scale_ptr + (left + 1) * K_BLOCKS,
            0, K_BLOCKS, BLOCK, BLOCK_T, SWAP_AB, NUM_STAGES,
        )  # fmt: skip
        weight = tl.load(row_weight_ptr + source)
        column = n * (2 * BLOCK) + tl.arange(0, BLOCK)
        y = y_ptr + row.to(tl.int64)[:, None] * H + column[None, :]
        if SWAP_AB:
            acc0 = tl.trans(acc0)
            acc1 = tl.trans(acc1)
        mask = (row < stop)[:, None]
        tl.store(y, (acc0 * weight[:, None]).to(y_ptr.dtype.element_ty), mask=mask)
        tl.store(y + BLOCK, (acc1 * weight[:, None]).to(y_ptr.dtype.element_ty), mask=mask)
