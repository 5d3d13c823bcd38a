"""Decide about one call's outputs as the harness's evaluators do, and say what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from flashinfer_bench.data import Correctness, EvaluationStatus

from ..harness import Settings, error_stats
from ..sandbox.changes import Change, undo
from ..sandbox.contract import Failure
from ..sandbox.poison import never_written
from .trials import Call, moved

FOLLOWED = 0.5
"""Share of the elements moved by a change that must have followed it.

They lie in rows that a legal error does not look like (`trials.MOST`): an output from memory has
none of them right, a solution at its required ratio of 0.85 at least 70 %."""


class WrongNumbers(Failure):
    """The outputs are wrong; `correctness` says by how much."""

    def __init__(self, message: str, correctness: Correctness) -> None:
        super().__init__(EvaluationStatus.INCORRECT_NUMERICAL, message)
        self.correctness = correctness


@dataclass
class Verdict:
    """The worst over all calls so far."""

    max_absolute: float = 0.0
    max_relative: float = 0.0
    matched_ratio: float = 1.0

    @property
    def correctness(self) -> Correctness:
        return Correctness(
            max_relative_error=self.max_relative,
            max_absolute_error=self.max_absolute,
            extra={"matched_ratio": self.matched_ratio},
        )

    def add(self, names: Sequence[str], outputs: list[torch.Tensor], call: Call,
            settings: Settings) -> None:  # fmt: skip
        """Raises WrongNumbers if one of the outputs is wrong."""
        for name, output, expected in zip(names, outputs, call.expected, strict=True):
            check_finite(name, output)
            stats = error_stats(output, expected, settings)
            self.max_absolute = max(self.max_absolute, stats.max_absolute)
            self.max_relative = max(self.max_relative, stats.max_relative)
            self.matched_ratio = min(self.matched_ratio, stats.matched_ratio)
            if not stats.enough:
                raise WrongNumbers(
                    f"{name}: {stats.matched_ratio:.2%} of the elements are within the tolerances, "
                    f"expected {settings.required_matched_ratio or 1:.2%}",
                    self.correctness,
                )
        for effect in call.effects:
            for name, output, expected, visible in zip(
                names, outputs, call.expected, effect.visible, strict=True
            ):
                if not visible.any():
                    continue
                stale = moved(output[visible], expected[visible], settings)
                if stale.double().mean().item() > 1 - FOLLOWED:
                    raise WrongNumbers(
                        f"{name} does not follow its inputs: {effect.name} was changed in part, "
                        f"and {percent(stale)} of what this moves is not what it should be (kept "
                        "from an earlier call?)",
                        self.correctness,
                    )


def check_finite(name: str, output: torch.Tensor) -> None:
    """Raises WrongNumbers, looking for infinities first as the harness does."""
    if not output.is_floating_point():
        return
    values = output.float()  # not every kind of fp8 has isinf
    infinite, missing = values.isinf(), values.isnan()
    if infinite.any():
        what, where, error = "infinite", infinite, float("inf")
    elif missing.any():
        unwritten = never_written(output)
        where, error = missing, float("nan")
        what = "NaN"
        if unwritten.any() and output.dtype.itemsize > 1:
            what, where = "never written (NaN)", unwritten
        elif unwritten.any():
            what = "NaN or never written"
    else:
        return
    rows = where.flatten(1).any(dim=1) if where.dim() > 1 else where
    message = f"{name}: {what}: {percent(rows)} of the rows"
    if percent(where) != percent(rows):
        message += f", {percent(where)} of the elements"
    raise WrongNumbers(message, Correctness(max_relative_error=error, max_absolute_error=error))


def percent(where: torch.Tensor) -> str:
    return f"{100 * where.double().mean().item():.3g} %"


def check_inputs(
    names: Sequence[str],
    seen: Sequence[torch.Tensor],
    given: Sequence[torch.Tensor],
    change: Change,
) -> None:
    """Raises Failure if the inputs, after a call, are not what was given but for `change`.

    Undoes the change: `seen` then holds what was given.
    """
    harmed = {part.number for part in change if not _equal_bytes(part.of(seen), part.values)}
    undo(change, seen, given)
    for number, (name, mine, before) in enumerate(zip(names, seen, given, strict=True)):
        if number in harmed or not _equal_bytes(mine, before):
            raise Failure(EvaluationStatus.RUNTIME_ERROR, f"changed its input {name}")


def _equal_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    both = [x.contiguous().view(-1).view(torch.uint8) for x in (left, right)]
    if all(x.storage_offset() % 8 == 0 and len(x) % 8 == 0 for x in both):
        both = [x.view(torch.int64) for x in both]  # four times as fast
    return torch.equal(*both)
