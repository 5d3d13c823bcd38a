"""Fresh inputs for every trial, fresh tokens and a change of the weights for every call.

A solution that answers from memory, whatever key it uses and whatever it keeps, answers for inputs
that have changed. They change after the clock has started, at the same address:

* All random inputs with a variable axis (tokens) are new: no row of an earlier call is of use.
* One element of each other input of the tokens, such as the routing's, and an expert of one of the
  weights differ on top of that. The reference shows what each of them moves; if the outputs do not
  follow, something was kept.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from flashinfer_bench.data import Definition, Workload

from ..harness import Settings, fresh_inputs
from ..sandbox.changes import Change, Part

ATTEMPTS = 8
"""At an element whose change the reference shows; one of a token without experts does not."""
VISIBLE = 16
"""Elements that a change must move beyond the tolerances, or an eighth of a small output."""
MOST = 0.5
"""Share of a row that a change must move beyond the tolerances for the row to tell anything.

The tolerance is relative, so a weak change moves the elements near zero alone, and those an honest
solution misses too. Of the elements moved in rows that tell, one with the required ratio r there
misses at most (1 - r) / MOST, 30 % at r = 0.85, and an output from memory all of them.

Simulated: 1,200 spikes in `hidden_states`, DeepSeek-V3's sizes, scales drawn from a normal
distribution (a spike in a block of scale near zero is weak), and a solution that requantises before
both GEMMs, which leaves 11 % of a row wrong, at most 15.3 %. It missed more than half of what moved
for 21 of the spikes, all of which moved less than a fifth of the row; and at most 24.5 % for the
1,122 that moved half of it or more."""
FACTOR = 16.0
"""By how much a changed element exceeds its tensor: enough to show in a sum of thousands."""
FP8_VALUE = 96.0

Reference = Callable[[Change], tuple[list[torch.Tensor], float]]
"""Outputs with these changes, and the seconds that it took."""


@dataclass(frozen=True)
class Effect:
    """What the change of one input has to move."""

    name: str
    """Of the input."""
    visible: list[torch.Tensor]
    """Per output, which elements the change moves beyond the tolerances, in rows that tell."""

    @property
    def shows(self) -> bool:
        return any(map(_enough, self.visible))


@dataclass(frozen=True)
class Call:
    """One call of a trial: what is changed for it, and what has to come out."""

    change: Change
    expected: list[torch.Tensor]
    effects: list[Effect] = field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    inputs: list[Any]
    """As given at the start; each call changes these, not what the last call had."""
    calls: list[Call]


def tensors_of(arguments: Sequence[Any]) -> list[torch.Tensor]:
    return [value for value in arguments if isinstance(value, torch.Tensor)]


def draw_inputs(
    definition: Definition, workload: Workload, root: Path, device: str = "cpu"
) -> list[Any]:
    """Random where the workload leaves it open, and not the same in any two calls.

    device: draws them; a GPU draws a layer's weights in a second. They are returned on the CPU.
    """
    torch.manual_seed(secrets.randbits(63))
    return [
        value.cpu() if isinstance(value, torch.Tensor) else value
        for value in fresh_inputs(definition, workload, root, device)
    ]


class Changer:
    """Chooses what to change in one workload's inputs, and has the reference say what it moves."""

    def __init__(
        self,
        definition: Definition,
        workload: Workload,
        inputs: Sequence[Any],
        settings: Settings,
        reference: Reference,
        used_experts: Callable[[], list[int]] = list,
    ) -> None:
        """used_experts: those whose weights the last call of the reference has looked at; none, if
        it does not tell."""
        self.settings = settings
        self.reference = reference
        self.used_experts = used_experts
        self.tensors = tensors_of(inputs)
        names = [
            name
            for name, value in zip(definition.inputs, inputs, strict=True)
            if isinstance(value, torch.Tensor)
        ]
        variable = set(definition.var_axes)
        self.numbers = {
            name: number
            for number, (name, tensor) in enumerate(zip(names, self.tensors, strict=True))
            if tensor.is_floating_point() and tensor.numel()
        }
        """The floating-point inputs by name, with their numbers among the tensors."""
        self.of_tokens = [
            name for name in self.numbers if variable & set(definition.inputs[name].shape)
        ]
        self.of_weights = [name for name in self.numbers if name not in self.of_tokens]
        self.random = [name for name in self.of_tokens if workload.inputs[name].type == "random"]
        """Those of the tokens that the workload does not fix, as it does the routing's."""
        if not self.numbers:
            raise ValueError(f"{definition.name}: expected a floating-point input, found none")

    def unchanged(self) -> tuple[Call, float]:
        """A call with the inputs as they are, and the seconds that the reference took."""
        expected, seconds = self.reference([])
        return Call([], expected), seconds

    def new_tokens(self) -> tuple[Call, float]:
        """A call for which every random input of the tokens is another one."""
        change = [_shifted(self.tensors, self.numbers[name]) for name in self.random]
        expected, seconds = self.reference(change)
        return Call(change, expected), seconds

    def with_another(self, call: Call, name: str) -> tuple[Call, float]:
        """`call` with one more change, of part of the input `name`.

        If nothing shows after some attempts, as with tokens that have no local expert, the effect
        has nothing visible: there is nothing that could be kept either.
        """
        number = self.numbers[name]
        if name in self.of_weights and self.tensors[number][0].numel() > 1:
            return self._with_expert(call, name, number)
        for _ in range(ATTEMPTS):
            tried, seconds = self._with(call, name, _spiked(self.tensors, number))
            if tried.effects[-1].shows:
                break
        return tried, seconds

    def _with_expert(self, call: Call, name: str, number: int) -> tuple[Call, float]:
        """`call`, the last one, with one expert's weights negated, one that some token uses:
        bisects for it where the reference does not tell."""
        experts = len(self.tensors[number])
        start, count = secrets.choice(self.used_experts() or range(experts)), 1
        tried, seconds = self._with(call, name, _negated(self.tensors, number, start, count))
        if tried.effects[-1].shows or experts == 1:
            return tried, seconds
        start, count = 0, experts
        while count > 1:
            half = count // 2
            tried, _ = self._with(call, name, _negated(self.tensors, number, start, half))
            if tried.effects[-1].shows:
                count = half
            else:
                start, count = start + half, count - half
        return self._with(call, name, _negated(self.tensors, number, start, count))

    def _with(self, call: Call, name: str, part: Part) -> tuple[Call, float]:
        change = _merged(call.change, part)
        expected, seconds = self.reference(change)
        visible = [
            telling(old, new, self.settings)
            for old, new in zip(call.expected, expected, strict=True)
        ]
        return Call(change, expected, [*call.effects, Effect(name, visible)]), seconds

    def any_of(self, names: Sequence[str]) -> str:
        """At random, but the more elements an input has, the likelier it is.

        The less likely it then is that a solution which recognises its inputs by a few elements
        looks at the one that changes.
        """
        sizes = [self.tensors[self.numbers[name]].numel() for name in names]
        return random.SystemRandom().choices(names, sizes)[0]


