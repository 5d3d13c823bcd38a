"""Epilogues of both GEMMs: what becomes of the fp32 sums of a tile.

GEMM1's epilogue is SwiGLU and the quantisation to e4m3, with one scale for a token's columns of the
tile; GEMM2's multiplies by the token's combine weight and rounds to bf16. The mathematics is the
same for every architecture and every place of the sums.
"""

from __future__ import annotations

from collections.abc import Callable

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32, Int64

from ..geometry import Geometry
from .config import GemmConfig
from .device import vector
from .operands import GemmOperands
from .tile_scheduler import Tile

E4M3_MAX = 448.0  # largest finite e4m3 value
MIN_AMAX = 1e-10  # keeps the scale of a row of zeros positive


def swiglu(up: Float32, gate: Float32) -> Float32:
    """silu(gate) * up. In this order, as up * gate may overflow where the result does not."""
    return gate * cute.arch.rcp_approx(1.0 + cute.math.exp(-gate, fastmath=True)) * up


def larger(largest: Float32, value: Float32) -> Float32:
    """The larger of `largest` and |value|."""
    return cute.arch.fmax(largest, cute.arch.fmax(value, -value))


def inverse_scale(amax: Float32) -> Float32:
    """What values up to amax are multiplied by to use all of e4m3's range."""
    # not E4M3_MAX * rcp(amax): the approximation gives 0 for 2^126 and more
    return cute.arch.rcp_approx(scale_of(amax))


def scale_of(amax: Float32) -> Float32:
    """What the e4m3 values are to be multiplied by later."""
    return amax * (1.0 / E4M3_MAX)


