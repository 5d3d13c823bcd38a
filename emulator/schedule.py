"""In which order warps run, and when asynchronous operations happen."""

from __future__ import annotations

from dataclasses import dataclass

_ORDERS = {"eager": 0, "lazy": 1, "random": 2}  # Schedule of machine.h


@dataclass(frozen=True)
class Schedule:
    """One of the orders that the hardware could take.

    order: "eager" does asynchronous operations when they are issued, "lazy" as late as their waits
    allow, both with the warps in turn; "random" does everything at random times.
    seed: of the random order. slice: basic blocks that a warp runs in a turn, at most; few of them
    mix the warps finely.
    """

    order: str = "eager"
    seed: int = 1
    slice: int = 64

    def __post_init__(self) -> None:
        if self.order not in _ORDERS:
            raise ValueError(f"order: expected one of {', '.join(_ORDERS)}, got {self.order!r}")
        if self.slice < 1:
            raise ValueError(f"slice: expected at least 1, got {self.slice}")

    @property
    def number(self) -> int:
        return _ORDERS[self.order]


EAGER = Schedule("eager")
LAZY = Schedule("lazy")


def random_schedules(count: int) -> list[Schedule]:
    """`count` random orders, with long and short turns."""
    return [Schedule("random", seed, (64, 8, 2)[seed % 3]) for seed in range(1, count + 1)]
