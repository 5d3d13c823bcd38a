"""The operands of one FP8 block-scaled grouped GEMM, and its exact result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import ceil

import torch

BLOCK = 128
FP8 = torch.float8_e4m3fn
Launch = Callable[[], torch.Tensor]  # runs the kernel; its result may be padded


@dataclass(frozen=True)
class Problem:
    """Operands of one grouped GEMM."""

    rows_per_expert: tuple[int, ...]
    a: torch.Tensor  # fp8 [rows, K], experts one after the other
    a_scale: torch.Tensor  # fp32 [rows, K / 128]
    b: torch.Tensor  # fp8 [E, N, K]
    b_scale: torch.Tensor  # fp32 [E, N / 128, K / 128]

    @property
    def n(self) -> int:
        return self.b.shape[1]

    @property
    def k(self) -> int:
        return self.b.shape[2]

    @property
    def rows(self) -> int:
        return self.a.shape[0]

    @property
    def like_tokens(self) -> int:
        """Tokens of a layer whose experts have as many rows on average, rounded up: T give each of
        its 256 experts 8 T / 256."""
        return ceil(32 * self.rows / sum(rows > 0 for rows in self.rows_per_expert))

    @cached_property
    def offsets(self) -> torch.Tensor:
        """int32 [E + 1]: first row of each expert, then the number of rows."""
        sums = accumulate(self.rows_per_expert, initial=0)
        return torch.tensor([*sums], dtype=torch.int32, device=self.a.device)

    def places(self, sizes: Sequence[int]) -> torch.Tensor:
        """int64 [rows]: where each row goes in a buffer that has sizes[e] rows for expert e."""
        places = [
            first + row
            for first, count in zip(
                accumulate(sizes, initial=0), self.rows_per_expert, strict=False
            )
            for row in range(count)
        ]
        return torch.tensor(places, dtype=torch.int64, device=self.a.device)

    def spread(self, sizes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """a and a_scale in such a buffer, zeros where there is no row."""
        places, rows = self.places(sizes), sum(sizes)
        a = self.a.view(torch.uint8).new_zeros(rows, self.k)
        a[places] = self.a.view(torch.uint8)
        a_scale = self.a_scale.new_zeros(rows, self.k // BLOCK)
        a_scale[places] = self.a_scale
        return a.view(FP8), a_scale

    def exact(self, expert: int, rows: slice, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The result in `dtype` for some of an expert's rows, counted from its first."""
        first = sum(self.rows_per_expert[:expert])
        chosen = slice(first + rows.start, first + rows.stop)
        a = self.a[chosen].to(dtype).unflatten(1, (-1, BLOCK)) * self.a_scale[chosen, :, None]
        b = dequantize(self.b[expert], self.b_scale[expert], dtype)
        return a.flatten(1).to(dtype) @ b.T


def dequantize(weights: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """fp8 [N, K] times its blocks' scales [N / 128, K / 128], in `dtype`."""
    blocks = weights.to(dtype).unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    return (blocks * scales[:, None, :, None].to(dtype)).flatten(0, 1).flatten(1)
