"""Consumers for few tokens per expert: weights on wgmma's M side, tokens on N.

No padded row is multiplied beyond the next multiple of 8 tokens, so the tensor cores keep up with
the weight stream. In the accumulator, thread `lane` of a warp owns rows r and r + 8 of every 16
weight rows, r = lane / 4, and tokens 8 j + 2 (lane % 4) + c: element ((c, row half, j), atom, 0).
In GEMM1 the two row halves are up and gate of activation column 8 * warp + r, and of the column
32 further on per warpgroup in the next atom.

Registers of a consumer with N tokens, R weight rows and W warpgroups: R * N / (128 * W) fp32 sums,
N / W * 2 for partial sums, and about 50 more.
"""

from __future__ import annotations

from functools import partial

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32, Int64
from cutlass.cute.nvgpu import warpgroup
from cutlass.pipeline import NamedBarrier

from ..device import vector
from ..moe_gemms import BLOCK, E4M3_MAX, QUEUE_SLOTS, MoeGemms
from ..ring import Ring, consumer_state
from ..tile_scheduler import END, GEMM1, Tile

CHAINS_IN_TURN = 4  # wgmma chains between two points without a wgmma in flight
SLOTS_AHEAD = 6  # of weights that a block prefetches: 13 MB in all, 3 us of the memory's time
AHEAD_FROM = 8  # tokens: with fewer, most experts have none


