"""MoE layer of DeepGEMM's grouped GEMMs with Triton around them, without host synchronisation.

select -> permute -> gather -> GEMM1 -> SwiGLU + requantisation -> GEMM2 -> weighted combine.

DeepGEMM comes from PyPI as sgl-deep-gemm, and compiles its kernels with the nvcc of a CUDA toolkit
at their first use. Its single-kernel layer, MegaMoE, wants up and gate interleaved by 8 rows. Here
the weights are new in every call, and interleaving GEMM1's reads and writes 0.94 GB: left out.
"""

from functools import lru_cache

import torch

from ..common.arguments import checked_inputs, require_cuda
from ..common.geometry import DEEPSEEK_V3_EP8, Geometry, max_aligned_rows
from ..common.triton_stages.combine import combine
from ..common.triton_stages.launch import INTERPRETING
from ..common.triton_stages.routing import route, routing_buffers
from ..common.workspace import Workspace
from .gather import gather
from .grouped_gemms import grouped_gemm, settings
from .swiglu import swiglu_quantize

_FP8, _FP32, _BF16 = torch.float8_e4m3fn, torch.float32, torch.bfloat16


# (most tokens, height of the GEMMs' tiles, at whose multiples experts begin); measured on an H100.
# While reading the weights is the bound, the lowest tile that takes most experts' rows at once is
# best: its tokens leave shared memory for more weights in flight.
ROW_ALIGNMENTS = ((256, 16), (640, 32), (2048, 64), (float("inf"), 128))


def row_alignment_for(num_tokens: int) -> int:
    return next(rows for max_tokens, rows in ROW_ALIGNMENTS if num_tokens <= max_tokens)


@lru_cache(maxsize=64)
def _workspace(geometry: Geometry, num_tokens: int, row_alignment: int) -> Workspace:
    """The routing's buffers, then x, x_scale, up_gate, act, act_scale and y."""
    h, i, block = geometry.hidden_size, geometry.intermediate_size, geometry.block
    rows = max_aligned_rows(geometry, num_tokens, row_alignment)
    return Workspace(
        *routing_buffers(geometry, num_tokens, row_alignment=row_alignment),
        (_FP8, rows, h),
        (_FP32, h // block, rows),
        (_BF16, rows, 2 * i),
        (_FP8, rows, i),
        (_FP32, i // block, rows),
        (_BF16, rows, h),
    )


def moe(
    geometry: Geometry, inputs: tuple, output: torch.Tensor, row_alignment: int | None = None
) -> None:
    """The whole layer at any geometry.

    inputs: the definition's ten, in its order; output [T, H] bf16 is written.
    row_alignment: of the GEMMs, by default that of `row_alignment_for`.
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
    row_alignment = row_alignment or row_alignment_for(num_tokens)
    workspace = _workspace(geometry, num_tokens, row_alignment)
    memory, buffers = workspace.allocate(hidden.device)
    routing = route(geometry, logits, bias, offset, factor, buffers[:-6], pdl=pdl,
                    row_alignment=row_alignment)  # fmt: skip

    # while the GPU routes, the tensors that DeepGEMM wants
    expert_offsets, *_, x, x_scale, up_gate, act, act_scale, y = workspace.tensors(memory)
    expert_ends = expert_offsets[1:]
    expected_rows = -(-num_tokens * geometry.top_k // geometry.num_experts)
    gather(geometry, hidden, hidden_scale, routing.token_rows, x, x_scale, pdl)
    with settings(row_alignment):
        grouped_gemm(x, x_scale, w1, w1_scale, up_gate, expert_ends, expected_rows)
        swiglu_quantize(geometry, row_alignment, up_gate, expert_offsets, act, act_scale, pdl)
        grouped_gemm(act, act_scale, w2, w2_scale, y, expert_ends, expected_rows)
    combine(y, routing.token_rows, geometry.top_k, output, pdl, routing.row_weight)


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
