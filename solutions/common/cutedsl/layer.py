"""The whole layer as one host call: routing, then both GEMMs and the combine, on one stream."""

from __future__ import annotations

import cuda.bindings.driver as cuda
import cutlass.cute as cute
import torch
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32

from ..geometry import Geometry, max_rows
from ..once import once
from .compilation import compile_launch
from .config import GemmConfig, config_for
from .routing import RoutePermute, routing_buffers
from .sm90.swap_ab import SwapAbGemms
from .sm90.tokens_on_m import TokensOnMGemms
from .tile_scheduler import ROW_BLOCK


class MoeLayer:
    """Launches the kernels; arguments as in `routing` and `moe_gemms`."""

    POINTERS = (
        Float32, BFloat16, Float8E4M3FN, Float32, Float8E4M3FN, Float32, Float8E4M3FN, Float32,
        Float8E4M3FN, Float32, BFloat16, Int32, Int32, Float32, Int32, Int32, Int32, Float32,
        Int32, BFloat16,
    )  # fmt: skip

    def __init__(self, geometry: Geometry, config: GemmConfig, num_sms: int):
        kernel = SwapAbGemms if config.swap_ab else TokensOnMGemms
        self.geometry = geometry
        self.config = config
        self.routing = RoutePermute(geometry)
        self.gemms = kernel(geometry, config, num_sms)

    @cute.jit
    def __call__(
        self,
        logits: cute.Pointer,
        bias: cute.Pointer,
        hidden: cute.Pointer,
        hidden_scale: cute.Pointer,
        w1: cute.Pointer,
        w1_scale: cute.Pointer,
        w2: cute.Pointer,
        w2_scale: cute.Pointer,
        act: cute.Pointer,
        act_scale: cute.Pointer,
        y: cute.Pointer,
        expert_offsets: cute.Pointer,
        row_token: cute.Pointer,
        row_weight: cute.Pointer,
        token_rows: cute.Pointer,
        counters: cute.Pointer,
        masks: cute.Pointer,
        weights: cute.Pointer,
        counts: cute.Pointer,
        output: cute.Pointer,
        num_tokens: Int32,
        local_expert_offset: Int32,
        routed_scaling_factor: Float32,
        stream: cuda.CUstream,
    ):
        self.routing(
            logits, bias, expert_offsets, row_token, row_weight, token_rows, counters, masks,
            weights, counts, num_tokens, local_expert_offset, routed_scaling_factor, stream,
        )  # fmt: skip
        self.gemms(
            hidden, hidden_scale, w1, w1_scale, w2, w2_scale, expert_offsets, row_token,
            row_weight, act, act_scale, y, token_rows, output, counters, num_tokens,
            act_rows(self.geometry, self.config, num_tokens), stream,
        )  # fmt: skip

    def compile(self, *decorators, options: str = ""):
        """Compile for any number of tokens; the result takes addresses as plain integers."""
        numbers = Int32(1), Int32(0), Float32(1.0)
        return compile_launch(self, self.POINTERS, numbers, decorators, options)


@once
def _compiled(geometry: Geometry, config: GemmConfig, device: int):
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    # TVM-FFI: a call costs a few microseconds of host time instead of tens
    return MoeLayer(geometry, config, num_sms).compile(options="--enable-tvm-ffi")


def compiled_layer(geometry: Geometry, num_tokens: int, device: int):
    """The layer for calls with `num_tokens` tokens, compiled at the first use of a configuration.

    It takes the addresses of the definition's eight input tensors, of the buffers of
    `layer_buffers` and of the output, then num_tokens > 0, local_expert_offset,
    routed_scaling_factor and the stream's handle.
    """
    return _compiled(geometry, config_for(num_tokens), device)


def act_rows(geometry: Geometry, config: GemmConfig, num_tokens):
    """Rows of act: without swap_ab every expert is padded to whole blocks (`gathered_tokens`)."""
    padding = 0 if config.swap_ab else geometry.num_local_experts * ROW_BLOCK
    return max_rows(geometry, num_tokens) + padding


def layer_buffers(geometry: Geometry, num_tokens: int) -> tuple:
    """Scratch of a call, for a Workspace: act and act_scale (and where they exist x and x_scale
    behind them, see `gathered_tokens`), y, then the routing's."""
    h, i = geometry.hidden_size, geometry.intermediate_size
    config = config_for(num_tokens)
    rows = act_rows(geometry, config, num_tokens)
    x, x_scale = (0, 0) if config.swap_ab else (h, h // 128)
    return (
        (torch.float8_e4m3fn, rows * (i + x)),
        (torch.float32, i // config.act_columns + x_scale, rows),
        (torch.bfloat16, max_rows(geometry, num_tokens), h),
        *routing_buffers(geometry, num_tokens),
    )
