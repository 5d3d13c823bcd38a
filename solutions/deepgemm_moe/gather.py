"""Gather: copies each token to its rows, and its scales to columns, as DeepGEMM reads them."""

import torch
import triton
import triton.language as tl

from ..common.geometry import Geometry
from ..common.triton_stages.launch import Launcher


@triton.jit(do_not_specialize=["num_tokens", "max_rows"])
def gather_kernel(
    hidden_ptr,  # fp8 [T, H]
    hidden_scale_ptr,  # fp32 [H / 128, T]
    token_rows_ptr,  # int32 [T, TOP_K], each token's rows from the left, then -1
    x_ptr,  # out: fp8 [max_rows, H]
    x_scale_ptr,  # out: fp32 [H / 128, max_rows]
    num_tokens,
    max_rows,
    H: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    """x, x_scale = the rows' tokens; the gaps between the experts are left alone.

    A program reads one token, if it has rows at all, and writes all of them.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_H)
    block = tl.arange(0, BLOCK_H // BLOCK)
    slots = token_rows_ptr + token * TOP_K
    num_rows = tl.sum((tl.load(slots + tl.arange(0, TOP_K)) >= 0).to(tl.int32), 0)
    if num_rows > 0:
        x = tl.load(hidden_ptr + token * H + column, mask=column < H)
        scale = tl.load(hidden_scale_ptr + block * num_tokens + token, mask=block < H // BLOCK)
        for slot in range(0, num_rows):
            row = tl.load(slots + slot).to(tl.int64)
            tl.store(x_ptr + row * H + column, x, mask=column < H)
            tl.store(x_scale_ptr + block * max_rows + row, scale, mask=block < H // BLOCK)


_gather = Launcher(
    gather_kernel,
    hidden_ptr=torch.float8_e4m3fn,
    hidden_scale_ptr=torch.float32,
    token_rows_ptr=torch.int32,
    x_ptr=torch.float8_e4m3fn,
    x_scale_ptr=torch.float32,
)


def gather(geometry: Geometry, hidden, hidden_scale, token_rows, x, x_scale, pdl: bool) -> None:
    """Copy hidden [T, H] fp8 and hidden_scale [H / 128, T] fp32 to x [rows, H], x_scale
    [H / 128, rows] at each token's rows: token_rows int32 [T, top_k], from the left, then -1.

    With pdl, the routing is awaited with griddepcontrol.wait.
    """
    num_tokens, h = hidden.shape
    _gather(
        (num_tokens, 1, 1),
        (hidden, hidden_scale, token_rows, x, x_scale, num_tokens, x.shape[0]),
        (h, geometry.top_k, geometry.block, triton.next_power_of_2(h), pdl),
        num_warps=4,
        launch_pdl=pdl,
    )
