"""What a run orders of a solution's process, what that may take, and how it fails."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from flashinfer_bench.data import Definition, EvaluationStatus, Solution

from .channel import Slot

CHANGE = ("change", torch.int64, (3,))
"""In the shared memory: number of the input tensor, first element and count of what has changed."""
Change = tuple[int, int, torch.Tensor]
"""(number of the input tensor, flat index, new values in a row from there on)."""


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


class Failure(Exception):
    """The solution's process gave no usable result; why, for people, is the text."""

    def __init__(self, status: EvaluationStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Order:
    """What a process is started for. Travels as JSON, from the parent only."""

    definition: str
    """The Definition as JSON."""
    solution: str | None
    """The Solution as JSON; None for the definition's reference."""
    lean: bool
    """Whether to take the oracle for the reference."""
    inputs: list[Slot | None]
    """None for a scalar."""
    scalars: list[Any]
    """As long as `inputs`; None for a tensor."""
    outputs: list[Slot]
    change: Slot
    """Where what has changed for a call stands, see `CHANGE`."""
    memory_limit: int | None
    """Bytes of private memory; None: unlimited."""
    confined: bool
    """Whether it may write below its own folder only, which is then its home, too."""
    device: str = "cpu"
    """cpu: the shared memory holds the arguments. cuda:0: they are copied there and back."""
    emulated: str | None = None
    """The architecture of the GPU that is emulated, such as sm_90a; None: there is none."""
    emulator_cache: str | None = None
    """Where the emulator's compiled runtime is."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Order:
        fields = json.loads(text)
        for name in ("inputs", "outputs"):
            fields[name] = [slot and Slot.of(slot) for slot in fields[name]]
        fields["change"] = Slot.of(fields["change"])
        return cls(**fields)
