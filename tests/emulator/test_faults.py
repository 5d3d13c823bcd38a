"""What kernels must not do, and PTX that is not known: clear errors, and nothing hangs."""

import re

import numpy as np
import pytest
from ptx_kernel import HEADER, launch, module

from emulator import (
    EAGER,
    LAZY,
    Buffers,
    Emulator,
    KernelError,
    Module,
    PtxError,
    UnsupportedInstruction,
    random_schedules,
)

SHARED = "mov.b32 %r0, smem;\n"
LANE = "mov.u32 %r1, %tid.x;\n"
INIT = f"{SHARED}{LANE}setp.ne.s32 %p1, %r1, 0;\n@!%p1 mbarrier.init.shared.b64 [%r0], 1;\n"
SYNC = "bar.sync 0;\n"


def run(body: str, threads: int = 32, emulator: Emulator | None = None, size: int = 64):
    buffers = Buffers()
    array = buffers.array(np.zeros(size, np.int32))
    launch(module(body, 1, threads), [array], buffers, emulator, threads)
    return array


def test_an_unknown_form_is_refused_by_instruction_line_and_kernel():
    with pytest.raises(UnsupportedInstruction, match=r"sin\.approx\.f32 at PTX line \d+ of k"):
        run("sin.approx.f32 %r1, %r2;")


def test_a_known_instruction_of_an_unknown_type_is_refused():
    with pytest.raises(UnsupportedInstruction, match=re.escape("add.rn.f64")):
        run("add.rn.f64 %rd1, %rd2, %rd3;")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [(".version 8.8", ".version 12.0", "PTX version 12.0"), ("sm_90a", "sm_80", "target sm_80")],
)
def test_an_unknown_version_or_target_is_refused(old, new, message):
    with pytest.raises(PtxError, match=message):
        Module(HEADER.format(target="sm_90a").replace(old, new))


def test_an_access_past_a_buffer_names_warp_and_line():
    with pytest.raises(KernelError, match=r"is in no buffer \[cta 0 0 0 warp 0, PTX line \d+\]"):
        run("st.global.b32 [%rd0+256], %r1;")


def test_a_misaligned_access_is_refused():
    with pytest.raises(KernelError, match="not aligned to 16 bytes"):
        run("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd0+4];")


def test_unwritten_shared_memory_is_nan():
    body = f"{SHARED}ld.shared.b32 %r2, [%r0+512];\nst.global.b32 [%rd0], %r2;"
    assert np.isnan(run(body).view(np.float32)[0])


def test_a_deadlock_lists_who_waits_where():
    body = f"{INIT}{SYNC}wait:\nmbarrier.try_wait.parity.shared.b64 %p2, [%r0], 0;\n@!%p2 bra wait;"
    with pytest.raises(
        KernelError, match=r"deadlock.*\n.*\n.*warp 1: waits for mbarrier 0x400 .*1 of 1 arrivals"
    ):
        run(body, threads=64)


def test_an_endless_kernel_ends_at_the_limit_of_instructions():
    with pytest.raises(KernelError, match=r"within the limit of instructions:\n.*warp 0: runs"):
        run("again:\nbra again;", emulator=Emulator(max_instructions=10_000))


def test_too_many_arrivals_are_refused():
    body = f"{INIT}{SYNC}@!%p1 mbarrier.arrive.shared.b64 _, [%r0], 2;"
    with pytest.raises(KernelError, match="2 arrivals, 1 of 1 were missing"):
        run(body)


def test_diverged_lanes_at_two_barriers_are_a_fault():
    body = (
        f"{LANE}setp.ne.s32 %p1, %r1, 0;\n@%p1 bra other;\n"
        "bar.sync 0;\nbra end;\nother:\nbar.sync 1;\nend:"
    )
    with pytest.raises(KernelError, match="wait for each other at different instructions"):
        run(body)


STORE = "shl.b32 %r2, %r1, 2;\nadd.s32 %r3, %r0, %r2;\nst.shared.b32 [%r3], %r1;\n"
# every lane reads what the lane of the opposite number has written
LOAD = "xor.b32 %r4, %r2, {flip};\nadd.s32 %r5, %r0, %r4;\nld.shared.b32 %r6, [%r5];\n"


@pytest.mark.parametrize(
    ("threads", "flip", "sync"), [(64, 252, "bar.sync 0;\n"), (32, 124, "bar.warp.sync -1;\n")]
)
def test_a_missing_barrier_is_a_race(threads, flip, sync):
    race = Emulator(race=True)
    start, load = f"{SHARED}{LANE}{STORE}", LOAD.format(flip=flip)
    run(f"{start}{sync}{load}", threads, race)
    with pytest.raises(KernelError, match="race: .* is not ordered behind a"):
        run(f"{start}{load}", threads, race)


def test_an_omitted_instruction_is_left_out():
    text = f"{SHARED}{LANE}{STORE}bar.sync 0;\n{LOAD.format(flip=252)}"
    buffers = Buffers()
    array, kernel = buffers.array(np.zeros(64, np.int32)), module(text, 1, 64)
    (barrier,) = kernel.program("k").synchronisations()
    launch(kernel, [array], buffers, Emulator(LAZY, race=True), 64)
    with pytest.raises(KernelError, match="race"):
        launch(kernel, [array], buffers, Emulator(LAZY, race=True, omit=barrier.line), 64)


