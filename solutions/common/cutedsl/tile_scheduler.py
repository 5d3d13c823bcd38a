"""Device-side scheduler of the ragged two-GEMM tile list, and the queue that carries its tiles.

Tiles are numbered in one list: first GEMM1 for every expert, then GEMM2 for every expert. Within
GEMM1 the order is expert, weight tile, token tile: blocks that run side by side read the same or
neighbouring weights, so these come from memory once. An expert with more than TOKEN_TILES token
tiles goes through its weight tiles once for every so many of them, whose rows stay in the L2 cache.
So does GEMM2 where there are few rows. With many it takes one panel of weight tiles after the
other: the columns of y become complete panel by panel, and combining them can begin.

Blocks draw their tiles from a counter in global memory: fast blocks take more, and one that has not
started takes none. Since all GEMM1 tiles are drawn before any GEMM2 tile, waiting in a GEMM2 tile
for the GEMM1 tiles of its expert cannot deadlock, however few blocks the device has room for: other
streams, priorities and partitions of the device decide that. For the same reason nothing that
another block waits for may be shared out by the block's index.

With tokens on M a tile is drawn once all roles of the block have begun the one before. If blocks
filled their queues at once, the first to start would draw several neighbours each, and until these
were done the blocks would work in two or three times as many experts side by side.

A cluster of two blocks takes two tiles at a time, neighbours in the list. They are of one expert,
since it has an even number of weight tiles, and mostly of one weight tile. Every other weight tile
goes through its token tiles backwards: where they are odd in number, the last and least filled ones
of two weight tiles meet in a pair, and neither block waits for a fuller tile.

The scheduler's warp fills a queue of tile records in shared memory, which all other roles read.

  counters [COUNTERS] int32 (zero on entry): tiles drawn; per expert, finished GEMM1 tiles and,
  where tokens are gathered, gathered rows; per panel of y, finished GEMM2 tiles; the last, rows
  drawn
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import cutlass
import cutlass.cute as cute
from cutlass import Int32
from cutlass.cute import arch

from .config import PAIR_STEP, GemmConfig
from .device import select, sum_up_to_lane
from .ring import Ring, consumer_state, producer_state

GEMM1 = 0
GEMM2 = 1
END = -1

COUNTERS = 64  # Int32 words in global memory, zero at first
QUEUE_SLOTS = 2
PANEL_ROWS = 9000  # of all experts, from which on GEMM2 takes its weight tiles panel by panel
TOKEN_TILES = 16  # of an expert that all its weight tiles meet before further ones; even
RECORD = 8  # Int32 words of a tile record in shared memory
FEW_EXPERTS = 7  # active ones whose weights, 44 MB each, are few: see `few_weights`


def padded(rows: Int32, row_block: int) -> Int32:
    """Rows of an expert whose rows are padded to whole blocks of row_block rows."""
    return (rows + (row_block - 1)) // row_block * row_block


def few_weights(offsets: cute.Tensor, experts: int, most_rows: int):
    """Whether at most FEW_EXPERTS experts have rows, and none more than a tile's most_rows:
    little is read, and every weight once. By all lanes of a warp; offsets int32 [experts + 1].

    The number is measured (docs/2026-11-25-cutedsl-small.md).
    """
    lane = arch.lane_idx()
    expert = select(lane < experts, lane, experts - 1)
    rows = select(lane < experts, offsets[expert + 1] - offsets[expert], 0)
    active = arch.popc(arch.vote_ballot_sync(rows > 0))
    return (active <= FEW_EXPERTS) & (arch.vote_ballot_sync(rows > most_rows) == 0)


@dataclass(frozen=True)
class Tile:
    """One unit of work.

    gemm: GEMM1, GEMM2 or END. n_block: number of the weight tile. row: first flat row; padded_row:
    the same row where experts are padded to whole blocks of rows. rows: valid rows, at most the
    tile's. gemm1_tiles: how many GEMM1 tiles the expert has. multicast: whether the blocks of the
    cluster have the same weights (1) or not (0).
    """

    gemm: Int32
    expert: Int32
    n_block: Int32
    row: Int32
    padded_row: Int32
    rows: Int32
    gemm1_tiles: Int32
    multicast: Int32

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

    first, end: flat rows of the lane's expert; padded_first: its first row where experts are padded
    to whole blocks of rows, padded_end: behind its last; tiles: its token tiles; tile_rows: rows of
    all of these but the last, where `even` an expert's own; last: token tiles of experts 0..lane;
    total: token tiles of all experts. n_blocks1, n_blocks2: weight tiles that a token tile meets in
    GEMM1 and in GEMM2; panel: how many of n_blocks2 are taken together, all of them where there are
    few rows.
    """

    first: Int32
    end: Int32
    padded_first: Int32
    padded_end: Int32
    tiles: Int32
    tile_rows: Int32 | int
    last: Int32
    total: Int32
    even: bool
    n_blocks1: int
    n_blocks2: int
    panel: Int32 | int

    @staticmethod
    def load(
        offsets: cute.Tensor, experts: int, most_rows: int, row_block: int, n_blocks1: int,
        n_blocks2: int, panel: int, even: bool = False, step: int = 1,
    ) -> TileList:  # fmt: skip
        """From offsets int32 [experts + 1]; called by all lanes of a warp, experts <= 32.

        most_rows: of a token tile. even: whether an expert's rows are spread evenly over as many
        tiles as they need, in steps of `step` rows, which most_rows is a multiple of, or fill one
        tile after the other.
        """
        lane = arch.lane_idx()
        expert = select(lane < experts, lane, experts - 1)
        first, end = offsets[expert], offsets[expert + 1]
        rows = select(lane < experts, end - first, 0)
        padded_end = sum_up_to_lane(padded(rows, row_block))
        tiles = (rows + (most_rows - 1)) // most_rows
        tile_rows = most_rows
        if even:
            tile_rows = (rows + (tiles - 1)) // select(tiles > 0, tiles, 1)
            if step > 1:
                tile_rows = padded(tile_rows, step)
        last = sum_up_to_lane(tiles)
        if panel != n_blocks2:
            few = arch.shuffle_sync(end, experts - 1) < PANEL_ROWS
            panel = select(few, n_blocks2, panel)
        return TileList(
            first, end, padded_end - padded(rows, row_block), padded_end, tiles, tile_rows, last,
            arch.shuffle_sync(last, 31), even, n_blocks1, n_blocks2, panel,
        )  # fmt: skip

    def pair(self, index: Int32, block: Int32) -> Tile:
        """Tile 2 index for block 0, 2 index + 1 for others; called by all lanes of the warp, each
        with a block of its own."""
        first, second = self.tile(2 * index), self.tile(2 * index + 1)
        values = {
            field.name: select(block == 0, getattr(first, field.name), getattr(second, field.name))
            for field in fields(Tile)
        }
        same = (first.expert == second.expert) & (first.n_block == second.n_block)
        return Tile(**values | {"multicast": select(same, 1, 0)})

    def tile(self, index: Int32) -> Tile:
        """Tile number `index`; called by all lanes of the warp."""
        tiles1 = self.total * self.n_blocks1
        in_gemm2 = index >= tiles1
        local = index - select(in_gemm2, tiles1, 0)
        tiles2 = self.total * self.panel  # of a panel
        panel = select(in_gemm2, local // select(tiles2 > 0, tiles2, 1), 0)
        local = local - panel * tiles2
        n_blocks = select(in_gemm2, self.panel, self.n_blocks1)
        gemm = select(in_gemm2, GEMM2, GEMM1)
        gemm = select(index >= tiles1 + self.total * self.n_blocks2, END, gemm)
        # the lanes whose experts end before the tile
        expert = arch.popc(arch.vote_ballot_sync(self.last * n_blocks <= local)) & 31
        tiles = arch.shuffle_sync(self.tiles, expert)
        local = local - (arch.shuffle_sync(self.last, expert) - tiles) * n_blocks
        before = local // (TOKEN_TILES * n_blocks) * TOKEN_TILES  # token tiles
        local = local - before * n_blocks
        tiles_left = tiles - before
        together = select(tiles_left < TOKEN_TILES, tiles_left, TOKEN_TILES)
        n_block = local // select(together > 0, together, 1)
        number = local - n_block * together
        number = before + select(n_block % 2 == 0, number, together - 1 - number)
        tile_rows = self.tile_rows
        if self.even:
            tile_rows = arch.shuffle_sync(self.tile_rows, expert)
        rows_before = number * tile_rows
        row = arch.shuffle_sync(self.first, expert) + rows_before
        padded_row = arch.shuffle_sync(self.padded_first, expert) + rows_before
        left = arch.shuffle_sync(self.end, expert) - row
        rows = select(left < tile_rows, left, tile_rows)
        n_block = n_block + panel * self.panel
        return Tile(gemm, expert, n_block, row, padded_row, rows, tiles * self.n_blocks1, Int32(0))


@dataclass(frozen=True)
class TileQueue:
    """The tiles of a block on their way from the scheduler to the other roles: a ring of records,
    which the first block of a cluster fills in all of them. Every role walks it with `next_tile`
    and a state of its own (`consumer_state`)."""

    ring: Ring
    records: cute.Tensor  # int32 (RECORD, QUEUE_SLOTS)

    @staticmethod
    def of(barriers: cute.Pointer, records: cute.Pointer, cluster: int) -> TileQueue:
        """barriers: 2 QUEUE_SLOTS Int64, records: RECORD QUEUE_SLOTS Int32 of shared memory."""
        layout = cute.make_layout((RECORD, QUEUE_SLOTS))
        return TileQueue(Ring(barriers, QUEUE_SLOTS, cluster), cute.make_tensor(records, layout))


@cute.jit
def next_tile(queue: TileQueue, state) -> Tile:
    """By all lanes of a warp: read the next tile record and release its slot, which the first block
    of the cluster fills."""
    ring = queue.ring
    ring.wait_full(state)
    tile = Tile.read(queue.records[None, state.index])
    ring.release(state, Int32(0))
    return tile


class TileScheduler:
    """Hands out the tiles of a launch, and counts those that are finished.

    experts: local experts, at most 32. weight_tiles: that a token tile meets in GEMM1 and in GEMM2;
    panel_tiles: GEMM2's weight tiles whose columns of y are completed, and combined, together.
    row_block: what experts are padded to where tokens are gathered.
    """

    def __init__(
        self, experts: int, config: GemmConfig, weight_tiles: tuple[int, int], panel_tiles: int,
        row_block: int,
    ):  # fmt: skip
        for count in (weight_tiles[0], panel_tiles):
            # a pair of tiles must not span two GEMMs
            if not config.paired and count % config.cluster:
                raise ValueError(
                    f"block_n must give a multiple of {config.cluster} weight tiles, "
                    f"got {config.block_n} for {count}"
                )
        panels = weight_tiles[1] // panel_tiles
        if experts > min(32, COUNTERS - 2 - panels):
            raise ValueError(
                f"num_local_experts must be at most {min(32, COUNTERS - 2 - panels)}, got {experts}"
            )
        self.experts = experts
        self.config = config
        self.weight_tiles = weight_tiles
        self.panel_tiles = panel_tiles
        self.shares = config.cluster if config.paired else 1  # of a tile; each block counts its own
        self.panel_count = panel_tiles * self.shares  # of a token tile, counted when finished
        self.row_block = row_block
        self.ahead = QUEUE_SLOTS if config.swap_ab else 1  # tiles of a block drawn and not begun

    def tile_list(self, expert_offsets: cute.Pointer) -> TileList:
        """By all lanes of a warp."""
        return TileList.load(
            cute.make_tensor(expert_offsets, cute.make_layout(self.experts + 1)),
            self.experts,
            self.config.block_m,
            self.row_block,
            *self.weight_tiles,
            self.panel_tiles,
            even=self.config.swap_ab,
            step=PAIR_STEP if self.config.paired else 1,
        )

    def expert_counter(self, counters: cute.Pointer, expert: Int32) -> cute.Pointer:
        """Counts the expert's gathered rows, where they are gathered, and its GEMM1 tiles."""
        return counters + 1 + expert

    def gemm1_count(self, tile: Tile) -> Int32:
        """What the finished GEMM1 tiles of the tile's expert add to its counter."""
        return tile.gemm1_tiles * self.shares

    def panel_counters(self, counters: cute.Pointer) -> cute.Pointer:
        """Count each panel's finished GEMM2 tiles."""
        return counters + 1 + self.experts

    def counter_of(self, tile: Tile) -> Int32:
        """Number of the counter to raise when the tile is finished; 0: none."""
        panel = self.experts + tile.n_block // self.panel_tiles
        number = 1 + select(tile.gemm == GEMM1, tile.expert, panel)
        return select(tile.gemm == END, 0, number)

    @cute.jit
    def schedule(self, queue: TileQueue, expert_offsets: cute.Pointer, counters: cute.Pointer):
        """The scheduler's warp in a cluster's first block: draw tiles for the cluster, hand one to
        each block, and publish those that this block has finished.

        Consumers read a record after they have finished the tile before it. So once every reader
        has read the record of tile t - ahead, which is waited for before tile t is handed out, tile
        t - ahead - 1 is finished and its rows are written. That the slot of tile t is free is to
        know it for tile t - QUEUE_SLOTS.
        """
        ahead = self.ahead
        drawn = self.draw(counters)  # comes while the list is loaded
        tiles = self.tile_list(expert_offsets)
        ring, state = queue.ring, producer_state(QUEUE_SLOTS)
        free = state.clone()  # the slot of the record that is waited for
        for _ in cutlass.range_constexpr(QUEUE_SLOTS - ahead):
            free.advance()
        # counter to raise once the tile is finished, for tile t - 1, t - 2, ...; 0: none
        pending = [Int32(0) for _ in range(ahead + 1)]
        left = Int32(ahead + 1)  # the end record and one turn per tile before it
        while left > 0:
            index = arch.shuffle_sync(drawn, 0)
            if cutlass.const_expr(self.config.cluster == 1 or self.config.paired):
                tile = tiles.tile(index)
            else:
                tile = tiles.pair(index, arch.lane_idx())
            ring.wait_empty(free)
            self.raise_counter(counters, pending[-1])
            for q in cutlass.range_constexpr(ahead, 0, -1):
                pending[q] = pending[q - 1]
            pending[0] = self.counter_of(tile)
            if left == ahead + 1:
                self.hand_out(queue, state, tile)
            state.advance()
            free.advance()
            if tile.gemm == END:
                left -= 1
            else:
                if cutlass.const_expr(ahead < QUEUE_SLOTS):
                    ring.wait_empty(free)
                drawn = self.draw(counters)

    @cute.jit
    def draw(self, counter: cute.Pointer) -> Int32:
        """By all lanes of a warp: a number that nobody else draws, in lane 0; from 0 upwards."""
        number = Int32(0)
        if arch.lane_idx() == 0:
            number = arch.atomic_add(counter, Int32(1), sem="relaxed", scope="gpu")
        return number

    def draw_row(self, counters: cute.Pointer) -> Int32:
        """By all lanes of a warp: a padded row to be gathered, in lane 0."""
        return self.draw(counters + (COUNTERS - 1))

    @cute.jit
    def hand_out(self, queue: TileQueue, state, tile: Tile):
        """Fill a slot of the queue; in a cluster, lane b that of block b with a tile of its own."""
        ring, records = queue.ring, queue.records
        if cutlass.const_expr(self.config.cluster == 1):
            with arch.elect_one():
                tile.write(records[None, state.index])
                arch.mbarrier_arrive(ring.full_barrier(state))
        else:
            block = arch.lane_idx()
            if block < self.config.cluster:
                record = records.iterator + state.index * RECORD
                tile.send(record, ring.full_barrier(state), block)

    @cute.jit
    def publish(self, queue: TileQueue, counters: cute.Pointer):
        """The scheduler's warp in the other blocks of a cluster: publish the tiles that the block
        has finished."""
        ring, state = queue.ring, consumer_state(QUEUE_SLOTS)
        gemm, finished = Int32(GEMM1), Int32(0)
        while gemm != END:
            tile = next_tile(queue, state)
            # once all have read the record, the consumers have finished the tile before it
            ring.wait_empty(state)
            self.raise_counter(counters, finished)
            finished = self.counter_of(tile)
            gemm = tile.gemm
            state.advance()

    @cute.jit
    def raise_counter(self, counters: cute.Pointer, number: Int32):
        """By all lanes: count one finished tile or row; number: of the counter, or 0 for none."""
        if number > 0 and arch.lane_idx() == 0:
            arch.red(counters + number, Int32(1), op="add", dtype="s32", sem="release", scope="gpu")

    @cute.jit
    def wait_for(self, counter: cute.Pointer, count: Int32):
        """Wait until the counter has reached `count`; what was counted may then be read."""
        while arch.load(counter, Int32, sem="acquire", scope="gpu") < count:
            pass
