"""Omitted synchronisations are noticed; what the emulator cannot notice is known by its form."""

import re
from collections import Counter

import numpy as np
import pytest
from ptx_kernel import launch, module

from emulator import Buffers, Emulator, KernelError, mutants

# Threads write a word and read one of the other warp; the second barrier is superfluous.
BODY = """mov.b32 %r0, smem;
mov.u32 %r1, %tid.x;
shl.b32 %r2, %r1, 2;
add.s32 %r3, %r0, %r2;
st.shared.b32 [%r3], %r1;
bar.sync 0;
xor.b32 %r4, %r2, 252;
add.s32 %r5, %r0, %r4;
ld.shared.b32 %r6, [%r5];
bar.sync 0;
cvt.u64.u32 %rd1, %r2;
add.s64 %rd2, %rd0, %rd1;
st.global.b32 [%rd2], %r6;
"""


def found(body: str) -> list:
    buffers = Buffers()
    array, kernel = buffers.array(np.zeros(64, np.int32)), module(body, 1, 64)

    def run(emulator: Emulator) -> bytes:
        array[:] = 0
        launch(kernel, [array], buffers, emulator, 64)
        return array.tobytes()

    return list(mutants(kernel.program("k"), run, 100_000))


def test_a_needed_barrier_is_noticed_and_a_superfluous_one_is_not():
    needed, superfluous = found(BODY)
    assert (needed.form, needed.noticed) == ("bar.sync", "race")
    assert superfluous.noticed == "" and superfluous.line > needed.line


def test_a_complete_kernel_with_a_race_is_refused():
    with pytest.raises(KernelError, match="race"):
        found(BODY.replace("bar.sync 0;\n", "", 1))


# Of the padded GEMM's first tile: see docs/2026-11-25-emulator.md.
UNNOTICED = {"fence.mbarrier_init.release.cluster", "bar.warp.sync"}


def test_every_fifth_omission_in_the_padded_gemm():
    pytest.importorskip("cutlass")
    from bundle.emulation.digests import small_cases
    from bundle.emulation.mutants import mutants_of

    case = next(case for case in small_cases(90) if "tile 0" in case.name)
    results = [mutant for _, mutant in mutants_of(case, every=5)]
    assert len(results) >= 8
    assert all(re.search(r"/cutedsl/\w+(/\w+)?\.py:\d+$", mutant.source) for mutant in results)
    assert {mutant.form for mutant in results if not mutant.noticed} <= UNNOTICED
    assert Counter(bool(mutant.noticed) for mutant in results)[True] > len(results) // 2
