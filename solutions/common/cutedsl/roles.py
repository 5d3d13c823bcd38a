"""Who does what in a block, and what its mbarriers therefore wait for.

An mbarrier with a wrong count is a hang, or a slot that is overwritten while it is read. So each
role says how often it arrives, the counts are sums over the roles, and what cannot be is refused
when a kernel is made:

  ring.full    a slot is filled: arrivals of the roles that fill it, and the bytes that TMA brings
  ring.empty   a slot is free: arrivals of the roles that read it, in all blocks of the cluster
  queue.full   a tile record is there: one arrival of the scheduler; in a cluster, also its bytes
  queue.empty  a tile record is read: all lanes of each warp that reads it; for the first block of a
               cluster, which fills the queues of all, one lane of those of the other blocks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

LANES = 32
# the limits of mbarrier.init's count and of a phase's tx-count (PTX ISA 8.0 and later, mbarrier)
MOST_ARRIVALS = MOST_BYTES = 2**20 - 1
BLOCK_REGISTERS = 65_536  # 32-bit registers of a multiprocessor, of which a block can have all


class Role(NamedTuple):
    """Some warps of a block.

    reads_queue: whether each of them reads every tile record. fills, releases: how often the role
    arrives on a ring slot's full and empty barrier; remote_releases: on the empty barrier of each
    other block of its cluster. announced: bytes that it tells a slot's full barrier to expect;
    brought: bytes that its TMA loads bring to a slot, those of other blocks' multicasts included.
    """

    name: str
    warps: int
    reads_queue: bool = False
    fills: int = 0
    releases: int = 0
    remote_releases: int = 0
    announced: int = 0
    brought: int = 0


@dataclass(frozen=True)
class Barrier:
    """One phase of an mbarrier: arrivals and announced bytes by role, and the bytes brought."""

    name: str
    arrivals: dict[str, int]
    announced: int = 0
    brought: int = 0

    @property
    def count(self) -> int:
        """Arrivals of a phase, for mbarrier.init."""
        return sum(self.arrivals.values())

    def check(self) -> Barrier:
        """Raise ValueError, naming the barrier, if a phase could not end or would end early."""
        told = ", ".join(f"{role} {count}" for role, count in self.arrivals.items())
        if not 0 < self.count <= MOST_ARRIVALS:
            raise ValueError(
                f"{self.name}: expected 1 to {MOST_ARRIVALS} arrivals, got {self.count} ({told})"
            )
        if self.announced != self.brought:
            raise ValueError(
                f"{self.name}: expected as many bytes announced as TMA brings, {self.brought}, "
                f"got {self.announced} ({told})"
            )
        if self.brought > MOST_BYTES:
            raise ValueError(
                f"{self.name}: expected at most {MOST_BYTES} bytes, got {self.brought}"
            )
        return self


class Barriers(NamedTuple):
    """Those of a block; queue_empty: of a cluster's first block, then of the others."""

    ring_full: Barrier
    ring_empty: Barrier
    queue_full: Barrier
    queue_empty: tuple[Barrier, Barrier]


def barriers_of(
    roles: Sequence[Role], scheduler: Role, cluster: int, record_bytes: int
) -> Barriers:
    """The checked barriers of a block with these roles and the scheduler, in a cluster of `cluster`
    blocks; record_bytes: of a tile record, which comes by TMA only in a cluster."""
    others = cluster - 1
    record = record_bytes if others else 0
    own = {role.name: LANES * role.warps for role in roles if role.reads_queue}
    # in the other blocks the scheduler's warp reads along
    along = own | {scheduler.name: LANES * scheduler.warps}
    remote = {f"{name}, other blocks": others * count // LANES for name, count in along.items()}
    empty = {role.name: role.releases for role in roles}
    empty |= {f"{role.name}, other blocks": others * role.remote_releases for role in roles}
    return Barriers(
        Barrier(
            "ring.full",
            {role.name: role.fills for role in roles if role.fills},
            sum(role.announced for role in roles),
            sum(role.brought for role in roles),
        ).check(),
        Barrier("ring.empty", {name: count for name, count in empty.items() if count}).check(),
        Barrier("queue.full", {scheduler.name: scheduler.warps}, record, record).check(),
        (
            Barrier("queue.empty", {n: c for n, c in (own | remote).items() if c}).check(),
            Barrier("queue.empty", along).check(),
        ),
    )


def check_warps(
    producers: Sequence[Role], consumers: Sequence[Role], registers: tuple[int, int] | None
) -> None:
    """Raise ValueError unless producers and consumers are whole warpgroups, and have at most a
    multiprocessor's registers when each thread has taken its number (`registers`, of producers and
    consumers): asking for more would hang."""
    warps = [sum(role.warps for role in roles) for roles in (producers, consumers)]
    for name, count in zip(("producers", "consumers"), warps, strict=True):
        if not count or count % 4:
            raise ValueError(f"{name}: expected whole warpgroups of 4 warps, got {count} warps")
    if registers is not None:
        taken = LANES * sum(n * r for n, r in zip(warps, registers, strict=True))
        if taken > BLOCK_REGISTERS:
            raise ValueError(
                f"registers: expected at most {BLOCK_REGISTERS} for {warps[0]} and {warps[1]} "
                f"warps, got {taken}"
            )
