"""Fresh inputs for every trial, one changed element for every call, and the expected outputs.

A solution that answers from memory, whatever key it uses, answers for inputs that have changed.
The element is changed after the clock has started; the reference has to show the change.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flashinfer_bench.data import Definition, Workload

from ..harness import Settings, fresh_inputs
from ..sandbox.contract import Change

ATTEMPTS = 8
"""At an element whose change the reference shows; one of a token without experts does not."""
VISIBLE = 16
"""Elements that a change must move beyond the tolerances, or an eighth of a small output."""
FACTOR = 16.0
"""By how much a changed element exceeds its tensor: enough to show in a sum of thousands."""
FP8_VALUE = 96.0

Reference = Callable[[Change], tuple[list[torch.Tensor], float]]


@dataclass(frozen=True)
class Call:
    """One call of a trial: what is changed for it, and what has to come out."""

    change: Change
    name: str
    """Of the input that is changed; empty in the first call, which changes none."""
    expected: list[torch.Tensor]
    visible: list[torch.Tensor]
    """Per output, which elements the change moves beyond the tolerances; none in the first call."""


@dataclass(frozen=True)
class Trial:
    inputs: list[Any]
    """As given at the start; each call changes these, not what the last call had."""
    calls: list[Call]


def tensors_of(arguments: Sequence[Any]) -> list[torch.Tensor]:
    return [value for value in arguments if isinstance(value, torch.Tensor)]


def draw_inputs(definition: Definition, workload: Workload, root: Path) -> list[Any]:
    """Random where the workload leaves it open, and not the same in any two calls."""
    torch.manual_seed(secrets.randbits(63))
    return fresh_inputs(definition, workload, root)


def unchanged_call(tensors: Sequence[torch.Tensor], reference: Reference) -> tuple[Call, float]:
    """A call with the inputs as they are, and the seconds that the reference took."""
    nothing = (0, 0, tensors[0].view(-1)[:0])
    expected, seconds = reference(nothing)
    visible = [torch.zeros(output.shape, dtype=torch.bool) for output in expected]
    return Call(nothing, "", expected, visible), seconds


def changed_call(
    name: str, change: Change, unchanged: Call, reference: Reference, settings: Settings
) -> tuple[Call, float]:
    """A call with one change, and the seconds that the reference took."""
    expected, seconds = reference(change)
    visible = [
        moved(old, new, settings) for old, new in zip(unchanged.expected, expected, strict=True)
    ]
    return Call(change, name, expected, visible), seconds


def make_calls(
    definition: Definition,
    inputs: Sequence[Any],
    settings: Settings,
    reference: Reference,
) -> tuple[list[Call], list[float]]:
    """The calls of a trial, and the seconds that the reference took for each.

    The first, a warm-up, has the inputs as they are; each other has one element changed. The last
    `iterations` are timed. Where no change shows, as with tokens that have no local expert, the
    call has no visible element: there is nothing that could be kept either.
    """
    candidates = _candidates(definition, inputs)
    tensors = tensors_of(inputs)
    unchanged, took = unchanged_call(tensors, reference)
    calls, seconds = [unchanged], [took]
    for position in range(max(settings.warmup_runs, 1) - 1 + settings.iterations):
        for attempt in range(ATTEMPTS):
            name, number = candidates[(position + attempt) % len(candidates)]
            change = change_element(tensors, number)
            call, took = changed_call(name, change, unchanged, reference, settings)
            if all(map(_enough, call.visible)):
                break
        calls.append(call)
        seconds.append(took)
    return calls, seconds


def moved(old: torch.Tensor, new: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Which elements the old output has wrong by both tolerances."""
    old, new = old.float(), new.float()
    difference = (old - new).abs()
    return (difference > settings.atol) & (difference > settings.rtol * (new.abs() + 1e-8))


def change_element(tensors: Sequence[torch.Tensor], number: int) -> Change:
    """A large value for a random element of tensor `number`."""
    tensor = tensors[number]
    index = secrets.randbelow(tensor.numel())
    sign = secrets.choice((-1.0, 1.0))
    spread = 1.0 + secrets.randbelow(1000) / 1000
    if tensor.dtype.itemsize == 1:
        value = FP8_VALUE * spread
    else:
        value = FACTOR * spread * max(tensor.abs().max().item(), 1.0)
    return number, index, torch.tensor([sign * value]).to(tensor.dtype)


def negate_part(tensors: Sequence[torch.Tensor], number: int) -> Change:
    """The opposite values for a random part of tensor `number`: an expert, of weights."""
    tensor = tensors[number]
    size = tensor[0].numel()
    index = size * secrets.randbelow(tensor.shape[0])
    part = tensor.view(-1)[index : index + size]
    return number, index, (-part.float()).to(tensor.dtype)


def _enough(visible: torch.Tensor) -> bool:
    return int(visible.sum()) >= min(VISIBLE, max(visible.numel() // 8, 1))


def changeable(definition: Definition, inputs: Sequence[Any]) -> dict[str, int]:
    """The floating-point inputs by name, with their numbers among the tensors."""
    names = [
        name
        for name, value in zip(definition.inputs, inputs, strict=True)
        if isinstance(value, torch.Tensor)
    ]
    return {
        name: number
        for number, (name, tensor) in enumerate(zip(names, tensors_of(inputs), strict=True))
        if tensor.is_floating_point() and tensor.numel()
    }


def _candidates(definition: Definition, inputs: Sequence[Any]) -> list[tuple[str, int]]:
    """The inputs of which an element may be changed, with their numbers, in random order.

    The more elements one has, the earlier it comes: the less likely it is that a solution which
    recognises its inputs by a few elements looks at the one that changes. Only those with a
    variable axis (tokens), if there are any: of weights a call with few tokens may not read it.
    """
    floating = changeable(definition, inputs)
    variable = set(definition.var_axes)
    of_tokens = {
        name: number
        for name, number in floating.items()
        if variable & set(definition.inputs[name].shape)
    }
    candidates = list((of_tokens or floating).items())
    if not candidates:
        raise ValueError(f"{definition.name}: expected a floating-point input, found none")
    sizes = [tensor.numel() for tensor in tensors_of(inputs)]
    draw = random.SystemRandom()
    return sorted(candidates, key=lambda candidate: draw.expovariate(sizes[candidate[1]]))