TMA_LOAD = (
    "@!%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r0], 16;\n"
    "@!%p1 cp.async.bulk.tensor.1d.shared::cta.global.tile.mbarrier::complete_tx::bytes "
    "[%r8], [%rd0, {%r9}], [%r0];\n"
)
LOADED = "wait:\nmbarrier.try_wait.parity.shared.b64 %p2, [%r0], 0;\n@!%p2 bra wait;\n"
TMA_STORE = (
    "@!%p1 cp.async.bulk.tensor.1d.global.shared::cta.tile.bulk_group [%rd0, {%r9}], [%r8];\n"
    "cp.async.bulk.commit_group;\n"
)


def move_box(transfer: str, column: int = 4) -> None:
    """By TMA, a box of four fp32 from `column` on of an array of 64."""
    buffers = Buffers()
    array = buffers.array(np.zeros(64, np.float32))
    words = np.zeros(32, np.uint32)  # a CUtensorMap, see tma.c: one dimension of fp32
    words[0], words[1] = array.ctypes.data & 0xFFFFFFFF, array.ctypes.data >> 32
    words[2], words[8], words[13] = 7 << 7, len(array) - 1, 3 << 24
    tensor_map = buffers.array(words)
    body = f"{INIT}mov.b32 %r9, {column};\nadd.s32 %r8, %r0, 128;\n{transfer}"
    launch(module(body, 1), [tensor_map], buffers, Emulator(LAZY))


def test_tma_from_a_column_that_is_no_multiple_of_16_bytes_is_refused():
    move_box(TMA_LOAD + LOADED)
    with pytest.raises(KernelError, match="column 5 of 4 bytes each is not at a multiple of 16"):
        move_box(TMA_LOAD + LOADED, column=5)


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        (TMA_LOAD, "this load may still write to its shared memory"),
        (TMA_STORE, "this store may still read its shared memory"),
        (f"{TMA_STORE}cp.async.bulk.wait_group 1;\n", "this store may still read"),
        (f"{TMA_STORE}cp.async.bulk.wait_group 0;\n", None),
        (f"{TMA_STORE}cp.async.bulk.wait_group.read 0;\n", None),
    ],
)
def test_a_block_that_ends_during_a_transfer_is_refused(transfer, message):
    if message is None:
        move_box(transfer)
        return
    with pytest.raises(KernelError, match=rf"the block has ended, but {message}.*PTX line \d+"):
        move_box(transfer)


MEET = "barrier.cluster.arrive;\nbarrier.cluster.wait;\n"
TO_PEER = (
    "mov.u32 %r2, %cluster_ctarank;\nsetp.ne.s32 %p2, %r2, 0;\nmov.b32 %r3, 1;\n"
    f"{SHARED}mapa.shared::cluster.u32 %r4, %r0, %r3;\n@!%p2 st.shared::cluster.b32 [%r4], %r3;\n"
)  # CTA 0 writes to CTA 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"{MEET}{TO_PEER}{MEET}", None),
        (f"{TO_PEER}{MEET}", "shared memory of cta 1 0 0, which need not have started"),
        (f"{MEET}nanosleep.u32 1;\n{TO_PEER}", "shared memory of cta 1 0 0, which has ended"),
    ],
)
def test_memory_of_a_peer_that_is_not_there_is_refused(body, message):
    buffers = Buffers()
    array = buffers.array(np.zeros(1, np.int32))
    late = "mov.u32 %r9, %cluster_ctarank;\nsetp.ne.s32 %p9, %r9, 0;\n@%p9 bra first;\n"
    body = body.replace("nanosleep.u32 1;\n", f"{late}{'nanosleep.u32 1;' * 3}\nfirst:\n")

    def run():
        for schedule in (EAGER, LAZY, *random_schedules(5)):
            launch(module(body, 1), [array], buffers, Emulator(schedule), grid=2, cluster=2)

    if message is None:
        run()
        return
    with pytest.raises(KernelError, match=message):
        run()


ALLOCATE = f"{SHARED}tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [%r0], 32;\n"
USE = (
    "ld.shared.b32 %r1, [%r0];\ntcgen05.st.sync.aligned.32x32b.x1.b32 [%r1], {%r2};\n"
    "tcgen05.wait::st.sync.aligned;\n"
)
FREE = "tcgen05.dealloc.cta_group::2.sync.aligned.b32 %r1, 32;\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"{MEET}{ALLOCATE}{MEET}{USE}{MEET}{FREE}", None),
        (f"{ALLOCATE}{MEET}{USE}{MEET}{FREE}", "for a pair: cta 1 need not have started"),
        (f"{MEET}{ALLOCATE}{MEET}{USE}{FREE}{MEET}", "race: a write .* TMEM column|not allocated"),
        (f"{MEET}{ALLOCATE}{USE}{FREE}", "TMEM column 0 of cta . is not allocated"),
    ],
)
def test_a_pair_allocates_and_frees_tensor_memory_together(body, message):
    """Either block waits until both are there, and until neither uses it any more."""

    def run():
        kernel = module(body, 0, target="sm_100a")
        launch(kernel, [], Buffers(), Emulator(race=True), grid=2, cluster=2)

    if message is None:
        run()
        return
    with pytest.raises(KernelError, match=message):
        run()
