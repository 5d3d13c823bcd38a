"""MoE layer by FlashInfer: TensorRT-LLM's kernels, those for Blackwell or those for Hopper."""

from functools import lru_cache

import torch

from ..common.arguments import checked_inputs, require_cuda
from ..common.geometry import DEEPSEEK_V3_EP8, Geometry
from . import blackwell, hopper


@lru_cache
def _layer(device: torch.device):
    """The layer for this device, ready to be called."""
    require_cuda(device)
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) in ((10, 0), (10, 3)):  # the library's kernels are those of the sm_10x family
        return blackwell.moe
    if (major, minor) == (9, 0):
        hopper.require_module()
        return hopper.moe
    raise RuntimeError(
        "routing_logits: expected a device of sm_90, sm_100 or sm_103, "
        f"got sm_{major}{minor} ({device})"
    )


def moe(geometry: Geometry, inputs: tuple, output: torch.Tensor) -> None:
    """The whole layer at any geometry.

    inputs: the definition's ten, in its order; output [T, H] bf16 is written.
    Raises TypeError or ValueError for arguments that are not of this geometry, and for tensors on
    the CPU; RuntimeError for a device without kernels.
    """
    inputs = checked_inputs(geometry, inputs, output)
    if output.shape[0] > 0:
        _layer(output.device)(geometry, inputs, output)


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
