"""SwiGLU of GEMM1's output, in the definition's order: up, then gate."""

import torch
import triton
import triton.language as tl

from ..geometry import Geometry
from .launch import Launcher
from .quantize import quantize_e4m3

NUM_WARPS = 8  # 16 bytes of up and of gate a lane at I = 2048
MAX_PROGRAMS = 1024  # fills any GPU of today; the rows are shared out among them


@triton.jit
def swiglu_row(up_gate_ptr, row, I: tl.constexpr, BLOCK: tl.constexpr):
    """silu(gate) * up of one row of up_gate [max_rows, 2I] bf16, as fp32 [I / BLOCK, BLOCK]."""
    block = tl.arange(0, I // BLOCK)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    source = up_gate_ptr + row * (2 * I) + column
    up = tl.load(source).to(tl.float32)
    gate = tl.load(source + I).to(tl.float32)
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def swiglu_quantize_kernel(
    up_gate_ptr,  # bf16 [max_rows, 2I]
    expert_offsets_ptr,  # int32 [E + 1]
    act_ptr,  # out: fp8 [max_rows, I]
    act_scale_ptr,  # out: fp32 [max_rows, I / 128]
    I: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """act, act_scale = quantised SwiGLU; the rows past the last expert's are left alone."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    BLOCKS: tl.constexpr = I // BLOCK
    block = tl.arange(0, BLOCKS)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    num_rows = tl.load(expert_offsets_ptr + NUM_LOCAL)
    for row in range(tl.program_id(0).to(tl.int64), num_rows, tl.num_programs(0)):
        quantized, scale = quantize_e4m3(swiglu_row(up_gate_ptr, row, I, BLOCK))
        tl.store(act_ptr + row * I + column, quantized)
        tl.store(act_scale_ptr + row * BLOCKS + block, scale)


_swiglu_quantize = Launcher(
    swiglu_quantize_kernel,
    up_gate_ptr=torch.bfloat16,
    expert_offsets_ptr=torch.int32,
    act_ptr=torch.float8_e4m3fn,
    act_scale_ptr=torch.float32,
)


def swiglu_quantize(
    geometry: Geometry, num_rows: int, up_gate, expert_offsets, act, act_scale, pdl: bool
) -> None:
    """act [num_rows, I] fp8, act_scale [num_rows, I / 128] fp32 from up_gate [num_rows, 2I] bf16.

    Only the rows below expert_offsets[E] are read and written. With pdl, up_gate is awaited with
    griddepcontrol.wait.
    """
    _swiglu_quantize(
        (min(num_rows, MAX_PROGRAMS), 1, 1),
        (up_gate, expert_offsets, act, act_scale),
        (geometry.intermediate_size, geometry.num_local_experts, geometry.block, pdl),
        num_warps=NUM_WARPS,
        launch_pdl=pdl,
    )
