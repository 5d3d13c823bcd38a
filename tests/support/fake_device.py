"""A device that computes nothing: its works have lengths, and host and device have a clock each."""

from dataclasses import dataclass, field

from bundle.probes.device import Sensors


@dataclass
class FakeDevice:
    """A queue whose works have lengths; enqueuing one takes the host `launch_us`."""

    launch_us: float = 5.0
    clear_us: float = 60.0
    host: float = 1000.0
    free_at: float = 0.0
    """When the last of what is enqueued is done."""
    marks: list[float] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    readings: list[Sensors | None] = field(default_factory=list)

    def work(self, us: float, name: str = "work") -> None:
        self.host += self.launch_us
        self.free_at = max(self.free_at, self.host) + us
        self.log.append(name)

    def clear_cache(self) -> None:
        self.work(self.clear_us, "clear")

    def spin(self, us: float) -> None:
        self.work(us, "spin")

    def mark(self) -> int:
        self.marks.append(max(self.free_at, self.host))
        return len(self.marks) - 1

    def reached(self, mark: int) -> bool:
        return self.marks[mark] <= self.host

    def us_between(self, start: int, end: int) -> float:
        assert self.reached(start) and self.reached(end)
        return self.marks[end] - self.marks[start]

    def synchronize(self) -> None:
        self.host = max(self.host, self.free_at)

    def wait(self) -> None:
        """What a call does that waits."""
        self.log.append("wait")
        self.synchronize()

    def host_us(self) -> float:
        return self.host

    def rest(self, us: float) -> None:
        self.host += us
        self.log.append(f"rest {us:g}")

    def capture(self, call):
        """Every call can be captured that does not wait; a replay is one launch."""
        before = len(self.log)
        call()
        if "wait" in self.log[before:]:
            raise RuntimeError("a waiting call cannot be captured\nand more lines")
        return lambda: self.work(30.0, "replay")

    def sensors(self) -> Sensors | None:
        self.host += 20.0
        return self.readings.pop(0) if self.readings else None


def launches(device: FakeDevice, *works: float, host_us: float = 0.0):
    """A call: the host computes, then launches kernels of these lengths."""

    def call() -> None:
        device.host += host_us
        for us in works:
            device.work(us)

    return call
