"""What a timer needs of a GPU: marks on its time line, work that keeps it busy, its sensors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch

L2_BYTES = 256 << 20  # as flashinfer-bench clears before each call; larger than any L2 cache


@dataclass(frozen=True)
class Sensors:
    """What NVML tells about the GPU at this moment."""

    sm_mhz: int
    watts: float


class Device(Protocol):
    """A queue of work that runs beside the host. Everything but the last four methods enqueues."""

    def clear_cache(self) -> None:
        """Fill the L2 cache with something else than the operands of the next call."""

    def spin(self, us: float) -> None:
        """Be busy for that long, so that the host can run ahead."""

    def mark(self) -> Any:
        """A point on the device's time line."""

    def reached(self, mark: Any) -> bool:
        """Whether everything before the mark is done."""

    def us_between(self, start: Any, end: Any) -> float:
        """Microseconds between two marks that have been reached."""

    def synchronize(self) -> None:
        """Wait until nothing is left to do."""

    def host_us(self) -> float:
        """The host's clock."""

    def rest(self, us: float) -> None:
        """Let host and device idle."""

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        """Record what a call enqueues and return what enqueues it again, in one launch.

        Raises RuntimeError for a call that cannot be recorded, such as one that waits.
        """

    def sensors(self) -> Sensors | None:
        """None where NVML does not tell."""


class CudaDevice:
    """The current CUDA device and stream."""

    def __init__(self) -> None:
        self._cache = torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda")

    def clear_cache(self) -> None:
        self._cache.zero_()

    def spin(self, us: float) -> None:
        torch.cuda._sleep(max(1, int(us * self._cycles_per_us)))

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def reached(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def us_between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) * 1e3

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def host_us(self) -> float:
        return time.perf_counter() * 1e6

    def rest(self, us: float) -> None:
        time.sleep(us / 1e6)

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def sensors(self) -> Sensors | None:
        if self._nvml is None:
            return None
        nvml, handle = self._nvml
        watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1e3
        (instant,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
        if instant.nvmlReturn == nvml.NVML_SUCCESS:  # else a mean over the last second
            watts = instant.value.uiVal / 1e3
        return Sensors(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM), watts)

    @cached_property
    def _cycles_per_us(self) -> float:
        cycles = 1_000_000
        for _ in range(2):  # the first loads the kernel
            start = self.mark()
            torch.cuda._sleep(cycles)
            end = self.mark()
            self.synchronize()
        return cycles / self.us_between(start, end)

    @cached_property
    def _nvml(self) -> tuple[Any, Any] | None:
        """The library and this device's handle; by UUID, as CUDA may number GPUs in its own way."""
        import pynvml

        try:
            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
            return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError:  # a container without the driver's library
            return None
