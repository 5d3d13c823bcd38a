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

from typing import NamedTuple

import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32, Int64
from cutlass.cute.nvgpu import cpasync

from .tile_scheduler import TileList

BLOCK = 128  # columns of a slot, and the edge of a scale block
MAX_EXPERTS = 32  # TileList spreads the experts over a warp
POINTERS = (Float8E4M3FN, Float32, Float8E4M3FN, Float32, Int32, BFloat16)  # a, a_scale, b, .., c


class Atoms(NamedTuple):
    """TMA copies of a box each: of what the kernel reads, and of c, which it writes."""

    a: cute.CopyAtom
    a_scale: cute.CopyAtom
    b: cute.CopyAtom
    c: cute.CopyAtom


class Tensors(NamedTuple):
    """What `Atoms` copy, in TMA's order of modes."""

    a: cute.Tensor  # (row, k, expert)
    a_scale: cute.Tensor  # (row, expert, k block)
    b: cute.Tensor  # (row, k, expert)
    c: cute.Tensor  # (row, column, expert)


def tma_operands(
    pointers: tuple, sizes: tuple, loads: tuple, rows: int, columns: int, box: tuple[int, int]
) -> tuple[Atoms, Tensors]:
    """Of the pointers to a, a_scale, b and c, and the sizes E, max_m, N and K, all the device's.

    loads: the operations that load a and b, and the scales. A box has `rows` rows of a or their
    scales, `columns` rows of b, or `box` rows and columns of c.
    """
    a, a_scale, b, c = pointers
    experts, max_m, n, k = sizes
    load, load_scale = loads
    max_m4 = cute.assume(Int64(max_m), divby=4)
    n128, k128 = (cute.assume(Int64(size), divby=BLOCK) for size in (n, k))
    a, a_scale, b, c = (
        cute.make_tensor(pointer, cute.make_layout(shape, stride=stride))
        for pointer, shape, stride in (
            (a, (max_m, k, experts), (k128, 1, max_m4 * k128)),
            (a_scale, (max_m, experts, k // BLOCK), (1, max_m4, max_m4 * experts)),
            (b, (n, k, experts), (k128, 1, n128 * k128)),
            (c, (max_m, n, experts), (n128, 1, max_m4 * n128)),
        )
    )
    atoms, tensors = zip(
        cpasync.make_tiled_tma_atom(load, a, swizzled(rows, BLOCK, 8), (rows, BLOCK)),
        cpasync.make_tiled_tma_atom(load_scale, a_scale, cute.make_layout(rows), (rows,)),
        cpasync.make_tiled_tma_atom(load, b, swizzled(columns, BLOCK, 8), (columns, BLOCK)),
        cpasync.make_tiled_tma_atom(
            cpasync.CopyBulkTensorTileS2GOp(), c, swizzled(*box, box[1] // 8), box
        ),
        strict=True,
    )
    return Atoms(*atoms), Tensors(*tensors)


def loads_into(
    shared, atoms: Atoms, tensors: Tensors, rows: int, columns: int, slots: int, scale_slots: int
) -> tuple:
    """Both sides of the copies of a, b and a_scale into the slots of the shared memory's fields of
    these names: (slots, (row tile, column block, expert)), for a_scale (slots, (row tile, expert,
    k block)); see `tma_operands` for the boxes."""
    a = shared.a.get_tensor(slot_layout(rows, slots), swizzle=swizzle(8))
    b = shared.b.get_tensor(slot_layout(columns, slots), swizzle=swizzle(8))
    a_scale = shared.a_scale.get_tensor(cute.make_layout((rows, scale_slots)))
    tiles = (None, None, None)
    from_a = cute.local_tile(tensors.a, (rows, BLOCK), tiles)
    from_b = cute.local_tile(tensors.b, (columns, BLOCK), tiles)
    from_scale = cute.local_tile(tensors.a_scale, (rows,), tiles)
    return (
        partition(atoms.a, a, from_a, 2),
        partition(atoms.b, b, from_b, 2),
        partition(atoms.a_scale, a_scale, from_scale, 1),
    )


def tile_list(
    offsets, experts: Int32, n_blocks: Int32, block_m: int, block_n: int, row_block: int
) -> TileList:
    """The tiles of all experts. The list's second GEMM is not wanted: its first tile ends the
    walk."""
    return TileList.load(
        offsets_tensor(offsets), experts, block_m, row_block,
        cute.ceil_div(n_blocks * BLOCK, block_n), 1, 1,
    )  # fmt: skip


def offsets_tensor(offsets: cute.Pointer) -> cute.Tensor:
    return cute.make_tensor(offsets, cute.make_layout(MAX_EXPERTS + 1))


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
