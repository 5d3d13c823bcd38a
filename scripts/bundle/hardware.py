"""The hardware of a trace: a machine, and what was emulated on it."""

from __future__ import annotations

import re

UNKNOWN = "unknown"  # a machine, a driver or a harness
_MARK = re.compile(r" \((\w+) emulated\)$")


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
