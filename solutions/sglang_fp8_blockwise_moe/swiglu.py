"""SwiGLU in bf16, for sgl-kernel's quantisation op."""

import torch
import triton
import triton.language as tl

from ..common.geometry import Geometry
from ..common.triton_stages.launch import Launcher
from ..common.triton_stages.swiglu import MAX_PROGRAMS, NUM_WARPS, swiglu_row


@triton.jit(do_not_specialize=["num_rows"])
def swiglu_kernel(
    up_gate_ptr,  # bf16 [num_rows, 2I]
    expert_offsets_ptr,  # int32 [E + 1]
    act_ptr,  # out: bf16 [num_rows, I]
    num_rows,
    I: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    last = tl.load(expert_offsets_ptr + NUM_LOCAL)
    column = tl.arange(0, I // BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    for row in range(tl.program_id(0).to(tl.int64), num_rows, tl.num_programs(0)):
        act = tl.zeros([I // BLOCK, BLOCK], tl.float32)
        if row < last:
            act = swiglu_row(up_gate_ptr, row, I, BLOCK)
        tl.store(act_ptr + row * I + column, act.to(tl.bfloat16))


_swiglu = Launcher(
    swiglu_kernel,
    up_gate_ptr=torch.bfloat16,
    expert_offsets_ptr=torch.int32,
    act_ptr=torch.bfloat16,
)


def swiglu(geometry: Geometry, num_rows: int, up_gate, expert_offsets, act, pdl: bool) -> None:
    """act [num_rows, I] bf16 from up_gate [num_rows, 2I] bf16; 0 from row expert_offsets[E] on.

    With pdl, up_gate is awaited with griddepcontrol.wait.
    """
    _swiglu(
        (min(num_rows, MAX_PROGRAMS), 1, 1),
        (up_gate, expert_offsets, act, num_rows),
        (geometry.intermediate_size, geometry.num_local_experts, geometry.block, pdl),
        num_warps=NUM_WARPS,
        launch_pdl=pdl,
    )