def make_calls(changer: Changer) -> tuple[list[Call], list[float]]:
    """The calls of a trial, and the seconds that the reference took for each.

    The first, a warm-up, has the inputs as they are. The last `iterations` are timed.
    """
    settings = changer.settings
    unchanged, took = changer.unchanged()
    calls, seconds = [unchanged], [took]
    for _ in range(max(settings.warmup_runs, 1) - 1 + settings.iterations):
        call, took = changer.new_tokens()
        for name in changer.of_tokens:
            if name not in changer.random:
                call, took = changer.with_another(call, name)
        if changer.of_weights:
            call, took = changer.with_another(call, changer.any_of(changer.of_weights))
        calls.append(call)
        seconds.append(took)
    return calls, seconds


def moved(old: torch.Tensor, new: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Which elements the old output has wrong by both tolerances."""
    old, new = old.float(), new.float()
    difference = (old - new).abs()
    return (difference > settings.atol) & (difference > settings.rtol * (new.abs() + 1e-8))


def telling(old: torch.Tensor, new: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Which elements are moved, in the rows of which at least MOST are.

    A row is what one index of the first dimension has; of an output of one dimension, an element.
    """
    where = moved(old, new, settings)
    if where.dim() < 2:
        return where
    columns = tuple(range(1, where.dim()))
    least = MOST * where.numel() / max(len(where), 1)
    return where & (where.sum(columns, keepdim=True) >= least)


def _shifted(tensors: Sequence[torch.Tensor], number: int) -> Part:
    """All elements of tensor `number`, moved round by a random, odd number of places.

    The values are as they were drawn, and none is where it was; nor is any row of an even length.
    """
    tensor = tensors[number]
    places = secrets.randbelow(tensor.numel()) | 1
    # rolls bytes: not every dtype can be rolled
    values = tensor.reshape(-1, 1).view(torch.uint8).roll(places, 0)
    return Part(number, 0, values.view(tensor.dtype).view(-1))


def _spiked(tensors: Sequence[torch.Tensor], number: int) -> Part:
    """A large value for a random element of tensor `number`."""
    tensor = tensors[number]
    index = secrets.randbelow(tensor.numel())
    sign = secrets.choice((-1.0, 1.0))
    spread = 1.0 + secrets.randbelow(1000) / 1000
    if tensor.dtype.itemsize == 1:
        value = FP8_VALUE * spread
    else:
        value = FACTOR * spread * max(tensor.abs().max().item(), 1.0)
    return Part(number, index, torch.tensor([sign * value]).to(tensor.dtype))


def _negated(tensors: Sequence[torch.Tensor], number: int, start: int, count: int) -> Part:
    """The opposite values for `count` rows, experts of weights, of tensor `number`."""
    tensor = tensors[number]
    part = tensor[start : start + count].reshape(-1)
    if tensor.dtype.itemsize == 1:  # fp8, which has no arithmetic: the sign is the first bit
        values = (part.view(torch.uint8) ^ 0x80).view(tensor.dtype)
    else:
        values = -part
    return Part(number, start * tensor[0].numel(), values)


def _merged(change: Change, part: Part) -> Change:
    """`change` and `part`, which lies within another part or overlaps none."""
    for place, other in enumerate(change):
        if other.number == part.number:
            values = other.values.clone()
            start = part.index - other.index
            values[start : start + len(part.values)] = part.values
            return [*change[:place], replace(other, values=values), *change[place + 1 :]]
    return [*change, part]


def _enough(visible: torch.Tensor) -> bool:
    return int(visible.sum()) >= min(VISIBLE, max(visible.numel() // 8, 1))
