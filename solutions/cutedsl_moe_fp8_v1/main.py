"""MoE layer in stages with a padded grouped GEMM in CuTe DSL; padding by loops over the experts."""

from ..common.arguments import check_arguments, checked_scalars
from ..common.cutedsl.padded_gemm import padded_gemm
from ..common.geometry import DEEPSEEK_V3_EP8
from ..common.padded_moe import moe
from .padding import LoopPadding


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
        moe(DEEPSEEK_V3_EP8, LoopPadding, padded_gemm, routing_logits, routing_bias, hidden_states,
            hidden_states_scale, gemm1_weights, gemm1_weights_scale, gemm2_weights,
            gemm2_weights_scale, offset, factor, output)  # fmt: skip
