"""An evaluator in another process, wherever that is, and its loss."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol


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
