"""A circular buffer in shared memory, guarded by one full and one empty mbarrier per slot."""

from __future__ import annotations

from dataclasses import dataclass

import cutlass.cute as cute
from cutlass import Int32
from cutlass.pipeline import PipelineState


def producer_state(slots: int) -> PipelineState:
    """Position of a writer: its first wait on an empty barrier succeeds at once."""
    return PipelineState(slots, Int32(0), Int32(0), Int32(1))


def consumer_state(slots: int) -> PipelineState:
    """Position of a reader."""
    return PipelineState(slots, Int32(0), Int32(0), Int32(0))


@dataclass(frozen=True)
class Ring:
    """Barriers of `slots` slots: `slots` full barriers, then `slots` empty ones (Int64 each).

    Every reader and writer walks the slots in order with a state of its own
    (`producer_state`, `consumer_state`) and advances it after each slot.
    """

    barriers: cute.Pointer
    slots: int

    def init(self, full_arrivals: int, empty_arrivals: int) -> None:
        """Called by one thread, before a fence and a barrier of the whole block."""
        for i in range(self.slots):
            cute.arch.mbarrier_init(self.barriers + i, full_arrivals)
            cute.arch.mbarrier_init(self.barriers + self.slots + i, empty_arrivals)

    def acquire(self, state: PipelineState) -> None:
        """Writer: wait until every reader has released the slot."""
        cute.arch.mbarrier_wait(self.barriers + self.slots + state.index, state.phase)

    def wait_released(self, state: PipelineState) -> None:
        """Reader: wait until every reader has released the slot."""
        cute.arch.mbarrier_wait(self.barriers + self.slots + state.index, state.phase)

    def full_barrier(self, state: PipelineState) -> cute.Pointer:
        return self.barriers + state.index

    def empty_barrier(self, state: PipelineState) -> cute.Pointer:
        return self.barriers + self.slots + state.index

    def wait(self, state: PipelineState) -> None:
        """Reader: wait until the slot has been filled."""
        cute.arch.mbarrier_wait(self.barriers + state.index, state.phase)

    def release(self, state: PipelineState, block: Int32 | None = None) -> None:
        """Reader: one arrival on the empty barrier (by each thread that calls it), in another
        block of the cluster if one is given."""
        cute.arch.mbarrier_arrive(self.barriers + self.slots + state.index, block)
