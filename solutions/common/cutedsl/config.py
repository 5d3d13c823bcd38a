"""Tile configurations of the MoE kernels, and which of them a call takes on which architecture."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_K = 128  # columns of K in a pipeline slot, and the edge of a scale block


@dataclass(frozen=True)
class GemmConfig:
    """Tile of the two-GEMM kernel. What an architecture's consumers cannot do, they refuse.

    swap_ab: weights on the M side of the multiplication and tokens on N, else tokens on M and
    weights on N.
    tokens: token rows of a tile.
    weight_rows: weight rows of a tile (128 or 256); GEMM1 tiles hold half up and half gate rows.
    warpgroups: consumer warpgroups.
    stages: pipeline slots of BLOCK_K columns of a tile's weights and tokens.
    cluster: blocks that take neighbouring tiles and load their weights together (1 or 2).
    """

    swap_ab: bool
    tokens: int
    weight_rows: int
    warpgroups: int
    stages: int
    cluster: int = 1

    def __post_init__(self):
        if self.weight_rows not in (128, 256):
            raise ValueError(f"weight_rows must be 128 or 256, got {self.weight_rows}")
        if self.cluster not in (1, 2):
            raise ValueError(f"cluster must be 1 or 2, got {self.cluster}")

    @property
    def act_columns(self) -> int:
        """Activation columns of a GEMM1 tile, which share one scale per token."""
        return self.weight_rows // 2

    @property
    def act_spans(self) -> int:
        """Spans of columns with a token scale of their own in a slot of GEMM2; GEMM1 has one."""
        return BLOCK_K // self.act_columns


# Measured on an H200: the first row whose max_tokens covers the call. T tokens give an expert T/32
# rows on average and, where the routing prefers some, up to three times as many. While reading
# the weights is the bound, the smallest tile that takes an expert's rows at once is best: a second
# token tile reads all of its weights again. With more rows, 256 weight rows per tile halve the
# token traffic from L2; beyond, tokens by TMA and weights shared by two blocks save more of it, and
# with it the power that limits the clock.
SM_90 = (
    (128, GemmConfig(swap_ab=True, tokens=16, weight_rows=128, warpgroups=1, stages=12)),
    (512, GemmConfig(swap_ab=True, tokens=48, weight_rows=128, warpgroups=2, stages=9)),
    (1024, GemmConfig(swap_ab=True, tokens=80, weight_rows=256, warpgroups=2, stages=4)),
    (2048, GemmConfig(swap_ab=False, tokens=128, weight_rows=128, warpgroups=2, stages=6)),
    (
        float("inf"),
        GemmConfig(swap_ab=False, tokens=128, weight_rows=256, warpgroups=2, stages=4, cluster=2),
    ),
)

TABLES = {90: SM_90}  # by backend, see `architecture`


def config_for(num_tokens: int, backend: int = 90) -> GemmConfig:
    """The configuration for a call with `num_tokens` tokens.

    Raises ValueError for a backend without kernels of the whole layer.
    """
    if backend not in TABLES:
        raise ValueError(f"backend: expected {', '.join(map(str, TABLES))}, got {backend}")
    table = TABLES[backend]
    return next(config for max_tokens, config in table if num_tokens <= max_tokens)
