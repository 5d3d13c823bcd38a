"""The solution's side: builds one callable and calls it whenever the parent asks.

What runs here shares its process with the solution, which may change anything in it. So nothing
that is said here is believed but for this solution's own failure; the parent looks at the memory
and at its own clock.
"""

from __future__ import annotations

import math
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from statistics import mean, median
from typing import Any

import torch
from flashinfer_bench.data import Definition, Solution

from ..dataset.oracle import Oracle, build_oracle
from ..harness import BuildError, build_reference, build_solution, normalize_result
from ..paths import ROOT
from .channel import Answer, Command, Order, Outcome, Request, Slot, open_tensors
from .integrity import replaced, watched
from .poison import poisoned_like

CACHE_VARIABLE = "MOE_EMULATOR_CACHE"
"""Read by the emulator: see emulator/build.py."""
MESSAGE_CHARACTERS = 800
"""Of an exception's text; an answer holds `TEXT_BYTES`."""


class WrongOutput(Exception):
    """A value that is returned and cannot be an output."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


def report(error: BaseException) -> str:
    """Write the traceback to the log, and return the exception's one line, neither without end."""
    for line in traceback.format_tb(error.__traceback__, limit=-20):
        _log(line)
    try:
        text = str(error)
    except BaseException as second:  # whatever the solution's exception does
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
    _log(line + "\n")
    return line


def _log(text: str) -> None:
    with suppress(OSError):  # the solution may have closed it
        os.write(2, text.encode("utf-8", "backslashreplace"))


def _nothing_built(*arguments: Any) -> Any:
    raise RuntimeError(f"called with {len(arguments)} arguments before anything was built")


