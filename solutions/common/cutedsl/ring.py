"""A circular buffer in shared memory, guarded by one full and one empty mbarrier per slot."""

from __future__ import annotations

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import Int32
from cutlass.pipeline import PipelineState


def producer_state(slots: int) -> PipelineState:
    """Position of a writer: its first wait on an empty barrier succeeds at once."""
    return PipelineState(slots, Int32(0), Int32(0), Int32(1))


def consumer_state(slots: int) -> PipelineState:
    """Position of a reader."""
    return PipelineState(slots, Int32(0), Int32(0), Int32(0))


def block_rank(cluster: int) -> Int32:
    """Number of this block in its cluster of `cluster` blocks."""
    return cute.arch.block_idx()[0] % cluster


@dataclass(frozen=True)
class Ring:
    """Barriers of `slots` slots: `slots` full barriers, then `slots` empty ones (Int64 each).

    Every reader and writer walks the slots in order with a state of its own
    (`producer_state`, `consumer_state`) and advances it after each slot.
    cluster: blocks of the cluster, all of which have such a ring.
    """

    barriers: cute.Pointer
    slots: cutlass.Constexpr[int]
    cluster: cutlass.Constexpr[int] = 1

    def init(self, full_arrivals: int, empty_arrivals: int) -> None:
        """Called by one thread, before a fence and a barrier of the whole block."""
        for i in range(self.slots):
            cute.arch.mbarrier_init(self.barriers + i, full_arrivals)
            cute.arch.mbarrier_init(self.barriers + self.slots + i, empty_arrivals)

    def full_barrier(self, state: PipelineState) -> cute.Pointer:
        """The barrier that tells that the slot has been filled."""
        return self.barriers + state.index

    def empty_barrier(self, state: PipelineState) -> cute.Pointer:
        """The barrier that tells that every reader has released the slot."""
        return self.barriers + self.slots + state.index

    def wait_full(self, state: PipelineState) -> None:
        """Reader: wait until the slot has been filled."""
        cute.arch.mbarrier_wait(self.full_barrier(state), state.phase)

    def wait_empty(self, state: PipelineState) -> None:
        """Writer: wait until every reader has released the slot."""
        cute.arch.mbarrier_wait(self.empty_barrier(state), state.phase)

    def arrive_empty(self, state: PipelineState, block: Int32 | None = None) -> None:
        """Reader: one arrival on the empty barrier (by each thread that calls it), in another
        block of the cluster if one is given."""
        cute.arch.mbarrier_arrive(self.empty_barrier(state), block)

    @cute.jit
    def release_by_halves(self, state: PipelineState):
        """Reader, all lanes of a warp, without a cluster: release a slot, by 32 arrivals.

        The halves of the warp arrive in two branches: then ptxas 13.4 keeps the descriptors of a
        loop's wgmmas in uniform registers, and else not (docs/2026-11-25-cutedsl-middle.md).
        """
        if cute.arch.lane_idx() < 16:
            self.arrive_empty(state)
        else:
            self.arrive_empty(state)

    @cute.jit
    def release(self, state: PipelineState, block: Int32):
        """Reader, all lanes of a warp: release a slot in the own block and in `block` of its
        cluster; that is 32 arrivals in the own block, and one in `block` if it is another.

        In the own block, one lane's arrival after a warp barrier would do as well and costs as
        much, but racecheck takes the other lanes' reads for unordered then.
        """
        self.arrive_empty(state)
        if cutlass.const_expr(self.cluster > 1):
            cute.arch.sync_warp()
            if cute.arch.lane_idx() == 0 and block != block_rank(self.cluster):
                self.arrive_empty(state, block)
