"""The grouped FP8 GEMM on a padded batch (`padded_operands`) for Hopper.

A persistent block walks the tiles that have rows: number blockIdx, then every gridDim-th. Warp 0
brings a, a_scale and b by TMA, two consumer warpgroups multiply. They share the tile's rows, or
with 64 rows its columns. The products of 128 columns of K are added up in a partial sum, which is
then scaled and added in fp32 (DeepSeek-V3 technical report, section 3.3.2).

In the accumulator of a warpgroup, thread `lane` of a warp owns rows r and r + 8 of the warp's 16,
r = lane / 4, and columns 8 j + 2 (lane % 4) + c: element ((c, row half, j), 0, part).

Shared memory of a slot: rows * 128 bytes of a and columns * 128 bytes of b (both 128-byte
swizzled) and rows scales of a; besides, one or two boxes of c for each warpgroup. Registers of a
consumer: its share of the tile in fp32 (32 to 128), a partial sum (at most 64), and about 40 more.
"""

from __future__ import annotations

from dataclasses import dataclass

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32, Int64
from cutlass.cute.nvgpu import OperandMajorMode, cpasync, warpgroup
from cutlass.memory import SmemAllocator
from cutlass.pipeline import NamedBarrier
from cutlass.utils.hopper_helpers import make_trivial_tiled_mma

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
    slot_layout,
    store_chunk,
    swizzle,
    tile_list,
    tma_operands,
)
from ..ring import Ring, consumer_state, producer_state
from ..tile_scheduler import GEMM1, Tile, TileList

WARPGROUP_ROWS = 64
CONSUMERS = 2  # warpgroups
THREADS = 128 * (1 + CONSUMERS)
# 384 threads start with 168 registers each; 40 + 2 * 232 = 3 * 168: asking for more would hang
PRODUCER_REGISTERS = 40
CONSUMER_REGISTERS = 232


