"""Small helpers on pointers, layouts and the lanes of a warp."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32
from cutlass.cute import arch


def select(condition, yes, no) -> Int32:
    """`yes` where the condition holds, else `no`; no branch."""
    return Int32(cutlass.select_(condition, Int32(yes), Int32(no)))


def sum_up_to_lane(value: Int32) -> Int32:
    """Sum over lanes 0..lane."""
    lane = arch.lane_idx()
    for distance in (1, 2, 4, 8, 16):
        below = arch.shuffle_sync_up(value, distance, mask_and_clamp=0)
        value = value + select(lane >= distance, below, 0)
    return value


def swizzled(shape: tuple, stride: tuple) -> cute.ComposedLayout:
    """128-byte swizzled layout of e4m3, as TMA writes and the tensor cores read it."""
    return cute.make_composed_layout(
        cute.make_swizzle(3, 4, 3), 0, cute.make_layout(shape, stride=stride)
    )


def swizzled_tensor(memory, shape: tuple, stride: tuple) -> cute.Tensor:
    """A member of a block's shared memory as a tensor in the layout of `swizzled`."""
    return memory.get_tensor(
        cute.make_layout(shape, stride=stride), swizzle=cute.make_swizzle(3, 4, 3)
    )


def vector(pointer: cute.Pointer, size: int, align: int) -> cute.Tensor:
    """`size` contiguous elements at a pointer that is a multiple of `align` bytes."""
    aligned = cute.make_ptr(pointer.dtype, pointer.toint(), pointer.memspace, assumed_align=align)
    return cute.make_tensor(aligned, cute.make_layout(size))


@cute.jit
def prefetch_to_l2(pointer: cute.Pointer, size: Int32, worker: Int32, workers: Int32):
    """Bring `size` bytes into the L2 cache; this is worker number `worker` of `workers`."""
    line = 128 * 8 // pointer.dtype.width
    for i in cutlass.range(worker, cute.ceil_div(size, 128), workers, unroll=1):
        cute.arch.inline_ptx("prefetch.global.L2 [{$r0}];", read_only_args=[pointer + i * line])
