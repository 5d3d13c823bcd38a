"""MoE layer in Triton alone: five kernels, no host synchronisation.

select -> permute -> GEMM1 + SwiGLU + requantisation -> GEMM2 -> combine.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from ..common.arguments import checked_inputs, require_cuda
from ..common.geometry import DEEPSEEK_V3_EP8, Geometry, max_rows
from ..common.triton_stages.combine import combine
from ..common.triton_stages.launch import INTERPRETING, Launch, Launcher, addresses
from ..common.triton_stages.routing import route, routing_buffers
from ..common.workspace import Workspace
from .grouped_gemm import gemm1_swiglu_kernel, gemm2_weighted_kernel
from .tiles import Tile, Tiles, tiles_for

_FP8, _FP32, _BF16, _INT = torch.float8_e4m3fn, torch.float32, torch.bfloat16, torch.int32
_gemm1 = Launcher(
    gemm1_swiglu_kernel,
    hidden_ptr=_FP8,
    hidden_scale_ptr=_FP32,
    w_scale_ptr=_FP32,
    expert_offsets_ptr=_INT,
    row_token_ptr=_INT,
    act_ptr=_FP8,
    act_scale_ptr=_FP32,
    halves_ptr=_FP32,
    counters_ptr=_INT,
)
_gemm2 = Launcher(
    gemm2_weighted_kernel,
    act_ptr=_FP8,
    act_scale_ptr=_FP32,
    w_scale_ptr=_FP32,
    expert_offsets_ptr=_INT,
    row_weight_ptr=_FP32,
    y_ptr=_BF16,
)


def _num_sms(device: torch.device) -> int:
    """Multiprocessors; Triton's interpreter has none, and a few are enough to share the work."""
    if device.type == "cpu":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


_descriptors = {}  # fields of the descriptors, but for their weights, by shape and block


def _weight_descriptor(weights: torch.Tensor, block: int) -> TensorDescriptor:
    """fp8 [E, N, K] as a TMA descriptor over [E * N, K] with block x block boxes.

    Making one checks shapes and strides, which are the same in every call: checked once.
    """
    fields = _descriptors.get((weights.shape, block))
    if fields is None:
        experts, n, k = weights.shape
        descriptor = TensorDescriptor(weights, [experts * n, k], [k, 1], [block, block])
        _descriptors[weights.shape, block] = vars(descriptor) | {"base": None}
        return descriptor
    descriptor = object.__new__(TensorDescriptor)
    vars(descriptor).update(fields, base=weights)
    return descriptor


class Plan(NamedTuple):
    """What a call needs besides its arguments: memory and the launches of the GEMMs."""

    workspace: Workspace  # routing's buffers, then act, act_scale, y and GEMM1's halves
    num_counters: int  # one per tile of GEMM1 if its K may be halved
    max_rows: int
    gemm1: Launch
    gemm2: Launch


@lru_cache(maxsize=1024)
def _plan(geometry: Geometry, tiles: Tiles, num_tokens: int, device: torch.device) -> Plan:
    """Buffers as in grouped_gemm.py; persistent programs, or fewer if tiles cannot be as many."""
    rows, h, i = max_rows(geometry, num_tokens), geometry.hidden_size, geometry.intermediate_size
    block, sms, pdl = geometry.block, _num_sms(device), not INTERPRETING

    def most_tiles(tile: Tile, column_tiles: int) -> int:
        """Full tiles of rows, and one more for each expert."""
        return (min(geometry.num_local_experts, rows) + rows // tile.block_t) * column_tiles

    gemm1, gemm2 = tiles.gemm1, tiles.gemm2
    tiles1, tiles2 = most_tiles(gemm1, i // block), most_tiles(gemm2, h // (2 * block))
    halved = tiles1 if gemm1.halves else 0
    workspace = Workspace(
        *routing_buffers(geometry, num_tokens, halved),
        (_FP8, rows, i),
        (_FP32, i // block, rows),
        (_BF16, rows, h),
        (_FP32, halved, 2, 2, gemm1.block_t * block),
    )
    shape = h, i, geometry.num_local_experts, block
    return Plan(
        workspace,
        halved,
        rows,
        _gemm1.prepare(
            (min(sms * gemm1.programs_per_sm, tiles1 + halved), 1, 1),
            (*shape, gemm1.block_t, gemm1.swap_ab, gemm1.halves, gemm1.num_stages, pdl),
            num_warps=gemm1.num_warps,
            launch_pdl=pdl,
        ),
        _gemm2.prepare(
            (min(sms * gemm2.programs_per_sm, tiles2), 1, 1),
            (*shape, gemm2.block_t, gemm2.swap_ab, gemm2.num_stages, pdl),
            num_warps=gemm2.num_warps,
            launch_pdl=pdl,
        ),
    )


def moe(
    geometry: Geometry, inputs: tuple, output: torch.Tensor, tiles: Tiles | None = None
) -> None:
    """The whole layer at any geometry.

    inputs: the definition's ten, in its order; output [T, H] bf16 is written.
    tiles: of the GEMMs, by default those of `tiles_for`.
    Raises TypeError or ValueError for arguments that are not of this geometry, and for tensors on
    the CPU unless Triton's interpreter runs the kernels.
    """
    inputs = checked_inputs(geometry, inputs, output)
    logits, bias, hidden, hidden_scale, w1, w1_scale, w2, w2_scale, offset, factor = inputs
    num_tokens, block = hidden.shape[0], geometry.block
    if num_tokens == 0:
        return
    pdl = not INTERPRETING
    if pdl:
        require_cuda(hidden.device)
    tiles = tiles or tiles_for(num_tokens, hidden.device)
    plan = _plan(geometry, tiles, num_tokens, hidden.device)
    # memory lives to the end of this function; whoever gets it next is behind us on the stream
    _memory, buffers = plan.workspace.allocate(hidden.device)
    *routing_part, act, act_scale, y, halves = buffers

    routing = route(geometry, logits, bias, offset, factor, routing_part, plan.num_counters, pdl)
    expert_offsets, row_token, row_weight, token_rows, counters = routing
    hidden, hidden_scale, w1_scale, w2_scale = addresses(hidden, hidden_scale, w1_scale, w2_scale)
    plan.gemm1(
        hidden, hidden_scale, _weight_descriptor(w1, block), w1_scale, expert_offsets, row_token,
        act, act_scale, halves, counters, num_tokens, plan.max_rows,
    )  # fmt: skip
    plan.gemm2(
        act, act_scale, _weight_descriptor(w2, block), w2_scale, expert_offsets, row_weight, y,
        plan.max_rows,
    )  # fmt: skip
    combine(y, token_rows, geometry.top_k, output, pdl)


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
