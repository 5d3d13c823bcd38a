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
from cutlass import Float32, Int32
from cutlass.cute.nvgpu import warpgroup
from cutlass.pipeline import NamedBarrier

from ...geometry import Geometry
from ..config import BLOCK_K, GemmConfig
from ..device import swizzled_tensor, vector
from ..epilogue import SwapAbEpilogue
from ..moe_gemms import Block, WeightLoads
from ..operands import GemmOperands
from ..ring import Ring, block_rank, consumer_state
from ..tile_scheduler import END, GEMM1, QUEUE_SLOTS, next_tile
from .consumers import WgmmaConsumers

CHAINS_IN_TURN = 4  # wgmma chains between two points without a wgmma in flight
SLOTS_AHEAD = 6  # of weights that a block prefetches: 13 MB in all with 128 weight rows, 3 us
AHEAD_FROM = 8  # tokens: with fewer, most experts have none
EARLY_WEIGHTS = 16  # tokens of a tile whose combine weights wait in registers for the sums


class SwapAb(WgmmaConsumers):
    """See the module's docstring."""

    def __init__(self, geometry: Geometry, config: GemmConfig):
        super().__init__(geometry, config)
        if config.block_m % 8 or not 16 <= config.block_m <= 128:
            raise ValueError(f"block_m must be a multiple of 8 in 16..128, got {config.block_m}")
        if config.block_n > 128 * config.num_warpgroups:
            raise ValueError(
                f"block_n must be 128 with swap_ab and one warpgroup, got {config.block_n}"
            )
        self.epilogue = SwapAbEpilogue(geometry, config, self.threads)
        self.result_size = self.epilogue.size

    @property
    def mma_shape(self) -> tuple[int, int]:
        """64 weight rows by all tokens."""
        return 64, self.config.block_m

    @cute.jit
    def prefetch_weights(self, shared, loads: WeightLoads, weight_tiles: int, num_tokens):
        """Bring the first slots of the block's first tile to L2 while the routing still runs, as
        if every expert had one token tile. What nobody needs takes time from an idle memory."""
        boxes = self.weight_boxes(shared, loads)
        block, _, _ = cute.arch.block_idx()
        if num_tokens >= AHEAD_FROM:
            for k in cutlass.range(SLOTS_AHEAD, unroll=1):
                for part in cutlass.range_constexpr(self.config.cluster):
                    box = block % weight_tiles * self.config.cluster + part
                    cute.prefetch(loads.atom1, boxes.boxes1[None, k, box, block // weight_tiles])

    @cute.jit
    def consume(self, block: Block, thread: Int32, tiled_mma, operands: GemmOperands):
        """Multiply, promote, and write every tile's result."""
        g, n, r, s = self.geometry, self.config.block_m, self.config.block_n, self.config.num_stages
        weights = swizzled_tensor(  # halves of all slots in a row
            block.shared.weights, (BLOCK_K, BLOCK_K, r // BLOCK_K * s),
            (BLOCK_K, 1, BLOCK_K * BLOCK_K),
        )  # fmt: skip
        tokens = swizzled_tensor(block.shared.tokens, (n, BLOCK_K, s), (BLOCK_K, 1, n * BLOCK_K))
        slice_ = tiled_mma.get_slice(cute.arch.make_warp_uniform(thread // 128) * 128)
        a = tiled_mma.make_fragment_A(slice_.partition_A(weights))
        b = tiled_mma.make_fragment_B(slice_.partition_B(tokens))
        final = cute.make_rmem_tensor(tiled_mma.partition_shape_C((r, n)), Float32)
        sums, maxima = self.epilogue.places(block.shared.result)
        barrier = NamedBarrier(barrier_id=1, num_threads=self.threads)

        state, tile_state = consumer_state(s), consumer_state(QUEUE_SLOTS)
        tile = next_tile(block.queue, tile_state)
        tile_state.advance()
        while tile.gemm != END:
            final.fill(0.0)
            if tile.gemm == GEMM1:
                state = self.multiply(
                    block, state, tiled_mma, a, b, final, g.hidden_size // BLOCK_K, True
                )
                self.epilogue.write_activation(sums, maxima, thread, tile, final, barrier, operands)
            else:
                if cutlass.const_expr(n <= EARLY_WEIGHTS):
                    row_weights = self.epilogue.row_weights(thread, tile, operands)
                state = self.multiply(
                    block, state, tiled_mma, a, b, final, g.intermediate_size // BLOCK_K, False
                )
                if cutlass.const_expr(n > EARLY_WEIGHTS):
                    row_weights = self.epilogue.row_weights(thread, tile, operands)
                own = tiled_mma.get_slice(thread).partition_C
                self.epilogue.write_rows(
                    sums, own, thread, tile, final, row_weights, barrier, operands
                )
            tile = next_tile(block.queue, tile_state)
            tile_state.advance()

    @cute.jit
    def multiply(
        self, block: Block, state, tiled_mma, a, b, final, blocks: cutlass.Constexpr,
        is_gemm1: cutlass.Constexpr,
    ):  # fmt: skip
        """The main loop: final += sum over the tile's slots of (weights @ tokens^T) * scales.

        A slot is multiplied in one chain of wgmmas for every span of columns with a token scale
        of its own and every 128 weight rows, each into a fresh partial sum. Two partial sums take
        turns: one is multiplied while the other is scaled and added to `final`.
        """
        spans = 1 if is_gemm1 else self.config.act_spans
        halves = self.config.block_n // BLOCK_K
        atoms = cute.size(final, mode=[1]) // halves
        parts = [cute.make_rmem_tensor((final.shape[0], atoms, 1), Float32) for _ in range(2)]
        chain = partial(self.start_chain, block.ring, tiled_mma, a, b, spans)
        promote = partial(self.promote, block, final, spans, is_gemm1)
        released = state.clone()  # slot whose partial sums are promoted next
        chains, of_slot = CHAINS_IN_TURN, spans * halves
        for _ in cutlass.range(blocks * of_slot // chains, unroll=1):
            for c in cutlass.range_constexpr(chains):
                state = chain(state, parts[c % 2], c % of_slot)
                if cutlass.const_expr(c > 0):
                    released = promote(released, parts[(c - 1) % 2], (c - 1) % of_slot, 1)
            released = promote(released, parts[(chains - 1) % 2], (chains - 1) % of_slot, 0)
        return state

    @cute.jit
    def start_chain(
        self, ring: Ring, tiled_mma, a, b, spans: cutlass.Constexpr, state, part,
        number: cutlass.Constexpr,
    ):  # fmt: skip
        """Start part = chain `number` of the slot: one span's columns of 128 weight rows; returns
        the state of the next chain."""
        halves = self.config.block_n // BLOCK_K
        half, span = number // spans, number % spans
        if cutlass.const_expr(number == 0):
            ring.wait_full(state)
            cute.arch.fence_view_async_shared()
        warpgroup.fence()
        k_atoms = BLOCK_K // 32 // spans
        for k in cutlass.range_constexpr(k_atoms):
            at = span * k_atoms + k
            mma = cute.make_mma_atom(tiled_mma.op)
            mma.set(warpgroup.Field.ACCUMULATE, k != 0)
            cute.gemm(
                mma, part, a[None, None, at, state.index * halves + half],
                b[None, None, at, state.index], part,
            )  # fmt: skip
        warpgroup.commit_group()
        if cutlass.const_expr(number == spans * halves - 1):
            state.advance()
        return state

    @cute.jit
    def promote(
        self, block: Block, final, spans: cutlass.Constexpr, is_gemm1: cutlass.Constexpr, state,
        part, number: cutlass.Constexpr, in_flight: cutlass.Constexpr,
    ):  # fmt: skip
        """Wait for all but `in_flight` chains, then final += part * scales; after the slot's last
        chain release the slot."""
        n, halves = self.config.block_m, self.config.block_n // BLOCK_K
        half, span = number // spans, number % spans
        weight_scale = block.shared.weight_scale.data_ptr() + state.index * 2
        lo, hi = weight_scale[0 if is_gemm1 else half], weight_scale[1]
        token_scale = (
            block.shared.token_scale.data_ptr()
            + (state.index * self.config.act_spans + span) * n
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
        if cutlass.const_expr(number == spans * halves - 1):
            if cutlass.const_expr(self.config.cluster == 1):
                block.ring.release_by_halves(state)
            else:
                block.ring.release(state, 1 - block_rank(self.config.cluster))
            state.advance()
        return state
