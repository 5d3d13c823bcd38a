"""What kernels run on, and how a trace names it, emulated or not."""

from __future__ import annotations

import re
from dataclasses import dataclass

UNKNOWN = "unknown"  # a machine, a driver or a harness
_MARK = re.compile(r" \((\w+) emulated\)$")


@dataclass(frozen=True)
class Device:
    """What kernels run on; `compute_capability` is 10 * major + minor, None without CUDA."""

    name: str
    compute_capability: int | None
    emulated: str | None = None  # without CUDA: the architecture that is emulated, such as sm_90a

    @property
    def is_cuda(self) -> bool:
        return self.compute_capability is not None


def marked(machine: str, architecture: str) -> str:
    """What the trace of a solution says whose kernels ran on an emulator."""
    return f"{machine} ({architecture} emulated)"


def emulated(hardware: str) -> str | None:
    """The architecture that a trace's hardware says was emulated, such as sm_90a."""
    found = _MARK.search(hardware)
    return found and found[1]


def unmarked(hardware: str) -> str:
    """The machine that a trace was made on, emulated or not."""
    return _MARK.sub("", hardware)
