"""Tensor memory: 128 lanes of 512 columns of 32 bits, where the matrix instruction adds up.

Warp w reaches lanes 32 (w % 4) to 32 (w % 4) + 31. An address has the lane in its upper half and
the column in its lower one.
"""

from __future__ import annotations

import cutlass.cute as cute
from cutlass import Float32
from cutlass.cute.nvgpu import tcgen05

COLUMNS = 512
LANES = 128
LANE = 1 << 16  # step of an address from lane to lane


def allocate(columns: int, place: cute.Pointer, blocks: int) -> None:
    """Called by one warp (of each of `blocks` paired blocks, which must all have started: PTX ISA,
    tcgen05.alloc); the address comes to shared memory at `place`. columns: a power of two, 32 to
    512."""
    cute.arch.alloc_tmem(columns, place, is_two_cta=blocks == 2)
    cute.arch.relinquish_tmem_alloc_permit(is_two_cta=blocks == 2)


def free(memory: cute.Pointer, columns: int, blocks: int) -> None:
    """Called by the warp that has allocated it (of each of the paired blocks: the first may free it
    for both), when nobody uses it any more."""
    cute.arch.dealloc_tmem(memory, columns, is_two_cta=blocks == 2)


def allocated(place: cute.Pointer) -> cute.Pointer:
    """What `allocate` has written, after a barrier of the block."""
    return cute.arch.retrieve_tmem_ptr(Float32, 16, place)


def after_wait() -> None:
    """Between a wait for the matrix instructions' barrier and what then uses tensor memory."""
    cute.arch.inline_ptx("tcgen05.fence::after_thread_sync;")


def before_arrival() -> None:
    """Between the last use of tensor memory and an arrival that tells of it."""
    cute.arch.inline_ptx("tcgen05.fence::before_thread_sync;")


def wait_loads() -> None:
    """Until this warp's loads have written their registers."""
    cute.arch.fence_view_async_tmem_load()


def load_rows(memory: cute.Pointer, columns: int, thread) -> cute.Tensor:
    """Start to load `columns` columns (1, 2, 4, .. 128) at `memory`, a multiple of
    4 columns, a lane for each of the 128
    threads of a warpgroup; returns their registers [columns] fp32, valid after `wait_loads`."""
    target = cute.make_rmem_tensor((columns,), Float32)
    _load(tcgen05.Ld32x32bOp, columns, memory, columns, thread, target)
    return target


def load_pairs(memory: cute.Pointer, columns: int, thread, target: cute.Tensor) -> None:
    """Start to load `columns` columns (8, 16, 32, .. 256) at `memory`, a multiple of 4
    columns, in wgmma's order: thread `l`
    of a warp gets lanes r, r + 8, r + 16, r + 24 of the warp's 32, r = l / 4, and columns
    8 j + 2 (l % 4) + c.

    target: registers [2 (c), 2 (8 lanes), columns / 8 (j), 2 (16 lanes)] fp32, valid after
    `wait_loads`.
    """
    _load(tcgen05.Ld16x256bOp, columns // 8, memory, columns, thread, target)


def _load(operation, repetition: int, memory, columns: int, thread, target) -> None:
    aligned = cute.make_ptr(Float32, memory.toint(), cute.AddressSpace.tmem, assumed_align=16)
    source = cute.make_tensor(aligned, cute.make_layout((LANES, columns), stride=(LANE, 1)))
    atom = cute.make_copy_atom(operation(tcgen05.Repetition(repetition)), Float32)
    copy = tcgen05.make_tmem_copy(atom, source)
    mine = copy.get_slice(thread)
    layout = cute.make_layout(mine.partition_D(source).shape)
    cute.copy(copy, mine.partition_S(source), cute.make_tensor(target.iterator, layout))
