"""Where jobs are evaluated: a machine, a process of its own there, and its loss."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from ..hardware import Device


@dataclass(frozen=True)
class Machine:
    """Where jobs are evaluated."""

    device: Device
    hardware: str
    """As a trace names it."""
    libs: dict[str, str]
    """Versions of what the figures depend on, the bundle's own among them."""

    @property
    def facts(self) -> dict[str, str]:
        """What must agree between machines whose figures are compared."""
        return {"hardware": self.hardware} | self.libs


class WorkerLost(Exception):
    """A worker's process has ended, or its machine is gone; the text says how that was noticed."""


class Worker(Protocol):
    """An Evaluator in another process."""

    name: str

    def ask(self, method: str, *arguments: Any) -> Future:
        """Call a method of the Evaluator; one at a time. The future raises what that has raised, or
        WorkerLost."""

    def close(self) -> None:
        """End the process, whatever it is doing."""
