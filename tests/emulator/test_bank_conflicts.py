"""Turns of shared memory beyond those that a warp's bytes need."""

import numpy as np
import pytest
from ptx_kernel import launch, module

from emulator import Buffers, Emulator


def conflicts(instruction: str, stride: int, emulator: Emulator) -> int:
    """Of one instruction whose lane l accesses the address l * stride."""
    buffers = Buffers()
    array = buffers.array(np.zeros(1, np.int32))
    body = (
        f"mov.b32 %r0, smem;\nmov.u32 %r1, %tid.x;\nmul.lo.s32 %r2, %r1, {stride};\n"
        f"add.s32 %r3, %r0, %r2;\n{instruction};"
    )
    return launch(module(body, 1), [array], buffers, emulator).bank_conflicts.total()


@pytest.mark.parametrize(
    ("instruction", "stride", "expected"),
    [
        ("st.shared.b32 [%r3], %r1", 4, 0),
        ("st.shared.b32 [%r3], %r1", 8, 1),
        ("st.shared.b32 [%r3], %r1", 128, 31),
        ("st.shared.b32 [%r3], %r1", 132, 0),
        ("ld.shared.b32 %r4, [%r3]", 0, 0),  # one word for all
        ("st.shared.b16 [%r3], %rs1", 2, 0),
        ("ld.shared.v2.b32 {%r4, %r5}, [%r3]", 8, 0),
        ("ld.shared.v2.b32 {%r4, %r5}, [%r3]", 128, 2 * 15),
        ("ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3]", 16, 0),
        ("ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3]", 128, 4 * 7),
    ],
)
def test_conflicts_of_a_stride(instruction, stride, expected):
    assert conflicts(instruction, stride, Emulator(bank_conflicts=True)) == expected


def test_they_are_counted_on_demand():
    assert conflicts("st.shared.b32 [%r3], %r1", 128, Emulator()) == 0
