"""Fresh inputs for every trial, one changed element for every call, and the expected outputs.

A solution that answers from memory, whatever key it uses, answers for inputs that have changed.
The element is changed after the clock has started; the reference has to show the change.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flashinfer_bench.data import Definition, Workload

from .harness import Settings, fresh_inputs

ATTEMPTS = 8
"""At an element whose change the reference shows; one of a token without experts does not."""
VISIBLE = 16
"""Elements that a change must move beyond the tolerances, or an eighth of a small output."""
FACTOR = 16.0
"""By how much a changed element exceeds its tensor: enough to show in a sum of thousands."""
FP8_VALUE = 96.0

Element = tuple[int, int, torch.Tensor]
"""(number of the input tensor, flat index, new value as a 0-d tensor of its dtype)."""
Reference = Callable[[Element], tuple[list[torch.Tensor], float]]


@dataclass(frozen=True)
class Call:
    """One call of a trial: what is changed for it, and what has to come out."""

    element: Element
    name: str
    """Of the input that is changed."""
    expected: list[torch.Tensor]
    visible: list[torch.Tensor]
    """Per output, which elements the change has moved since the call before; none in the first."""


@dataclass(frozen=True)
class Trial:
    inputs: list[Any]
    """As given at the start; each call changes one element of these, not of the last call's."""
    calls: list[Call]


def tensors_of(arguments: Sequence[Any]) -> list[torch.Tensor]:
    return [value for value in arguments if isinstance(value, torch.Tensor)]


def draw_inputs(definition: Definition, workload: Workload, root: Path) -> list[Any]:
    """Random where the workload leaves it open, and not the same in any two calls."""
    torch.manual_seed(secrets.randbits(63))
    return fresh_inputs(definition, workload, root)


def make_calls(
    definition: Definition,
    inputs: Sequence[Any],
    settings: Settings,
    reference: Reference,
) -> tuple[list[Call], list[float]]:
    """The calls of a trial, each after another change, and the seconds the reference took for each.

    There are at least two: one call alone would show no change. The last `iterations` are timed.
    reference: calls it with one element changed. Where no change shows, as with tokens that have no
    local expert, the call has no visible element: there is nothing that could be kept either.
    """
    names = [
        name
        for name, value in zip(definition.inputs, inputs, strict=True)
        if isinstance(value, torch.Tensor)
    ]
    numbers = _candidates(definition, names, tensors_of(inputs))
    calls: list[Call] = []
    seconds: list[float] = []
    for position in range(max(settings.warmup_runs + settings.iterations, 2)):
        for attempt in range(ATTEMPTS):
            number = numbers[(position + attempt) % len(numbers)]
            element = change_element(tensors_of(inputs), number)
            expected, took = reference(element)
            before = calls[-1].expected if calls else expected
            visible = [moved(*pair, settings) for pair in zip(before, expected, strict=True)]
            if not calls or all(map(_enough, visible)):
                break
        calls.append(Call(element, names[number], expected, visible))
        seconds.append(took)
    return calls, seconds


def moved(old: torch.Tensor, new: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Which elements the old output has wrong by both tolerances."""
    old, new = old.float(), new.float()
    difference = (old - new).abs()
    return (difference > settings.atol) & (difference > settings.rtol * (new.abs() + 1e-8))


def change_element(tensors: Sequence[torch.Tensor], number: int) -> Element:
    """A large value for a random element of tensor `number`."""
    tensor = tensors[number]
    index = secrets.randbelow(tensor.numel())
    sign = secrets.choice((-1.0, 1.0))
    spread = 1.0 + secrets.randbelow(1000) / 1000
    if tensor.dtype.itemsize == 1:
        value = FP8_VALUE * spread
    else:
        value = FACTOR * spread * max(tensor.abs().max().item(), 1.0)
    return number, index, torch.tensor(sign * value).to(tensor.dtype)


def _enough(visible: torch.Tensor) -> bool:
    return int(visible.sum()) >= min(VISIBLE, max(visible.numel() // 8, 1))


def _candidates(
    definition: Definition, names: Sequence[str], tensors: Sequence[torch.Tensor]
) -> list[int]:
    """The floating-point inputs that may be changed, in random order.

    Those with a variable axis (tokens) if there are any: of the others, weights, a call with few
    tokens may not read the element at all.
    """
    floating = [
        number
        for number, tensor in enumerate(tensors)
        if tensor.is_floating_point() and tensor.numel()
    ]
    variable = set(definition.var_axes)
    of_tokens = [
        number for number in floating if variable & set(definition.inputs[names[number]].shape)
    ]
    numbers = of_tokens or floating
    if not numbers:
        raise ValueError(f"{definition.name}: expected a floating-point input, found none")
    return sorted(numbers, key=lambda _: secrets.randbits(32))
