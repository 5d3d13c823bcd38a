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

from ..device import vector
from ..gathered_tokens import GatheredTokens
from ..moe_gemms import BLOCK, E4M3_MAX, QUEUE_SLOTS
from ..ring import Ring, consumer_state
from ..tile_scheduler import END, GEMM1, Tile
from .swap_ab import swiglu

WARP_ROWS = 16
ROW_BYTES = 128  # of a row in a warp's shared memory
ROW_PITCH = ROW_BYTES + 16


class TokensOnMGemms(GatheredTokens):
    """See the module's docstring."""

    @property
    def result_bytes(self) -> int:
        return 4 * self.config.warpgroups * WARP_ROWS * ROW_PITCH

    @property
    def mma_shape(self) -> tuple[int, int]:
        return 64, BLOCK

    @cute.jit
    def consume(
        self, ring: Ring, queue: Ring, records, shared, thread: Int32, tiled_mma, row_weight,
        act, act_scale, y, act_rows,
    ):  # fmt: skip
        """Multiply, promote, and write every tile's result."""
        g, n, r, s = self.geometry, self.config.tokens, self.config.weight_rows, self.config.stages
        swizzle = cute.make_swizzle(3, 4, 3)
        tokens = shared.tokens.get_tensor(
            cute.make_layout((n, BLOCK, s), stride=(BLOCK, 1, n * BLOCK)), swizzle=swizzle
        )
        weights = shared.weights.get_tensor(  # halves of all slots in a row
            cute.make_layout((BLOCK, BLOCK, r // BLOCK * s), stride=(BLOCK, 1, BLOCK * BLOCK)),
            swizzle=swizzle,
        )
        group = cute.arch.make_warp_uniform(thread // 128)
        slice_ = tiled_mma.get_slice(group * 128)
        a = tiled_mma.make_fragment_A(slice_.partition_A(tokens))
        b = tiled_mma.make_fragment_B(slice_.partition_B(weights))
        final = cute.make_rmem_tensor(tiled_mma.partition_shape_C((n, r)), Float32)
        warp = cute.arch.make_warp_uniform(thread // 32)
        result = shared.result.data_ptr() + warp * (WARP_ROWS * ROW_PITCH // 2)

        state, tile_state = consumer_state(s), consumer_state(QUEUE_SLOTS)
        tile = self.next_tile(queue, records, tile_state)
        tile_state.advance()
        while tile.gemm != END:
            active = group * 64 < tile.rows
            if tile.gemm == GEMM1:
                if active:
                    state = self.multiply(
                        ring, shared, state, warp, tile, tiled_mma, a, b, final,
                        g.hidden_size // BLOCK, True,
                    )  # fmt: skip
                    self.write_activation(result, warp, tile, final, act, act_scale, act_rows)
                else:
                    state = self.skip(ring, state, g.hidden_size // BLOCK)
            else:
                if active:
                    state = self.multiply(
                        ring, shared, state, warp, tile, tiled_mma, a, b, final,
                        g.intermediate_size // BLOCK, False,
                    )  # fmt: skip
                    self.write_rows(result, warp, tile, final, row_weight, y)
                else:
                    state = self.skip(ring, state, g.intermediate_size // BLOCK)
            tile = self.next_tile(queue, records, tile_state)
            tile_state.advance()

    @cute.jit
    def skip(self, ring: Ring, state, blocks: cutlass.Constexpr):
        """Walk through a tile's slots without using them."""
        for _ in cutlass.range(blocks, unroll=1):
            ring.wait(state)
            self.release(ring, state, 1 - self.rank())
            state.advance()
        return state

    @cute.jit
    def multiply(
        self, ring: Ring, shared, state, warp: Int32, tile: Tile, tiled_mma, a, b, final,
        blocks: cutlass.Constexpr, is_gemm1: cutlass.Constexpr,
    ):  # fmt: skip
        """final = sum over the tile's slots of (tokens @ weights^T) * scales."""
        n, groups = self.config.tokens, 1 if is_gemm1 else self.groups2
        k_atoms = BLOCK // 32 // groups
        part = cute.make_rmem_tensor((*final.shape[:2], 1), Float32)
        halves = self.config.weight_rows // BLOCK
        row = warp * WARP_ROWS + cute.arch.lane_idx() // 4
        final.fill(0.0)
        for _ in cutlass.range(blocks, unroll=1):
            ring.wait(state)
            weight_scale = shared.weight_scale.data_ptr() + state.index * 2
            token_scale = shared.token_scale.data_ptr() + state.index * (self.groups2 * n) + row
            for half in cutlass.range_constexpr(halves):
                for q in cutlass.range_constexpr(groups):
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
                    for j in cutlass.range_constexpr(BLOCK // 8):
                        for i in cutlass.range_constexpr(2):
                            for c in cutlass.range_constexpr(2):
                                scale = scales[i][j % 2]
                                final[(c, i, j), 0, half] += part[(c, i, j), 0, 0] * scale
            self.release(ring, state, 1 - self.rank())
            state.advance()
        return state

    @cute.jit
    def write_activation(self, result, warp: Int32, tile: Tile, final, act, act_scale, act_rows):
        """SwiGLU, the scale of each token's columns, e4m3 and a coalesced store."""
        width = self.config.act_columns
        lane = cute.arch.lane_idx()
        row = warp * WARP_ROWS + lane // 4
        halves = self.config.weight_rows // BLOCK
        result = cute.recast_ptr(result, dtype=Float8E4M3FN)
        for i in cutlass.range_constexpr(2):
            values = cute.make_rmem_tensor((2, BLOCK // 16, halves), Float32)
            largest = Float32(1e-10)
            for half in cutlass.range_constexpr(halves):
                for j in cutlass.range_constexpr(BLOCK // 16):
                    for c in cutlass.range_constexpr(2):
                        value = swiglu(
                            final[(c, i, 2 * j), 0, half], final[(c, i, 2 * j + 1), 0, half]
                        )
                        values[c, j, half] = value
                        largest = cute.arch.fmax(largest, cute.arch.fmax(value, -value))
            largest = cute.arch.fmax(largest, cute.arch.shuffle_sync_bfly(largest, 1))
            largest = cute.arch.fmax(largest, cute.arch.shuffle_sync_bfly(largest, 2))
            codes = cute.make_rmem_tensor((2, BLOCK // 16, halves), Float8E4M3FN)
            inverse = E4M3_MAX * cute.arch.rcp_approx(largest)
            codes.store((values.load() * inverse).to(Float8E4M3FN))
            target = result + (lane // 4 + 8 * i) * ROW_PITCH + 2 * (lane % 4)
            for half in cutlass.range_constexpr(halves):
                for j in cutlass.range_constexpr(BLOCK // 16):
                    place = vector(target + half * 64 + j * 8, 2, 2)
                    cute.autovec_copy(codes[None, j, half], place)
            if lane % 4 == 0:
                scales = act_scale + Int64(tile.column) * act_rows + tile.place
                scales[row + 8 * i] = largest * (1.0 / E4M3_MAX)
        cute.arch.sync_warp()
        target = act + Int64(tile.place) * self.geometry.intermediate_size + tile.column * width
        rows = Int32(self.config.tokens)  # with the padding of the warpgroup's block
        self.store_rows(result, warp, rows, target, self.geometry.intermediate_size, width)
        cute.arch.fence_proxy("async.global")  # TMA will read the rows

    @cute.jit
    def write_rows(self, result, warp: Int32, tile: Tile, final, row_weight, y):
        """Rows of y: the tile's columns of every token, times its combine weight, in bf16."""
        h, r = self.geometry.hidden_size, self.config.weight_rows
        lane = cute.arch.lane_idx()
        row = warp * WARP_ROWS + lane // 4
        columns = ROW_BYTES // 2
        weights = row_weight + tile.row
        weight = [weights[cutlass.min(row + 8 * i, tile.rows - 1)] for i in range(2)]
        y = y + Int64(tile.row) * h + tile.column * r
        for chunk in cutlass.range_constexpr(r // columns):
            half, first = chunk * columns // BLOCK, chunk * columns % BLOCK // 8
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
