"""Which tiles the two GEMMs use at which number of tokens; measured on an H200."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """Tile configuration of one grouped GEMM."""

    block_t: int  # rows (tokens) per tile
    swap_ab: bool  # weights on the tensor core's M side
    num_warps: int
    num_stages: int  # K blocks in flight; one holds (block_t + 256) * 128 bytes
    programs_per_sm: int
    halves: bool = False  # two programs may share a tile's K; GEMM1 only


@dataclass(frozen=True)
class Tiles:
    """Tiles of both GEMMs for up to max_tokens tokens."""

    max_tokens: float
    gemm1: Tile
    gemm2: Tile


TABLE = (
    Tiles(16, Tile(16, True, 4, 3, 2, halves=True), Tile(16, True, 4, 4, 2)),
    Tiles(256, Tile(16, True, 4, 3, 2, halves=True), Tile(16, True, 4, 3, 2)),
    Tiles(2048, Tile(64, False, 4, 4, 1), Tile(32, True, 4, 3, 2)),
    Tiles(float("inf"), Tile(128, False, 8, 3, 1), Tile(128, False, 8, 3, 1)),
)


def tiles_for(num_tokens: int) -> Tiles:
    """First row of TABLE that covers num_tokens."""
    return next(tiles for tiles in TABLE if num_tokens <= tiles.max_tokens)
