"""MoE layer in Triton alone: five kernels, no host synchronisation.

select -> permute -> GEMM1 + SwiGLU + requantisation -> GEMM2 -> combine.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from ..common.arguments import check_arguments, checked_scalars, require_cuda
from ..common.geometry import DEEPSEEK_V3_EP8, Geometry, max_rows
from ..common.triton_stages.combine import prepare_combine
from ..common.triton_stages.launch import INTERPRETING, Launch, Launcher
from ..common.triton_stages.routing import Router, prepare_route, routing_buffers
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


# fields of the descriptors, but for their weights, by shape and block
_descriptors: dict[tuple, dict] = {}


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
    """What a call needs besides its arguments: memory and the launches."""

    device: torch.device
    workspace: Workspace  # routing's buffers, then act, act_scale, y and GEMM1's halves
    max_rows: int
    route: Router
    gemm1: Launch
    gemm2: Launch
    combine: Launch


@lru_cache(maxsize=1024)
def _plan(geometry: Geometry, tiles: Tiles | None, num_tokens: int, index: int | None) -> Plan:
    """Buffers as in grouped_gemm.py; persistent programs, or fewer if tiles cannot be as many.
    index: of the CUDA device, None for the CPU."""
    device = torch.device("cpu" if index is None else f"cuda:{index}")
    tiles = tiles or tiles_for(num_tokens, device)
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
        device,
        workspace,
        rows,
        # a counter per tile of GEMM1 if its K may be halved
        prepare_route(geometry, num_tokens, halved, pdl),
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
        prepare_combine(num_tokens, h, geometry.top_k, False, pdl),
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
    offset, factor = checked_scalars(*inputs[8:])
    tensors = *inputs[:8], output
    found, num_tokens, device = check_arguments(geometry, tensors, offset)
    if num_tokens == 0:
        return
    if device is None and not INTERPRETING:
        require_cuda(output.device)
    plan = _plan(geometry, tiles, num_tokens, device)
    # memory lives to the end of this function; whoever gets it next is behind us on the stream
    _memory, buffers = plan.workspace.allocate(plan.device)
    *routing_part, act, act_scale, y, halves = buffers

    # what launches take for tensors at less host time; Triton's interpreter needs the tensors
    arguments = tensors if INTERPRETING else found
    logits, bias, hidden, hidden_scale, _, w1_scale, _, w2_scale, target = arguments
    w1, w2 = inputs[4], inputs[6]
    expert_offsets, row_token, row_weight, token_rows, counters = plan.route(
        logits, bias, offset, factor, routing_part
    )
    plan.gemm1(
        hidden, hidden_scale, _weight_descriptor(w1, geometry.block), w1_scale, expert_offsets,
        row_token, act, act_scale, halves, counters, num_tokens, plan.max_rows,
    )  # fmt: skip
    plan.gemm2(
        act, act_scale, _weight_descriptor(w2, geometry.block), w2_scale, expert_offsets,
        row_weight, y, plan.max_rows,
    )  # fmt: skip
    plan.combine(y, token_rows, None, target)


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
