"""Operands of the grouped FP8 GEMM on a padded batch, which every architecture's kernel takes:
c[e, m] = sum over k of a[e, m, k] * b[e, n, k], scaled.

Global tensors (row-major, last dimension fastest; offsets give expert e its first
rows(e) = offsets[e + 1] - offsets[e] rows, the others are neither needed nor defined):
  a [E, max_m, K] e4m3          a_scale [K/128, E, max_m] fp32
  b [E, N, K] e4m3              b_scale [E, N/128, K/128] fp32
  offsets [E + 1] int32         c [E, max_m, N] bf16
E <= 32; N and K are multiples of 128, max_m is one of 4 (TMA wants strides of 16 bytes).
"""

from __future__ import annotations

import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32, Int64
from cutlass.cute.nvgpu import cpasync

BLOCK = 128  # columns of a slot, and the edge of a scale block
MAX_EXPERTS = 32  # TileList spreads the experts over a warp
POINTERS = (Float8E4M3FN, Float32, Float8E4M3FN, Float32, Int32, BFloat16)  # a, a_scale, b, .., c


def tma_tensors(a, a_scale, b, c, experts: Int32, max_m: Int32, n: Int32, k: Int32) -> tuple:
    """Of these pointers, in TMA's order of modes: a and b (row, k, expert), a_scale (row, expert,
    k block) and c (row, column, expert)."""
    max_m4 = cute.assume(Int64(max_m), divby=4)
    n128, k128 = (cute.assume(Int64(size), divby=BLOCK) for size in (n, k))
    return tuple(
        cute.make_tensor(pointer, cute.make_layout(shape, stride=stride))
        for pointer, shape, stride in (
            (a, (max_m, k, experts), (k128, 1, max_m4 * k128)),
            (a_scale, (max_m, experts, k // BLOCK), (1, max_m4, max_m4 * experts)),
            (b, (n, k, experts), (k128, 1, n128 * k128)),
            (c, (max_m, n, experts), (n128, 1, max_m4 * n128)),
        )
    )


def store_chunk(row, chunk, chunks: int):
    """Where the swizzle puts 16-byte chunk number `chunk` of a row that has `chunks` of them."""
    return chunk ^ (row * chunks // 8 % chunks)


def swizzle(chunks: int) -> cute.Swizzle:
    """Swizzle of rows of `chunks` 16-byte chunks, as TMA and the tensor cores know it."""
    return cute.make_swizzle(chunks.bit_length() - 1, 4, 3)


def swizzled(rows: int, columns: int, chunks: int) -> cute.ComposedLayout:
    """Layout of a box whose rows have `chunks` 16-byte chunks."""
    return cute.make_composed_layout(
        swizzle(chunks), 0, cute.make_layout((rows, columns), stride=(columns, 1))
    )


def slot_layout(rows: int, slots: int) -> cute.Layout:
    """Of `slots` slots of `rows` rows of 128 columns."""
    return cute.make_layout((rows, BLOCK, slots), stride=(BLOCK, 1, rows * BLOCK))


def partition(atom, smem, gmem, modes: int) -> tuple:
    """Both sides of a TMA copy whose box is the tensors' first `modes` modes."""
    return cpasync.tma_partition(
        atom, 0, cute.make_layout(1), cute.group_modes(smem, 0, modes),
        cute.group_modes(gmem, 0, modes),
    )  # fmt: skip