@dataclass(frozen=True)
class GemmTile:
    """Tile of a block. block_m: 64 or 128 rows of a; block_n: 64, 128 or 256 of b."""

    block_m: int
    block_n: int
    num_stages: int

    def __post_init__(self):
        if self.block_m not in (64, 128):
            raise ValueError(f"block_m must be 64 or 128, got {self.block_m}")
        if self.block_n not in (64, 128, 256):
            raise ValueError(f"block_n must be 64, 128 or 256, got {self.block_n}")

    @property
    def row_warpgroups(self) -> int:
        """Warpgroups on top of each other; the others are side by side."""
        return self.block_m // WARPGROUP_ROWS

    @property
    def warpgroup_columns(self) -> int:
        """Columns of a warpgroup."""
        return self.block_n * self.row_warpgroups // CONSUMERS

    @property
    def mma_columns(self) -> int:
        """Columns of a partial sum."""
        return min(self.warpgroup_columns, BLOCK)

    @property
    def box_columns(self) -> int:
        """Columns of c that are stored at once: at most 128 bytes, the widest swizzle."""
        return min(self.warpgroup_columns, 64)

    @property
    def boxes(self) -> int:
        """Boxes of c per warpgroup: if there is more than one, it fills one and stores another."""
        return min(2, self.warpgroup_columns // self.box_columns)


# From the least traffic per product to the most blocks.
TILES = (
    GemmTile(block_m=128, block_n=256, num_stages=4),
    GemmTile(block_m=128, block_n=128, num_stages=5),
    GemmTile(block_m=64, block_n=128, num_stages=8),
    GemmTile(block_m=64, block_n=64, num_stages=12),
)
LEAST_BUSY = 0.75  # of the multiprocessors


def tile_for(experts: int, max_m: int, n: int, num_sms: int) -> GemmTile:
    """The first tile that keeps most multiprocessors busy; 128 rows only if 64 are too few."""
    for tile in TILES:
        blocks = experts * -(-max_m // tile.block_m) * -(-n // tile.block_n)
        if (tile.row_warpgroups == 1 or max_m > WARPGROUP_ROWS) and blocks >= LEAST_BUSY * num_sms:
            return tile
    return TILES[-1]


class PaddedGemmKernel:
    """See the module's docstring."""

    def __init__(self, tile: GemmTile, num_sms: int):
        self.tile = tile
        self.num_sms = num_sms

    def compile(self, *decorators, options: str = ""):
        """Compile for all sizes; the result takes addresses and sizes as plain integers."""
        return compile_launch(self, POINTERS, [Int32(1)] * 4, decorators, options)

    def tiled_mma(self) -> cute.TiledMma:
        """Both warpgroups' wgmma for 32 columns of K."""
        t = self.tile
        return make_trivial_tiled_mma(
            Float8E4M3FN, Float8E4M3FN, OperandMajorMode.K, OperandMajorMode.K, Float32,
            (t.row_warpgroups, CONSUMERS // t.row_warpgroups, 1), (WARPGROUP_ROWS, t.mma_columns),
        )  # fmt: skip

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
        load = cpasync.CopyBulkTensorTileG2SOp()
        atoms, tensors = tma_operands(
            (a, a_scale, b, c), (experts, max_m, n, k), (load, load), t.block_m, t.block_n,
            (WARPGROUP_ROWS, t.box_columns),
        )  # fmt: skip
        c_size = CONSUMERS * t.boxes * WARPGROUP_ROWS * t.box_columns

        @cute.struct
        class Shared:
            ring: cute.struct.MemRange[Int64, 2 * t.num_stages]
            a_scale: cute.struct.Align[cute.struct.MemRange[Float32, t.block_m * t.num_stages], 128]
            a: cute.struct.Align[
                cute.struct.MemRange[Float8E4M3FN, BLOCK * t.block_m * t.num_stages], 1024
            ]
            b: cute.struct.Align[
                cute.struct.MemRange[Float8E4M3FN, BLOCK * t.block_n * t.num_stages], 1024
            ]
            c: cute.struct.Align[cute.struct.MemRange[BFloat16, c_size], 1024]

        self.shared = Shared
        self.kernel(
            atoms, tensors, self.tiled_mma(), b_scale, offsets, experts, n // BLOCK, k // BLOCK
        ).launch(
            grid=(self.num_sms, 1, 1), block=(THREADS, 1, 1), min_blocks_per_mp=1, stream=stream
        )

    @cute.kernel
    def kernel(
        self,
        atoms: Atoms,
        tensors: Tensors,
        tiled_mma: cute.TiledMma,
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
        ring = Ring(shared.ring.data_ptr(), t.num_stages)
        if thread == 0:
            ring.init(1, 4 * CONSUMERS)
            cute.arch.mbarrier_init_fence()
        if warp == 0:
            for atom in atoms:
                cpasync.prefetch_descriptor(atom)
        cute.arch.sync_threads()
        tiles = tile_list(offsets, experts, n_blocks, t.block_m, t.block_n, WARPGROUP_ROWS)
        if warp < 4:
            cute.arch.setmaxregister_decrease(PRODUCER_REGISTERS)
            if warp == 0:
                self.produce(ring, tiles, shared, atoms, tensors, offsets, k_blocks)
        else:
            cute.arch.setmaxregister_increase(CONSUMER_REGISTERS)
            self.consume(
                ring, tiles, shared, thread - 128, tiled_mma, atoms.c, tensors.c, b_scale, offsets,
                n_blocks, k_blocks,
            )  # fmt: skip

    @cute.jit
    def produce(
        self, ring: Ring, tiles: TileList, shared, atoms: Atoms, tensors: Tensors, offsets, k_blocks
    ):
        """Keep the ring filled with the slots of this block's tiles."""
        t = self.tile
        (to_a, from_a), (to_b, from_b), (to_scale, from_scale) = loads_into(
            shared, atoms, tensors, t.block_m, t.block_n, t.num_stages, t.num_stages
        )
        state = producer_state(t.num_stages)
        index, _, _ = cute.arch.block_idx()
        tile = tiles.tile(index)
        while tile.gemm == GEMM1:
            row = self.first_row(tile, offsets) // t.block_m
            for k in cutlass.range(k_blocks, unroll=1):
                ring.wait_empty(state)
                barrier = ring.full_barrier(state)
                with cute.arch.elect_one():
                    cute.arch.mbarrier_arrive_and_expect_tx(
                        barrier, BLOCK * (t.block_m + t.block_n) + 4 * t.block_m
                    )
                slot = (None, state.index)
                cute.copy(
                    atoms.b, from_b[None, tile.n_block, k, tile.expert], to_b[slot],
                    tma_bar_ptr=barrier,
                )  # fmt: skip
                cute.copy(
                    atoms.a, from_a[None, row, k, tile.expert], to_a[slot], tma_bar_ptr=barrier
                )
                cute.copy(
                    atoms.a_scale, from_scale[None, row, tile.expert, k], to_scale[slot],
                    tma_bar_ptr=barrier,
                )  # fmt: skip
                state.advance()
            index += self.num_sms
            tile = tiles.tile(index)

    @cute.jit
    def first_row(self, tile: Tile, offsets) -> Int32:
        """First row of the tile within its expert."""
        return tile.row - offsets_tensor(offsets)[tile.expert]

    @cute.jit
    def consume(
        self, ring: Ring, tiles: TileList, shared, thread: Int32, tiled_mma, store_c, c, b_scale,
        offsets, n_blocks, k_blocks,
    ):  # fmt: skip
        """Multiply, promote and store every tile."""
        t = self.tile
        smem_a = shared.a.get_tensor(slot_layout(t.block_m, t.num_stages), swizzle=swizzle(8))
        # one after the other, the parts of all slots that are multiplied at once
        width = t.mma_columns * CONSUMERS // t.row_warpgroups
        smem_b = shared.b.get_tensor(
            slot_layout(width, t.block_n // width * t.num_stages), swizzle=swizzle(8)
        )
        group = cute.arch.make_warp_uniform(thread // 128)
        slice_ = tiled_mma.get_slice(group * 128)
        a = tiled_mma.make_fragment_A(slice_.partition_A(smem_a))
        b = tiled_mma.make_fragment_B(slice_.partition_B(smem_b))
        final = cute.make_rmem_tensor(tiled_mma.partition_shape_C((t.block_m, t.block_n)), Float32)
        # own: of the warpgroup within the tile
        own_row = group % t.row_warpgroups * WARPGROUP_ROWS
        own_column = group // t.row_warpgroups * t.warpgroup_columns
        state = consumer_state(t.num_stages)
        index, _, _ = cute.arch.block_idx()
        tile = tiles.tile(index)
        while tile.gemm == GEMM1:
            column = tile.n_block * t.block_n + own_column
            if own_row < tile.rows and column < n_blocks * BLOCK:
                scales = []
                for part in cutlass.range_constexpr(cute.size(final, mode=[2])):
                    block = cutlass.min(column // BLOCK + part, n_blocks - 1)
                    scales.append(b_scale + (tile.expert * n_blocks + block) * k_blocks)
                state = self.multiply(
                    ring, shared, state, thread % 128 // 32 * 16 + own_row, tiled_mma, a, b,
                    final, scales, k_blocks,
                )  # fmt: skip
                self.store(
                    shared, thread, final, store_c, c, tile.expert,
                    self.first_row(tile, offsets) + own_row, column,
                )  # fmt: skip
            else:
                state = self.skip(ring, state, k_blocks)
            index += self.num_sms
            tile = tiles.tile(index)
        cute.arch.cp_async_bulk_wait_group(0)

    @cute.jit
    def multiply(
        self, ring: Ring, shared, state, warp_row: Int32, tiled_mma, a, b, final, b_scales,
        k_blocks,
    ):  # fmt: skip
        """final = sum over the tile's slots of (a @ b^T) * scales."""
        t = self.tile
        parts = cute.size(final, mode=[2])
        partial = cute.make_rmem_tensor((*final.shape[:2], 1), Float32)
        row = warp_row + cute.arch.lane_idx() // 4
        final.fill(0.0)
        for k in cutlass.range(k_blocks, unroll=1):
            b_scale = [scales[k] for scales in b_scales]
            ring.wait_full(state)
            smem_scale = shared.a_scale.data_ptr() + state.index * t.block_m + row
            a_scale = [smem_scale[8 * i] for i in range(2)]
            for part in cutlass.range_constexpr(parts):
                warpgroup.fence()
                for atom in cutlass.range_constexpr(BLOCK // 32):
                    mma = cute.make_mma_atom(tiled_mma.op)
                    mma.set(warpgroup.Field.ACCUMULATE, atom != 0)
                    cute.gemm(
                        mma, partial, a[None, None, atom, state.index],
                        b[None, None, atom, state.index * parts + part], partial,
                    )  # fmt: skip
                warpgroup.commit_group()
                scales = [a_scale[i] * b_scale[part] for i in range(2)]
                warpgroup.wait_group(0)
                if cutlass.const_expr(part == parts - 1):
                    self.release(ring, state)
                for j in cutlass.range_constexpr(t.mma_columns // 8):
                    for i in cutlass.range_constexpr(2):
                        for c in cutlass.range_constexpr(2):
                            final[(c, i, j), 0, part] += partial[(c, i, j), 0, 0] * scales[i]
            state.advance()
        return state

    @cute.jit
    def release(self, ring: Ring, state):
        """The warp is done with the slot."""
        cute.arch.sync_warp()
        with cute.arch.elect_one():
            ring.arrive_empty(state)

    @cute.jit
    def skip(self, ring: Ring, state, k_blocks):
        """Walk through a tile's slots without using them."""
        for _ in cutlass.range(k_blocks, unroll=1):
            ring.wait_full(state)
            self.release(ring, state)
            state.advance()
        return state

    @cute.jit
    def store(
        self, shared, thread: Int32, final, store_c, c, expert: Int32, row: Int32, column: Int32
    ):
        """The warpgroup's share of c in bf16, box by box through shared memory.

        TMA leaves out what lies past max_m or N.
        """
        t = self.tile
        width, chunks = t.box_columns, t.box_columns // 8
        group = cute.arch.make_warp_uniform(thread // 128)
        warp = cute.arch.make_warp_uniform(thread % 128 // 32)
        lane = cute.arch.lane_idx()
        barrier = NamedBarrier(barrier_id=1 + group, num_threads=128)
        size = WARPGROUP_ROWS * width
        memory = shared.c.data_ptr() + group * (t.boxes * size)
        boxes = cute.make_tensor(
            cute.recast_ptr(memory, swizzle(chunks)),
            cute.make_layout((WARPGROUP_ROWS, width, t.boxes), stride=(width, 1, size)),
        )
        tiles = cute.local_tile(c, (WARPGROUP_ROWS, width), (None, None, None))
        source, target = partition(store_c, boxes, tiles, 2)
        for box in cutlass.range_constexpr(t.warpgroup_columns // width):
            if warp == 0:  # the box's last store has read it
                cute.arch.cp_async_bulk_wait_group(t.boxes - 1, read=True)
            barrier.arrive_and_wait()
            part, first = box * width // t.mma_columns, box * width % t.mma_columns // 8
            for i in cutlass.range_constexpr(2):
                values = cute.make_rmem_tensor((2, chunks), Float32)
                for j in cutlass.range_constexpr(chunks):
                    for e in cutlass.range_constexpr(2):
                        values[e, j] = final[(e, i, first + j), 0, part]
                rounded = cute.make_rmem_tensor((2, chunks), BFloat16)
                rounded.store(values.load().to(BFloat16))
                line = warp * 16 + 8 * i + lane // 4
                place = memory + (box % t.boxes * size + line * width + 2 * (lane % 4))
                for j in cutlass.range_constexpr(chunks):
                    chunk = store_chunk(line, j, chunks)
                    cute.autovec_copy(rounded[None, j], vector(place + 8 * chunk, 2, 4))
            cute.arch.fence_view_async_shared()
            barrier.arrive_and_wait()
            if warp == 0:
                with cute.arch.elect_one():
                    cute.copy(
                        store_c, source[None, box % t.boxes],
                        target[None, row // WARPGROUP_ROWS, column // width + box, expert],
                    )  # fmt: skip
                    cute.arch.cp_async_bulk_commit_group()
