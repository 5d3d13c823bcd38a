"""MoE layer of sgl-kernel's ops, without host synchronisation.

moe_fused_gate -> permutation -> fp8_blockwise_scaled_grouped_mm -> SwiGLU ->
sgl_per_token_group_quant_8bit -> fp8_blockwise_scaled_grouped_mm -> apply_shuffle_mul_sum.

Two stages are Triton's, because SGLang's suit neither expert parallelism (see permute.py) nor the
order of the halves here: its SwiGLU, alone or fused with the quantisation, expects the gate first.
"""

from typing import NamedTuple

import sgl_kernel
import torch
import triton

from ..common.arguments import checked_inputs, require_cuda
from ..common.geometry import DEEPSEEK_V3_EP8, Geometry, max_rows
from ..common.sgl.choice import Choice, choice_for
from ..common.sgl.grouped_gemms import GroupedGemms, reused
from ..common.triton_stages.gather import gather
from ..common.triton_stages.launch import INTERPRETING, addresses
from ..common.triton_stages.quantize import E4M3_MAX, MIN_AMAX
from ..common.triton_stages.swiglu import swiglu_quantize
from .permute import Permutation, blocks_for, permute
from .swiglu import swiglu

# The op quantises every row of its input, and the host only knows that there are at most 8T: at
# T = 14107 it would move 0.7 GB for 0.1 GB of rows. Beyond this T, SwiGLU and quantisation are one
# Triton kernel that goes by the rows that are there.
QUANT_OP_TOKENS = 256

if not hasattr(torch.ops.sgl_kernel, "moe_fused_gate"):
    raise ImportError(
        "sgl_kernel: expected the op moe_fused_gate, which sglang-kernel has up to 0.4.4, got "
        f"version {sgl_kernel.__version__}"
    )
_gate = torch.ops.sgl_kernel.moe_fused_gate.default
_quantize = torch.ops.sgl_kernel.sgl_per_token_group_quant_8bit.default
_combine = torch.ops.sgl_kernel.apply_shuffle_mul_sum.default


class Buffers(NamedTuple):
    """Everything a call writes but its output; tensors for the ops, addresses for the launches."""

    gemms: GroupedGemms
    act: torch.Tensor  # bf16 [max_rows, I], only up to QUANT_OP_TOKENS
    pair_row: torch.Tensor
    pair_weight: torch.Tensor
    block_counts: torch.Tensor
    permutation: Permutation
    gathered: tuple  # x, x_scale, gemm1_sizes, gemm2_sizes
    swiglu_operands: tuple  # up_gate, expert_offsets, then act, or act and act_scale quantised
    y: object


@reused
def buffers_for(geometry: Geometry, num_tokens: int, device: torch.device) -> Buffers:
    rows, pairs = max_rows(geometry, num_tokens), num_tokens * geometry.top_k
    gemms = GroupedGemms(geometry, num_tokens, device)
    act_rows = rows if num_tokens <= QUANT_OP_TOKENS else 0
    act = torch.empty(act_rows, geometry.intermediate_size, dtype=torch.bfloat16, device=device)
    pair_row = torch.empty(pairs, dtype=torch.int32, device=device)
    pair_weight = torch.empty(pairs, dtype=torch.bfloat16, device=device)
    blocks = triton.cdiv(num_tokens, blocks_for(num_tokens).tokens)
    block_counts = torch.empty(blocks, geometry.num_local_experts, dtype=torch.int32, device=device)
    (offsets,) = addresses(gemms.expert_offsets)
    results = (act,) if act_rows else (gemms.act, gemms.act_scale)
    return Buffers(
        gemms,
        act,
        pair_row,
        pair_weight,
        block_counts,
        Permutation(offsets, *addresses(pair_row, pair_weight, block_counts)),
        addresses(gemms.x, gemms.x_scale, gemms.gemm1_sizes, gemms.gemm2_sizes),
        (*addresses(gemms.up_gate), offsets, *addresses(*results)),
        *addresses(gemms.y),
    )


def moe(
    geometry: Geometry, inputs: tuple, output: torch.Tensor, choice: Choice | None = None
) -> None:
    """The whole layer at any geometry.

    inputs: the definition's ten, in its order; output [T, H] bf16 is written.
    choice: sgl-kernel's kernels, by default those of `choice_for`.
    Raises TypeError or ValueError for arguments that are not of this geometry, and for tensors on
    the CPU unless Triton's interpreter runs the kernels.
    """
    inputs = checked_inputs(geometry, inputs, output)
    logits, bias, hidden, hidden_scale, w1, w1_scale, w2, w2_scale, offset, factor = inputs
    num_tokens = hidden.shape[0]
    if num_tokens == 0:
        return
    pdl = not INTERPRETING
    if pdl:
        require_cuda(hidden.device)
    choice = choice or choice_for(num_tokens, hidden.device)
    rows = max_rows(geometry, num_tokens)
    buffers = buffers_for(geometry, num_tokens, hidden.device)
    gemms = buffers.gemms

    # the gate reads logits and bias as one type; 0: no shared experts; True: scales the weights
    weights, experts = _gate(logits, bias.float(), geometry.num_groups, geometry.num_top_groups,
                             geometry.top_k, 0, factor, True)  # fmt: skip
    permutation = buffers.permutation
    permute(geometry, experts, weights, offset, permutation, buffers.y, pdl)
    gather(geometry, hidden, hidden_scale, permutation.expert_offsets, permutation.pair_row,
           buffers.gathered, pdl)  # fmt: skip
    gemms.gemm1(choice.gemm1, w1, w1_scale)
    if num_tokens <= QUANT_OP_TOKENS:
        swiglu(geometry, rows, *buffers.swiglu_operands, pdl)
        _quantize(buffers.act, gemms.act, gemms.act_scale, geometry.block, MIN_AMAX.value,
                  -E4M3_MAX.value, E4M3_MAX.value, False)  # fmt: skip
    else:
        swiglu_quantize(geometry, rows, *buffers.swiglu_operands, pdl)
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
