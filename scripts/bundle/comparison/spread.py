"""How far the latencies of repeated runs lie apart.

The harness keeps the mean of its trials only, so the spread of a figure is that of repeated runs:
several traces of a solution on a workload, from folders such as before/1 and before/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

ASSUMED_SPREAD = 0.05  # either way, of a figure that was measured once: no other is known


@dataclass(frozen=True)
class Measured:
    """The runs of one solution on one workload, all of which passed; microseconds."""

    runs: int
    mean_us: float
    least_us: float
    most_us: float
    """The spread; of a lone run, ASSUMED_SPREAD either way."""

    @classmethod
    def of(cls, times_us: Sequence[float | None]) -> Measured | None:
        """None if any run failed, which has no time: what fails sometimes has no latency."""
        times = [us for us in times_us if us is not None]
        if len(times) < len(times_us):
            return None
        lone = ASSUMED_SPREAD if len(times) == 1 else 0.0
        return cls(len(times), fmean(times), min(times) * (1 - lone), max(times) * (1 + lone))

    @property
    def share(self) -> float:
        """The larger distance from the mean, over the mean."""
        return max(self.most_us - self.mean_us, self.mean_us - self.least_us) / self.mean_us

    @property
    def text(self) -> str:
        return f"{self.mean_us:,.1f} ±{100 * self.share:.1f} %" + ("?" if self.runs == 1 else "")
