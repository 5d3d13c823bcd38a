"""Padding and extraction by index, for all experts at once; the host waits for one number.

That is the height of the batch: the rows of the expert that has most. While a CUDA graph is
captured there is nothing to wait for, so a captured batch is as high as any routing may need: T.
"""

import torch

from ..common.arguments import capturing
from ..common.padded_moe import padded_rows


class IndexPadding:
    """See `Padding` in common/padded_moe.py; what is undefined there repeats other rows here.

    A place is a row of the padded batch, numbered through all experts.
    """

    def __init__(self, expert_offsets: torch.Tensor, num_tokens: int, max_rows: int):
        starts, ends = expert_offsets[:-1], expert_offsets[1:]
        self.experts, device = len(starts), starts.device
        most_rows = num_tokens if capturing(device) else int((ends - starts).max().item())
        self.max_m = padded_rows(most_rows)
        places = self.experts * self.max_m
        self.rows = min(max_rows, places)

        rows = torch.arange(self.rows, dtype=torch.int32, device=device)
        expert = torch.searchsorted(ends, rows, right=True).clamp(max=self.experts - 1)
        place = expert * self.max_m + rows - starts[expert]
        self.place_of_row = place.clamp(max=places - 1)
        row = starts[:, None] + torch.arange(self.max_m, dtype=torch.int32, device=device)
        self.row_of_place = row.clamp(max=self.rows - 1).flatten()

    def pad(self, values: torch.Tensor) -> torch.Tensor:
        return values[self.row_of_place].view(self.experts, self.max_m, -1)

    def pad_scale(self, scale: torch.Tensor) -> torch.Tensor:
        padded = scale.t().index_select(1, self.row_of_place)
        return padded.view(-1, self.experts, self.max_m)

    def extract(self, padded: torch.Tensor) -> torch.Tensor:
        return padded.flatten(0, 1)[self.place_of_row]
