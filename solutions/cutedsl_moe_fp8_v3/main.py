"""MoE layer in CuTe DSL: routing, then both GEMMs and the combine in one kernel.

No padded batch, no host synchronisation, compiled once for each line of `config`'s table, where
the device chooses the tiles by the rows of each expert; one host call launches everything.
"""

from functools import lru_cache
from typing import Any

import torch

from ..common.arguments import check_arguments, checked_scalars, require_cuda
from ..common.cutedsl.config import GemmConfig
from ..common.cutedsl.layer import compiled_layer
from ..common.geometry import DEEPSEEK_V3_EP8, Geometry

_plan = lru_cache(maxsize=1024)(compiled_layer)


def moe(
    geometry: Geometry, inputs: tuple, output: torch.Tensor, config: GemmConfig | None = None
) -> None:
    """The whole layer at any geometry.

    inputs: the definition's ten, in its order; output [T, H] bf16 is written.
    config: of the GEMMs, by default that for T tokens on this device.
    Raises TypeError or ValueError for arguments that are not of this geometry, for tensors on the
    CPU, and for a geometry or a device that there are no kernels for.
    """
    offset, factor = checked_scalars(*inputs[8:])
    device: Any  # its index, or None for a GPU that is emulated
    addresses, num_tokens, device = check_arguments(geometry, (*inputs[:8], output), offset)
    if num_tokens == 0:
        return
    if device is None:
        require_cuda(output.device)
    size, layer = _plan(geometry, num_tokens, device, config)
    # memory lives to the end of this function; whoever gets it next is behind us on the stream
    scratch = output.new_empty(size, dtype=torch.uint8)
    layer(
        *addresses[:8], scratch.data_ptr(), addresses[8], num_tokens, offset, factor,
        torch._C._cuda_getCurrentRawStream(device),
    )  # fmt: skip


def run(
    routing_logits,
    routing_bias,
    hidden_states,
    hidden_states_scale,
    gemm1_weights,
    gemm1_weights_scale,
    gemm2_weights,
    gemm2_weights_scale,
    local_expert_offset,
    routed_scaling_factor,
    output,
):
    """Entry point: shapes and dtypes are the definition's; writes output [T, H] bf16."""
    inputs = (
        routing_logits, routing_bias, hidden_states, hidden_states_scale, gemm1_weights,
        gemm1_weights_scale, gemm2_weights, gemm2_weights_scale, local_expert_offset,
        routed_scaling_factor,
    )  # fmt: skip
    moe(DEEPSEEK_V3_EP8, inputs, output)
