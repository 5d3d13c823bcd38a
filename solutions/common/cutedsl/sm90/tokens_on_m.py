"""Consumers for many tokens per expert: tokens on wgmma's M side, weights on N.

Each warpgroup multiplies 64 token rows with all weight rows of the tile, 128 at a time ("half").
A warpgroup without valid rows skips the work. In the accumulator, thread `lane` of a warp owns
token rows r and r + 8 of the warp's 16, r = lane / 4, and weight rows 8 j + 2 (lane % 4) + c:
element ((c, row half, j), 0, half). In GEMM1 even j are up and odd j gate rows, so columns
8 (j / 2) + 2 (lane % 4) + c of the activation meet in one thread.

Registers of a consumer with R weight rows: R/2 fp32 sums, 64 for the partial sum of a half, and
about 40 more. Results leave through 2,304 bytes of shared memory per warp: 16 rows of 128 bytes,
padded to 144 so that rows start in different banks.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32, Int64
from cutlass.cute.nvgpu import warpgroup

from ...geometry import Geometry
from ..config import BLOCK_K, GemmConfig
from ..device import swizzled_tensor, vector
from ..epilogue import MIN_AMAX, inverse_scale, larger, scale_of, swiglu
from ..moe_gemms import Block
from ..operands import GemmOperands
from ..ring import Ring, block_rank, consumer_state
from ..tile_scheduler import END, GEMM1, QUEUE_SLOTS, Tile, next_tile
from .consumers import WgmmaConsumers

WARP_ROWS = 16
ROW_BYTES = 128  # of a row in a warp's shared memory
ROW_PITCH = ROW_BYTES + 16


class TokensOnM(WgmmaConsumers):
    """See the module's docstring."""

    def __init__(self, geometry: Geometry, config: GemmConfig):
        super().__init__(geometry, config)
        if config.block_m != self.row_block * config.num_warpgroups:
            raise ValueError(
                f"block_m must be {self.row_block} per warpgroup without swap_ab, "
                f"got {config.block_m} for {config.num_warpgroups}"
            )
        self.result_size = self.threads // 32 * WARP_ROWS * ROW_PITCH

    @property
    def mma_shape(self) -> tuple[int, int]:
        """64 tokens by 128 weight rows."""
        return self.row_block, BLOCK_K

    @cute.jit
    def consume(self, block: Block, thread: Int32, tiled_mma, operands: GemmOperands):
        """Multiply, promote, and write every tile's result."""
        g, n, r, s = self.geometry, self.config.block_m, self.config.block_n, self.config.num_stages
        tokens = swizzled_tensor(block.shared.tokens, (n, BLOCK_K, s), (BLOCK_K, 1, n * BLOCK_K))
        weights = swizzled_tensor(  # halves of all slots in a row
            block.shared.weights, (BLOCK_K, BLOCK_K, r // BLOCK_K * s),
            (BLOCK_K, 1, BLOCK_K * BLOCK_K),
        )  # fmt: skip
        number = cute.arch.make_warp_uniform(thread // 128)  # of the warpgroup
        slice_ = tiled_mma.get_slice(number * 128)
        a = tiled_mma.make_fragment_A(slice_.partition_A(tokens))
        b = tiled_mma.make_fragment_B(slice_.partition_B(weights))
        final = cute.make_rmem_tensor(tiled_mma.partition_shape_C((n, r)), Float32)
        warp = cute.arch.make_warp_uniform(thread // 32)
        result = block.shared.result.data_ptr() + warp * (WARP_ROWS * ROW_PITCH // 2)

        state, tile_state = consumer_state(s), consumer_state(QUEUE_SLOTS)
        tile = next_tile(block.queue, tile_state)
        tile_state.advance()
        while tile.gemm != END:
            active = number * 64 < tile.rows
            if tile.gemm == GEMM1:
                if active:
                    state = self.multiply(
                        block, state, warp, tiled_mma, a, b, final, g.hidden_size // BLOCK_K, True
                    )
                    self.write_activation(result, warp, tile, final, operands)
                else:
                    state = self.skip(block.ring, state, g.hidden_size // BLOCK_K)
            else:
                if active:
                    state = self.multiply(
                        block, state, warp, tiled_mma, a, b, final,
                        g.intermediate_size // BLOCK_K, False,
                    )  # fmt: skip
                    self.write_rows(result, warp, tile, final, operands)
                else:
                    state = self.skip(block.ring, state, g.intermediate_size // BLOCK_K)
            tile = next_tile(block.queue, tile_state)
            tile_state.advance()

    @cute.jit
    def skip(self, ring: Ring, state, blocks: cutlass.Constexpr):
        """Walk through a tile's slots without using them."""
        for _ in cutlass.range(blocks, unroll=1):
            ring.wait_full(state)
            ring.release(state, 1 - block_rank(self.config.cluster))
            state.advance()
        return state

    @cute.jit
    def multiply(
        self, block: Block, state, warp: Int32, tiled_mma, a, b, final, blocks: cutlass.Constexpr,
        is_gemm1: cutlass.Constexpr,
    ):  # fmt: skip
        """The main loop: final = sum over the tile's slots of (tokens @ weights^T) * scales."""
        ring, shared = block.ring, block.shared
        n, spans = self.config.block_m, 1 if is_gemm1 else self.config.act_spans
        k_atoms = BLOCK_K // 32 // spans
        part = cute.make_rmem_tensor((*final.shape[:2], 1), Float32)
        halves = self.config.block_n // BLOCK_K
        row = warp * WARP_ROWS + cute.arch.lane_idx() // 4
        final.fill(0.0)
        for _ in cutlass.range(blocks, unroll=1):
            ring.wait_full(state)
            weight_scale = shared.weight_scale.data_ptr() + state.index * 2
            token_scale = (
                shared.token_scale.data_ptr() + state.index * (self.config.act_spans * n) + row
            )
            for half in cutlass.range_constexpr(halves):
                for q in cutlass.range_constexpr(spans):
                    warpgroup.fence()
                    for k in cutlass.range_constexpr(k_atoms):
                        mma = cute.make_mma_atom(tiled_mma.op)
                        mma.set(warpgroup.Field.ACCUMULATE, k != 0)
                        at = q * k_atoms + k
                        cute.gemm(
                            mma, part, a[None, None, at, state.index],
                            b[None, None, at, state.index * halves + half], part,
                        )  # fmt: skip
                    warpgroup.commit_group()
                    # scale of (row half, parity of j)
                    scales = [
                        [
                            token_scale[q * n + 8 * i] * weight_scale[p if is_gemm1 else half]
                            for p in range(2)
                        ]
                        for i in range(2)
                    ]
                    warpgroup.wait_group(0)
                    for j in cutlass.range_constexpr(BLOCK_K // 8):
                        for i in cutlass.range_constexpr(2):
                            for c in cutlass.range_constexpr(2):
                                scale = scales[i][j % 2]
                                final[(c, i, j), 0, half] += part[(c, i, j), 0, 0] * scale
            ring.release(state, 1 - block_rank(self.config.cluster))
            state.advance()
        return state

    @cute.jit
    def write_activation(self, result, warp: Int32, tile: Tile, final, operands: GemmOperands):
        """GEMM1's epilogue: SwiGLU, e4m3 with a scale for a token's columns, a coalesced store."""
        width = self.config.act_columns
        lane = cute.arch.lane_idx()
        row = warp * WARP_ROWS + lane // 4
        halves = self.config.block_n // BLOCK_K
        result = cute.recast_ptr(result, dtype=Float8E4M3FN)
        for i in cutlass.range_constexpr(2):
            values = cute.make_rmem_tensor((2, BLOCK_K // 16, halves), Float32)
            largest = Float32(MIN_AMAX)
            for half in cutlass.range_constexpr(halves):
                for j in cutlass.range_constexpr(BLOCK_K // 16):
                    for c in cutlass.range_constexpr(2):
                        value = swiglu(
                            final[(c, i, 2 * j), 0, half], final[(c, i, 2 * j + 1), 0, half]
                        )
                        values[c, j, half] = value
                        largest = larger(largest, value)
            largest = cute.arch.fmax(largest, cute.arch.shuffle_sync_bfly(largest, 1))
            largest = cute.arch.fmax(largest, cute.arch.shuffle_sync_bfly(largest, 2))
            codes = cute.make_rmem_tensor((2, BLOCK_K // 16, halves), Float8E4M3FN)
            inverse = inverse_scale(largest)
            codes.store((values.load() * inverse).to(Float8E4M3FN))
            target = result + (lane // 4 + 8 * i) * ROW_PITCH + 2 * (lane % 4)
            for half in cutlass.range_constexpr(halves):
                for j in cutlass.range_constexpr(BLOCK_K // 16):
                    place = vector(target + half * 64 + j * 8, 2, 2)
                    cute.autovec_copy(codes[None, j, half], place)
            if lane % 4 == 0:
                scales = operands.act_scale + Int64(tile.n_block) * operands.act_rows
                (scales + tile.padded_row)[row + 8 * i] = scale_of(largest)
        cute.arch.sync_warp()
        i = self.geometry.intermediate_size
        target = operands.act + Int64(tile.padded_row) * i + tile.n_block * width
        rows = Int32(self.config.block_m)  # with the padding of the warpgroup's block
        self.store_rows(result, warp, rows, target, i, width)
        cute.arch.fence_proxy("async.global")  # TMA will read the rows

    @cute.jit
    def write_rows(self, result, warp: Int32, tile: Tile, final, operands: GemmOperands):
        """GEMM2's epilogue: the tile's columns of every row of y, times its weight, in bf16."""
        h, r = self.geometry.hidden_size, self.config.block_n
        lane = cute.arch.lane_idx()
        row = warp * WARP_ROWS + lane // 4
        columns = ROW_BYTES // 2
        weights = operands.row_weight + tile.row
        weight = [weights[cutlass.min(row + 8 * i, tile.rows - 1)] for i in range(2)]
        y = operands.y + Int64(tile.row) * h + tile.n_block * r
        for chunk in cutlass.range_constexpr(r // columns):
            half, first = chunk * columns // BLOCK_K, chunk * columns % BLOCK_K // 8
            for i in cutlass.range_constexpr(2):
                rounded = cute.make_rmem_tensor((2, columns // 8), Float32)
                for j in cutlass.range_constexpr(columns // 8):
                    for c in cutlass.range_constexpr(2):
                        rounded[c, j] = final[(c, i, first + j), 0, half] * weight[i]
                bits = cute.make_rmem_tensor((2, columns // 8), BFloat16)
                bits.store(rounded.load().to(BFloat16))
                target = result + ((lane // 4 + 8 * i) * ROW_PITCH // 2 + 2 * (lane % 4))
                for j in cutlass.range_constexpr(columns // 8):
                    cute.autovec_copy(bits[None, j], vector(target + 8 * j, 2, 4))
            cute.arch.sync_warp()
            self.store_rows(result, warp, tile.rows, y + chunk * columns, h, columns)

    @cute.jit
    def store_rows(
        self, result, warp: Int32, rows: Int32, target, stride: cutlass.Constexpr,
        width: cutlass.Constexpr,
    ):  # fmt: skip
        """The warp's 16 rows of `width` elements, as far as the tile has `rows`, from shared memory
        to target [*, stride]."""
        per_vector = 128 // result.dtype.width
        lanes = width // per_vector  # of a row
        pitch = ROW_PITCH * 8 // result.dtype.width
        lane = cute.arch.lane_idx()
        for p in cutlass.range_constexpr(WARP_ROWS * lanes // 32):
            row = lane // lanes + p * (32 // lanes)
            column = lane % lanes * per_vector
            if warp * WARP_ROWS + row < rows:
                cute.autovec_copy(
                    vector(result + row * pitch + column, per_vector, 16),
                    vector(
                        target + (Int64(warp * WARP_ROWS + row) * stride + column), per_vector, 16
                    ),
                )
        cute.arch.sync_warp()