class SwapAbEpilogue:
    """Epilogues of a tile of block_n weight rows by block_m tokens, spread over threads.

    The map of the sums: thread `lane` of warp `warp` holds, of groups of 16 weight rows, rows r and
    r + 8, r = lane / 4, at tokens 8 j + 2 (lane % 4) + c, as final[(c, row half, j), atom, 0]. Its
    atoms belong to the 16-row groups warp, warp + warps, warp + 2 warps, ... In GEMM1 the two row
    halves are up and gate of one activation column. That is wgmma's accumulator, and what tcgen05's
    load of shape 16x256b gives.

    result: `size` bytes of shared memory. barrier: of all `threads` threads.
    """

    def __init__(self, geometry: Geometry, config: GemmConfig, threads: int):
        self.geometry = geometry
        self.config = config
        self.threads = threads
        self.warps = threads // 32

    @property
    def size(self) -> int:
        """bf16 [N, R] or e4m3 [N, R/2] with padded rows, and the maxima of every warp."""
        return (2 * (self.config.block_n + 8) + 4 * self.warps) * self.config.block_m

    def places(self, result) -> tuple[cute.Tensor, cute.Tensor]:
        """In shared memory: the rounded sums [R, N] bf16, and the maxima [N, warps] fp32."""
        r, n = self.config.block_n, self.config.block_m
        sums = result.get_tensor(cute.make_layout((r, n), stride=(1, r + 8)))
        maxima = cute.make_tensor(
            cute.recast_ptr(sums.iterator + (r + 8) * n, dtype=Float32),
            cute.make_layout((n, self.warps)),
        )
        return sums, maxima

    @cute.jit
    def write_activation(
        self, sums: cute.Tensor, maxima: cute.Tensor, thread: Int32, tile: Tile,
        final: cute.Tensor, barrier, operands: GemmOperands,
    ):  # fmt: skip
        """GEMM1: SwiGLU, the scale of each token's columns, e4m3 and a coalesced store."""
        n, width = self.config.block_m, self.config.act_columns
        pairs, atoms = n // 8, cute.size(final, mode=[1])
        lane, warp = thread % 32, thread // 32
        column = 8 * warp + lane // 4  # of the first atom
        step = 8 * self.warps  # from atom to atom
        values = cute.make_rmem_tensor((2, pairs, atoms), Float32)
        for j in cutlass.range_constexpr(pairs):
            for c in cutlass.range_constexpr(2):
                largest = Float32(0.0)
                for m in cutlass.range_constexpr(atoms):
                    value = swiglu(final[(c, 0, j), m, 0], final[(c, 1, j), m, 0])
                    values[c, j, m] = value
                    largest = larger(largest, value)
                for distance in (4, 8, 16):
                    largest = cute.arch.fmax(
                        largest, cute.arch.shuffle_sync_bfly(largest, distance)
                    )
                if lane < 4:
                    maxima[8 * j + 2 * lane + c, warp] = largest
        barrier.arrive_and_wait()
        for j in cutlass.range_constexpr(pairs):
            for c in cutlass.range_constexpr(2):
                inverse = inverse_scale(self.token_maximum(maxima, 8 * j + 2 * (lane % 4) + c))
                for m in cutlass.range_constexpr(atoms):
                    values[c, j, m] *= inverse
        codes = cute.make_rmem_tensor((2, pairs, atoms), Float8E4M3FN)
        codes.store(values.load().to(Float8E4M3FN))
        quantised = cute.make_tensor(
            cute.recast_ptr(sums.iterator, dtype=Float8E4M3FN),
            cute.make_layout((width, n), stride=(1, width + 16)),
        )
        for j in cutlass.range_constexpr(pairs):
            for c in cutlass.range_constexpr(2):
                for m in cutlass.range_constexpr(atoms):
                    quantised[column + step * m, 8 * j + 2 * (lane % 4) + c] = codes[c, j, m]
        if thread < tile.rows:
            scales = operands.act_scale + Int64(tile.n_block) * operands.act_rows + tile.row
            scales[thread] = scale_of(self.token_maximum(maxima, thread))
        barrier.arrive_and_wait()
        i = self.geometry.intermediate_size
        self.store_rows(quantised.iterator, thread, tile, operands.act, i, width)
        barrier.arrive_and_wait()

    @cute.jit
    def token_maximum(self, maxima: cute.Tensor, token: Int32) -> Float32:
        """Largest absolute value of one token; positive even for a row of zeros."""
        largest = Float32(MIN_AMAX)
        for warp in cutlass.range_constexpr(self.warps):
            largest = cute.arch.fmax(largest, maxima[token, warp])
        return largest

    @cute.jit
    def row_weights(self, thread: Int32, tile: Tile, operands: GemmOperands) -> cute.Tensor:
        """Combine weights of the tokens of the thread's sums: [c, j]."""
        pairs = self.config.block_m // 8
        weights = cute.make_rmem_tensor((2, pairs), Float32)
        for j in cutlass.range_constexpr(pairs):
            for c in cutlass.range_constexpr(2):
                token = cutlass.min(8 * j + 2 * (thread % 4) + c, tile.rows - 1)
                weights[c, j] = operands.row_weight[tile.row + token]
        return weights

    @cute.jit
    def write_rows(
        self, sums: cute.Tensor, own: Callable, thread: Int32, tile: Tile, final: cute.Tensor,
        weights: cute.Tensor, barrier, operands: GemmOperands,
    ):  # fmt: skip
        """GEMM2: R columns of every token's row of y, times its combine weight, in bf16.

        own: takes `sums` to the places of the thread's own, in the order of `final`. weights: of
        `row_weights`.
        """
        n, r, h = self.config.block_m, self.config.block_n, self.geometry.hidden_size
        for j in cutlass.range_constexpr(n // 8):
            for c in cutlass.range_constexpr(2):
                for half in cutlass.range_constexpr(2):
                    for m in cutlass.range_constexpr(cute.size(final, mode=[1])):
                        final[(c, half, j), m, 0] *= weights[c, j]
        rounded = cute.make_rmem_tensor(final.shape, BFloat16)
        rounded.store(final.load().to(BFloat16))
        cute.autovec_copy(rounded, own(sums))
        barrier.arrive_and_wait()
        self.store_rows(sums.iterator, thread, tile, operands.y, h, r)
        barrier.arrive_and_wait()

    @cute.jit
    def store_rows(
        self, result, thread: Int32, tile: Tile, target, stride: cutlass.Constexpr,
        width: cutlass.Constexpr,
    ):  # fmt: skip
        """The tile's rows of `width` elements, with 16 bytes between them in shared memory, to
        target [*, stride]."""
        size = 128 // result.dtype.width  # of a vector
        chunks, threads = width // size, self.threads
        for p in cutlass.range_constexpr(cute.ceil_div(self.config.block_m * chunks, threads)):
            token = (thread + p * threads) // chunks
            chunk = thread % chunks
            if token < tile.rows:
                place = Int64(tile.row + token) * stride + tile.n_block * width + chunk * size
                cute.autovec_copy(
                    vector(result + token * (width + size) + chunk * size, size, 16),
                    vector(target + place, size, 16),
                )
