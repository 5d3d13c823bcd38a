"""Weighted combine, pull style: out[t] = sum of token t's rows of y, zeros where it has none.

  y [max_rows, H] bf16 (rows already weighted)    token_rows [T, top_k] int32, ascending, -1 padded
  output [T, H] bf16

A thread owns 8 columns (16 bytes) of one token; the rows are added in fp32 in ascending order, so
the result does not depend on the schedule.
"""

from __future__ import annotations

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64

from ..geometry import Geometry

THREADS = 128
COLUMNS = 8  # of a thread


class Combine:
    """See the module's docstring. Launched with PDL after the kernel that writes y."""

    def __init__(self, geometry: Geometry):
        self.geometry = geometry

    @cute.jit
    def __call__(
        self,
        y: cute.Pointer,
        token_rows: cute.Pointer,
        output: cute.Pointer,
        num_tokens: Int32,
        stream: cuda.CUstream,
    ):
        blocks = cute.ceil_div(self.geometry.hidden_size, THREADS * COLUMNS)
        self.kernel(y, token_rows, output).launch(
            grid=(blocks, num_tokens, 1), block=(THREADS, 1, 1), stream=stream, use_pdl=True
        )

    @cute.kernel
    def kernel(self, y: cute.Pointer, token_rows: cute.Pointer, output: cute.Pointer):
        h, top_k = self.geometry.hidden_size, self.geometry.top_k
        thread, _, _ = cute.arch.thread_idx()
        block, token, _ = cute.arch.block_idx()
        column = (block * THREADS + thread) * COLUMNS
        cute.arch.griddepcontrol_wait()
        if column < h:
            rows = cute.make_rmem_tensor((top_k,), Int32)
            cute.autovec_copy(_vector(token_rows + token * top_k, top_k), rows)
            parts = cute.make_rmem_tensor((COLUMNS, top_k), BFloat16)
            parts.fill(0.0)
            for r in cutlass.range_constexpr(top_k):
                if rows[r] >= 0:
                    cute.autovec_copy(
                        _vector(y + Int64(rows[r]) * h + column, COLUMNS), parts[None, r]
                    )
            total = cute.make_rmem_tensor((COLUMNS,), Float32)
            total.fill(0.0)
            for r in cutlass.range_constexpr(top_k):
                total.store(total.load() + parts[None, r].load().to(Float32))
            rounded = cute.make_rmem_tensor((COLUMNS,), BFloat16)
            rounded.store(total.load().to(BFloat16))
            cute.autovec_copy(rounded, _vector(output + Int64(token) * h + column, COLUMNS))


def _vector(pointer: cute.Pointer, size: int) -> cute.Tensor:
    """`size` contiguous elements at a 16-byte aligned pointer."""
    aligned = cute.make_ptr(pointer.dtype, pointer.toint(), pointer.memspace, assumed_align=16)
    return cute.make_tensor(aligned, cute.make_layout(size))
