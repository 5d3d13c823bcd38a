"""Blackwell's matrix instruction for e4m3 operands in shared memory, with M and N set at run time.

d [M, N] fp32 in tensor memory (+)= a [M, K] @ b [N, K]^T, where a and b have 128-byte rows (128
columns of K) that are 128-byte swizzled, as TMA writes them. One thread issues it. With two blocks
(a pair: ranks 2 r and 2 r + 1 of a cluster), the even one issues for both; each holds half the rows
of a, b and d. The bits of both descriptors are those of the PTX ISA, section tcgen05: "instruction
descriptor" and "shared memory descriptor".
"""

from __future__ import annotations

import cutlass.cute as cute
from cutlass import Int32, Int64
from cutlass.cute.nvgpu import tcgen05

STEP = 32  # columns of K of an instruction
ROW = 128  # bytes of an operand's row
E4M3, F32 = 0, 1  # their codes in an instruction descriptor


def instruction(m: int, n: Int32) -> Int32:
    """Descriptor of m x n: m is 128 (one block) or 256 (two), n a multiple of 16 (32) up to 256."""
    fixed = F32 << 4 | E4M3 << 7 | E4M3 << 10 | m // 16 << 24
    return Int32(fixed) | Int32(n) // 8 << 17


def operand(memory: cute.Pointer) -> Int64:
    """Descriptor of rows that start at a multiple of 1,024 bytes of shared memory."""
    groups_of_8_rows, version, swizzle_128 = 8 * ROW >> 4, 1, 2
    fixed = groups_of_8_rows << 32 | version << 46 | swizzle_128 << 61
    return Int64(fixed) | Int64(Int32(memory.toint()) >> 4 & 0x3FFF)


def multiply(
    d: Int32, a: Int64, b: Int64, instruction: Int32, blocks: int, first: int = 0, steps: int = 4
) -> None:
    """d = a @ b^T over `steps` steps of K from number `first`; called by one thread.

    d: address in tensor memory. The sum starts at zero.
    """
    code = (
        "{ .reg .pred add; setp.ne.b32 add, {$r4}, 0; "
        f"tcgen05.mma.cta_group::{blocks}.kind::f8f6f4 "
        "[{$r0}], {$r1}, {$r2}, {$r3}, add; }"
    )
    for step in range(first, first + steps):
        offset = step * STEP >> 4
        cute.arch.inline_ptx(
            code, read_only_args=[d, a + offset, b + offset, instruction, Int32(step != first)]
        )


def commit(barrier: cute.Pointer, blocks: int) -> None:
    """Arrive on a barrier, with two blocks on that of both, once all that this thread has issued
    is done; called by one thread."""
    if blocks == 1:
        tcgen05.commit(barrier)
    else:
        tcgen05.commit(barrier, 3, tcgen05.CtaGroup.TWO)
