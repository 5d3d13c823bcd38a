"""The whole layer after routing as one host call: both GEMMs and the combine, on one stream."""

from __future__ import annotations

from functools import lru_cache

import cuda.bindings.driver as cuda
import cutlass.cute as cute
import torch
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32
from cutlass.cute.runtime import make_ptr

from ..geometry import Geometry
from ..routing import Routing, max_rows
from .combine import Combine
from .config import GemmConfig, config_for
from .direct import DirectGemms
from .swap_ab import SwapAbGemms


class MoeLayer:
    """Launches the GEMM kernel and the combine; arguments as in `moe_gemms` and `combine`."""

    POINTERS = (
        Float8E4M3FN, Float32, Float8E4M3FN, Float32, Float8E4M3FN, Float32, Int32, Int32, Float32,
        Int32, Float8E4M3FN, Float32, BFloat16, Int32, BFloat16,
    )  # fmt: skip

    def __init__(self, geometry: Geometry, config: GemmConfig, num_sms: int):
        kernel = SwapAbGemms if config.swap_ab else DirectGemms
        self.gemms = kernel(geometry, config, num_sms)
        self.combine = Combine(geometry)

    @cute.jit
    def __call__(
        self,
        hidden: cute.Pointer,
        hidden_scale: cute.Pointer,
        w1: cute.Pointer,
        w1_scale: cute.Pointer,
        w2: cute.Pointer,
        w2_scale: cute.Pointer,
        expert_offsets: cute.Pointer,
        row_token: cute.Pointer,
        row_weight: cute.Pointer,
        token_rows: cute.Pointer,
        act: cute.Pointer,
        act_scale: cute.Pointer,
        y: cute.Pointer,
        counters: cute.Pointer,
        output: cute.Pointer,
        num_tokens: Int32,
        max_rows: Int32,
        stream: cuda.CUstream,
    ):
        self.gemms(
            hidden, hidden_scale, w1, w1_scale, w2, w2_scale, expert_offsets, row_token,
            row_weight, act, act_scale, y, counters, num_tokens, max_rows, stream,
        )  # fmt: skip
        self.combine(y, token_rows, output, num_tokens, stream)

    def compile(self, *decorators, options: str = ""):
        """Compile for any number of tokens; the result takes addresses as plain integers."""
        pointers = [
            make_ptr(dtype, 16, cute.AddressSpace.gmem, assumed_align=16) for dtype in self.POINTERS
        ]
        compiler = cute.compile[decorators] if decorators else cute.compile
        return compiler(self, *pointers, Int32(1), Int32(1), cuda.CUstream(0), options=options)


@lru_cache
def _compiled(geometry: Geometry, config: GemmConfig, device: torch.device):
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    # TVM-FFI: a call costs a few microseconds of host time instead of tens
    return MoeLayer(geometry, config, num_sms).compile(options="--enable-tvm-ffi")


def layer_buffers(geometry: Geometry, num_tokens: int) -> tuple:
    """Scratch that `run_layer` needs, for a Workspace: act, act_scale and y."""
    rows, h, i = max_rows(geometry, num_tokens), geometry.hidden_size, geometry.intermediate_size
    groups = i // config_for(num_tokens).act_columns
    return (torch.float8_e4m3fn, rows, i), (torch.float32, groups, rows), (torch.bfloat16, rows, h)


def num_counters(geometry: Geometry) -> int:
    """Counters that `run_layer` needs from `route`: tiles handed out, and tiles done per expert."""
    return 1 + geometry.num_local_experts


def run_layer(
    geometry: Geometry,
    routing: Routing,
    buffers: list,
    hidden: torch.Tensor,
    hidden_scale: torch.Tensor,
    w1: torch.Tensor,
    w1_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """GEMM1, SwiGLU, requantisation, GEMM2 and combine of the routed rows into output [T, H].

    routing, whose counters are used up, and buffers (those of `layer_buffers`) are addresses; the
    others are the definition's tensors, with T > 0 tokens.
    """
    num_tokens = hidden.shape[0]
    act, act_scale, y = buffers
    _compiled(geometry, config_for(num_tokens), hidden.device)(
        hidden.data_ptr(), hidden_scale.data_ptr(), w1.data_ptr(), w1_scale.data_ptr(),
        w2.data_ptr(), w2_scale.data_ptr(), routing.expert_offsets, routing.row_token,
        routing.row_weight, routing.token_rows, act, act_scale, y, routing.counters,
        output.data_ptr(), num_tokens, max_rows(geometry, num_tokens),
        torch.cuda.current_stream(hidden.device).cuda_stream,
    )  # fmt: skip
