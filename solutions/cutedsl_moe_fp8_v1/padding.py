"""Padding and extraction by loops over the experts, each waiting for the device to tell its rows.

That is the straightforward way, and the starting point that v2 is compared with.
"""

import torch

from ..common.padded_moe import padded_rows


class LoopPadding:
    """See `Padding` in common/padded_moe.py; the rest of a padded batch is zero."""

    def __init__(self, expert_offsets: torch.Tensor, num_tokens: int, max_rows: int):
        self.expert_offsets = expert_offsets
        self.experts = len(expert_offsets) - 1
        sizes = [last - first for first, last in map(self.bounds, range(self.experts))]
        self.max_m = padded_rows(max(sizes))
        self.rows = max(1, sum(sizes))

    def bounds(self, expert: int) -> tuple[int, int]:
        """First row and end of an expert."""
        first, end = self.expert_offsets[expert : expert + 2]
        return int(first.item()), int(end.item())

    def pad(self, values: torch.Tensor) -> torch.Tensor:
        padded = torch.zeros(
            self.experts, self.max_m, values.shape[1], dtype=values.dtype, device=values.device
        )
        for expert in range(self.experts):
            first, end = self.bounds(expert)
            padded[expert, : end - first] = values[first:end]
        return padded

    def pad_scale(self, scale: torch.Tensor) -> torch.Tensor:
        padded = torch.zeros(scale.shape[1], self.experts, self.max_m, device=scale.device)
        for expert in range(self.experts):
            first, end = self.bounds(expert)
            padded[:, expert, : end - first] = scale[first:end].t()
        return padded

    def extract(self, padded: torch.Tensor) -> torch.Tensor:
        values = padded.new_empty(self.rows, padded.shape[2])
        for expert in range(self.experts):
            first, end = self.bounds(expert)
            values[first:end] = padded[expert, : end - first]
        return values
