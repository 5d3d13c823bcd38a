"""MoE layer by FlashInfer: TensorRT-LLM's kernels, those for Blackwell or those for Hopper."""

from functools import lru_cache

import torch

from ..common.arguments import check_arguments, checked_scalars
from ..common.geometry import DEEPSEEK_V3_EP8
from . import blackwell, hopper


@lru_cache
def _layer(device: torch.device):
    """The layer for this device, ready to be called."""
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) == (10, 0):
        return blackwell.moe
    if (major, minor) == (9, 0):
        hopper.require_module()
        return hopper.moe
    raise RuntimeError(
        f"routing_logits: expected a device of sm_90 or sm_100, got sm_{major}{minor} ({device})"
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
    check_arguments(
        DEEPSEEK_V3_EP8,
        (routing_logits, routing_bias, hidden_states, hidden_states_scale, gemm1_weights,
         gemm1_weights_scale, gemm2_weights, gemm2_weights_scale, output),
        offset,
    )  # fmt: skip
    if routing_logits.shape[0] > 0:
        layer = _layer(routing_logits.device)
        layer(DEEPSEEK_V3_EP8, routing_logits, routing_bias, hidden_states, hidden_states_scale,
              gemm1_weights, gemm1_weights_scale, gemm2_weights, gemm2_weights_scale, offset,
              factor, output)  # fmt: skip
