"""The ragged tile list hands out every (GEMM, expert, token tile, weight tile) exactly once.

The device code runs here as it is: its warp primitives are replaced by NumPy versions in which an
array of 32 values is a register of a warp.
"""

from dataclasses import fields

import numpy as np
import pytest

cutlass = pytest.importorskip("cutlass")
from solutions.common.cutedsl import adaptive_gemms, device, tile_scheduler  # noqa: E402
from solutions.common.cutedsl.config import (  # noqa: E402
    CONFIGS,
    CONFIGS_100,
    SM_90,
    SM_100,
    candidates_for,
    choose,
)
from solutions.common.cutedsl.tile_scheduler import END, GEMM1, GEMM2, Tile, TileList  # noqa: E402


class Warp:
    """The primitives of `cute.arch` that the tile list uses, on arrays of 32 lanes."""

    lane_idx = staticmethod(lambda: np.arange(32))
    shuffle_sync = staticmethod(lambda value, lane: np.asarray(value)[lane])
    popc = staticmethod(lambda bits: int(bits).bit_count())

    @staticmethod
    def warp_redux_sync(value, kind):
        assert kind == "add"
        return int(np.sum(value))

    @staticmethod
    def vote_ballot_sync(predicate):
        return sum(1 << lane for lane in range(32) if predicate[lane])

    @staticmethod
    def shuffle_sync_up(value, distance, mask_and_clamp):
        assert mask_and_clamp == 0
        return np.concatenate([value[:distance], value[:-distance]])


@pytest.fixture
def warp(monkeypatch):
    for module in (adaptive_gemms, device, tile_scheduler):
        monkeypatch.setattr(module, "arch", Warp)
        monkeypatch.setattr(module, "select", np.where)


def expected_tiles(counts, most_rows, row_block, n_blocks1, n_blocks2, panel, even=False, step=1):
    """Every tile once, in the documented order."""
    first = np.concatenate([[0], np.cumsum(counts)])
    place = np.concatenate([[0], np.cumsum(-(-np.asarray(counts) // row_block) * row_block)])
    if sum(counts) < tile_scheduler.PANEL_ROWS:
        panel = n_blocks2
    passes = [(GEMM1, range(n_blocks1))]
    passes += [(GEMM2, range(start, start + panel)) for start in range(0, n_blocks2, panel)]
    for gemm, n_blocks in passes:
        for expert, count in enumerate(counts):
            tiles = -(-count // most_rows)
            tile_rows = most_rows
            if even and tiles:
                tile_rows = -(-count // (tiles * step)) * step
            most = tile_scheduler.TOKEN_TILES
            groups = [range(tiles)[start : start + most] for start in range(0, tiles, most)]
            for n_block, group in ((n_block, group) for group in groups for n_block in n_blocks):
                for nth in group[:: -1 if (n_block - n_blocks[0]) % 2 else 1]:
                    rows = min(tile_rows, count - nth * tile_rows)
                    before = nth * tile_rows
                    row, padded = first[expert] + before, place[expert] + before
                    yield gemm, expert, n_block, row, padded, rows, tiles * n_blocks1, 0


@pytest.mark.parametrize("experts", [8, 32])
def test_few_weights(warp, experts):
    rng, found = np.random.default_rng(experts), []
    for _ in range(300):
        counts = np.zeros(experts, int)
        active = rng.choice(experts, rng.integers(0, 9), replace=False)
        counts[active] = rng.integers(1, 18, len(active))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        found.append(bool(tile_scheduler.few_weights(offsets, experts, 16)))
        assert found[-1] == (len(active) <= tile_scheduler.FEW_EXPERTS and max(counts) <= 16)
    assert any(found) and not all(found)


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
def test_ragged_distributions(warp, monkeypatch, experts):
    rng = np.random.default_rng(experts)
    for _ in range(340):
        monkeypatch.setattr(tile_scheduler, "PANEL_ROWS", int(rng.choice([0, 300])))
        monkeypatch.setattr(tile_scheduler, "TOKEN_TILES", int(rng.choice([2, 4, 16])))
        counts = rng.integers(0, rng.choice([2, 20, 300]), experts) * rng.integers(0, 2, experts)
        panel, panels = (int(rng.integers(1, 4)) for _ in range(2))
        tile_rows, row_block = int(rng.choice([16, 64, 128])), int(rng.choice([1, 64]))
        spread = bool(rng.integers(2)), int(rng.choice([1, 16]))
        shape = (tile_rows, row_block, int(rng.integers(1, 5)), panel * panels, panel, *spread)
        assert list(listed_tiles(counts, *shape)) == list(expected_tiles(counts, *shape)), counts


def test_no_pairs_at_all(warp):
    assert list(listed_tiles(np.zeros(32, int), 16, 64, 32, 56, 8, True)) == []


@pytest.mark.parametrize("experts", [1, 5, 32])
def test_pairs_of_a_cluster(warp, monkeypatch, experts):
    """Each tile once, both of one GEMM and expert, and most pairs with the same weights."""
    rng = np.random.default_rng(experts)
    for _ in range(40):
        monkeypatch.setattr(tile_scheduler, "TOKEN_TILES", int(rng.choice([2, 4, 16])))
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


def test_device_and_host_choose_alike(warp):
    rng = np.random.default_rng(0)
    chosen = set()
    for _ in range(300):
        rows = rng.poisson(rng.choice([1, 5, 20, 60, 100, 150, 300, 3000]), 32)
        rows = rows * (rng.random(32) < rng.random())
        for _, candidates in (*SM_90, *SM_100):
            number = int(adaptive_gemms.cheapest(candidates, rows))
            assert candidates[number].config == choose(candidates, rows.tolist())
            chosen.add(candidates[number].config)
    assert chosen == {*CONFIGS, *CONFIGS_100}


@pytest.mark.parametrize(
    "block_m, rows_per_expert",
    [(16, 5), (16, 14), (64, 17), (64, 64), (64, 96), (64, 128), (128, 130), (128, 2000)],
)
def test_choice_for_even_loads(block_m, rows_per_expert):
    """What was fastest on an H100, also where few experts have all the rows."""
    for experts in (8, 32):
        rows = [rows_per_expert] * experts + [0] * (32 - experts)
        assert choose(candidates_for(1000), rows).block_m == block_m
