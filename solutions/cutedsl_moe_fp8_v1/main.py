"""MoE layer in stages with a padded grouped GEMM in CuTe DSL; padding by loops over the experts."""

import torch

from ..common.arguments import checked_inputs, refuse_capture, require_cuda
from ..common.cutedsl.padded_gemm import padded_gemm
from ..common.geometry import DEEPSEEK_V3_EP8, Geometry
from ..common.padded_moe import padded_moe
from .padding import LoopPadding


def moe(geometry: Geometry, inputs: tuple, output: torch.Tensor) -> None:
    """The whole layer at any geometry.

    inputs: the definition's ten, in its order; output [T, H] bf16 is written.
    Raises TypeError or ValueError for arguments that are not of this geometry, and for tensors on
    the CPU; RuntimeError in the capture of a CUDA graph.
    """
    inputs = checked_inputs(geometry, inputs, output)
    if output.shape[0] == 0:
        return
    require_cuda(output.device)
    refuse_capture(output.device)
    padded_moe(geometry, inputs, output, LoopPadding, padded_gemm)


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
