"""What is changed in the inputs for one call, at the same addresses, and how it is undone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Part:
    """New values for some elements in a row of one input tensor."""

    number: int
    """Of the input among those that are tensors."""
    index: int
    """Of the first element, with the tensor's dimensions flattened."""
    values: torch.Tensor
    """Of one dimension and the input's dtype."""

    def of(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The elements of `tensors` that this part stands for; writing there changes them."""
        return tensors[self.number].view(-1)[self.index : self.index + len(self.values)]


Change = Sequence[Part]
"""Parts that do not overlap."""
MAX_PARTS = 64
CHANGE = ("change", torch.int64, (MAX_PARTS, 3))
"""In the shared memory, for solutions on a GPU, whose arguments are copies: number of the input
tensor, first element and count of each part that has changed."""


def apply(change: Change, tensors: Sequence[torch.Tensor]) -> None:
    for part in change:
        part.of(tensors).copy_(part.values)


def undo(change: Change, tensors: Sequence[torch.Tensor], given: Sequence[torch.Tensor]) -> None:
    """Have `tensors` as they are in `given` again."""
    for part in change:
        part.of(tensors).copy_(part.of(given))
