"""What orders accesses, and what does not: lanes, tensor memory, launches that overlap, TMA."""

import struct
from itertools import pairwise

import numpy as np
import pytest
from ptx_kernel import launch, module

from emulator import EAGER, LAZY, Buffers, Emulator, KernelError, LaunchConfig, random_schedules

LATE = Emulator(LAZY, race=True)
START = """mov.b32 %r0, smem;
mov.u32 %r1, %tid.x;
setp.ne.s32 %p1, %r1, 0;
@!%p1 mbarrier.init.shared.b64 [%r0], 1;
bar.sync 0;
"""
WAIT = """wait:
mbarrier.try_wait.parity.shared.b64 %p2, [%r0], 0;
@!%p2 bra wait;
"""

# Warp 0 reads 32 words, its first lane tells warp 1, which overwrites them.
READ_THEN_WRITE = (
    START
    + """and.b32 %r2, %r1, 31;
shl.b32 %r2, %r2, 2;
add.s32 %r3, %r0, %r2;
setp.ge.s32 %p3, %r1, 32;
@%p3 bra other;
ld.shared.b32 %r4, [%r3+64];
SYNC
@!%p1 mbarrier.arrive.shared.b64 _, [%r0];
bra end;
other:
"""
    + WAIT
    + "st.shared.b32 [%r3+64], %r1;\nend:\n"
)


@pytest.mark.parametrize("schedule", [EAGER, LAZY, *random_schedules(2)])
def test_a_lane_that_arrives_speaks_for_itself_alone(schedule):
    def run(sync: str) -> None:
        body = READ_THEN_WRITE.replace("SYNC\n", sync)
        launch(module(body, 0, 64), [], Buffers(), Emulator(schedule, race=True), 64)

    run("bar.warp.sync -1;\n")
    for nothing in ("", "vote.sync.any.pred %p4, %p1, -1;\n"):  # a vote orders no accesses
        with pytest.raises(KernelError, match="race: a write is not ordered behind a read"):
            run(nothing)


# Warp 0 loads from tensor memory and tells warp 4, which overwrites these lanes.
TENSOR_MEMORY = (
    START
    + """setp.ge.s32 %p3, %r1, 32;
@%p3 bra allocated;
tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r0+16], 32;
allocated:
bar.sync 0;
ld.shared.b32 %r5, [%r0+16];
@%p3 bra other;
tcgen05.st.sync.aligned.32x32b.x1.b32 [%r5], {%r1};
tcgen05.wait::st.sync.aligned;
tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r6}, [%r5];
COMPLETE
@!%p1 mbarrier.arrive.shared.b64 _, [%r0];
bra end;
other:
setp.lt.s32 %p3, %r1, 128;
@%p3 bra end;
"""
    + WAIT
    + """tcgen05.st.sync.aligned.32x32b.x1.b32 [%r5], {%r1};
tcgen05.wait::st.sync.aligned;
end:
bar.sync 0;
setp.ge.s32 %p3, %r1, 32;
@%p3 bra freed;
tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r5, 32;
shl.b32 %r2, %r1, 2;
cvt.u64.u32 %rd1, %r2;
add.s64 %rd2, %rd0, %rd1;
st.global.b32 [%rd2], %r6;
freed:
"""
)


def loaded(body: str) -> list[int]:
    """What warp 0 has loaded."""
    buffers = Buffers()
    array = buffers.array(np.zeros(32, np.int32))
    launch(module(body, 1, 160, "sm_100a"), [array], buffers, LATE, 160)
    return array.tolist()


@pytest.mark.parametrize("complete", ["tcgen05.wait::ld.sync.aligned;\n", "mov.b32 %r7, %r6;\n"])
def test_a_load_from_tensor_memory_is_behind_its_wait_or_the_use_of_its_registers(complete):
    assert loaded(TENSOR_MEMORY.replace("COMPLETE\n", complete)) == list(range(32))
    with pytest.raises(KernelError, match="TMEM column"):
        loaded(TENSOR_MEMORY.replace("COMPLETE\n", ""))


def test_a_store_to_tensor_memory_is_behind_its_wait():
    body = TENSOR_MEMORY.replace("COMPLETE\n", "tcgen05.wait::ld.sync.aligned;\n")
    body = body.replace("tcgen05.wait::st.sync.aligned;\n", "", 1)
    with pytest.raises(KernelError, match="TMEM column"):
        loaded(body)


# out[0] = in[0] + 1
INCREMENT = """griddepcontrol.launch_dependents;
WAIT
ld.global.b32 %r1, [%rd0];
add.s32 %r1, %r1, 1;
nanosleep.u32 1;
later:
mov.u32 %r2, %tid.x;
setp.eq.s32 %p1, %r2, 0;
@%p1 st.global.b32 [%rd1], %r1;
"""


