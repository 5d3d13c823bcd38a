"""Reading a profile; tests/bundle/test_timer.py makes one on a GPU."""

import pytest
from bundle.probes.profiler import Launch, ProfiledCall, profiled_calls

SPIN = "at::cuda::(anonymous namespace)::spin_kernel(long)"


class Trace:
    """Events of a Chrome trace as Kineto writes them."""

    def __init__(self) -> None:
        self.events: list[dict] = []

    def work(self, name: str, start: float, duration: float, launched: float | None = None) -> None:
        """Something on the GPU, and the call of the driver that returned at `launched`."""
        number = len(self.events)
        category = "gpu_memset" if name.startswith("Memset") else "kernel"
        event = {"cat": category, "name": name, "ts": start, "dur": duration}
        self.events.append(event | {"args": {"correlation": number}})
        if launched is not None:
            host = {"cat": "cuda_driver", "name": "cuLaunchKernelEx", "ts": launched - 2, "dur": 2}
            self.events.append(host | {"args": {"correlation": number}})

    def clear(self, start: float) -> None:
        self.work("Memset (Device)", start, 64)

    def calls(self) -> list[ProfiledCall]:
        return profiled_calls({"traceEvents": self.events[::-1]})


def test_a_profile_is_cut_at_the_markers():
    trace = Trace()
    trace.clear(0)
    trace.work(SPIN, 70, 1, launched=68)
    trace.work("k1", 80, 10, launched=79)
    trace.work("k2", 88, 7, launched=84)
    trace.work("Memset (Device)", 96, 1, launched=85)
    trace.clear(100)
    trace.work(SPIN, 170, 1, launched=169)
    trace.work("k1", 180, 12)
    trace.work("inside", 181, 3)
    trace.clear(200)
    trace.work(SPIN, 270, 1)
    assert trace.calls() == [
        ProfiledCall([Launch("k1", 10), Launch("k2", 5), Launch("Memset (Device)", 1)], 11),
        ProfiledCall([Launch("k1", 12), Launch("inside", 0)], None),  # k1's launch was not seen
    ]


def test_a_call_may_launch_nothing():
    trace = Trace()
    for start in (0, 100):
        trace.clear(start)
        trace.work(SPIN, start + 70, 1, launched=start + 69)
    assert trace.calls() == [ProfiledCall([], None)]


def test_a_profile_without_kernels_says_so():
    with pytest.raises(ValueError, match="expected 2 or more markers .* among 0 launches"):
        profiled_calls({"traceEvents": []})
