"""The ragged tile list hands out every (GEMM, expert, token tile, weight tile) exactly once.

The device code runs here as it is: its warp primitives are replaced by NumPy versions in which an
array of 32 values is a register of a warp.
"""

from dataclasses import fields

import numpy as np
import pytest

cutlass = pytest.importorskip("cutlass")
from solutions.common.cutedsl import device, tile_scheduler  # noqa: E402
from solutions.common.cutedsl.tile_scheduler import END, GEMM1, GEMM2, Tile, TileList  # noqa: E402


class Warp:
    """The primitives of `cute.arch` that the tile list uses, on arrays of 32 lanes."""

    lane_idx = staticmethod(lambda: np.arange(32))
    shuffle_sync = staticmethod(lambda value, lane: np.asarray(value)[lane])
    popc = staticmethod(lambda bits: int(bits).bit_count())

    @staticmethod
    def vote_ballot_sync(predicate):
        return sum(1 << lane for lane in range(32) if predicate[lane])

    @staticmethod
    def shuffle_sync_up(value, distance, mask_and_clamp):
        assert mask_and_clamp == 0
        return np.concatenate([value[:distance], value[:-distance]])


@pytest.fixture
def warp(monkeypatch):
    for module in (device, tile_scheduler):
        monkeypatch.setattr(module, "arch", Warp)
        monkeypatch.setattr(module, "select", np.where)


def expected_tiles(counts, tile_rows, row_block, n_blocks1, n_blocks2, panel):
    """Every tile once, in the documented order."""
    first = np.concatenate([[0], np.cumsum(counts)])
    place = np.concatenate([[0], np.cumsum(-(-np.asarray(counts) // row_block) * row_block)])
    passes = [(GEMM1, range(n_blocks1))]
    passes += [(GEMM2, range(start, start + panel)) for start in range(0, n_blocks2, panel)]
    for gemm, n_blocks in passes:
        for expert, count in enumerate(counts):
            tiles = -(-count // tile_rows)
            for n_block in n_blocks:
                for nth in range(tiles)[:: -1 if (n_block - n_blocks[0]) % 2 else 1]:
                    rows = min(tile_rows, count - nth * tile_rows)
                    before = nth * tile_rows
                    row, padded = first[expert] + before, place[expert] + before
                    yield gemm, expert, n_block, row, padded, rows, tiles * n_blocks1, 0


def listed_tiles(counts, *shape):
    offsets = np.concatenate([[0], np.cumsum(counts)])
    tiles = TileList.load(offsets, len(counts), *shape)
    index = 0
    while True:
        tile = tiles.tile(np.int64(index))
        if tile.gemm == END:
            return
        yield tuple(int(getattr(tile, field.name)) for field in fields(Tile))
        index += 1


@pytest.mark.parametrize("experts", [1, 5, 32])
def test_ragged_distributions(warp, experts):
    rng = np.random.default_rng(experts)
    for _ in range(340):
        counts = rng.integers(0, rng.choice([2, 20, 300]), experts) * rng.integers(0, 2, experts)
        panel, panels = (int(rng.integers(1, 4)) for _ in range(2))
        tile_rows, row_block = int(rng.choice([16, 64, 128])), int(rng.choice([1, 64]))
        shape = (tile_rows, row_block, int(rng.integers(1, 5)), panel * panels, panel)
        assert list(listed_tiles(counts, *shape)) == list(expected_tiles(counts, *shape)), counts


def test_no_pairs_at_all(warp):
    assert list(listed_tiles(np.zeros(32, int), 16, 64, 32, 56, 8)) == []


@pytest.mark.parametrize("experts", [1, 5, 32])
def test_pairs_of_a_cluster(warp, experts):
    """Each tile once, both of one GEMM and expert, and most pairs with the same weights."""
    rng = np.random.default_rng(experts)
    for _ in range(40):
        counts = rng.integers(0, rng.choice([2, 200, 2000]), experts) * rng.integers(0, 2, experts)
        tiles = TileList.load(
            np.concatenate([[0], np.cumsum(counts)]),
            experts,
            128,
            64,
            n_blocks1=4,
            n_blocks2=4,
            panel=2,
        )
        pairs, blocks = [], np.minimum(np.arange(32), 1)
        while (tile := tiles.pair(np.int64(len(pairs)), blocks)).gemm[0] != END:
            names = [field.name for field in fields(Tile)]
            lanes = np.array([np.broadcast_to(getattr(tile, name), 32) for name in names])
            pairs.append([dict(zip(names, map(int, lanes[:, b]), strict=True)) for b in range(2)])
        assert tile.gemm[1] == END
        listed = [tuple(tile.values())[:-1] for pair in pairs for tile in pair]
        assert listed == [tile[:-1] for tile in expected_tiles(counts, 128, 64, 4, 4, 2)]
        for first, second in pairs:
            assert (first["gemm"], first["expert"]) == (second["gemm"], second["expert"])
            together = first["n_block"] == second["n_block"]
            assert first["multicast"] == second["multicast"] == together
            # different weights: the last token tile of both
            assert together or first["rows"] == second["rows"]