def increments(wait: str, schedule, overlaps: bool = True) -> int:
    """Of a number by three launches that hand it on."""
    buffers = Buffers()
    words = [buffers.array(np.full(1, start, np.int32)) for start in (5, -9, -9, -9)]
    kernel = module(INCREMENT.replace("WAIT\n", wait), 2)
    configs = [
        LaunchConfig(
            "k", (1, 1, 1), (32, 1, 1), (1, 1, 1), 0,
            struct.pack("<QQ", source.ctypes.data, target.ctypes.data), overlaps,
        )
        for source, target in pairwise(words)
    ]  # fmt: skip
    Emulator(schedule).run_stream(kernel, configs, buffers.ranges)
    return int(words[-1][0])


def test_launches_overlap_up_to_their_wait():
    wait = "griddepcontrol.wait;\n"
    schedules = [EAGER, LAZY, *random_schedules(5)]
    assert [increments(wait, schedule) for schedule in schedules] == [8] * len(schedules)
    assert increments("", LAZY) == -8
    assert increments("", LAZY, overlaps=False) == 8
    assert {increments("", schedule) for schedule in random_schedules(20)} > {8}


FENCE_GLOBAL = "fence.proxy.async.global;\n"
ARRIVE = "@%p3 mbarrier.arrive.shared.b64 _, [%r0+8];\n"
AWAIT = WAIT.replace("wait:", "ready:").replace("bra wait", "bra ready").replace("%r0", "%r0+8")


@pytest.mark.parametrize(
    ("behind_write", "before_load", "defined"),
    [
        ("", "", False),  # at any time
        (ARRIVE, AWAIT, False),  # between the proxies, too, order is needed
        (FENCE_GLOBAL + ARRIVE, AWAIT, True),
        (ARRIVE, AWAIT + FENCE_GLOBAL, True),
    ],
)
def test_what_tma_loads_of_another_warp(behind_write, before_load, defined):
    buffers = Buffers()
    array, result = buffers.array(np.zeros(64, np.float32)), buffers.array(np.zeros(4, np.float32))
    words = np.zeros(32, np.uint32)  # a CUtensorMap, see tma.c: one dimension of fp32
    words[0], words[1] = array.ctypes.data & 0xFFFFFFFF, array.ctypes.data >> 32
    words[2], words[8], words[13] = 7 << 7, len(array) - 1, 3 << 24
    body = (
        START.replace("bar.sync", "@!%p1 mbarrier.init.shared.b64 [%r0+8], 1;\nbar.sync")
        + f"""setp.eq.s32 %p3, %r1, 32;
@%p3 st.global.b32 [%rd1+8], %r1;
{behind_write}setp.ge.s32 %p3, %r1, 32;
@%p3 bra end;
{before_load}mov.b32 %r9, 0;
@!%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r0], 16;
@!%p1 cp.async.bulk.tensor.1d.shared::cta.global.tile.mbarrier::complete_tx::bytes """
        + "[%r0+128], [%rd0, {%r9}], [%r0];\n"
        + WAIT
        + """ld.shared.v4.b32 {%r2, %r3, %r4, %r5}, [%r0+128];
@!%p1 st.global.v4.b32 [%rd2], {%r2, %r3, %r4, %r5};
end:
"""
    )
    run = launch(module(body, 3, 64), [buffers.array(words), array, result], buffers, LATE, 64)
    assert np.isnan(result).tolist() == [False, False, not defined, False]
    assert run.counters["unordered_load_bytes"] == (0 if defined else 4)


MULTIPLY = (
    "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 "
    "{%r2, %r3, %r4, %r5}, %rd1, %rd1, %p2, 1, 1;\n"
)
FENCE, USE = "wgmma.fence.sync.aligned;\n", "add.s32 %r3, %r3, 1;\n"
LOOP = "again:\nSTEPsetp.eq.s32 %p3, %r1, 0;\n@%p3 bra again;\n"


@pytest.mark.parametrize(
    ("text", "fenced"),
    [
        (FENCE + MULTIPLY + MULTIPLY, True),
        (MULTIPLY, False),  # before the first one, too
        (FENCE + MULTIPLY + USE + MULTIPLY, False),
        (FENCE + MULTIPLY + USE + FENCE + MULTIPLY, True),
        (FENCE + USE + MULTIPLY, False),
        (LOOP.replace("STEP", FENCE + MULTIPLY + USE), True),
        (FENCE + LOOP.replace("STEP", MULTIPLY), True),
        (FENCE + LOOP.replace("STEP", MULTIPLY + USE), False),  # around the loop
    ],
)
def test_a_register_is_fenced_before_wgmma_accumulates_in_it(text, fenced):
    kernel = module(f"mov.u32 %r1, %tid.x;\n{text}", 0)
    assert (kernel.program("k").unfenced() is None) == fenced


def test_an_omitted_wgmma_fence_shows():
    kernel = module(FENCE + MULTIPLY, 0)
    (fence,) = kernel.program("k").synchronisations()
    with pytest.raises(KernelError, match="no wgmma.fence"):
        launch(kernel, [], Buffers(), Emulator(LAZY, race=True, omit=fence.line))
