"""Tile configurations of the MoE kernels, and which of them a call takes on which architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

BLOCK_K = 128  # columns of K in a pipeline slot, and the edge of a scale block
# Rows that a pair's token tile is a multiple of, but for an expert's last: N of its instruction is,
# and TMA reads the tokens' scales from multiples of 16 bytes only.
PAIR_STEP = 32


@dataclass(frozen=True)
class GemmConfig:
    """Tile of the two-GEMM kernel. What an architecture's consumers cannot do, they refuse.

    swap_ab: weights on the M side of the multiplication and tokens on N, else tokens on M and
    weights on N.
    block_m: token rows of a tile, on whichever side of the multiplication they are.
    block_n: weight rows of a tile (128 or 256); GEMM1 tiles hold half up and half gate rows.
    num_warpgroups: consumer warpgroups.
    num_stages: pipeline slots of BLOCK_K columns of a tile's weights and tokens.
    cluster: blocks that take neighbouring tiles and load their weights together (1 or 2).
    paired: whether they take one tile together instead, each its part of the weight rows.
    """

    swap_ab: bool
    block_m: int
    block_n: int
    num_warpgroups: int
    num_stages: int
    cluster: int = 1
    paired: bool = False

    def __post_init__(self):
        if self.block_n not in (128, 256):
            raise ValueError(f"block_n must be 128 or 256, got {self.block_n}")
        if self.cluster not in (1, 2):
            raise ValueError(f"cluster must be 1 or 2, got {self.cluster}")

    @property
    def act_columns(self) -> int:
        """Activation columns of a GEMM1 tile, which share one scale per token."""
        return self.block_n // 2

    @property
    def act_spans(self) -> int:
        """Spans of columns with a token scale of their own in a slot of GEMM2; GEMM1 has one."""
        return BLOCK_K // self.act_columns


@dataclass(frozen=True)
class Candidate:
    """A configuration and what it is estimated to take, in arbitrary units that all candidates
    share: expert_cost for every expert with rows, and tile_cost for each of its token tiles."""

    config: GemmConfig
    expert_cost: int
    tile_cost: int

    def cost(self, rows, select: Callable):
        """For an expert of `rows` rows. select(condition, yes, no): the device's or the host's."""
        tiles = (rows + (self.config.block_m - 1)) // self.config.block_m
        return select(rows > 0, self.expert_cost, 0) + tiles * self.tile_cost


def only(config: GemmConfig) -> tuple[Candidate, ...]:
    """No choice."""
    return (Candidate(config, expert_cost=0, tile_cost=1),)


def choose(candidates: Sequence[Candidate], rows_per_expert: Iterable[int]) -> GemmConfig:
    """The configuration that the device takes for these rows; the first one of equals."""

    def select(condition, yes, no):
        return yes if condition else no

    rows_per_expert = list(rows_per_expert)
    return min(
        candidates, key=lambda each: sum(each.cost(rows, select) for rows in rows_per_expert)
    ).config


# Up to 16 tokens no expert has more rows, and one configuration does. With more tokens the device
# decides: while reading the weights is the bound, the smallest tile that takes an expert's rows at
# once is best. A second token tile whose weights the blocks of a cluster share costs little, a
# third reads them again and does not multiply fast enough. With more rows, tokens on M and by TMA
# multiply fastest. The costs are fitted to whole layers on an H100, such that the choice changes
# little if they are a few percent off (docs/2026-11-25-cutedsl-middle.md).
FEW = GemmConfig(swap_ab=True, block_m=16, block_n=128, num_warpgroups=1, num_stages=12)
MANY = (
    Candidate(
        GemmConfig(swap_ab=True, block_m=16, block_n=128, num_warpgroups=2, num_stages=12),
        expert_cost=20, tile_cost=72,
    ),
    Candidate(
        GemmConfig(
            swap_ab=True, block_m=64, block_n=256, num_warpgroups=2, num_stages=4, cluster=2
        ),
        expert_cost=1, tile_cost=111,
    ),
    Candidate(
        GemmConfig(
            swap_ab=False, block_m=128, block_n=256, num_warpgroups=2, num_stages=4, cluster=2
        ),
        expert_cost=238, tile_cost=9,
    ),
)  # fmt: skip
SM_90 = ((16, only(FEW)), (float("inf"), MANY))

# Estimated, never measured: an expert's first token tile reads its weights from DRAM, the others
# from L2, taken to be 1.6 times as fast; of equals, the tile that leaves room for more stages is
# taken to be a percent or so better. N is set for every tile to its rows, so a wide tile costs a
# small expert nothing but stages. Single blocks and pairs cannot be candidates of one kernel: all
# its tcgen05 instructions must have the same cta_group (PTX ISA, tcgen05).
SM_100 = (
    (16, only(FEW)),
    (
        512,
        (
            Candidate(FEW, expert_cost=40, tile_cost=60),
            Candidate(
                GemmConfig(swap_ab=True, block_m=48, block_n=128, num_warpgroups=1, num_stages=9),
                expert_cost=41, tile_cost=60,
            ),
            Candidate(
                GemmConfig(swap_ab=True, block_m=80, block_n=128, num_warpgroups=1, num_stages=8),
                expert_cost=42, tile_cost=60,
            ),
        ),
    ),
    (
        float("inf"),
        (
            Candidate(
                GemmConfig(
                    swap_ab=True, block_m=64, block_n=256, num_warpgroups=2, num_stages=9,
                    cluster=2, paired=True,
                ),
                expert_cost=30, tile_cost=70,
            ),
            Candidate(
                GemmConfig(
                    swap_ab=True, block_m=256, block_n=256, num_warpgroups=2, num_stages=5,
                    cluster=2, paired=True,
                ),
                expert_cost=0, tile_cost=105,
            ),
        ),
    ),
)  # fmt: skip

TABLES = {90: SM_90, 100: SM_100}  # by backend, see `architecture`


def _configs(table) -> tuple[GemmConfig, ...]:
    """Every configuration of a table, once."""
    return tuple(dict.fromkeys(each.config for _, candidates in table for each in candidates))


CONFIGS, CONFIGS_100 = _configs(SM_90), _configs(SM_100)


def candidates_for(num_tokens: int, backend: int = 90) -> tuple[Candidate, ...]:
    """The configurations among which the device chooses in a call with `num_tokens` tokens.

    Raises ValueError for a backend without kernels of the whole layer.
    """
    if backend not in TABLES:
        raise ValueError(f"backend: expected {', '.join(map(str, TABLES))}, got {backend}")
    table = TABLES[backend]
    return next(candidates for max_tokens, candidates in table if num_tokens <= max_tokens)
