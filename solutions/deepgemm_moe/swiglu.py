"""SwiGLU and requantisation of rows with gaps between the experts."""

import torch
import triton
import triton.language as tl

from ..common.geometry import Geometry
from ..common.triton_stages.launch import Launcher
from ..common.triton_stages.quantize import quantize_e4m3
from ..common.triton_stages.swiglu import MAX_PROGRAMS, NUM_WARPS, swiglu_row


@triton.jit(do_not_specialize=["max_rows"])
def swiglu_quantize_kernel(
    up_gate_ptr,  # bf16 [max_rows, 2I]
    expert_offsets_ptr,  # int32 [E + 1], 0, then where each expert's rows end
    act_ptr,  # out: fp8 [max_rows, I]
    act_scale_ptr,  # out: fp32 [I / 128, max_rows]
    max_rows,
    I: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PDL: tl.constexpr,
):
    """act, act_scale = quantised SwiGLU; the gaps between the experts are left alone.

    The programs share out the rows as if there were no gaps.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    BLOCKS: tl.constexpr = I // BLOCK
    block = tl.arange(0, BLOCKS)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    expert = tl.arange(0, NUM_LOCAL)
    start = tl.cdiv(tl.load(expert_offsets_ptr + expert), ALIGNMENT) * ALIGNMENT
    count = tl.load(expert_offsets_ptr + expert + 1) - start
    after = tl.cumsum(count, 0)
    before = after - count
    for number in range(tl.program_id(0), tl.sum(count, 0), tl.num_programs(0)):
        mine = (before <= number) & (number < after)
        row = number + tl.sum(tl.where(mine, start - before, 0), 0).to(tl.int64)
        quantized, scale = quantize_e4m3(swiglu_row(up_gate_ptr, row, I, BLOCK))
        tl.store(act_ptr + row * I + column, quantized)
        tl.store(act_scale_ptr + block * max_rows + row, scale)


_swiglu_quantize = Launcher(
    swiglu_quantize_kernel,
    up_gate_ptr=torch.bfloat16,
    expert_offsets_ptr=torch.int32,
    act_ptr=torch.float8_e4m3fn,
    act_scale_ptr=torch.float32,
)


def swiglu_quantize(
    geometry: Geometry, row_alignment: int, up_gate, expert_offsets, act, act_scale, pdl: bool
) -> None:
    """act [rows, I] fp8, act_scale [I / 128, rows] fp32 from up_gate [rows, 2I] bf16.

    expert_offsets int32 [E + 1]: expert e's rows are [expert_offsets[e] rounded up to
    row_alignment, expert_offsets[e + 1]). With pdl, up_gate is awaited with griddepcontrol.wait.
    """
    rows = up_gate.shape[0]
    _swiglu_quantize(
        (min(rows, MAX_PROGRAMS), 1, 1),
        (up_gate, expert_offsets, act, act_scale, rows),
        (geometry.intermediate_size, geometry.num_local_experts, geometry.block, row_alignment,
         pdl),
        num_warps=NUM_WARPS,
        launch_pdl=pdl,
    )  # fmt: skip
