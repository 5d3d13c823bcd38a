"""Tile configurations of the MoE kernels, and which of them a call takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GemmConfig:
    """Tile of the two-GEMM kernel.

    swap_ab: weights on wgmma's M side and tokens on N, else tokens on M and weights on N.
    tokens: token rows of a tile.
    weight_rows: weight rows of a tile (128 or 256); GEMM1 tiles hold half up and half gate rows.
    warpgroups: consumer warpgroups; they split the M side.
    stages: pipeline slots of 128 columns of a tile's weights and tokens.
    cluster: blocks that take neighbouring tiles and load their weights together (1 or 2).
    """

    swap_ab: bool
    tokens: int
    weight_rows: int
    warpgroups: int
    stages: int
    cluster: int = 1

    def __post_init__(self):
        if self.warpgroups not in (1, 2):
            raise ValueError(f"warpgroups must be 1 or 2, got {self.warpgroups}")
        if self.weight_rows not in (128, 256):
            raise ValueError(f"weight_rows must be 128 or 256, got {self.weight_rows}")
        if self.swap_ab and (self.tokens % 8 or not 16 <= self.tokens <= 128):
            raise ValueError(f"tokens must be a multiple of 8 in 16..128, got {self.tokens}")
        if self.cluster not in (1, 2):
            raise ValueError(f"cluster must be 1 or 2, got {self.cluster}")
        if self.swap_ab and self.cluster != 1:
            raise ValueError(f"cluster must be 1 with swap_ab, got {self.cluster}")
        if self.swap_ab and self.weight_rows > 128 * self.warpgroups:
            raise ValueError(
                f"weight_rows must be 128 with swap_ab and one warpgroup, got {self.weight_rows}"
            )
        if not self.swap_ab and self.tokens != 64 * self.warpgroups:
            raise ValueError(
                f"tokens must be 64 per warpgroup without swap_ab, got {self.tokens} "
                f"for {self.warpgroups}"
            )

    @property
    def act_columns(self) -> int:
        """Activation columns of a GEMM1 tile, which share one scale per token."""
        return self.weight_rows // 2


# Measured on an H200: the first row whose max_tokens covers the call. An expert of T tokens gets
# T/32 rows on average and, where the routing prefers some, up to three times as many. While reading
# the weights is the bound, the smallest tile that takes an expert's rows at once is best: a second
# token tile reads all of its weights again. With more rows, 256 weight rows per tile halve the
# token traffic from L2; beyond, tokens by TMA and weights shared by two blocks save more of it, and
# with it the power that limits the clock.
TABLE = (
    (128, GemmConfig(swap_ab=True, tokens=16, weight_rows=128, warpgroups=1, stages=12)),
    (512, GemmConfig(swap_ab=True, tokens=48, weight_rows=128, warpgroups=2, stages=9)),
    (1024, GemmConfig(swap_ab=True, tokens=80, weight_rows=256, warpgroups=2, stages=4)),
    (2048, GemmConfig(swap_ab=False, tokens=128, weight_rows=128, warpgroups=2, stages=6)),
    (
        float("inf"),
        GemmConfig(swap_ab=False, tokens=128, weight_rows=256, warpgroups=2, stages=4, cluster=2),
    ),
)


def config_for(num_tokens: int) -> GemmConfig:
    """The configuration for a call with `num_tokens` tokens."""
    return next(config for max_tokens, config in TABLE if num_tokens <= max_tokens)
