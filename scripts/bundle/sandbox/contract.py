"""What a run wants of a solution's process, what that may take, and how it fails."""

from __future__ import annotations

from dataclasses import dataclass

from flashinfer_bench.data import Definition, EvaluationStatus, Solution


@dataclass(frozen=True)
class Subject:
    """What is to be run: a solution or, with None, the definition's reference."""

    definition: Definition
    solution: Solution | None = None
    lean: bool = False
    """Whether the oracle stands for the reference."""
    emulated: str | None = None
    """The architecture of the GPU to emulate for the solution; None: none."""
    emulator_cache: str | None = None
    """Where the emulator's compiled runtime is; the solution's process only reads there."""


@dataclass(frozen=True)
class Limits:
    """What a solution may take before it is ended."""

    seconds: float
    """In which it has to answer, build and calls together."""
    memory_bytes: int | None = None
    """Of private memory, all its processes together; None: unlimited."""
    printed_bytes: int = 1 << 30
    written_bytes: int = 8 << 30
    """In files in its own folder."""
    processes: int = 256
    files: int = 10_000
    """In its own folder; to remove many takes as long as to make them."""


class Failure(Exception):
    """The solution's process gave no usable result; why, for people, is the text."""

    def __init__(self, status: EvaluationStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
