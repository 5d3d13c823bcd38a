"""MoE layer in CuTe DSL: routing, then one kernel for both GEMMs and the combine.

No padded batch, no host synchronisation, compiled once for every number of tokens of a
configuration; one host call launches everything.
"""

from functools import lru_cache

import torch

from ..common.arguments import check_arguments, checked_scalars
from ..common.cutedsl.layer import compiled_layer, layer_buffers
from ..common.geometry import DEEPSEEK_V3_EP8
from ..common.workspace import Workspace


@lru_cache
def _plan(num_tokens: int, device: int) -> tuple:
    """Scratch and compiled layer of a call."""
    return (
        Workspace(*layer_buffers(DEEPSEEK_V3_EP8, num_tokens)),
        compiled_layer(DEEPSEEK_V3_EP8, num_tokens, device),
    )


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
    offset, factor = checked_scalars(local_expert_offset, routed_scaling_factor)
    inputs = (
        routing_logits, routing_bias, hidden_states, hidden_states_scale, gemm1_weights,
        gemm1_weights_scale, gemm2_weights, gemm2_weights_scale,
    )  # fmt: skip
    check_arguments(DEEPSEEK_V3_EP8, (*inputs, output), offset)
    num_tokens, device = routing_logits.shape[0], output.device
    if num_tokens == 0:
        return
    workspace, layer = _plan(num_tokens, device.index)
    # memory lives to the end of this function; whoever gets it next is behind us on the stream
    _memory, buffers = workspace.allocate(device)
    layer(
        *[tensor.data_ptr() for tensor in inputs], *buffers, output.data_ptr(), num_tokens,
        offset, factor, torch._C._cuda_getCurrentRawStream(device.index),
    )  # fmt: skip
