"""Epilogues of both GEMMs for sums that `Promotion` has left in a warpgroup's registers.

Each warpgroup has its own tokens of a tile and works on them alone, chunk by chunk: a chunk's
results are rearranged in shared memory while the previous one's may still be stored from there.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32, Int64
from cutlass.pipeline import NamedBarrier

from ...geometry import Geometry
from ..config import GemmConfig
from ..device import vector
from ..epilogue import MIN_AMAX, inverse_scale, larger, scale_of, swiglu
from ..operands import GemmOperands
from ..ring import Ring, block_rank
from ..tile_scheduler import Tile

ROWS = 128  # weight rows of a block
ACT = ROWS // 2  # columns of the activation that come of them
WARPS = 4  # of a warpgroup
FIRST_BARRIER = 4  # of the warpgroups


class Epilogue:
    """See the module's docstring. chunk: tokens of a chunk; chunks: of a warpgroup, at most."""

    def __init__(self, geometry: Geometry, config: GemmConfig, chunk: int, chunks: int):
        self.geometry = geometry
        self.config = config
        self.chunk = chunk
        self.chunks = chunks
        self.row_words = ROWS // 2 + 4  # of 32 bits: a token's bf16 results, in other banks
        self.buffers = min(2, chunks)
        self.group_words = chunk * (chunks * (WARPS + 2) + self.buffers * self.row_words)

    @property
    def size(self) -> int:
        """Bytes of shared memory, for each warpgroup: fp32 maxima [tokens, WARPS] of its warps,
        [tokens] of the tile and [tokens] of the other block; `buffers` times [chunk, 128] bf16 or
        [chunk, 64] e4m3, with 16 bytes between rows."""
        return 4 * self.config.num_warpgroups * self.group_words

    def places(self, result, group: Int32) -> tuple[cute.Pointer, ...]:
        """Of a warpgroup: maxima of its warps, of the tile and of the other block; buffers."""
        tokens = self.chunk * self.chunks
        maxima = cute.recast_ptr(result.data_ptr(), dtype=Float32) + group * self.group_words
        return maxima, *(maxima + tokens * (WARPS + n) for n in range(3))

    def barrier(self, group: Int32) -> NamedBarrier:
        """Of a warpgroup's threads."""
        return NamedBarrier(barrier_id=FIRST_BARRIER + group, num_threads=32 * WARPS)

    @cute.jit
    def write_activation(
        self, result, group: Int32, warp: Int32, tile: Tile, first: Int32, columns: Int32,
        final: cute.Tensor, operands: GemmOperands, exchange: Ring, exchanged,
    ):  # fmt: skip
        """GEMM1: SwiGLU, the scale of each token's columns, e4m3 and a coalesced store.

        warp: of the warpgroup `group`, whose tokens are first .. first + columns - 1. exchange: the
        warpgroup's ring of one slot, at `exchanged`, for the other block's maxima.
        """
        maxima, amax, others, buffers = self.places(result, group)
        barrier, chunk, thread = self.barrier(group), self.chunk, warp * 32 + cute.arch.lane_idx()
        # gathered tokens are padded
        act_row = tile.padded_row if self.config.paired else tile.row
        for i in cutlass.range_constexpr(self.chunks):
            if i * chunk < columns:
                self.activate(final[None, None, None, None, i], maxima + i * chunk * WARPS + warp)
        barrier.arrive_and_wait()
        if cutlass.const_expr(self.config.cluster > 1):
            if thread == 0:
                full = exchange.full_barrier(exchanged)
                cute.arch.mbarrier_arrive_and_expect_tx(full, 4 * columns)
        if thread < columns:
            largest = Float32(MIN_AMAX)  # a scale is positive, even for a row of zeros
            for w in cutlass.range_constexpr(WARPS):
                largest = cute.arch.fmax(largest, maxima[thread * WARPS + w])
            if cutlass.const_expr(self.config.cluster > 1):
                largest = self.exchange_maximum(largest, others, thread, exchange, exchanged)
            amax[thread] = largest
            if first + thread < tile.rows and block_rank(self.config.cluster) == 0:
                scales = operands.act_scale + Int64(tile.n_block) * operands.act_rows + act_row
                scales[first + thread] = scale_of(largest)
        barrier.arrive_and_wait()
        for i in cutlass.range_constexpr(self.chunks):
            if i * chunk < columns:
                buffer = cute.recast_ptr(self.buffer(buffers, i), dtype=Float8E4M3FN)
                self.quantise(
                    final[None, None, None, None, i], amax + i * chunk, buffer + warp * 16
                )
                barrier.arrive_and_wait()
                self.store_rows(
                    buffer, warp, tile, act_row, first + i * chunk, columns - i * chunk,
                    operands.act, self.geometry.intermediate_size, ACT,
                )  # fmt: skip

    def buffer(self, buffers: cute.Pointer, chunk: int) -> cute.Pointer:
        """The buffer of chunk number `chunk`."""
        return buffers + chunk % self.buffers * self.chunk * self.row_words

    @cute.jit
    def activate(self, final: cute.Tensor, maxima: cute.Pointer):
        """SwiGLU of a chunk, in the place of its up rows, and the warp's maxima of its tokens."""
        lane = cute.arch.lane_idx()
        for j in cutlass.range_constexpr(self.chunk // 8):
            for c in cutlass.range_constexpr(2):
                largest = Float32(0.0)
                for m in cutlass.range_constexpr(2):
                    value = swiglu(final[c, 0, j, m], final[c, 1, j, m])
                    final[c, 0, j, m] = value
                    largest = larger(largest, value)
                for distance in (4, 8, 16):
                    largest = cute.arch.fmax(
                        largest, cute.arch.shuffle_sync_bfly(largest, distance)
                    )
                if lane < 4:
                    maxima[(8 * j + 2 * lane + c) * WARPS] = largest

    @cute.jit
    def quantise(self, final: cute.Tensor, amax: cute.Pointer, buffer: cute.Pointer):
        """A chunk's activation in e4m3. buffer: of the warp's columns: its two groups of 16 weight
        rows are two of 8 columns."""
        lane = cute.arch.lane_idx()
        token = (lane & 3) * 2
        values = cute.make_rmem_tensor((2, self.chunk // 8, 2), Float32)
        for j in cutlass.range_constexpr(self.chunk // 8):
            largest = cute.make_rmem_tensor((2,), Float32)
            cute.autovec_copy(vector(amax + 8 * j + token, 2, 8), largest)
            for c in cutlass.range_constexpr(2):
                inverse = inverse_scale(largest[c])
                for m in cutlass.range_constexpr(2):
                    values[c, j, m] = final[c, 0, j, m] * inverse
        codes = cute.make_rmem_tensor(values.shape, Float8E4M3FN)
        codes.store(values.load().to(Float8E4M3FN))
        place = buffer + (lane >> 2)
        for j in cutlass.range_constexpr(self.chunk // 8):
            for c in cutlass.range_constexpr(2):
                for m in cutlass.range_constexpr(2):
                    place[(8 * j + token + c) * (ACT + 16) + 8 * m] = codes[c, j, m]

    @cute.jit
    def exchange_maximum(
        self, largest: Float32, others: cute.Pointer, thread: Int32, exchange: Ring, exchanged
    ) -> Float32:
        """The larger of a token's maxima in both blocks of a pair, which each sends the other.

        The other block cannot send the next tile's before this one's have been read: its sums need
        partial sums that this warpgroup gives back later.
        """
        word = cute.make_rmem_tensor((1,), Float32)
        word[0] = largest
        cute.arch.store_async_dsmem(
            others + thread, cute.recast_tensor(word, Int32)[0], exchange.full_barrier(exchanged),
            1 - block_rank(self.config.cluster),
        )  # fmt: skip
        exchange.wait_full(exchanged)
        return cute.arch.fmax(largest, others[thread])

    @cute.jit
    def write_rows(
        self, result, group: Int32, warp: Int32, tile: Tile, first: Int32, columns: Int32,
        final: cute.Tensor, operands: GemmOperands,
    ):  # fmt: skip
        """GEMM2: the block's columns of every token's row of y, times its combine weight, in
        bf16."""
        *_, buffers = self.places(result, group)
        barrier, chunk = self.barrier(group), self.chunk
        barrier.arrive_and_wait()  # the last tile's results have left the buffers
        for i in cutlass.range_constexpr(self.chunks):
            if i * chunk < columns:
                buffer = cute.recast_ptr(self.buffer(buffers, i), dtype=BFloat16)
                self.weigh(
                    final[None, None, None, None, i], operands.row_weight + tile.row,
                    first + i * chunk, tile.rows - 1, buffer + warp * 32,
                )  # fmt: skip
                barrier.arrive_and_wait()
                self.store_rows(
                    buffer, warp, tile, tile.row, first + i * chunk, columns - i * chunk,
                    operands.y, self.geometry.hidden_size, ROWS,
                )  # fmt: skip

    @cute.jit
    def weigh(
        self, final: cute.Tensor, weights: cute.Pointer, first: Int32, last: Int32,
        buffer: cute.Pointer,
    ):  # fmt: skip
        """A chunk's rows of y times their weights, in bf16. first: token of the chunk's first;
        last: of the tile's last row; buffer: of the warp's columns."""
        lane = cute.arch.lane_idx()
        token = (lane & 3) * 2
        values = cute.make_rmem_tensor((2, 2, self.chunk // 8, 2), Float32)
        for j in cutlass.range_constexpr(self.chunk // 8):
            for c in cutlass.range_constexpr(2):
                weight = weights[cutlass.min(first + 8 * j + token + c, last)]
                for half in cutlass.range_constexpr(2):
                    for m in cutlass.range_constexpr(2):
                        values[c, half, j, m] = final[c, half, j, m] * weight
        rounded = cute.make_rmem_tensor(values.shape, BFloat16)
        rounded.store(values.load().to(BFloat16))
        place = buffer + (lane >> 2)
        for j in cutlass.range_constexpr(self.chunk // 8):
            for c in cutlass.range_constexpr(2):
                for half in cutlass.range_constexpr(2):
                    for m in cutlass.range_constexpr(2):
                        row = (8 * j + token + c) * (ROWS + 8)
                        place[row + 16 * m + 8 * half] = rounded[c, half, j, m]

    @cute.jit
    def store_rows(
        self, buffer, warp: Int32, tile: Tile, row0: Int32, first: Int32, columns: Int32, target,
        stride: cutlass.Constexpr, width: cutlass.Constexpr,
    ):  # fmt: skip
        """A chunk's rows of `width` elements, with 16 bytes between them in shared memory, to the
        block's columns of target [*, stride]. row0: there, of the tile's first token; first: token
        of the chunk's first row; columns: how many are left for the warpgroup.
        """
        size = 128 // buffer.dtype.width  # of a vector
        vectors, threads, cluster = width // size, 32 * WARPS, self.config.cluster
        column = (tile.n_block * cluster + block_rank(cluster)) * width
        thread = warp * 32 + cute.arch.lane_idx()
        part = (thread & (vectors - 1)) * size
        for p in cutlass.range_constexpr(cute.ceil_div(self.chunk * vectors, threads)):
            row = (thread >> (vectors.bit_length() - 1)) + p * (threads // vectors)
            if row < columns and first + row < tile.rows:
                place = Int64(row0 + first + row) * stride + (column + part)
                cute.autovec_copy(
                    vector(buffer + (row * (width + size) + part), size, 16),
                    vector(target + place, size, 16),
                )
