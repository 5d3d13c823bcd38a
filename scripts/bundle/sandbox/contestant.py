"""The solution's side: builds one callable and calls it whenever the parent asks.

What runs here shares its process with the solution, which may change anything in it. So nothing
that is said here is believed but for this solution's own failure; the parent looks at the memory
and at its own clock. `solution` is the seam for devices that are emulated: see `build`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flashinfer_bench.data import Definition, Solution

from ..dataset.oracle import build_oracle
from ..runs.harness import BuildError, build_reference, build_solution, normalize_result
from .channel import REQUEST, Answer, Command, Outcome, Request, Slot, open_tensors
from .integrity import replaced, watched
from .poison import poisoned_like

MESSAGE_CHARACTERS = 800
"""Of an exception's text; an answer holds `TEXT_BYTES`."""


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
    memory_limit: int | None
    """Bytes of private memory; None: unlimited."""
    confined: bool
    """Whether it may write below its own folder only, which is then its home, too."""
    device: str = "cpu"
    """cpu: the shared memory holds the arguments. cuda:0: they are copied there and back."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Order:
        fields = json.loads(text)
        for name in ("inputs", "outputs"):
            fields[name] = [slot and Slot(**{**slot, "shape": tuple(slot["shape"])})
                            for slot in fields[name]]  # fmt: skip
        return cls(**fields)


class WrongOutput(Exception):
    """A value that is returned and cannot be an output."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


def serve(connection: socket.socket, order: Order, memory: int) -> None:
    """Answer requests until told to end; never returns."""
    me = os.getpid()
    contestant = _Contestant(order, memory)
    while True:
        message = connection.recv(REQUEST.size)
        if not message:  # the parent has gone
            os._exit(0)
        request = Request.unpack(message)
        answer = contestant.answer(request)
        is_copy = os.getpid() != me
        if is_copy:
            answer = replace(answer, outcome=Outcome.COPY_RETURNED)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()  # the solution may have closed or replaced it
        connection.send(answer.pack())
        if is_copy:
            os._exit(1)
        if request.command is Command.END:
            # Threads of the solution may go on for as long as the parent lets them.
            connection.recv(1)
            os._exit(0)


def report(error: BaseException) -> str:
    """Write the traceback to the log, and return the exception's one line, neither without end."""
    for line in traceback.format_tb(error.__traceback__, limit=-20):
        os.write(2, line.encode("utf-8", "backslashreplace"))
    try:
        text = str(error)
    except Exception as second:
        text = f"<{type(second).__name__} in its __str__>"
    shown = text[:MESSAGE_CHARACTERS]
    if len(text) > len(shown):
        shown += f"... ({len(text)} characters)"
    line = f"{type(error).__name__}: {shown}" if shown else type(error).__name__
    if isinstance(error, SystemExit):
        line = f"called sys.exit({shown})"
    cause = error.__cause__
    if cause is not None and cause is not error and cause.__cause__ is None:
        report(cause)
    os.write(2, (line + "\n").encode("utf-8", "backslashreplace"))
    return line


class _Contestant:
    """The callable and its arguments."""

    def __init__(self, order: Order, memory: int) -> None:
        self.order = order
        self.memory = memory
        self.function: Callable | None = None
        self.takes_outputs = False

    def answer(self, request: Request) -> Answer:
        """Do what is asked for; whatever the solution raises is a result."""
        outcome, number, text = Outcome.DONE, 0, ""
        try:
            if request.command is Command.BUILD:
                self.build()
            elif request.command is Command.CALL:
                self.call(request.number)
            else:
                self.check_integrity()
                number = threading.active_count() - 1
        except WrongOutput as error:
            outcome, text = error.outcome, str(error)
        except BuildError as error:
            outcome, text = Outcome.COMPILE_ERROR, report(error)
        except BaseException as error:  # KeyboardInterrupt and SystemExit are failures like others
            outcome, text = Outcome.RUNTIME_ERROR, report(error)
        return Answer(request.nonce, outcome, number, text)

    def build(self) -> None:
        """Raises BuildError as the harness's builders do.

        An emulated device has to be installed first, by whatever `order.solution` tells of what it
        needs; this is the only place for it, in a process that no other solution will see.
        """
        definition = Definition.model_validate_json(self.order.definition)
        self.definition = definition
        self.intact = watched()
        if self.order.solution is not None:
            solution = Solution.model_validate_json(self.order.solution)
            self.function, self.takes_outputs = build_solution(definition, solution)
        elif self.order.lean:
            self.function = build_oracle(definition)
        else:
            self.function = build_reference(definition)

    def check_integrity(self) -> None:
        """Raises WrongOutput if the solution has replaced what others rely on."""
        if names := replaced(self.intact):
            raise WrongOutput(Outcome.RUNTIME_ERROR, f"replaced {', '.join(names[:8])}")

    def call(self, times: int) -> None:
        """Call it `times` times on the arguments in the shared memory.

        Outputs are new tensors, copied as soon as the solution returns: it cannot write them later.
        """
        slots = [slot for slot in self.order.inputs if slot is not None]
        tensors = open_tensors(self.memory, [*slots, *self.order.outputs])
        outputs = tensors[len(slots) :]
        remaining = iter(tensors)
        arguments = [
            value if slot is None else next(remaining)
            for slot, value in zip(self.order.inputs, self.order.scalars, strict=True)
        ]
        with torch.no_grad():
            for _ in range(times):
                if self.takes_outputs:
                    results = [poisoned_like(output) for output in outputs]
                    self.function(*arguments, *results)
                else:
                    results = self._as_tensors(self.function(*arguments))
            for slot, output, value in zip(self.order.outputs, outputs, results, strict=True):
                _check(slot, value)
                output.copy_(value)

    def _as_tensors(self, result: Any) -> list[torch.Tensor]:
        """What was returned, one tensor per output; raises WrongOutput for anything else."""
        names = [slot.name for slot in self.order.outputs]
        kind = type(result).__name__
        if result is None:
            raise WrongOutput(
                Outcome.RUNTIME_ERROR, f"returned None, expected {', '.join(names)} (or does it "
                "write its outputs? then destination_passing_style = true)"
            )  # fmt: skip
        values: Sequence[Any] = result if isinstance(result, tuple | list) else [result]
        if len(values) != len(names):
            raise WrongOutput(
                Outcome.RUNTIME_ERROR,
                f"returned a {kind} of {len(values)}, expected {len(names)}: {', '.join(names)}",
            )
        for name, value in zip(names, values, strict=True):
            if not isinstance(value, torch.Tensor | int | float | bool):
                raise WrongOutput(
                    Outcome.RUNTIME_ERROR,
                    f"returned a {type(value).__name__}, expected a tensor for {name}",
                )
        return normalize_result(self.definition, result, "cpu")


def _check(slot: Slot, value: torch.Tensor) -> None:
    if tuple(value.shape) != slot.shape:
        raise WrongOutput(
            Outcome.INCORRECT_SHAPE,
            f"{slot.name}: expected shape {list(slot.shape)}, got {list(value.shape)}",
        )
    if value.dtype != slot.torch_dtype:
        raise WrongOutput(
            Outcome.INCORRECT_DTYPE, f"{slot.name}: expected {slot.torch_dtype}, got {value.dtype}"
        )


def enter(folder: Path) -> None:
    """Make `folder` this process's home, working folder and place for temporary files."""
    os.chdir(folder)
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "FIB_CACHE_PATH", "TRITON_HOME"):
        os.environ[name] = str(folder)
