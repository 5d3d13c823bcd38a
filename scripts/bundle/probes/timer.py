"""Times on the GPU: medians with a cold L2 cache, single kernels by name, and what ran where."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

L2_BYTES = 256 << 20  # as flashinfer-bench clears before each call; larger than any L2 cache
MARKER = "spin_kernel"  # the kernel of torch.cuda._sleep, which no solution launches
GPU_WORK = ("kernel", "gpu_memset", "gpu_memcpy")  # categories of Kineto's Chrome traces


@dataclass(frozen=True)
class Launch:
    """One kernel, memset or copy on the GPU."""

    name: str
    us: float
    """Time in which no earlier launch of the same call was still running: kernels that overlap
    (programmatic dependent launch) are not counted twice, and the times add up."""


class Timer:
    """Calls something on the current GPU, each time with a cold L2 cache."""

    def __init__(self, warmups: int = 2, iterations: int = 10) -> None:
        self.warmups = warmups
        self.iterations = iterations
        self._cache = torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda")

    def median_us(self, call: Callable[[], object], count_launch: bool = True) -> float:
        """Median time of a call in microseconds, by CUDA events.

        count_launch: the GPU is idle when the clock starts, as in flashinfer-bench, so the host's
        work up to the first kernel counts. Else the host runs ahead while the cache is cleared.
        """
        for _ in range(self.warmups):
            call()
        events = []
        for _ in range(self.iterations):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._cache.zero_()
            if count_launch:
                torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return median(start.elapsed_time(end) for start, end in events) * 1e3

    def profile(self, call: Callable[[], object], iterations: int = 5) -> list[list[Launch]]:
        """What each of `iterations` calls ran on the GPU, by torch.profiler."""
        call()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(iterations):
                self._mark()
                call()
            self._mark()
            torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            return launches_by_call(json.loads(path.read_text(encoding="utf-8")))

    def _mark(self) -> None:
        self._cache.zero_()
        torch.cuda.synchronize()
        torch.cuda._sleep(1)


def launches_by_call(trace: dict) -> list[list[Launch]]:
    """Cut a Chrome trace at the markers: what ran after each but the last, in order of start.

    The last launch before a marker is the clearing of the cache for the next call.
    Raises ValueError if the trace has no call.
    """
    work = [event for event in trace["traceEvents"] if event.get("cat") in GPU_WORK]
    work.sort(key=lambda event: event["ts"])
    marks = [i for i, event in enumerate(work) if MARKER in event["name"]]
    if len(marks) < 2:
        raise ValueError(
            f"profile: expected 2 or more markers ({MARKER}) among {len(work)} launches on the "
            f"GPU, got {len(marks)}: may this process use CUPTI?"
        )
    calls = []
    for begin, end in zip(marks, marks[1:]):
        launches, busy_until = [], 0.0
        for event in work[begin + 1 : end - 1]:
            start, stop = event["ts"], event["ts"] + event["dur"]
            launches.append(Launch(event["name"], max(0.0, stop - max(start, busy_until))))
            busy_until = max(busy_until, stop)
        calls.append(launches)
    return calls
