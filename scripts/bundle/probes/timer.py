"""Times of calls on a GPU: alone with a cold L2 cache, without pause, and the host's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from .device import CudaDevice, Device

Call = Callable[[], object]

REST = 10.0  # times of a call: pauses that keep the GPU below its power limit
LONGEST_REST_US = 150_000
READINGS = 3  # of the sensors
HIDING = 1.5  # how much longer the device spins than the host took to launch
LONGER = 4  # times as long for the next try, if that was not enough
LONGEST_SPIN_US = 20_000  # a call that is not hidden by then waits for the device


@dataclass(frozen=True)
class ColdTimes:
    """Times of one call among others, each with a cold L2 cache."""

    us: list[float]
    hidden: bool
    """Every launch was enqueued before the clock started. False for a call that waits for the
    device: its times contain the host's work from there on."""


@dataclass(frozen=True)
class Sustained:
    """Calls one after the other without any pause, the L2 cache as the last one left it."""

    us: float
    """Mean per call."""
    sm_mhz: float | None
    watts: float | None
    """At the end of the calls; None where NVML does not tell."""


class Timer:
    """Measures calls that enqueue work on a device."""

    def __init__(self, device: Device | None = None, warmups: int = 2, iterations: int = 10):
        self.device = device or CudaDevice()
        self.warmups = warmups
        self.iterations = iterations

    def median_us(self, call: Call, count_launch: bool = True) -> float:
        """Median time of a call in microseconds with a cold L2 cache.

        count_launch: the device is idle when the clock starts, as in flashinfer-bench, so the
        host's work up to the first kernel counts. Else the launches are hidden.
        """
        for _ in range(self.warmups):
            call()
        if not count_launch:
            (times,) = self.cold([call], [self.iterations])
            return median(times.us)
        device, marks = self.device, []
        for _ in range(self.iterations):
            device.clear_cache()
            device.synchronize()
            start = device.mark()
            call()
            marks.append((start, device.mark()))
        device.synchronize()
        return median(device.us_between(*pair) for pair in marks)

    def host_us(self, call: Call, iterations: int) -> list[float]:
        """Microseconds of the host until the call returns, called on an idle device."""
        device, times = self.device, []
        for _ in range(iterations):
            device.synchronize()
            start = device.host_us()
            call()
            times.append(device.host_us() - start)
        device.synchronize()
        return times

    def cold(self, calls: Sequence[Call], rounds: Sequence[int]) -> list[ColdTimes]:
        """Times of each call with a cold L2 cache and its launches hidden.

        The calls take turns, so that what changes over time (clocks, temperature) meets all of
        them; call i does so in the first rounds[i] rounds. After each the device rests.
        """
        spins = [
            min(HIDING * min(self.host_us(call, min(2, count))), LONGEST_SPIN_US)
            for call, count in zip(calls, rounds, strict=True)
        ]
        times: list[list[float]] = [[] for _ in calls]
        hidden = [True] * len(calls)
        for turn in range(max(rounds, default=0)):
            for i, call in enumerate(calls):
                if turn >= rounds[i]:
                    continue
                us, ahead = self._cold_once(call, spins[i])
                while hidden[i] and not ahead:
                    longer = LONGER * spins[i]
                    hidden[i] = longer <= LONGEST_SPIN_US
                    spins[i] = longer if hidden[i] else 0.0
                    us, ahead = self._cold_once(call, spins[i])
                times[i].append(us)
                self.device.rest(min(REST * us, LONGEST_REST_US))
        return [ColdTimes(*each) for each in zip(times, hidden, strict=True)]

    def rounds_in(self, budget_us: float, us: float, most: int) -> int:
        """How many rounds of `cold` a call of about `us` gets in that time, one at least."""
        return max(1, min(most, int(budget_us / (us + min(REST * us, LONGEST_REST_US)))))

    def _cold_once(self, call: Call, spin_us: float) -> tuple[float, bool]:
        """Microseconds of a call, and whether the host was ahead of the device all the time."""
        device = self.device
        device.clear_cache()
        device.spin(spin_us)
        start = device.mark()
        call()
        end = device.mark()
        ahead = not device.reached(start)
        device.synchronize()
        return device.us_between(start, end), ahead

    def sustained(self, call: Call, calls: int) -> Sustained:
        """Mean time of `calls` calls without a pause, and what the sensors say at their end."""
        device, readings = self.device, []
        reading_calls = min(READINGS, calls)
        device.synchronize()
        start = device.mark()
        for _ in range(calls):
            call()
        end = device.mark()
        for _ in range(reading_calls):
            call()  # while it runs: the clock, and the power even more, change at once in a pause
            readings.append(device.sensors())
        device.synchronize()
        told = [reading for reading in readings if reading]
        return Sustained(
            device.us_between(start, end) / calls,
            fmean(reading.sm_mhz for reading in told) if told else None,
            fmean(reading.watts for reading in told) if told else None,
        )
