"""The grouped FP8 GEMM on a padded batch (`padded_operands`) for Blackwell.

One or two blocks (a cluster, the matrix instruction's pair) take a tile: number cluster, then every
clusters-th, of those that have rows. Each block holds 128 rows of a and its part of b's columns,
multiplies 128 rows with all columns, and has the sums in its own tensor memory, a row per lane.

Warps 0 to 7 promote: the products of 128 columns of K add up in tensor memory, then a thread reads
its row's, scales them and adds them to fp32 registers (DeepSeek-V3 technical report, section
3.3.2). Warps 0 to 3 have the left half of the columns, warps 4 to 7 the right one. Warp 8 loads by
TMA, warp 9 (of the first block) multiplies; the other two wait for the end.

Three rings connect them: slots of a and b (TMA -> tensor core), of a's scales (TMA -> promotion)
and of partial sums (tensor core -> promotion). Only the first two are in shared memory; scales have
a ring of their own so that a slot is free as soon as it is multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32, Int64
from cutlass.cute.nvgpu import cpasync, tcgen05
from cutlass.memory import SmemAllocator

from ..compilation import compile_launch
from ..device import vector
from ..padded_operands import (
    BLOCK,
    POINTERS,
    Atoms,
    Tensors,
    loads_into,
    offsets_tensor,
    partition,
    store_chunk,
    swizzle,
    tile_list,
    tma_operands,
)
from ..ring import Ring, consumer_state, producer_state
from ..tile_scheduler import GEMM1, Tile, TileList
from . import tmem, umma

ROWS = 128  # of a tile that a block has, one per lane of tensor memory
HALVES = 2  # of a tile's columns, each promoted by a warpgroup
PROMOTING_WARPS = 4 * HALVES
TMA_WARP, MMA_WARP = PROMOTING_WARPS, PROMOTING_WARPS + 1
THREADS = 128 * (HALVES + 1)
# 384 threads start with 168 registers each; 56 + 2 * 224 = 3 * 168: asking for more would hang
OTHER_REGISTERS = 56
PROMOTING_REGISTERS = 224
SCALE_SLOTS = 16  # more than slots of a and b and partial sums together
CHUNK = 32  # columns that a thread reads from tensor memory at once
BOX_ROWS, BOX_COLUMNS = 32, 64  # of c that a warp stores at once: rows of 128 bytes


@dataclass(frozen=True)
class GemmTile:
    """Tile of one block (128 rows of a) or two (256). block_n: 64, 128 or 256 rows of b."""

    cluster: int
    block_n: int
    num_stages: int

    def __post_init__(self):
        if self.cluster not in (1, 2):
            raise ValueError(f"cluster must be 1 or 2, got {self.cluster}")
        if self.block_n not in (64, 128, 256):
            raise ValueError(f"block_n must be 64, 128 or 256, got {self.block_n}")

    @property
    def block_m(self) -> int:
        return ROWS * self.cluster

    @property
    def own_columns(self) -> int:
        """Columns of b in a block's shared memory."""
        return self.block_n // self.cluster

    @property
    def half_columns(self) -> int:
        """Columns that a warpgroup promotes."""
        return self.block_n // HALVES

    @property
    def box_columns(self) -> int:
        """Columns of c that a warp stores at once."""
        return min(BOX_COLUMNS, self.half_columns)

    @property
    def sums(self) -> int:
        """Partial sums that tensor memory holds."""
        return min(4, tmem.COLUMNS // self.block_n)


# From the least traffic per product to the most blocks.
TILES = (
    GemmTile(cluster=2, block_n=256, num_stages=5),
    GemmTile(cluster=2, block_n=128, num_stages=7),
    GemmTile(cluster=1, block_n=128, num_stages=5),
    GemmTile(cluster=1, block_n=64, num_stages=8),
)
LEAST_BUSY = 0.75  # of the multiprocessors


def tile_for(experts: int, max_m: int, n: int, num_sms: int) -> GemmTile:
    """The first tile that keeps most multiprocessors busy; two blocks only beyond 128 rows."""
    for tile in TILES:
        blocks = tile.cluster * experts * -(-max_m // tile.block_m) * -(-n // tile.block_n)
        if (tile.cluster == 1 or max_m > ROWS) and blocks >= LEAST_BUSY * num_sms:
            return tile
    return TILES[-1]


class PaddedGemmKernel:
    """See the module's docstring."""

    def __init__(self, tile: GemmTile, num_sms: int):
        self.tile = tile
        self.clusters = num_sms // tile.cluster

    def compile(self, *decorators, options: str = ""):
        """Compile for all sizes; the result takes addresses and sizes as plain integers."""
        return compile_launch(self, POINTERS, [Int32(1)] * 4, decorators, options)

    @cute.jit
    def __call__(
        self,
        a: cute.Pointer,
        a_scale: cute.Pointer,
        b: cute.Pointer,
        b_scale: cute.Pointer,
        offsets: cute.Pointer,
        c: cute.Pointer,
        experts: Int32,
        max_m: Int32,
        n: Int32,
        k: Int32,
        stream: cuda.CUstream,
    ):
        t = self.tile
        # a pair's loads all arrive at its first block's barrier
        group = tcgen05.CtaGroup.TWO if t.cluster == 2 else tcgen05.CtaGroup.ONE
        loads = cpasync.CopyBulkTensorTileG2SOp(group), cpasync.CopyBulkTensorTileG2SOp()
        box = (BOX_ROWS, t.box_columns)
        atoms, tensors = tma_operands(
            (a, a_scale, b, c), (experts, max_m, n, k), loads, ROWS, t.own_columns, box
        )

        @cute.struct
        class Shared:
            slots: cute.struct.MemRange[Int64, 2 * t.num_stages]
            scales: cute.struct.MemRange[Int64, 2 * SCALE_SLOTS]
            sums: cute.struct.MemRange[Int64, 2 * t.sums]
            tmem: cute.struct.MemRange[Int32, 4]
            a_scale: cute.struct.Align[cute.struct.MemRange[Float32, ROWS * SCALE_SLOTS], 128]
            a: cute.struct.Align[
                cute.struct.MemRange[Float8E4M3FN, BLOCK * ROWS * t.num_stages], 1024
            ]
            b: cute.struct.Align[
                cute.struct.MemRange[Float8E4M3FN, BLOCK * t.own_columns * t.num_stages], 1024
            ]
            c: cute.struct.Align[
                cute.struct.MemRange[BFloat16, PROMOTING_WARPS * box[0] * box[1]], 1024
            ]

        self.shared = Shared
        self.kernel(atoms, tensors, b_scale, offsets, experts, n // BLOCK, k // BLOCK).launch(
            grid=(self.clusters * t.cluster, 1, 1), cluster=(t.cluster, 1, 1),
            block=(THREADS, 1, 1), min_blocks_per_mp=1, stream=stream,
        )  # fmt: skip

    @cute.kernel
    def kernel(
        self,
        atoms: Atoms,
        tensors: Tensors,
        b_scale: cute.Pointer,
        offsets: cute.Pointer,
        experts: Int32,
        n_blocks: Int32,
        k_blocks: Int32,
    ):
        t = self.tile
        thread, _, _ = cute.arch.thread_idx()
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        shared = SmemAllocator().allocate(self.shared)
        slots = Ring(shared.slots.data_ptr(), t.num_stages)
        scales = Ring(shared.scales.data_ptr(), SCALE_SLOTS)
        sums = Ring(shared.sums.data_ptr(), t.sums)
        if thread == 0:
            slots.init(1, 1)
            scales.init(1, PROMOTING_WARPS)
            sums.init(1, PROMOTING_WARPS * t.cluster)
            cute.arch.mbarrier_init_fence()
        if cutlass.const_expr(t.cluster > 1):  # both blocks must be there to allocate
            cute.arch.cluster_arrive_relaxed()
            cute.arch.cluster_wait()
        if warp == 0:
            for atom in atoms:
                cpasync.prefetch_descriptor(atom)
            tmem.allocate(t.sums * t.block_n, shared.tmem.data_ptr(), t.cluster)
        self.sync()
        memory = tmem.allocated(shared.tmem.data_ptr())
        if warp < PROMOTING_WARPS:
            cute.arch.setmaxregister_increase(PROMOTING_REGISTERS)
            self.promote(
                scales, sums, shared, memory, warp, atoms.c, tensors.c, b_scale, offsets, experts,
                n_blocks, k_blocks,
            )  # fmt: skip
        else:
            cute.arch.setmaxregister_decrease(OTHER_REGISTERS)
            if warp == TMA_WARP:
                self.load(
                    slots, scales, shared, atoms, tensors, offsets, experts, n_blocks, k_blocks
                )
            elif warp == MMA_WARP and self.rank() == 0:
                self.multiply(slots, sums, shared, memory, offsets, experts, n_blocks, k_blocks)
        self.sync()  # till then the other block reads and writes here
        if warp == 0:
            tmem.free(memory, t.sums * t.block_n, t.cluster)

    @cute.jit
    def sync(self):
        """All threads of the tile's blocks wait for each other."""
        if cutlass.const_expr(self.tile.cluster == 1):
            cute.arch.sync_threads()
        else:
            cute.arch.cluster_arrive()
            cute.arch.cluster_wait()

    def rank(self) -> Int32:
        """Of this block in its pair."""
        return cute.arch.block_idx()[0] % self.tile.cluster

    def tile_list(self, offsets, experts, n_blocks) -> TileList:
        """Every role has its own: no register holds it while the roles part."""
        return tile_list(offsets, experts, n_blocks, self.tile.block_m, self.tile.block_n, ROWS)

    def first_tile(self) -> Int32:
        return cute.arch.block_idx()[0] // self.tile.cluster

    def first_row(self, tile: Tile, offsets) -> Int32:
        """First row of this block's part of the tile within the expert."""
        return tile.row - offsets_tensor(offsets)[tile.expert] + self.rank() * ROWS

    # -------------------------------------------------------------------------------------- loads

    @cute.jit
    def load(
        self, slots: Ring, scales: Ring, shared, atoms: Atoms, tensors: Tensors, offsets, experts,
        n_blocks, k_blocks,
    ):  # fmt: skip
        """Keep the rings filled with the slots of this block's tiles."""
        t = self.tile
        (to_a, from_a), (to_b, from_b), (to_scale, from_scale) = loads_into(
            shared, atoms, tensors, ROWS, t.own_columns, t.num_stages, SCALE_SLOTS
        )
        slot, scale_slot = producer_state(t.num_stages), producer_state(SCALE_SLOTS)
        tiles = self.tile_list(offsets, experts, n_blocks)
        index = self.first_tile()
        tile = tiles.tile(index)
        while tile.gemm == GEMM1:
            row = self.first_row(tile, offsets) // ROWS
            column = tile.n_block * t.cluster + self.rank()
            for k in cutlass.range(k_blocks, unroll=1):
                slots.wait_empty(slot)
                barrier = slots.full_barrier(slot)
                if self.rank() == 0:
                    with cute.arch.elect_one():
                        cute.arch.mbarrier_arrive_and_expect_tx(
                            barrier, t.cluster * BLOCK * (ROWS + t.own_columns)
                        )
                cute.copy(
                    atoms.b, from_b[None, column, k, tile.expert], to_b[None, slot.index],
                    tma_bar_ptr=barrier,
                )  # fmt: skip
                cute.copy(
                    atoms.a, from_a[None, row, k, tile.expert], to_a[None, slot.index],
                    tma_bar_ptr=barrier,
                )  # fmt: skip
                slot.advance()
                scales.wait_empty(scale_slot)
                barrier = scales.full_barrier(scale_slot)
                with cute.arch.elect_one():
                    cute.arch.mbarrier_arrive_and_expect_tx(barrier, 4 * ROWS)
                cute.copy(
                    atoms.a_scale, from_scale[None, row, tile.expert, k],
                    to_scale[None, scale_slot.index], tma_bar_ptr=barrier,
                )  # fmt: skip
                scale_slot.advance()
            index += self.clusters
            tile = tiles.tile(index)

    # ----------------------------------------------------------------------------- multiplication

    @cute.jit
    def multiply(
        self, slots: Ring, sums: Ring, shared, memory, offsets, experts, n_blocks, k_blocks
    ):
        """A partial sum for each slot, in the tensor memory of both blocks of a pair."""
        t = self.tile
        instruction = umma.instruction(t.block_m, Int32(t.block_n))
        slot, sum_ = consumer_state(t.num_stages), producer_state(t.sums)
        tiles = self.tile_list(offsets, experts, n_blocks)
        index = self.first_tile()
        tile = tiles.tile(index)
        while tile.gemm == GEMM1:
            for _ in cutlass.range(k_blocks, unroll=1):
                sums.wait_empty(sum_)
                slots.wait_full(slot)
                tmem.after_wait()
                with cute.arch.elect_one():
                    umma.multiply(
                        Int32((memory + sum_.index * t.block_n).toint()),
                        umma.operand(shared.a.data_ptr() + slot.index * (ROWS * BLOCK)),
                        umma.operand(shared.b.data_ptr() + slot.index * (t.own_columns * BLOCK)),
                        instruction, t.cluster,
                    )  # fmt: skip
                    umma.commit(slots.empty_barrier(slot), t.cluster)
                    umma.commit(sums.full_barrier(sum_), t.cluster)
                slot.advance()
                sum_.advance()
            index += self.clusters
            tile = tiles.tile(index)

    # ---------------------------------------------------------------------------------- promotion

    @cute.jit
    def promote(
        self, scales: Ring, sums: Ring, shared, memory, warp: Int32, store_c, c, b_scale, offsets,
        experts, n_blocks, k_blocks,
    ):  # fmt: skip
        """Scale and add up the partial sums of every tile, and store c."""
        t = self.tile
        final = cute.make_rmem_tensor((CHUNK, t.half_columns // CHUNK), Float32)
        half = warp // 4
        scale_slot, sum_ = consumer_state(SCALE_SLOTS), consumer_state(t.sums)
        tiles = self.tile_list(offsets, experts, n_blocks)
        index = self.first_tile()
        tile = tiles.tile(index)
        while tile.gemm == GEMM1:
            column = tile.n_block * t.block_n + half * t.half_columns
            block = cutlass.min(column // BLOCK, n_blocks - 1)
            scale = b_scale + (tile.expert * n_blocks + block) * k_blocks
            next_scale = scale[0]
            final.fill(0.0)
            for k in cutlass.range(k_blocks, unroll=1):
                column_scale = next_scale
                next_scale = scale[cutlass.min(k + 1, k_blocks - 1)]
                scales.wait_full(scale_slot)
                row_scale = shared.a_scale.data_ptr()[
                    scale_slot.index * ROWS + warp % 4 * 32 + cute.arch.lane_idx()
                ]
                self.release(scales, scale_slot)
                sums.wait_full(sum_)
                tmem.after_wait()
                self.add(
                    sums, sum_, memory + sum_.index * t.block_n + half * t.half_columns, final,
                    row_scale * column_scale,
                )  # fmt: skip
                scale_slot.advance()
                sum_.advance()
            row = self.first_row(tile, offsets)
            if tile.rows > self.rank() * ROWS + warp % 4 * 32 and column < n_blocks * BLOCK:
                self.store(shared, warp, final, store_c, c, tile.expert, row, column)
            index += self.clusters
            tile = tiles.tile(index)
        cute.arch.cp_async_bulk_wait_group(0)

    @cute.jit
    def add(self, sums: Ring, sum_, partial, final, scale: Float32):
        """final += partial * scale; release the partial sum, all of which is read before its last
        chunk is added."""
        chunks = self.tile.half_columns // CHUNK
        thread = cute.arch.thread_idx()[0] % 128
        next_part = tmem.load_rows(partial, CHUNK, thread)
        for chunk in cutlass.range_constexpr(chunks):
            tmem.wait_loads()
            part = next_part
            if cutlass.const_expr(chunk + 1 < chunks):
                next_part = tmem.load_rows(partial + (chunk + 1) * CHUNK, CHUNK, thread)
            else:
                tmem.before_arrival()
                self.release(sums, sum_, Int32(0))
            for i in cutlass.range_constexpr(0, CHUNK, 2):
                final[i, chunk], final[i + 1, chunk] = cute.arch.fma_packed_f32x2(
                    (part[i], part[i + 1]), (scale, scale), (final[i, chunk], final[i + 1, chunk])
                )

    @cute.jit
    def release(self, ring: Ring, state, block: Int32 | None = None):
        """The warp is done with the slot, of a ring in the given block of the pair."""
        cute.arch.sync_warp()
        with cute.arch.elect_one():
            if cutlass.const_expr(self.tile.cluster == 1):
                ring.arrive_empty(state)
            else:
                ring.arrive_empty(state, block)

    @cute.jit
    def store(
        self, shared, warp: Int32, final, store_c, c, expert: Int32, row: Int32, column: Int32
    ):
        """The warp's 32 rows of c in bf16, box by box through shared memory.

        TMA leaves out what lies past max_m or N.
        """
        width = self.tile.box_columns
        chunks = width // 8  # of 16 bytes
        lane = cute.arch.lane_idx()
        memory = shared.c.data_ptr() + warp * (BOX_ROWS * width)
        box = cute.make_tensor(
            cute.recast_ptr(memory, swizzle(chunks)),
            cute.make_layout((BOX_ROWS, width), stride=(width, 1)),
        )
        tiles = cute.local_tile(c, (BOX_ROWS, width), (None, None, None))
        source, target = partition(store_c, box, tiles, 2)
        for number in cutlass.range_constexpr(self.tile.half_columns // width):
            cute.arch.cp_async_bulk_wait_group(0, read=True)  # the last store has read the box
            cute.arch.sync_warp()
            rounded = cute.make_rmem_tensor((8, chunks), BFloat16)
            values = cute.make_rmem_tensor((8, chunks), Float32)
            for i in cutlass.range_constexpr(width):
                at = number * width + i
                values[i] = final[at % CHUNK, at // CHUNK]
            rounded.store(values.load().to(BFloat16))
            for j in cutlass.range_constexpr(chunks):
                place = memory + (lane * width + 8 * store_chunk(lane, j, chunks))
                cute.autovec_copy(rounded[None, j], vector(place, 8, 16))
            cute.arch.fence_view_async_shared()
            cute.arch.sync_warp()
            with cute.arch.elect_one():
                cute.copy(
                    store_c, source[None],
                    target[None, row // BOX_ROWS + warp % 4, column // width + number, expert],
                )  # fmt: skip
                cute.arch.cp_async_bulk_commit_group()
