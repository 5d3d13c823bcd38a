"""Device-side scheduler of the ragged two-GEMM tile list.

Tiles are numbered in one list: first GEMM1 for every expert, then GEMM2 for every expert. Within
GEMM1 the order is expert, weight tile, token tile: blocks that run side by side read the same or
neighbouring weights, so these come from memory once. GEMM2 does the same with one group of weight
tiles, then with the next: the columns of y become complete group by group. A block takes its first
tile by its index and further ones from a counter in global memory: fast blocks take more. Since all
GEMM1 tiles are handed out before any GEMM2 tile, waiting in a GEMM2 tile for the GEMM1 tiles of its
expert cannot deadlock.

A cluster of two blocks takes two tiles at a time, neighbours in the list. They are of one expert,
since it has an even number of weight tiles, and mostly of one weight tile. Every other weight tile
goes through its token tiles backwards: where they are odd in number, the last and least filled ones
of two weight tiles meet in a pair, and neither block waits for a fuller tile.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import cutlass.cute as cute
from cutlass import Int32
from cutlass.cute import arch

from .device import select, sum_up_to_lane

GEMM1 = 0
GEMM2 = 1
END = -1

COUNTERS = 64  # Int32 words in global memory, zero at first: the tiles handed out are the first one
ROW_BLOCK = 64  # rows that wgmma multiplies at least, with tokens on its M side
RECORD = 8  # Int32 words of a tile record in shared memory


def padded(rows: Int32) -> Int32:
    """Rows of an expert whose rows are padded to whole blocks."""
    return (rows + (ROW_BLOCK - 1)) // ROW_BLOCK * ROW_BLOCK


@dataclass(frozen=True)
class Tile:
    """One unit of work. gemm: GEMM1, GEMM2 or END; expert; column: weight tile; row: first flat
    row; place: the same row where experts are padded to whole blocks; rows: valid rows (at most
    the tile's); ready: GEMM1 tiles of the expert; together: whether the blocks of the cluster have
    the same weights."""

    gemm: Int32
    expert: Int32
    column: Int32
    row: Int32
    place: Int32
    rows: Int32
    ready: Int32
    together: Int32

    def write(self, words: cute.Tensor) -> None:
        for i, field in enumerate(fields(self)):
            words[i] = getattr(self, field.name)

    def send(self, words: cute.Pointer, barrier: cute.Pointer, block: Int32) -> None:
        """Write the record in a block of the cluster and fill its barrier; addresses are those
        of the own block."""
        values = [getattr(self, field.name) for field in fields(self)]
        arch.mbarrier_arrive_and_expect_tx(barrier, 4 * RECORD, block)
        for i in range(0, RECORD, 4):
            part = cute.make_ptr(Int32, (words + i).toint(), words.memspace, assumed_align=16)
            arch.store_async_dsmem(part, tuple(values[i : i + 4]), barrier, block)

    @staticmethod
    def read(words: cute.Tensor) -> Tile:
        return Tile(*(words[i] for i in range(RECORD)))


@dataclass(frozen=True)
class TileList:
    """The tile list of one launch, spread over the lanes of a warp: lane e knows expert e.

    first, end: flat rows of the lane's expert; place: its first row where experts are padded to
    whole blocks, place_end: behind its last; tiles: its token tiles; last: token tiles of
    experts 0..lane; total: token tiles of all experts. tile_rows: tokens of a tile; columns1,
    columns2: weight tiles that a token tile meets in GEMM1 and in GEMM2; group: of columns2, taken
    together.
    """

    first: Int32
    end: Int32
    place: Int32
    place_end: Int32
    tiles: Int32
    last: Int32
    total: Int32
    tile_rows: int
    columns1: int
    columns2: int
    group: int

    @staticmethod
    def load(
        offsets: cute.Tensor, experts: int, tile_rows: int, columns1: int, columns2: int, group: int
    ) -> TileList:
        """From offsets int32 [experts + 1]; called by all lanes of a warp, experts <= 32."""
        lane = arch.lane_idx()
        expert = select(lane < experts, lane, experts - 1)
        first, end = offsets[expert], offsets[expert + 1]
        rows = select(lane < experts, end - first, 0)
        place_end = sum_up_to_lane(padded(rows))
        tiles = (rows + (tile_rows - 1)) // tile_rows
        last = sum_up_to_lane(tiles)
        return TileList(
            first, end, place_end - padded(rows), place_end, tiles, last,
            arch.shuffle_sync(last, 31), tile_rows, columns1, columns2, group,
        )  # fmt: skip

    def pair(self, index: Int32, block: Int32) -> Tile:
        """Tile 2 index for block 0, 2 index + 1 for others; called by all lanes of the warp, each
        with a block of its own."""
        first, second = self.tile(2 * index), self.tile(2 * index + 1)
        values = {
            field.name: select(block == 0, getattr(first, field.name), getattr(second, field.name))
            for field in fields(Tile)
        }
        same = (first.expert == second.expert) & (first.column == second.column)
        return Tile(**values | {"together": select(same, 1, 0)})

    def tile(self, index: Int32) -> Tile:
        """Tile number `index`; called by all lanes of the warp."""
        tiles1 = self.total * self.columns1
        in_gemm2 = index >= tiles1
        local = index - select(in_gemm2, tiles1, 0)
        tiles2 = self.total * self.group  # of a group
        group = select(in_gemm2, local // select(tiles2 > 0, tiles2, 1), 0)
        local = local - group * tiles2
        columns = select(in_gemm2, self.group, self.columns1)
        gemm = select(in_gemm2, GEMM2, GEMM1)
        gemm = select(index >= tiles1 + self.total * self.columns2, END, gemm)
        # the lanes whose experts end before the tile
        expert = arch.popc(arch.vote_ballot_sync(self.last * columns <= local)) & 31
        tiles = arch.shuffle_sync(self.tiles, expert)
        local = local - (arch.shuffle_sync(self.last, expert) - tiles) * columns
        column = local // select(tiles > 0, tiles, 1)
        number = local - column * tiles
        number = select(column % 2 == 0, number, tiles - 1 - number)
        before = number * self.tile_rows
        row = arch.shuffle_sync(self.first, expert) + before
        place = arch.shuffle_sync(self.place, expert) + before
        left = arch.shuffle_sync(self.end, expert) - row
        rows = select(left < self.tile_rows, left, self.tile_rows)
        column = column + group * self.group
        return Tile(gemm, expert, column, row, place, rows, tiles * self.columns1, Int32(0))
