"""GEMM2 of cutedsl_moe_fp8_v3's kernel as a grouped GEMM of its own, to compare it with others.

It is the solution's kernel with a tile list that has no GEMM1 tiles: the code of GEMM1 is still
there, and so are the registers that it needs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import cycle
from typing import TYPE_CHECKING

import cuda.bindings.driver as cuda
import cutlass.cute as cute
import torch
import torch.nn.functional as F
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32

from solutions.common.cutedsl.combine import Combine
from solutions.common.cutedsl.compilation import compile_launch
from solutions.common.cutedsl.config import GemmConfig, candidates_for, choose
from solutions.common.cutedsl.gathered_tokens import PANEL_COLUMNS, GatheredTokens
from solutions.common.cutedsl.moe_gemms import MoeGemms
from solutions.common.cutedsl.operands import GemmScratch, Inputs, Rows
from solutions.common.cutedsl.sm90.swap_ab import SwapAb
from solutions.common.cutedsl.sm90.tokens_on_m import TokensOnM
from solutions.common.cutedsl.streamed_tokens import StreamedTokens
from solutions.common.cutedsl.tile_scheduler import COUNTERS, TileScheduler
from solutions.common.geometry import DEEPSEEK_V3_EP8, Geometry

if TYPE_CHECKING:
    from ...probes.problem import Launch, Problem

EXPERTS = DEEPSEEK_V3_EP8.num_local_experts  # of every compiled kernel; some may have no rows
LAUNCHES = 64  # that find counters of their own before all are set again


class Gemm2Tiles(TileScheduler):
    """The tile list without GEMM1."""

    def __init__(self, experts, config, weight_tiles, *arguments):
        super().__init__(experts, config, (0, weight_tiles[1]), *arguments)


class NoCombine(Combine):
    """There are no tokens to combine for."""

    def rows(self, *arguments) -> None:
        """Nothing."""


class Gemm2(MoeGemms):
    """The solution's kernel with nothing but GEMM2's tiles."""

    Scheduler = Gemm2Tiles
    Combine = NoCombine


class SwapAbGemm2(SwapAb):
    """For few rows per expert; no weights of GEMM1 are prefetched."""

    def prefetch_weights(self, *arguments) -> None:
        """Nothing."""


class PaddedTokens(GatheredTokens):
    """For many; the layer gathers GEMM1's rows here, and there are none."""

    def check_hidden_size(self) -> None:
        """Any will do, as nothing is gathered."""

    def gather(self, *arguments) -> None:
        """Nothing."""


class GroupedGemm:
    """y[r] = row_weight[r] * a[r] @ b[e].T for the rows r of expert e; N is the geometry's
    hidden_size and K its intermediate_size. b may have fewer experts if the others have no rows.

      a [act_rows, K] e4m3           a_scale [K / act_columns, act_rows] fp32
      b [E, N, K] e4m3               b_scale [E, N/128, K/128] fp32
      offsets [E + 1] int32          row_weight [rows] fp32
      y [rows, N] bf16 (out)         counters [COUNTERS] int32

    Without swap_ab, a and a_scale pad every expert to whole blocks of 64 rows. act_rows is a
    multiple of 4. The counters start as routing and gathering leave them: 0 tiles handed out, then
    for each expert its rows in a, which are ready.
    """

    POINTERS = (
        Float8E4M3FN, Float32, Float8E4M3FN, Float32, Int32, Float32, BFloat16, Int32,
    )  # fmt: skip

    def __init__(self, geometry: Geometry, config: GemmConfig, num_sms: int):
        parts = (SwapAbGemm2, StreamedTokens) if config.swap_ab else (TokensOnM, PaddedTokens)
        self.gemms = Gemm2(geometry, config, num_sms, *parts)

    @cute.jit
    def __call__(
        self,
        a: cute.Pointer,
        a_scale: cute.Pointer,
        b: cute.Pointer,
        b_scale: cute.Pointer,
        offsets: cute.Pointer,
        row_weight: cute.Pointer,
        y: cute.Pointer,
        counters: cute.Pointer,
        act_rows: Int32,
        stream: cuda.CUstream,
    ):
        # Of GEMM1's operands only the weight scales are touched: N K / 64 bytes are prefetched.
        w1_scale = cute.recast_ptr(b, dtype=Float32)
        inputs = Inputs(a, a, a, a_scale, b, w1_scale, b, b_scale)
        rows = Rows(offsets, offsets, row_weight, offsets, counters)
        self.gemms(inputs, rows, GemmScratch(a, a_scale, y), y, Int32(0), act_rows, stream)

    def compile(self, *decorators, options: str = ""):
        """For any rows; the result takes addresses as plain integers."""
        return compile_launch(self, self.POINTERS, [Int32(4)], decorators, options)


@lru_cache
def _compiled(geometry: Geometry, config: GemmConfig, device: int):
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    return GroupedGemm(geometry, config, num_sms).compile(options="--enable-tvm-ffi")


def cutedsl_v3(problem: Problem) -> Launch:
    """In the configuration that the solution takes for these rows."""
    experts, n, k = problem.b.shape
    if experts > EXPERTS or n % PANEL_COLUMNS or k % 256:
        raise ValueError(
            f"problem: expected at most {EXPERTS} experts, N a multiple of {PANEL_COLUMNS} and K "
            f"of 256, got {experts}, {n} and {k}"
        )
    config = choose(candidates_for(problem.like_tokens), problem.rows_per_expert)
    device = problem.a.device
    geometry = replace(DEEPSEEK_V3_EP8, hidden_size=n, intermediate_size=k)
    compiled = _compiled(geometry, config, device.index)

    offsets = problem.offsets.new_full((EXPERTS + 1,), problem.rows)
    offsets[: experts + 1] = problem.offsets
    block = 1 if config.swap_ab else TokensOnM.row_block
    sizes = [-(-rows // block) * block for rows in problem.rows_per_expert]
    a, a_scale = problem.spread([*sizes, -sum(sizes) % 4])
    a_scale = a_scale.t().repeat_interleave(128 // config.act_columns, dim=0).contiguous()
    b_scale = F.pad(problem.b_scale, (0, 0, 0, 0, 0, EXPERTS - experts))
    row_weight = torch.ones(problem.rows, device=device)
    y = torch.empty(problem.rows, n, dtype=torch.bfloat16, device=device)
    start = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
    start[1 : 1 + experts] = torch.tensor(sizes)
    counters = start.repeat(LAUNCHES, 1)
    operands = (a, a_scale, problem.b, b_scale, offsets, row_weight, y)
    turns = cycle(range(LAUNCHES))

    def launch() -> torch.Tensor:
        turn = next(turns)
        if turn == 0:  # so rarely that no median of times has it
            counters.copy_(start)
        compiled(
            *(tensor.data_ptr() for tensor in operands), counters[turn].data_ptr(), len(a),
            torch._C._cuda_getCurrentRawStream(device.index),
        )  # fmt: skip
        return y

    return launch
