"""MoE layer of sgl-kernel's ops, without host synchronisation.

moe_fused_gate -> permutation -> fp8_blockwise_scaled_grouped_mm -> SwiGLU + requantisation ->
fp8_blockwise_scaled_grouped_mm -> apply_shuffle_mul_sum.

Two stages are Triton's, because SGLang's do not suit: its permutation knows of no expert
parallelism (see permute.py); its SwiGLU expects the gate first; its quantisation
(sgl_per_token_group_quant_8bit) makes numbers of NaN and quantises every row of its input, of which
the host only knows that there are at most 8T.
"""

from typing import Any, NamedTuple

import sgl_kernel
import torch
import triton

from ..common.arguments import checked_inputs, require_cuda
from ..common.geometry import DEEPSEEK_V3_EP8, Geometry, max_rows
from ..common.sgl.choice import Choice, choice_for
from ..common.sgl.grouped_gemms import GroupedGemms, reused
from ..common.triton_stages.gather import gather
from ..common.triton_stages.launch import INTERPRETING, addresses
from ..common.triton_stages.swiglu import swiglu_quantize
from .permute import Permutation, blocks_for, permute

# apply_shuffle_mul_sum computes in 32 bits where a row of y begins
LAST_ELEMENT = 2**31 - 1

if not hasattr(torch.ops.sgl_kernel, "moe_fused_gate"):
    raise ImportError(
        "sgl_kernel: expected the op moe_fused_gate, which sglang-kernel has up to 0.4.4, got "
        f"version {sgl_kernel.__version__}"
    )
_gate = torch.ops.sgl_kernel.moe_fused_gate.default
_combine = torch.ops.sgl_kernel.apply_shuffle_mul_sum.default


class Buffers(NamedTuple):
    """Everything a call writes but its output; tensors for the ops, addresses for the launches."""

    gemms: GroupedGemms
    pair_row: torch.Tensor
    pair_weight: torch.Tensor
    block_counts: torch.Tensor
    permutation: Permutation
    gathered: tuple  # x, x_scale, gemm1_sizes, gemm2_sizes
    swiglu_operands: tuple[Any, Any, Any, Any]  # up_gate, expert_offsets, act, act_scale
    y: Any


@reused
def buffers_for(geometry: Geometry, num_tokens: int, device: torch.device) -> Buffers:
    pairs = num_tokens * geometry.top_k
    gemms = GroupedGemms(geometry, num_tokens, device)
    pair_row = torch.empty(pairs, dtype=torch.int32, device=device)
    pair_weight = torch.empty(pairs, dtype=torch.bfloat16, device=device)
    blocks = triton.cdiv(num_tokens, blocks_for(num_tokens).tokens)
    block_counts = torch.empty(blocks, geometry.num_local_experts, dtype=torch.int32, device=device)
    (offsets,) = addresses(gemms.expert_offsets)
    return Buffers(
        gemms,
        pair_row,
        pair_weight,
        block_counts,
        Permutation(offsets, *addresses(pair_row, pair_weight, block_counts)),
        addresses(gemms.x, gemms.x_scale, gemms.gemm1_sizes, gemms.gemm2_sizes),
        (*addresses(gemms.up_gate), offsets, *addresses(gemms.act, gemms.act_scale)),
        *addresses(gemms.y),
    )


def most_tokens(geometry: Geometry) -> int:
    """Tokens whose rows, and one of zeros behind them, apply_shuffle_mul_sum can reach."""
    return LAST_ELEMENT // (geometry.hidden_size * geometry.top_k)


def moe(
    geometry: Geometry, inputs: tuple, output: torch.Tensor, choice: Choice | None = None
) -> None:
    """The whole layer at any geometry.

    inputs: the definition's ten, in its order; output [T, H] bf16 is written. More tokens than
    `most_tokens` go in halves, one after the other.
    choice: sgl-kernel's kernels, by default those of `choice_for`.
    Raises TypeError or ValueError for arguments that are not of this geometry, and for tensors on
    the CPU unless Triton's interpreter runs the kernels.
    """
    inputs = checked_inputs(geometry, inputs, output)
    logits, bias, hidden, hidden_scale, w1, w1_scale, w2, w2_scale, offset, factor = inputs
    num_tokens = hidden.shape[0]
    if num_tokens == 0:
        return
    if num_tokens > most_tokens(geometry):
        for part in (slice(num_tokens // 2), slice(num_tokens // 2, num_tokens)):
            tokens = logits[part], bias, hidden[part], hidden_scale[:, part].contiguous()
            moe(geometry, (*tokens, *inputs[4:]), output[part], choice)
        return
    pdl = not INTERPRETING
    if pdl:
        require_cuda(hidden.device)
    choice = choice or choice_for(num_tokens, hidden.device)
    rows = max_rows(geometry, num_tokens)
    buffers = buffers_for(geometry, num_tokens, hidden.device)
    gemms = buffers.gemms

    # the gate reads logits and bias as one type; 0: no shared experts; True: scales the weights,
    # which are not used: where all chosen scores vanish, they are 0 / 0
    _, experts = _gate(logits, bias.float(), geometry.num_groups, geometry.num_top_groups,
                       geometry.top_k, 0, factor, True)  # fmt: skip
    permutation = buffers.permutation
    permute(geometry, experts, logits, offset, factor, permutation, buffers.y, pdl)
    gather(geometry, hidden, hidden_scale, permutation.expert_offsets, permutation.pair_row,
           buffers.gathered, pdl)  # fmt: skip
    gemms.gemm1(choice.gemm1, w1, w1_scale)
    up_gate, offsets, act, act_scale = buffers.swiglu_operands
    swiglu_quantize(geometry, rows, up_gate, offsets, act, act_scale, pdl)
    gemms.gemm2(choice.gemm2, w2, w2_scale)
    _combine(gemms.y, output, buffers.pair_row, buffers.pair_weight)


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
