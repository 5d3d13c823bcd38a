"""Roofline floor of the FP8 block-scale MoE layer: the least time that a GPU can need.

floor = max(active local experts * weight bytes per expert / read bandwidth,
            local (token, expert) pairs * FLOP per pair / dense FP8 rate)

Activations, routing and the combine are left out, so the floor is a little below the true one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

# (label, first and last seq_len): few tokens; the usual decode batch; weights still the limit
# although every expert is hit; tensor cores the limit.
REGIMES = (
    ("T <= 32", 0, 32),
    ("T 33-80", 33, 80),
    ("T 81-10000", 81, 10_000),
    ("T > 10000", 10_001, None),
)


@dataclass(frozen=True)
class Gpu:
    """What a roofline needs to know of a GPU, and where the figures come from."""

    bandwidth_tbs: float  # reads, 1e12 bytes per second
    fp8_tflops: float  # dense FP8 with fp32 accumulation, 1e12 FLOP per second
    source: str


Rates = Callable[[str], Gpu | None]
"""The figures of a GPU by its name in a trace's environment.hardware; None if not known."""


@dataclass(frozen=True)
class MoeGeometry:
    """The sizes that decide the cost of a definition of the FP8 block-scale MoE family."""

    hidden_size: int
    intermediate_size: int

    @classmethod
    def of_definition(cls, name: str) -> MoeGeometry | None:
        """Read the geometry from a definition's name; None if it is not of this family."""
        found = re.fullmatch(r"moe_fp8_block_scale_\w+_e\d+_h(\d+)_i(\d+)", name)
        return cls(int(found[1]), int(found[2])) if found else None

    @property
    def expert_bytes(self) -> int:
        """FP8 weights of one expert: GEMM1 is [2 * intermediate, hidden], GEMM2 its half."""
        return 3 * self.intermediate_size * self.hidden_size

    @property
    def pair_flop(self) -> int:
        """One multiply and one add per weight of the expert."""
        return 2 * self.expert_bytes

    def floor_us(self, gpu: Gpu, active_experts: int, pairs: int) -> float:
        """Microseconds that `gpu` needs at least for `pairs` pairs on `active_experts` experts."""
        reading = active_experts * self.expert_bytes / (gpu.bandwidth_tbs * 1e12)
        computing = pairs * self.pair_flop / (gpu.fp8_tflops * 1e12)
        return max(reading, computing) * 1e6


@dataclass(frozen=True)
class Routing:
    """How a workload's tokens meet the local experts."""

    workload_set: str  # of the official workloads, or of their replicas
    active_experts: int
    pairs: int


def regime_of(seq_len: int) -> str:
    """The label of the regime that `seq_len` tokens fall in."""
    return next(
        label
        for label, first, last in REGIMES
        if first <= seq_len and (last is None or seq_len <= last)
    )