class Contestant:
    """The callable and its arguments, on a CPU: it works on the shared memory in place."""

    def __init__(self, order: Order, memory: int) -> None:
        self.order = order
        self.memory = memory
        self.function: Callable[..., Any] = _nothing_built
        self.takes_outputs = False

    def answer(self, request: Request) -> Answer:
        """Do what is asked for; whatever the solution raises is a result."""
        outcome, number, text = Outcome.DONE, 0, ""
        try:
            if request.command is Command.BUILD:
                self.build()
            elif request.command is Command.CALL:
                self.call(bool(request.number))
                number = self.used_experts()
            elif request.command is Command.LOAD:
                self.load()
            elif request.command is Command.FETCH:
                self.fetch()
            elif request.command is Command.TIME:
                number = in_range(1e9 * mean(self.seconds() for _ in range(request.number)))
            elif request.command is Command.COMPARE:
                number = in_range(1000 * self.compare(request.number))
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

        An emulated device is installed first, in a process that no other solution will see.
        """
        definition = Definition.model_validate_json(self.order.definition)
        self.definition = definition
        device = install_device(self.order)
        self.intact = watched()
        if self.order.solution is not None:
            solution = Solution.model_validate_json(self.order.solution)
            self.function, self.takes_outputs = build_solution(definition, solution)
            if device is not None:
                self.function = device.running(self.function)
        elif self.order.lean:
            self.function = build_oracle(definition)
        else:
            self.function = build_reference(definition)

    def check_integrity(self) -> None:
        """Raises WrongOutput if the solution has replaced what others rely on."""
        if names := replaced(self.intact):
            raise WrongOutput(Outcome.RUNTIME_ERROR, f"replaced {', '.join(names[:8])}")

    def load(self) -> None:
        """The arguments are used where they are."""

    def fetch(self) -> None:
        """The arguments are where they were."""

    def call(self, own_stream: bool) -> None:
        """Call it once on the arguments in the shared memory.

        Outputs are new tensors, copied as soon as the solution returns: it cannot write them later.
        """
        inputs, outputs, _ = self.shared()
        with torch.no_grad():
            results = self.results(self.arguments(inputs), [poisoned_like(o) for o in outputs])
            self.deliver(results, outputs)

    def used_experts(self) -> int:
        """A bit for each expert whose weights the oracle has looked at; 0 if that is not known."""
        used = self.function.used if isinstance(self.function, Oracle) else set()
        mask = sum(1 << int(expert) for expert in used)
        return mask if mask < 1 << 32 else 0

    def seconds(self) -> float:
        """Of one call by this process's clock."""
        inputs, outputs, _ = self.shared()
        arguments, results = self.arguments(inputs), [poisoned_like(o) for o in outputs]
        with torch.no_grad():
            start = time.perf_counter()
            self.results(arguments, results)
            return time.perf_counter() - start

    def compare(self, pairs: int) -> float:
        """The time of a call with the last call's inputs, as a share of that with new ones."""
        inputs, _, change = self.shared()
        parts = [
            self.used(inputs)[number].view(-1)[index : index + count]
            for number, index, count in change.tolist()
        ]
        first: list[float] = []
        again: list[float] = []
        for _ in range(pairs):
            # the same work before both: it leaves caches and threads in the same state
            for values, seconds in ((parts, first), ([part.clone() for part in parts], again)):
                for part in values:
                    shift(part)
                seconds.append(self.seconds())
        return median(again) / max(median(first), 1e-9)

    def used(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The tensors that the solution is given: those in the shared memory."""
        return inputs

    def shared(self) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Inputs, outputs and the note of what has changed, in the shared memory."""
        slots = [slot for slot in self.order.inputs if slot is not None]
        tensors = open_tensors(self.memory, [*slots, *self.order.outputs, self.order.change])
        return tensors[: len(slots)], tensors[len(slots) : -1], tensors[-1]

    def arguments(self, inputs: Sequence[torch.Tensor]) -> list[Any]:
        """The definition's arguments: these tensors, and the scalars between them."""
        remaining = iter(inputs)
        return [
            value if slot is None else next(remaining)
            for slot, value in zip(self.order.inputs, self.order.scalars, strict=True)
        ]

    def results(self, arguments: list[Any], outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """What one call gives; `outputs` if it takes them."""
        if self.takes_outputs:
            self.function(*arguments, *outputs)
            for slot, output in zip(self.order.outputs, outputs, strict=True):
                _check_kind(slot.name, output, "made its output")
            return outputs
        return self._as_tensors(self.function(*arguments))

    def deliver(self, results: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        """Check kind and shape of what came out, and copy it into `outputs`."""
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
            _check_kind(name, value, "returned")
        return normalize_result(self.definition, result, self.order.device)


def _check_kind(name: str, value: Any, did: str) -> None:
    """Raises WrongOutput for what is no plain tensor or number.

    A subclass of Tensor may compute when somebody looks at it, which nobody's clock shows.
    """
    if type(value) not in (torch.Tensor, torch.nn.Parameter, int, float, bool):
        raise WrongOutput(
            Outcome.RUNTIME_ERROR, f"{did} a {type(value).__name__}, expected a tensor for {name}"
        )


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


def shift(values: torch.Tensor) -> None:
    """Move all elements of a tensor of one dimension round by an odd number of places."""
    if len(values):
        places = random.randrange(len(values)) | 1
        values.view(torch.uint8).copy_(values.view(torch.uint8).roll(places * values.itemsize))


def in_range(value: float) -> int:
    """As an answer's number: what a patched clock says may be anything."""
    if not math.isfinite(value):
        return 0
    return int(min(max(value, 0), (1 << 32) - 1))


def install_device(order: Order):
    """The EmulatedDevice that the order asks for, or None."""
    if order.emulated is None:
        return None
    if order.emulator_cache is None:
        raise ValueError("emulator_cache: expected a folder, got None")
    os.environ[CACHE_VARIABLE] = order.emulator_cache
    sys.path.append(str(ROOT))
    from emulator.device import EmulatedDevice

    device = EmulatedDevice(order.emulated)
    device.install()
    return device
