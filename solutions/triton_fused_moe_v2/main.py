"""MoE layer of sgl-kernel's grouped GEMMs with Triton around them, without host synchronisation.

select -> permute -> gather -> GEMM1 -> SwiGLU + requantisation -> GEMM2 -> weighted combine.
"""

from typing import Any, NamedTuple

import torch

from ..common.arguments import checked_inputs, require_cuda
from ..common.geometry import DEEPSEEK_V3_EP8, Geometry, max_rows
from ..common.sgl.choice import Choice, choice_for
from ..common.sgl.grouped_gemms import GroupedGemms, reused
from ..common.triton_stages.combine import combine
from ..common.triton_stages.gather import gather
from ..common.triton_stages.launch import INTERPRETING, addresses
from ..common.triton_stages.routing import route, routing_buffers
from ..common.triton_stages.swiglu import swiglu_quantize
from ..common.workspace import Workspace


class Buffers(NamedTuple):
    """Everything a call writes but its output; addresses, but for gemms and routing_memory."""

    gemms: GroupedGemms
    routing_memory: torch.Tensor
    routing: list  # common/routing.py's, its expert_offsets replaced by those of gemms
    gathered: tuple  # x, x_scale, gemm1_sizes, gemm2_sizes
    up_gate: Any
    act: Any
    act_scale: Any
    y: Any


@reused
def buffers_for(geometry: Geometry, num_tokens: int, device: torch.device) -> Buffers:
    gemms = GroupedGemms(geometry, num_tokens, device)
    memory, (_, *rest) = Workspace(*routing_buffers(geometry, num_tokens)).allocate(device)
    return Buffers(
        gemms,
        memory,
        [*addresses(gemms.expert_offsets), *rest],
        addresses(gemms.x, gemms.x_scale, gemms.gemm1_sizes, gemms.gemm2_sizes),
        *addresses(gemms.up_gate, gemms.act, gemms.act_scale, gemms.y),
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
    buffers = buffers_for(geometry, num_tokens, hidden.device)
    routing = route(geometry, logits, bias, offset, factor, buffers.routing, pdl=pdl)
    gather(geometry, hidden, hidden_scale, routing.expert_offsets, routing.token_rows,
           buffers.gathered, pdl)  # fmt: skip
    buffers.gemms.gemm1(choice.gemm1, w1, w1_scale)
    swiglu_quantize(geometry, max_rows(geometry, num_tokens), buffers.up_gate,
                    routing.expert_offsets, buffers.act, buffers.act_scale, pdl)  # fmt: skip
    buffers.gemms.gemm2(choice.gemm2, w2, w2_scale)
    combine(buffers.y, routing.token_rows, geometry.top_k, output, pdl, routing.row_weight)


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
