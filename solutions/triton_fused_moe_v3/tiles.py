"""Which tiles the two GEMMs use on which GPU at which number of tokens."""

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True, eq=False)
class Tile:
    """Tile configuration of one grouped GEMM."""

    block_t: int  # rows (tokens) per tile
    swap_ab: bool  # weights on the tensor core's M side
    num_warps: int
    num_stages: int  # K blocks in flight; one holds (block_t + 256) * 128 bytes
    programs_per_sm: int
    halves: bool = False  # two programs may share a tile's K; GEMM1 only


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles of both GEMMs for up to max_tokens tokens."""

    max_tokens: float
    gemm1: Tile
    gemm2: Tile


SM_90 = (  # measured on an H200
    Tiles(16, Tile(16, True, 4, 3, 2, halves=True), Tile(16, True, 4, 4, 2)),
    Tiles(256, Tile(16, True, 4, 3, 2, halves=True), Tile(16, True, 4, 3, 2)),
    Tiles(2048, Tile(64, False, 4, 4, 1), Tile(32, True, 4, 3, 2)),
    Tiles(float("inf"), Tile(128, False, 8, 3, 1), Tile(128, False, 8, 3, 1)),
)
# Never run: chosen by what Triton 3.9 compiles for sm_100. The accumulators are in tensor memory,
# and pass through registers once per block of K: twice the warps hold what would spill (64 rows
# of tokens or more). 128 weight rows on M are the full rate of tcgen05.mma, 64 tokens half of it.
# The largest tile spills 200 bytes, 12 of its loop's 410 instructions; it reads half the weights.
SM_100 = (
    *SM_90[:2],
    Tiles(2048, Tile(64, True, 8, 4, 1), Tile(32, True, 8, 3, 2)),
    Tiles(float("inf"), Tile(128, False, 8, 4, 1), Tile(128, False, 8, 4, 1)),
)


@lru_cache(maxsize=1024)
def tiles_for(num_tokens: float, device: torch.device) -> Tiles:
    """First row that covers num_tokens in the table of this device; the CPU goes by SM_90."""
    blackwell = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 10
    table = SM_100 if blackwell else SM_90
    return next(tiles for tiles in table if num_tokens <= tiles.max_tokens)
