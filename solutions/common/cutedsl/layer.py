"""The whole layer as one host call: routing, then both GEMMs and the combine, on one stream."""

from __future__ import annotations

from collections.abc import Callable

import cuda.bindings.driver as cuda
import cutlass.cute as cute
import torch
from cutlass import BFloat16, Float32, Int32, Int64, Uint8

from ..geometry import Geometry
from ..once import once
from .adaptive_gemms import AdaptiveGemms
from .architecture import backend_of
from .compilation import compile_launch
from .config import Candidate, GemmConfig, candidates_for, only
from .gathered_tokens import GatheredTokens
from .moe_gemms import MoeGemms
from .operands import INPUT_DTYPES, Buffer, Inputs, scratch_at, scratch_size
from .routing import RoutePermute
from .sm90 import swap_ab as sm90
from .sm90.tokens_on_m import TokensOnM
from .sm100 import swap_ab as sm100
from .sm100.paired_swap_ab import PairedSwapAb, PairedTokens
from .streamed_tokens import StreamedTokens


def parts(config: GemmConfig, backend: int) -> tuple:
    """Consumers and token producer of a configuration, by backend."""
    if backend == 90:
        return (sm90.SwapAb, StreamedTokens) if config.swap_ab else (TokensOnM, GatheredTokens)
    return (PairedSwapAb, PairedTokens) if config.paired else (sm100.SwapAb, StreamedTokens)


class MoeLayer:
    """Launches the kernels for any number of tokens, in one of these configurations."""

    POINTERS = (*INPUT_DTYPES, Uint8, BFloat16)

    def __init__(
        self, geometry: Geometry, candidates: tuple[Candidate, ...], num_sms: int, backend: int = 90
    ):
        self.geometry = geometry
        self.candidates = candidates
        self.routing = RoutePermute(geometry)
        configs = [candidate.config for candidate in candidates]
        num_blocks = num_sms - num_sms % max(config.cluster for config in configs)
        gemms = tuple(
            MoeGemms(geometry, config, num_blocks, *parts(config, backend)) for config in configs
        )
        self.gemms = gemms[0] if len(gemms) == 1 else AdaptiveGemms(candidates, gemms)

    def scratch(self, num_tokens) -> tuple[tuple[Buffer, ...], ...]:
        """The scratch memory of a call: GemmScratch, Rows and RoutingScratch of Buffers."""
        return self.gemms.scratch(num_tokens), *self.routing.scratch(num_tokens)

    @cute.jit
    def __call__(
        self,
        routing_logits: cute.Pointer,
        routing_bias: cute.Pointer,
        hidden_states: cute.Pointer,
        hidden_states_scale: cute.Pointer,
        gemm1_weights: cute.Pointer,
        gemm1_weights_scale: cute.Pointer,
        gemm2_weights: cute.Pointer,
        gemm2_weights_scale: cute.Pointer,
        scratch: cute.Pointer,
        output: cute.Pointer,
        num_tokens: Int32,
        local_expert_offset: Int32,
        routed_scaling_factor: Float32,
        stream: cuda.CUstream,
    ):
        """Tensors as in `Inputs`; scratch: `scratch_size` bytes; output [T, H] bf16, T > 0."""
        inputs = Inputs(
            routing_logits, routing_bias, hidden_states, hidden_states_scale, gemm1_weights,
            gemm1_weights_scale, gemm2_weights, gemm2_weights_scale,
        )  # fmt: skip
        gemm_scratch, rows, routing_scratch = scratch_at(scratch, self.scratch(Int64(num_tokens)))
        self.routing(
            inputs, rows, routing_scratch, num_tokens, local_expert_offset, routed_scaling_factor,
            stream,
        )  # fmt: skip
        self.gemms(
            inputs, rows, gemm_scratch, output, num_tokens, self.gemms.act_rows(num_tokens), stream
        )

    def compile(self, *decorators, options: str = ""):
        """Compile for any number of tokens; the result takes addresses as plain integers."""
        numbers = Int32(1), Int32(0), Float32(1.0)
        return compile_launch(self, self.POINTERS, numbers, decorators, options)


@once
def _compiled(geometry: Geometry, candidates: tuple[Candidate, ...], device: int) -> tuple:
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    layer = MoeLayer(geometry, candidates, num_sms, backend_of(device))
    # TVM-FFI: a call costs a few microseconds of host time instead of tens
    return layer, layer.compile(options="--enable-tvm-ffi")


def compiled_layer(
    geometry: Geometry, num_tokens: int, device: int, config: GemmConfig | None = None
) -> tuple[int, Callable]:
    """The layer for calls with `num_tokens` tokens on CUDA device number `device`.

    config: by default the device chooses among those of `candidates_for`; they are compiled at
    their first use. Returns how many bytes of scratch memory such a call takes, and the call: it
    takes the addresses of the definition's eight input tensors, of the scratch memory and of the
    output, then num_tokens > 0, local_expert_offset, routed_scaling_factor and the stream's handle.

    Raises ValueError on a device for which there are no kernels.
    """
    if config is None:
        candidates = candidates_for(num_tokens, backend_of(device))
    else:
        candidates = only(config)
    layer, call = _compiled(geometry, candidates, device)
    return scratch_size(layer.scratch(num_tokens)), call
