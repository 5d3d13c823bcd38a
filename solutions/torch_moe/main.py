"""Plain PyTorch MoE layer: the readable solution, and the skeleton for new ones."""

import torch
import torch.nn.functional as F

from ..common.arguments import checked_inputs, refuse_capture
from ..common.geometry import DEEPSEEK_V3_EP8, Geometry


def route(logits, bias, factor: float, geometry: Geometry):
    """DeepSeek-V3 routing without auxiliary loss.

    Returns expert ids int64 [T, top_k] and combine weights fp32 [T, top_k]. Among equal scores the
    lowest expert (or group) index wins.
    """
    num_tokens = logits.shape[0]
    scores = torch.sigmoid(logits)
    biased = scores + bias.float()
    grouped = biased.view(num_tokens, geometry.num_groups, geometry.group_size)
    group_scores = grouped.sort(dim=-1, descending=True).values[..., :2].sum(dim=-1)
    group_order = group_scores.sort(dim=-1, descending=True, stable=True).indices
    kept = torch.zeros_like(group_scores, dtype=torch.bool)
    kept.scatter_(1, group_order[:, : geometry.num_top_groups], True)
    eligible = grouped.masked_fill(~kept[..., None], float("-inf")).view_as(biased)
    ids = eligible.sort(dim=-1, descending=True, stable=True).indices[:, : geometry.top_k]
    chosen = scores.gather(1, ids)
    return ids, chosen / (chosen.sum(dim=-1, keepdim=True) + 1e-20) * factor


def dequantize(values, scales, block: int):
    """fp8 [N, K] times fp32 scales [N/block, K/block] (or [N, K/block]) -> fp32 [N, K]."""
    rows, cols = values.shape
    tiled = values.float().view(scales.shape[0], rows // scales.shape[0], cols // block, block)
    return (tiled * scales[:, None, :, None]).view(rows, cols)


def moe(geometry: Geometry, inputs: tuple, output: torch.Tensor) -> None:
    """The whole layer at any geometry.

    inputs: the definition's ten, in its order; output [T, H] bf16 is written.
    Raises TypeError or ValueError for arguments that are not of this geometry, and RuntimeError in
    the capture of a CUDA graph.
    """
    logits, bias, hidden, hidden_scale, w1, w1_scale, w2, w2_scale, offset, factor = checked_inputs(
        geometry, inputs, output
    )
    refuse_capture(output.device)
    ids, weights = route(logits, bias, factor, geometry)
    total = torch.zeros(output.shape, dtype=torch.float32, device=output.device)
    for expert in range(geometry.num_local_experts):
        tokens, places = (ids == offset + expert).nonzero(as_tuple=True)
        if tokens.numel() == 0:
            continue
        x = dequantize(hidden[tokens], hidden_scale.t()[tokens], geometry.block)
        gemm1 = dequantize(w1[expert], w1_scale[expert], geometry.block)
        gemm2 = dequantize(w2[expert], w2_scale[expert], geometry.block)
        up, gate = F.linear(x, gemm1).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, gemm2)
        total.index_add_(0, tokens, y * weights[tokens, places, None])
    output.copy_(total)


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
