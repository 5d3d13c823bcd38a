"""What the kernels of the layer read and write, one NamedTuple per group of operands.

In a kernel the fields are pointers to global memory. On the host the same tuples, filled with
`Buffer`s, say what scratch memory a call needs: its size, the place and the dtype of every pointer
into it are read off them. All tensors are row-major, the last dimension fastest. The letters are
those of `Geometry`: T tokens, E local experts, H hidden_size, I intermediate_size; max_rows is the
most (token, local expert) pairs that T tokens can have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32

ALIGNMENT = 256  # of a buffer's place in the scratch memory, in bytes


class Inputs(NamedTuple):
    """The definition's input tensors, in its order and by its names."""

    routing_logits: cute.Pointer  # [T, num_experts] fp32
    routing_bias: cute.Pointer  # [num_experts] bf16
    hidden_states: cute.Pointer  # [T, H] e4m3
    hidden_states_scale: cute.Pointer  # [H/128, T] fp32
    gemm1_weights: cute.Pointer  # [E, 2I, H] e4m3; rows 0..I-1 up, I..2I-1 gate
    gemm1_weights_scale: cute.Pointer  # [E, 2I/128, H/128] fp32
    gemm2_weights: cute.Pointer  # [E, H, I] e4m3
    gemm2_weights_scale: cute.Pointer  # [E, H/128, I/128] fp32


INPUT_DTYPES = Inputs(
    Float32, BFloat16, Float8E4M3FN, Float32, Float8E4M3FN, Float32, Float8E4M3FN, Float32
)


class Rows(NamedTuple):
    """What the routing tells the GEMMs: one row per (token, local expert), grouped by expert."""

    expert_offsets: cute.Pointer  # [E + 1] int32, first row of each expert, then their number
    row_token: cute.Pointer  # [max_rows] int32, the row's token
    row_weight: cute.Pointer  # [max_rows] fp32, combine weight times routed_scaling_factor
    token_rows: cute.Pointer  # [T, top_k] int32, a token's rows ascending, then -1
    counters: cute.Pointer  # [COUNTERS] int32 of zeros, see `tile_scheduler`


class RoutingScratch(NamedTuple):
    """What the routing's kernels tell each other, see `routing`."""

    masks: cute.Pointer  # [T] int32
    weights: cute.Pointer  # [T, top_k] fp32
    counts: cute.Pointer  # [chunks, E] int32


class GemmScratch(NamedTuple):
    """What GEMM1 tells GEMM2 and GEMM2 the combine. A token producer may keep tensors of its own
    behind act and act_scale (`gathered_tokens` does)."""

    act: cute.Pointer  # [act_rows, I] e4m3
    act_scale: cute.Pointer  # [I/act_columns, act_rows] fp32
    y: cute.Pointer  # [max_rows, H] bf16, rows times row_weight


class GemmOperands(NamedTuple):
    """What the roles of the GEMMs' kernel read and write besides the weights, which come by TMA."""

    hidden: cute.Pointer
    hidden_scale: cute.Pointer
    w1_scale: cute.Pointer
    w2_scale: cute.Pointer
    expert_offsets: cute.Pointer
    row_token: cute.Pointer
    row_weight: cute.Pointer
    act: cute.Pointer
    act_scale: cute.Pointer
    y: cute.Pointer
    token_rows: cute.Pointer
    output: cute.Pointer  # [T, H] bf16
    counters: cute.Pointer
    num_tokens: Int32
    act_rows: Int32


class Buffer(NamedTuple):
    """Scratch memory for a tensor: dtype is CuTe DSL's; the shape's numbers may be the device's."""

    dtype: Any
    shape: tuple

    def size(self):
        """In bytes, rounded up to whole ALIGNMENTs."""
        size = self.dtype.width // 8
        for extent in self.shape:
            size = size * extent
        return (size + (ALIGNMENT - 1)) // ALIGNMENT * ALIGNMENT


def scratch_size(groups: Sequence[tuple[Buffer, ...]]):
    """Bytes that the buffers of all groups take, one behind the other."""
    return sum(buffer.size() for group in groups for buffer in group)


def scratch_at(base: cute.Pointer, groups: Sequence[tuple[Buffer, ...]]) -> Iterator[tuple]:
    """The same groups with pointers for buffers, from `base` on; in a function that is compiled."""
    address = base.toint()
    for group in groups:
        pointers = []
        for buffer in group:
            pointers.append(
                cute.make_ptr(buffer.dtype, address, cute.AddressSpace.gmem, assumed_align=16)
            )
            address = address + buffer.size()
        yield type(group)(*pointers)
