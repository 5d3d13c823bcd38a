"""The messages and the memory that a solution's process shares with its parent.

Both messages have one fixed size. An answer repeats the request's nonce: an answer to another
request, early, late or doubled, is noticed and never taken for this one's.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from math import prod
from typing import Any

import torch

REQUEST = struct.Struct("<16sBI")
"""nonce, `Command`, number."""
ANSWER = struct.Struct("<16sBI1000s")
"""nonce, `Outcome`, number, UTF-8 text padded with NUL."""
TEXT_BYTES = 1000
ALIGNMENT = 4096

# linux/fcntl.h; the fcntl module has them only where Python was built against a new libc
ADD_SEALS, SEAL_SEAL, SEAL_SHRINK, SEAL_GROW = 1033, 1, 2, 4


class Command(IntEnum):
    BUILD = 0
    CALL = 1
    """Call the solution once; on a GPU under a stream of its own if `number` is 1. Of the oracle,
    the answer has a bit for each expert that it has used."""
    END = 2
    """Answer with the number of Python threads that are left, and exit."""
    LOAD = 3
    """Take the arguments from the shared memory. Where they are used in place, nothing to do."""
    FETCH = 4
    """Put the arguments back there, as they are now."""
    TIME = 5
    """Call it `number` times, and answer with the mean time in ns by this process's own clock."""
    COMPARE = 6
    """Call it `number` times after a change of the inputs and once more each, without; answer with
    the second calls' time, per mille of the first ones'."""


class Outcome(IntEnum):
    DONE = 0
    COMPILE_ERROR = 1
    RUNTIME_ERROR = 2
    INCORRECT_SHAPE = 3
    INCORRECT_DTYPE = 4
    COPY_RETURNED = 5
    """From a forked copy of the solution's process that came back from the solution."""


@dataclass(frozen=True)
class Request:
    nonce: bytes
    command: Command
    number: int = 0

    def pack(self) -> bytes:
        return REQUEST.pack(self.nonce, self.command, self.number)

    @classmethod
    def unpack(cls, message: bytes) -> Request:
        nonce, command, number = REQUEST.unpack(message)
        return cls(nonce, Command(command), number)


@dataclass(frozen=True)
class Answer:
    nonce: bytes
    outcome: Outcome
    number: int = 0
    text: str = ""

    def pack(self) -> bytes:
        text = self.text.encode("utf-8", "backslashreplace")[:TEXT_BYTES]
        return ANSWER.pack(self.nonce, self.outcome, self.number, text)

    @classmethod
    def unpack(cls, message: bytes) -> Answer:
        """Raises ValueError for what is no answer: any process can write into the socket."""
        if len(message) != ANSWER.size:
            raise ValueError(f"expected {ANSWER.size} bytes, got {len(message)}")
        nonce, outcome, number, text = ANSWER.unpack(message)
        return cls(nonce, Outcome(outcome), number, text.rstrip(b"\0").decode("utf-8", "replace"))


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in the shared memory."""

    name: str
    dtype: str
    """Of torch, without its prefix: bfloat16."""
    shape: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, fields: dict) -> Slot:
        """From its fields as JSON gives them."""
        return cls(**{**fields, "shape": tuple(fields["shape"])})

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.torch_dtype.itemsize


def lay_out(tensors: Sequence[tuple[str, torch.dtype, Sequence[int]]]) -> tuple[list[Slot], int]:
    """A slot for each (name, dtype, shape), and the bytes that they take together."""
    slots, offset = [], 0
    for name, dtype, shape in tensors:
        slot = Slot(name, str(dtype).removeprefix("torch."), tuple(shape), offset)
        slots.append(slot)
        offset += -(-slot.nbytes // ALIGNMENT) * ALIGNMENT
    return slots, max(offset, ALIGNMENT)


def create_memory(size: int, content: bytes = b"") -> int:
    """A descriptor of `size` bytes of memory which nobody can make shorter or longer."""
    memory = os.memfd_create("solution", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size)
    os.pwrite(memory, content, 0)
    fcntl.fcntl(memory, ADD_SEALS, SEAL_SHRINK | SEAL_GROW | SEAL_SEAL)
    return memory


def open_tensors(memory: int, slots: Sequence[Slot]) -> list[torch.Tensor]:
    """The tensors in the shared memory; they keep it mapped as long as one of them lives."""
    mapped = mmap.mmap(memory, 0)
    return [
        torch.frombuffer(mapped, dtype=torch.uint8, count=slot.nbytes, offset=slot.offset)
        .view(slot.torch_dtype)
        .view(slot.shape)
        if slot.nbytes
        else torch.empty(slot.shape, dtype=slot.torch_dtype)
        for slot in slots
    ]


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
    """Where what has changed for a call stands, see changes.CHANGE."""
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