class SwapAbGemms(MoeGemms):
    """See the module's docstring."""

    @property
    def result_bytes(self) -> int:
        # bf16 [N, R] or e4m3 [N, R/2] with padded rows, and the maxima of every warp
        row = 2 * (self.config.weight_rows + 8) + 4 * 4 * self.config.warpgroups
        return row * self.config.tokens

    @property
    def mma_shape(self) -> tuple[int, int]:
        return 64, self.config.tokens

    @cute.jit
    def prefetch_weights(self, num_tokens, shared, tma1, tma1_tensor, tma2, tma2_tensor):
        """Bring the first slots of the block's first tile to L2 while the routing still runs, as
        if every expert had one token tile. What nobody needs takes time from an idle memory."""
        _, source, _, _ = self.weight_boxes(shared, tma1, tma1_tensor, tma2, tma2_tensor)
        columns, _ = self.weight_tiles
        block, _, _ = cute.arch.block_idx()
        if num_tokens >= AHEAD_FROM:
            for k in cutlass.range(SLOTS_AHEAD, unroll=1):
                cute.prefetch(tma1, source[None, k, 0, 0, block % columns, block // columns])

    @cute.jit
    def consume(
        self, ring: Ring, queue: Ring, records, shared, thread: Int32, tiled_mma, row_weight,
        act, act_scale, y, act_rows,
    ):  # fmt: skip
        """Multiply, promote, and write every tile's result."""
        g, n, r, s = self.geometry, self.config.tokens, self.config.weight_rows, self.config.stages
        swizzle = cute.make_swizzle(3, 4, 3)
        weights = shared.weights.get_tensor(  # halves of all slots in a row
            cute.make_layout((BLOCK, BLOCK, r // BLOCK * s), stride=(BLOCK, 1, BLOCK * BLOCK)),
            swizzle=swizzle,
        )
        tokens = shared.tokens.get_tensor(
            cute.make_layout((n, BLOCK, s), stride=(BLOCK, 1, n * BLOCK)), swizzle=swizzle
        )
        group = tiled_mma.get_slice(cute.arch.make_warp_uniform(thread // 128) * 128)
        a = tiled_mma.make_fragment_A(group.partition_A(weights))
        b = tiled_mma.make_fragment_B(group.partition_B(tokens))
        final = cute.make_rmem_tensor(tiled_mma.partition_shape_C((r, n)), Float32)
        result = shared.result.get_tensor(cute.make_layout((r, n), stride=(1, r + 8)))
        maxima = cute.make_tensor(
            cute.recast_ptr(result.iterator + (r + 8) * n, dtype=Float32),
            cute.make_layout((n, self.consumer_threads // 32)),
        )
        barrier = NamedBarrier(barrier_id=1, num_threads=self.consumer_threads)

        state, tile_state = consumer_state(s), consumer_state(QUEUE_SLOTS)
        tile = self.next_tile(queue, records, tile_state)
        tile_state.advance()
        while tile.gemm != END:
            final.fill(0.0)
            if tile.gemm == GEMM1:
                state = self.multiply(
                    ring, shared, state, tiled_mma, a, b, final, g.hidden_size // BLOCK, True
                )
                self.write_activation(
                    result, maxima, thread, tile, final, barrier, act, act_scale, act_rows
                )
            else:
                state = self.multiply(
                    ring, shared, state, tiled_mma, a, b, final, g.intermediate_size // BLOCK, False
                )
                self.write_rows(tiled_mma, result, thread, tile, final, barrier, row_weight, y)
            tile = self.next_tile(queue, records, tile_state)
            tile_state.advance()

    @cute.jit
    def multiply(
        self, ring: Ring, shared, state, tiled_mma, a, b, final, blocks: cutlass.Constexpr,
        is_gemm1: cutlass.Constexpr,
    ):  # fmt: skip
        """final += sum over the tile's slots of (weights @ tokens^T) * scales.

        A slot is multiplied in one chain of wgmmas for every group of columns with a token scale
        of its own and every 128 weight rows, each into a fresh partial sum. Two partial sums take
        turns: one is multiplied while the other is scaled and added to `final`.
        """
        groups = 1 if is_gemm1 else self.groups2
        halves = self.config.weight_rows // BLOCK
        atoms = cute.size(final, mode=[1]) // halves
        parts = [cute.make_rmem_tensor((final.shape[0], atoms, 1), Float32) for _ in range(2)]
        chain = partial(self.start_chain, ring, tiled_mma, a, b, groups)
        promote = partial(self.promote, ring, shared, final, groups, is_gemm1)
        released = state.clone()  # slot whose partial sums are promoted next
        chains, of_slot = CHAINS_IN_TURN, groups * halves
        for _ in cutlass.range(blocks * of_slot // chains, unroll=1):
            for c in cutlass.range_constexpr(chains):
                state = chain(state, parts[c % 2], c % of_slot)
                if cutlass.const_expr(c > 0):
                    released = promote(released, parts[(c - 1) % 2], (c - 1) % of_slot, 1)
            released = promote(released, parts[(chains - 1) % 2], (chains - 1) % of_slot, 0)
        return state

    @cute.jit
    def start_chain(
        self, ring: Ring, tiled_mma, a, b, groups: cutlass.Constexpr, state, part,
        number: cutlass.Constexpr,
    ):  # fmt: skip
        """Start part = chain `number` of the slot: one group's columns of 128 weight rows; returns
        the state of the next chain."""
        halves = self.config.weight_rows // BLOCK
        half, group = number // groups, number % groups
        if cutlass.const_expr(number == 0):
            ring.wait(state)
            cute.arch.fence_view_async_shared()
        warpgroup.fence()
        k_atoms = BLOCK // 32 // groups
        for k in cutlass.range_constexpr(k_atoms):
            at = group * k_atoms + k
            mma = cute.make_mma_atom(tiled_mma.op)
            mma.set(warpgroup.Field.ACCUMULATE, k != 0)
            cute.gemm(
                mma, part, a[None, None, at, state.index * halves + half],
                b[None, None, at, state.index], part,
            )  # fmt: skip
        warpgroup.commit_group()
        if cutlass.const_expr(number == groups * halves - 1):
            state.advance()
        return state

    @cute.jit
    def promote(
        self, ring: Ring, shared, final, groups: cutlass.Constexpr, is_gemm1: cutlass.Constexpr,
        state, part, number: cutlass.Constexpr, in_flight: cutlass.Constexpr,
    ):  # fmt: skip
        """Wait for all but `in_flight` chains, then final += part * scales; after the slot's last
        chain release the slot."""
        n, halves = self.config.tokens, self.config.weight_rows // BLOCK
        half, group = number // groups, number % groups
        weight_scale = shared.weight_scale.data_ptr() + state.index * 2
        lo, hi = weight_scale[0 if is_gemm1 else half], weight_scale[1]
        token_scale = (
            shared.token_scale.data_ptr()
            + (state.index * self.groups2 + group) * n
            + 2 * (cute.arch.lane_idx() % 4)
        )
        atoms = cute.size(part, mode=[1])
        warpgroup.wait_group(in_flight)
        for j in cutlass.range_constexpr(n // 8):
            scale = cute.make_rmem_tensor((2,), Float32)
            cute.autovec_copy(vector(token_scale + 8 * j, 2, 8), scale)
            for c in cutlass.range_constexpr(2):
                lo_scale = scale[c] * lo
                # in GEMM2 both row halves lie in one weight block
                hi_scale = scale[c] * hi if is_gemm1 else lo_scale
                for m in cutlass.range_constexpr(atoms):
                    up, down = (c, 0, j), (c, 1, j)
                    final[up, half * atoms + m, 0] += part[up, m, 0] * lo_scale
                    final[down, half * atoms + m, 0] += part[down, m, 0] * hi_scale
        if cutlass.const_expr(number == groups * halves - 1):
            self.release(ring, state, 1 - self.rank())
            state.advance()
        return state

    @cute.jit
    def write_activation(
        self, result, maxima, thread: Int32, tile: Tile, final, barrier, act, act_scale, act_rows
    ):
        """SwiGLU, the scale of each token's columns, e4m3 and a coalesced store."""
        n, width = self.config.tokens, self.config.act_columns
        pairs, atoms = n // 8, cute.size(final, mode=[1])
        lane, warp = thread % 32, thread // 32
        column = 8 * warp + lane // 4  # of the first atom
        step = 32 * self.config.warpgroups  # from atom to atom
        values = cute.make_rmem_tensor((2, pairs, atoms), Float32)
        for j in cutlass.range_constexpr(pairs):
            for c in cutlass.range_constexpr(2):
                largest = Float32(0.0)
                for m in cutlass.range_constexpr(atoms):
                    value = swiglu(final[(c, 0, j), m, 0], final[(c, 1, j), m, 0])
                    values[c, j, m] = value
                    largest = cute.arch.fmax(largest, cute.arch.fmax(value, -value))
                for distance in (4, 8, 16):
                    largest = cute.arch.fmax(
                        largest, cute.arch.shuffle_sync_bfly(largest, distance)
                    )
                if lane < 4:
                    maxima[8 * j + 2 * lane + c, warp] = largest
        barrier.arrive_and_wait()
        for j in cutlass.range_constexpr(pairs):
            for c in cutlass.range_constexpr(2):
                largest = self.token_maximum(maxima, 8 * j + 2 * (lane % 4) + c)
                inverse = E4M3_MAX * cute.arch.rcp_approx(largest)
                for m in cutlass.range_constexpr(atoms):
                    values[c, j, m] *= inverse
        codes = cute.make_rmem_tensor((2, pairs, atoms), Float8E4M3FN)
        codes.store(values.load().to(Float8E4M3FN))
        quantised = cute.make_tensor(
            cute.recast_ptr(result.iterator, dtype=Float8E4M3FN),
            cute.make_layout((width, n), stride=(1, width + 16)),
        )
        for j in cutlass.range_constexpr(pairs):
            for c in cutlass.range_constexpr(2):
                for m in cutlass.range_constexpr(atoms):
                    quantised[column + step * m, 8 * j + 2 * (lane % 4) + c] = codes[c, j, m]
        if thread < tile.rows:
            scale = self.token_maximum(maxima, thread) * (1.0 / E4M3_MAX)
            (act_scale + Int64(tile.column) * act_rows + tile.row)[thread] = scale
        barrier.arrive_and_wait()
        i = self.geometry.intermediate_size
        self.store_rows(quantised.iterator, thread, tile, act, i, width)
        barrier.arrive_and_wait()

    @cute.jit
    def token_maximum(self, maxima: cute.Tensor, token: Int32) -> Float32:
        """Largest absolute value of one token; positive even for a row of zeros."""
        largest = Float32(1e-10)
        for warp in cutlass.range_constexpr(self.consumer_threads // 32):
            largest = cute.arch.fmax(largest, maxima[token, warp])
        return largest

    @cute.jit
    def write_rows(
        self, tiled_mma, result, thread: Int32, tile: Tile, final, barrier, row_weight, y
    ):
        """Rows of y: R columns of every token, times the token's combine weight, in bf16."""
        n, r, h = self.config.tokens, self.config.weight_rows, self.geometry.hidden_size
        weights = row_weight + tile.row
        for j in cutlass.range_constexpr(n // 8):
            for c in cutlass.range_constexpr(2):
                token = 8 * j + 2 * (thread % 4) + c
                weight = weights[cutlass.min(token, tile.rows - 1)]
                for half in cutlass.range_constexpr(2):
                    for m in cutlass.range_constexpr(cute.size(final, mode=[1])):
                        final[(c, half, j), m, 0] *= weight
        rounded = cute.make_rmem_tensor(final.shape, BFloat16)
        rounded.store(final.load().to(BFloat16))
        cute.autovec_copy(rounded, tiled_mma.get_slice(thread).partition_C(result))
        barrier.arrive_and_wait()
        self.store_rows(result.iterator, thread, tile, y, h, r)
        barrier.arrive_and_wait()

    @cute.jit
    def store_rows(
        self, result, thread: Int32, tile: Tile, target, stride: cutlass.Constexpr,
        width: cutlass.Constexpr,
    ):  # fmt: skip
        """The tile's rows of `width` elements, with 16 bytes between them in shared memory, to
        target [*, stride]."""
        size = 128 // result.dtype.width  # of a vector
        chunks, threads = width // size, self.consumer_threads
        for p in cutlass.range_constexpr(cute.ceil_div(self.config.tokens * chunks, threads)):
            token = (thread + p * threads) // chunks
            chunk = thread % chunks
            if token < tile.rows:
                place = Int64(tile.row + token) * stride + tile.column * width + chunk * size
                cute.autovec_copy(
                    vector(result + token * (width + size) + chunk * size, size, 16),
                    vector(target + place, size, 16),
                )


def swiglu(up: Float32, gate: Float32) -> Float32:
    """silu(gate) * up."""
    return up * gate * cute.arch.rcp_approx(1.0 + cute.math.exp(-gate, fastmath=True))
