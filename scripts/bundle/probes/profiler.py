"""What a call ran on the GPU and when the host had launched the first of it, by torch.profiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from .device import L2_BYTES

MARKER = "spin_kernel"  # the kernel of torch.cuda._sleep, which no solution launches
GPU_WORK = ("kernel", "gpu_memset", "gpu_memcpy")  # categories of Kineto's Chrome traces
HOST_CALLS = ("cuda_runtime", "cuda_driver")


@dataclass(frozen=True)
class Launch:
    """One kernel, memset or copy on the GPU."""

    name: str
    us: float
    """Time in which no earlier launch of the same call was still running: kernels that overlap
    (programmatic dependent launch) are not counted twice, and the times add up."""


@dataclass(frozen=True)
class ProfiledCall:
    """One call on an idle GPU with a cold L2 cache."""

    launches: list[Launch]
    """In order of start."""
    first_launch_us: float | None
    """Of the host, from the start of the call until it has launched what ran first; None for a call
    that launched nothing."""


def profile(calls: Sequence[Callable[[], object]], iterations: int) -> list[list[ProfiledCall]]:
    """What each of `iterations` runs of each call did, by torch.profiler; they ran before.

    Raises ValueError where the profiler sees no kernels: CUPTI may be for the administrator only.
    """
    cache = torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda")

    def mark() -> None:
        cache.zero_()
        torch.cuda.synchronize()
        torch.cuda._sleep(1)

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for call in calls:
            for _ in range(iterations):
                mark()
                call()
        mark()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        profiled = profiled_calls(json.loads(path.read_text(encoding="utf-8")))
    return [profiled[i : i + iterations] for i in range(0, len(profiled), iterations)]


def profiled_calls(trace: dict) -> list[ProfiledCall]:
    """Cut a Chrome trace at the markers: what was between each and the next.

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
    launched = {
        event["args"]["correlation"]: event["ts"] + event["dur"]
        for event in trace["traceEvents"]
        if event.get("cat") in HOST_CALLS
    }

    def launched_at(event: dict) -> float | None:
        return launched.get(event.get("args", {}).get("correlation"))

    calls = []
    for begin, end in pairwise(marks):
        launches, busy_until = [], 0.0
        for event in work[begin + 1 : end - 1]:
            start, stop = event["ts"], event["ts"] + event["dur"]
            launches.append(Launch(event["name"], max(0.0, stop - max(start, busy_until))))
            busy_until = max(busy_until, stop)
        call_start, first = launched_at(work[begin]), launched_at(work[begin + 1])
        us = None
        if launches and call_start is not None and first is not None:
            us = first - call_start
        calls.append(ProfiledCall(launches, us))
    return calls
