"""Both grouped GEMMs and the combine in one persistent kernel: everything but the multiplication.

One list of tiles runs through GEMM1 and GEMM2 (`tile_scheduler`), so the weight stream never drains
between them: a GEMM2 tile waits only for the GEMM1 tiles of its own expert (counters in global
memory), and its weights are already on the way while it waits. Where the list ends, the consumers
add up the rows of y (`combine`), in the last group of columns if there are several.

A GEMM1 tile is R weight rows, half of them up and half gate rows for the same R/2 columns of the
activation, taken alternately in groups of 8 (one five-dimensional TMA box): wgmma's accumulator
then gives a thread up and gate of the same column, and SwiGLU needs no exchange. The activation is
quantised to e4m3 with one scale per token and R/2 columns. A GEMM2 tile is R plain weight rows.

Block: a producer warpgroup (warp 0: weights by TMA; warps 1, 2: token rows and scales by cp.async,
gathered by token id in GEMM1; warp 3: scheduler), then one or two consumer warpgroups, which the
subclasses `SwapAbGemms` and `TokensOnMGemms` define; the latter has other token producers, too.

The blocks of a cluster work on neighbours in the list. Where these are two token tiles of the same
weights, each block loads half the weight rows into both. The first one's scheduler hands out tiles
for both.

Global tensors (row-major, last dimension fastest):
  hidden [T, H] e4m3            hidden_scale [H/128, T] fp32
  w1 [E, 2I, H] e4m3            w1_scale [E, 2I/128, H/128] fp32     (rows 0..I-1 up, I..2I-1 gate)
  w2 [E, H, I] e4m3             w2_scale [E, H/128, I/128] fp32
  expert_offsets [E + 1] int32  row_token [max_rows] int32           row_weight [max_rows] fp32
  act [act_rows, I] e4m3        act_scale [2I/R, act_rows] fp32      (scratch)
  y [max_rows, H] bf16          (scratch: rows times row_weight)
  token_rows [T, top_k] int32   output [T, H] bf16                   (see `combine`)
  counters [COUNTERS] int32     (zero on entry: tiles handed out; per expert, finished GEMM1 tiles
                                and, tokens on M, gathered rows; per group of columns of y,
                                finished GEMM2 tiles)

Shared memory of a slot, 128 columns wide: R * 128 bytes of weights and N * 128 bytes of tokens
(both 128-byte swizzled), N * 256/R token scales (at most two groups of columns), two weight scales.
TMA writes scales at multiples of 128 bytes only.
"""

from __future__ import annotations

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32, Int64
from cutlass.cute.nvgpu import cpasync
from cutlass.cute.nvgpu.warpgroup import OperandMajorMode
from cutlass.pipeline import NamedBarrier
from cutlass.utils import SmemAllocator
from cutlass.utils.hopper_helpers import make_trivial_tiled_mma

from ..geometry import Geometry
from .combine import BUFFER_BYTES, Combine
from .config import GemmConfig
from .device import prefetch_to_l2, select, vector
from .ring import Ring, consumer_state, producer_state
from .tile_scheduler import COUNTERS, END, GEMM1, RECORD, Tile, TileList

BLOCK = 128  # columns of a slot, and of a scale block
TOKEN_WARPS = 2
QUEUE_SLOTS = 2
# With two consumer warpgroups a thread starts with 168 registers, the most that 384 can have; the
# producers then give some to the consumers. 56 + 2 * 224 = 3 * 168: asking for more would hang.
PRODUCER_REGISTERS = 56
CONSUMER_REGISTERS = 224
COMBINE_BARRIER = 2
PREFETCH_TOKENS = 2048  # up to here the hidden states fit into a fraction of the L2 cache
E4M3_MAX = 448.0


def swizzled(shape: tuple, stride: tuple) -> cute.ComposedLayout:
    """128-byte swizzled layout, as TMA writes and wgmma reads it."""
    return cute.make_composed_layout(
        cute.make_swizzle(3, 4, 3), 0, cute.make_layout(shape, stride=stride)
    )


class MoeGemms:
    """See the module's docstring. A subclass defines `result_bytes`, `mma_shape` and `consume`."""

    def __init__(self, geometry: Geometry, config: GemmConfig, num_sms: int):
        self.geometry = geometry
        self.config = config
        self.num_sms = num_sms - num_sms % config.cluster  # blocks: one per multiprocessor
        self.consumer_threads = 128 * config.warpgroups
        self.threads = 128 + self.consumer_threads
        self.groups2 = BLOCK // config.act_columns  # scales of a token in a slot of GEMM2
        self.combine = Combine(geometry, self.group_columns)
        for count in (self.weight_tiles[0], self.group_tiles):
            if count % config.cluster:  # a pair of tiles must not span two GEMMs
                raise ValueError(
                    f"weight_rows must give a multiple of {config.cluster} weight tiles, "
                    f"got {config.weight_rows} for {count}"
                )
        if 1 + geometry.num_local_experts + self.combine.groups > COUNTERS:
            raise ValueError(
                f"num_local_experts must be at most {COUNTERS - 1 - self.combine.groups}, "
                f"got {geometry.num_local_experts}"
            )

        self.queue_readers = 1 + TOKEN_WARPS  # warps of the producer warpgroup
        self.slot_arrivals = 1 + 32 * TOKEN_WARPS  # that fill a slot

    def token_loads(self, act, act_scale, act_rows) -> tuple:
        """TMA atoms and tensors of the tokens, where TMA loads them."""
        return ()

    @property
    def weight_tiles(self) -> tuple[int, int]:
        """That a token tile meets in GEMM1 and in GEMM2."""
        g = self.geometry
        return (
            g.intermediate_size // self.config.act_columns,
            g.hidden_size // self.config.weight_rows,
        )

    @property
    def group_columns(self) -> int:
        """Columns of y that are completed, and combined, together."""
        return self.geometry.hidden_size

    @property
    def group_tiles(self) -> int:
        """Weight tiles of such a group."""
        return self.group_columns // self.config.weight_rows

    @property
    def result_bytes(self) -> int:
        """Shared memory in which consumers rearrange their results."""
        raise NotImplementedError

    @property
    def row_bytes(self) -> int:
        """Shared memory in which producers combine rows."""
        return 0

    @property
    def mma_shape(self) -> tuple[int, int]:
        """M and N of one wgmma."""
        raise NotImplementedError

    def tiled_mma(self) -> cute.TiledMma:
        return make_trivial_tiled_mma(
            Float8E4M3FN, Float8E4M3FN, OperandMajorMode.K, OperandMajorMode.K, Float32,
            (self.config.warpgroups, 1, 1), self.mma_shape,
        )  # fmt: skip

    @cute.jit
    def __call__(
        self,
        hidden: cute.Pointer,
        hidden_scale: cute.Pointer,
        w1: cute.Pointer,
        w1_scale: cute.Pointer,
        w2: cute.Pointer,
        w2_scale: cute.Pointer,
        expert_offsets: cute.Pointer,
        row_token: cute.Pointer,
        row_weight: cute.Pointer,
        act: cute.Pointer,
        act_scale: cute.Pointer,
        y: cute.Pointer,
        token_rows: cute.Pointer,
        output: cute.Pointer,
        counters: cute.Pointer,
        num_tokens: Int32,
        act_rows: Int32,
        stream: cuda.CUstream,
    ):
        g, n, r, s = self.geometry, self.config.tokens, self.config.weight_rows, self.config.stages
        h, i, e = g.hidden_size, g.intermediate_size, g.num_local_experts

        # weights as (column, row in 8, up or gate, group of 8, expert) and (row, column, expert)
        w1_tensor = cute.make_tensor(
            w1, cute.make_layout((h, 8, 2, i // 8, e), stride=(1, h, i * h, 8 * h, 2 * i * h))
        )
        w2_tensor = cute.make_tensor(w2, cute.make_layout((h, i, e), stride=(i, 1, h * i)))
        part = r // self.config.cluster
        box1 = swizzled((BLOCK, 8, 2, part // 16), (1, BLOCK, 8 * BLOCK, 16 * BLOCK))
        box2 = swizzled((part, BLOCK), (BLOCK, 1))
        if cutlass.const_expr(self.config.cluster == 1):
            load = cpasync.CopyBulkTensorTileG2SOp()
        else:
            load = cpasync.CopyBulkTensorTileG2SMulticastOp()
        tma1, tma1_tensor = cpasync.make_tiled_tma_atom(
            load, w1_tensor, box1, (BLOCK, 8, 2, part // 16)
        )
        tma2, tma2_tensor = cpasync.make_tiled_tma_atom(load, w2_tensor, box2, (part, BLOCK))

        @cute.struct
        class Shared:
            ring: cute.struct.MemRange[Int64, 2 * s]
            queue: cute.struct.MemRange[Int64, 2 * QUEUE_SLOTS]
            tiles: cute.struct.Align[cute.struct.MemRange[Int32, RECORD * QUEUE_SLOTS], 16]
            weight_scale: cute.struct.MemRange[Float32, 2 * s]
            token_scale: cute.struct.Align[cute.struct.MemRange[Float32, self.groups2 * n * s], 128]
            weights: cute.struct.Align[cute.struct.MemRange[Float8E4M3FN, BLOCK * r * s], 1024]
            tokens: cute.struct.Align[cute.struct.MemRange[Float8E4M3FN, BLOCK * n * s], 1024]
            result: cute.struct.Align[cute.struct.MemRange[BFloat16, self.result_bytes // 2], 1024]
            rows: cute.struct.Align[cute.struct.MemRange[Float8E4M3FN, self.row_bytes], 16]

        self.shared = Shared
        self.kernel(
            tma1, tma1_tensor, tma2, tma2_tensor, self.tiled_mma(), hidden, hidden_scale, w1_scale,
            w2_scale, expert_offsets, row_token, row_weight, act, act_scale, y, token_rows, output,
            counters, num_tokens, act_rows, self.token_loads(act, act_scale, act_rows),
        ).launch(
            grid=(self.num_sms, 1, 1), cluster=(self.config.cluster, 1, 1),
            block=(self.threads, 1, 1), min_blocks_per_mp=1, stream=stream, use_pdl=True,
        )  # fmt: skip

    @cute.kernel
    def kernel(
        self,
        tma1: cute.CopyAtom,
        tma1_tensor: cute.Tensor,
        tma2: cute.CopyAtom,
        tma2_tensor: cute.Tensor,
        tiled_mma: cute.TiledMma,
        hidden: cute.Pointer,
        hidden_scale: cute.Pointer,
        w1_scale: cute.Pointer,
        w2_scale: cute.Pointer,
        expert_offsets: cute.Pointer,
        row_token: cute.Pointer,
        row_weight: cute.Pointer,
        act: cute.Pointer,
        act_scale: cute.Pointer,
        y: cute.Pointer,
        token_rows: cute.Pointer,
        output: cute.Pointer,
        counters: cute.Pointer,
        num_tokens: Int32,
        act_rows: Int32,
        token_loads: tuple,
    ):
        s = self.config.stages
        thread, _, _ = cute.arch.thread_idx()
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        shared = SmemAllocator().allocate(self.shared)
        ring = Ring(shared.ring.data_ptr(), s)
        queue = Ring(shared.queue.data_ptr(), QUEUE_SLOTS)
        records = cute.make_tensor(shared.tiles.data_ptr(), cute.make_layout((RECORD, QUEUE_SLOTS)))
        cluster, rank = self.config.cluster, self.rank()
        consumer_warps = self.consumer_threads // 32
        if thread == 0:
            # all lanes release in their own block, one of each warp in the other blocks
            others = cluster - 1
            ring.init(self.slot_arrivals, consumer_warps * (32 + others))
            # a record is released in the own queue and in the first block's; in the other blocks
            # a publisher reads along
            readers = self.queue_readers + consumer_warps
            first, further = 32 * readers + others * (readers + 1), 32 * (readers + 1)
            queue.init(1, select(rank == 0, first, further))
            cute.arch.mbarrier_init_fence()
        if warp == 0:
            cpasync.prefetch_descriptor(tma1)
            cpasync.prefetch_descriptor(tma2)
        self.prefetch(thread, hidden, hidden_scale, w1_scale, w2_scale, num_tokens)
        if warp == 0:
            self.prefetch_weights(num_tokens, shared, tma1, tma1_tensor, tma2, tma2_tensor)
        cute.arch.sync_threads()
        if cutlass.const_expr(cluster > 1):
            cute.arch.cluster_arrive()
            cute.arch.cluster_wait()
        cute.arch.griddepcontrol_launch_dependents()
        cute.arch.griddepcontrol_wait()
        self.prepare(
            warp, hidden, hidden_scale, expert_offsets, row_token, act, act_scale, counters,
            num_tokens, act_rows,
        )  # fmt: skip

        if warp < 4:
            if cutlass.const_expr(self.config.warpgroups == 2):
                cute.arch.setmaxregister_decrease(PRODUCER_REGISTERS)
            if warp <= TOKEN_WARPS:
                self.produce(
                    ring, queue, records, shared, thread, tma1, tma1_tensor, tma2, tma2_tensor,
                    token_loads, hidden, hidden_scale, w1_scale, w2_scale, expert_offsets,
                    row_token, act, act_scale, y, token_rows, output, counters, num_tokens,
                    act_rows,
                )  # fmt: skip
            elif rank == 0:
                self.schedule(queue, records, expert_offsets, counters)
            else:
                self.publish(queue, records, counters)
        else:
            if cutlass.const_expr(self.config.warpgroups == 2):
                cute.arch.setmaxregister_increase(CONSUMER_REGISTERS)
            self.consume(
                ring, queue, records, shared, thread - 128, tiled_mma, row_weight, act,
                act_scale, y, act_rows,
            )  # fmt: skip
            # the ring is empty, and its memory free once all consumers have left it
            NamedBarrier(COMBINE_BARRIER, self.consumer_threads).arrive_and_wait()
            block, _, _ = cute.arch.block_idx()
            groups = self.combine.groups
            self.combine_rows(
                (warp - 4) * self.num_sms + block, self.num_sms * consumer_warps,
                (groups - 1, groups), shared.weights.data_ptr() + (warp - 4) * BUFFER_BYTES, y,
                token_rows, output, expert_offsets, counters, num_tokens,
            )  # fmt: skip
        if cutlass.const_expr(cluster > 1):  # till then the others' loads and arrivals come here
            cute.arch.cluster_arrive()
            cute.arch.cluster_wait()

    def rank(self) -> Int32:
        """Of this block in its cluster."""
        return cute.arch.block_idx()[0] % self.config.cluster

    @cute.jit
    def release(self, ring: Ring, state, block: Int32):
        """By all lanes: release a slot in the own block and in `block` of its cluster.

        In the own block, one lane's arrival after a warp barrier would do as well and costs as
        much, but racecheck takes the other lanes' reads for unordered then.
        """
        ring.release(state)
        if cutlass.const_expr(self.config.cluster > 1):
            cute.arch.sync_warp()
            if cute.arch.lane_idx() == 0 and block != self.rank():
                ring.release(state, block)

    @cute.jit
    def prefetch_weights(self, num_tokens, shared, tma1, tma1_tensor, tma2, tma2_tensor):
        """What warp 0 does while the routing still runs."""

    @cute.jit
    def prepare(
        self, warp: Int32, hidden, hidden_scale, offsets, row_token, act, act_scale, counters,
        num_tokens, act_rows,
    ):  # fmt: skip
        """What all warps do once the routing is there."""

    @cute.jit
    def produce(
        self, ring: Ring, queue: Ring, records, shared, thread: Int32, tma1, tma1_tensor, tma2,
        tma2_tensor, token_loads, hidden, hidden_scale, w1_scale, w2_scale, offsets, row_token,
        act, act_scale, y, token_rows, output, counters, num_tokens, act_rows,
    ):  # fmt: skip
        """Warps 0 to TOKEN_WARPS: fill the ring."""
        if thread < 32:
            self.load_weights(ring, queue, records, shared, tma1, tma1_tensor, tma2, tma2_tensor)
        else:
            self.load_tokens(
                ring, queue, records, shared, thread - 32, hidden, hidden_scale, w1_scale,
                w2_scale, row_token, act, act_scale, counters, num_tokens, act_rows,
            )  # fmt: skip

    @cute.jit
    def prefetch(self, thread: Int32, hidden, hidden_scale, w1_scale, w2_scale, num_tokens):
        """Inputs that many blocks read in small pieces go to L2 before the weight stream starts:
        behind it, each would wait for the megabytes that are queued at the memory already."""
        g = self.geometry
        h, i, e = g.hidden_size, g.intermediate_size, g.num_local_experts
        block, _, _ = cute.arch.block_idx()
        worker, workers = block * self.threads + thread, self.num_sms * self.threads
        scales = e * (h // BLOCK) * (i // BLOCK) * 4
        prefetch_to_l2(w1_scale, Int32(2 * scales), worker, workers)
        prefetch_to_l2(w2_scale, Int32(scales), worker, workers)
        if num_tokens <= PREFETCH_TOKENS:
            prefetch_to_l2(hidden, num_tokens * h, worker, workers)
            prefetch_to_l2(hidden_scale, num_tokens * (h // BLOCK * 4), worker, workers)

    # ------------------------------------------------------------------------------ tiles, combine

    def tile_list(self, offsets) -> TileList:
        experts, config = self.geometry.num_local_experts, self.config
        return TileList.load(
            cute.make_tensor(offsets, cute.make_layout(experts + 1)),
            experts,
            config.tokens,
            *self.weight_tiles,
            self.group_tiles,
        )

    def counter_of(self, tile: Tile) -> Int32:
        """Number of the counter to raise when the tile is finished; 0: none."""
        group = self.geometry.num_local_experts + tile.column // self.group_tiles
        number = 1 + select(tile.gemm == GEMM1, tile.expert, group)
        return select(tile.gemm == END, 0, number)

    @cute.jit
    def combine_rows(
        self, worker: Int32, workers: cutlass.Constexpr, groups: tuple[int, int], buffer, y,
        token_rows, output, offsets, counters, num_tokens: Int32,
    ):  # fmt: skip
        """The share of warp `worker` of `workers` in groups[0] .. groups[1] - 1."""
        tiles = self.tile_list(offsets).total * self.group_tiles
        self.combine.work(
            self.combine.items(groups[0], num_tokens) + worker, Int32(workers),
            self.combine.items(groups[1], num_tokens), buffer, y, token_rows, output,
            counters + 1 + self.geometry.num_local_experts, tiles, num_tokens,
        )  # fmt: skip

    # ---------------------------------------------------------------------------- scheduler warp

    @cute.jit
    def schedule(self, queue: Ring, records: cute.Tensor, offsets: cute.Pointer, counters):
        """Hand out tiles to the cluster, one to each block (its own index first, then the global
        counter), and publish those that this block has finished.

        A record's slot is free once every reader has read it, and consumers read a record after
        they have finished the tile before it: so getting the slot of tile t (which held tile
        t - QUEUE_SLOTS) tells that tile t - QUEUE_SLOTS - 1 is finished and its rows are written.
        """
        tiles = self.tile_list(offsets)
        state = producer_state(QUEUE_SLOTS)
        clusters = self.num_sms // self.config.cluster
        index = cute.arch.block_idx()[0] // self.config.cluster
        # counter to raise once the tile is finished, for tile t - 1, t - 2, ...; 0: none
        pending = [Int32(0) for _ in range(QUEUE_SLOTS + 1)]
        left = Int32(QUEUE_SLOTS + 1)  # slots to get: the end record's and one per tile before it
        while left > 0:
            if cutlass.const_expr(self.config.cluster == 1):
                tile = tiles.tile(index)
            else:
                tile = tiles.pair(index, cute.arch.lane_idx())
            queue.acquire(state)
            self.raise_counter(counters, pending[-1])
            for q in cutlass.range_constexpr(QUEUE_SLOTS, 0, -1):
                pending[q] = pending[q - 1]
            pending[0] = self.counter_of(tile)
            if left == QUEUE_SLOTS + 1:
                self.hand_out(queue, records, state, tile)
            state.advance()
            if tile.gemm == END:
                left -= 1
            else:
                taken = Int32(0)
                if cute.arch.lane_idx() == 0:
                    taken = cute.arch.atomic_add(counters, Int32(1), sem="relaxed", scope="gpu")
                index = clusters + cute.arch.shuffle_sync(taken, 0)

    @cute.jit
    def hand_out(self, queue: Ring, records: cute.Tensor, state, tile: Tile):
        """Fill the queue's slot; in a cluster, lane b that of block b with a tile of its own."""
        if cutlass.const_expr(self.config.cluster == 1):
            with cute.arch.elect_one():
                tile.write(records[None, state.index])
                cute.arch.mbarrier_arrive(queue.full_barrier(state))
        else:
            block = cute.arch.lane_idx()
            if block < self.config.cluster:
                record = records.iterator + state.index * RECORD
                tile.send(record, queue.full_barrier(state), block)

    @cute.jit
    def publish(self, queue: Ring, records: cute.Tensor, counters):
        """In the other blocks of a cluster: publish the tiles that the block has finished."""
        state = consumer_state(QUEUE_SLOTS)
        gemm, finished = Int32(GEMM1), Int32(0)
        while gemm != END:
            tile = self.next_tile(queue, records, state)
            # once all have read the record, the consumers have finished the tile before it
            queue.wait_released(state)
            self.raise_counter(counters, finished)
            finished = self.counter_of(tile)
            gemm = tile.gemm
            state.advance()

    @cute.jit
    def raise_counter(self, counters, number: Int32):
        """Count one finished tile; number: of the counter, or 0 for none."""
        if number > 0 and cute.arch.lane_idx() == 0:
            cute.arch.red(
                counters + number, Int32(1), op="add", dtype="s32", sem="release", scope="gpu"
            )

    @cute.jit
    def next_tile(self, queue: Ring, records: cute.Tensor, state) -> Tile:
        """Read the next tile record and release its slot, which the first block fills."""
        queue.wait(state)
        tile = Tile.read(records[None, state.index])
        self.release(queue, state, Int32(0))
        return tile

    # ------------------------------------------------------------------------------- weight warp

    def weight_boxes(self, shared, tma1, tma1_tensor, tma2, tma2_tensor) -> tuple:
        """For each GEMM the slots, indexed [None, rank, slot], and the boxes of the weights,
        indexed [None, column block, 0, 0, box, expert] and [None, box, column block, expert];
        a tile of weights has one box per block of the cluster."""
        cluster, s = self.config.cluster, self.config.stages
        r = self.config.weight_rows // cluster
        slot = BLOCK * r * cluster
        shape1 = (BLOCK, 8, 2, r // 16)
        box1 = shared.weights.get_tensor(
            cute.make_layout(
                (*shape1, cluster, s), stride=(1, BLOCK, 8 * BLOCK, 16 * BLOCK, BLOCK * r, slot)
            ),
            swizzle=cute.make_swizzle(3, 4, 3),
        )
        box2 = shared.weights.get_tensor(
            cute.make_layout((r, BLOCK, cluster, s), stride=(BLOCK, 1, BLOCK * r, slot)),
            swizzle=cute.make_swizzle(3, 4, 3),
        )
        tiles1 = cute.local_tile(tma1_tensor, shape1, (None, None, None, None, None))
        tiles2 = cute.local_tile(tma2_tensor, (r, BLOCK), (None, None, None))
        single = cute.make_layout(1)
        dst1, src1 = cpasync.tma_partition(
            tma1, 0, single, cute.group_modes(box1, 0, 4), cute.group_modes(tiles1, 0, 4)
        )
        dst2, src2 = cpasync.tma_partition(
            tma2, 0, single, cute.group_modes(box2, 0, 2), cute.group_modes(tiles2, 0, 2)
        )
        return dst1, src1, dst2, src2

    @cute.jit
    def load_weights(
        self, ring: Ring, queue: Ring, records, shared, tma1, tma1_tensor, tma2, tma2_tensor
    ):
        """Stream the weight boxes of the tiles into the ring; never waits for activations."""
        g = self.geometry
        dst1, src1, dst2, src2 = self.weight_boxes(shared, tma1, tma1_tensor, tma2, tma2_tensor)
        state, tile_state = producer_state(self.config.stages), consumer_state(QUEUE_SLOTS)
        tile = self.next_tile(queue, records, tile_state)
        tile_state.advance()
        while tile.gemm != END:
            if tile.gemm == GEMM1:
                for k in cutlass.range(g.hidden_size // BLOCK, unroll=1):
                    barrier = self.expect_weights(ring, state)
                    source = src1[None, k, 0, 0, tile.column, tile.expert]
                    cute.copy(tma1, source, dst1[None, 0, state.index], tma_bar_ptr=barrier)
                    state.advance()
            else:
                for k in cutlass.range(g.intermediate_size // BLOCK, unroll=1):
                    barrier = self.expect_weights(ring, state)
                    source = src2[None, tile.column, k, tile.expert]
                    cute.copy(tma2, source, dst2[None, 0, state.index], tma_bar_ptr=barrier)
                    state.advance()
            tile = self.next_tile(queue, records, tile_state)
            tile_state.advance()

    @cute.jit
    def expect_weights(self, ring: Ring, state) -> cute.Pointer:
        """Wait for the slot; its full barrier, told how many bytes TMA will bring."""
        ring.acquire(state)
        barrier = ring.full_barrier(state)
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(barrier, BLOCK * self.config.weight_rows)
        return barrier

    # ------------------------------------------------------------------------------- token warps

    @cute.jit
    def load_tokens(
        self, ring: Ring, queue: Ring, records, shared, thread: Int32, hidden, hidden_scale,
        w1_scale, w2_scale, row_token, act, act_scale, counters, num_tokens, act_rows,
    ):  # fmt: skip
        """Gather token rows and their scales into the ring, GEMM2's once its expert is ready."""
        g, s = self.geometry, self.config.stages
        h, i = g.hidden_size, g.intermediate_size
        state, tile_state = producer_state(s), consumer_state(QUEUE_SLOTS)
        tile = self.next_tile(queue, records, tile_state)
        tile_state.advance()
        while tile.gemm != END:
            if tile.gemm == GEMM1:
                blocks = h // BLOCK
                row = tile.column * self.config.act_columns // BLOCK
                up = w1_scale + (tile.expert * (2 * i // BLOCK) + row) * blocks
                state = self.load_token_tile(
                    ring, shared, thread, state, tile, row_token, hidden, h, hidden_scale,
                    num_tokens, up, up + (i // BLOCK) * blocks, True,
                )  # fmt: skip
            else:
                ready = counters + 1 + tile.expert
                while cute.arch.load(ready, Int32, sem="acquire", scope="gpu") < tile.ready:
                    pass
                blocks, rows = i // BLOCK, self.config.weight_rows // BLOCK
                first = w2_scale + (tile.expert * (h // BLOCK) + tile.column * rows) * blocks
                state = self.load_token_tile(
                    ring, shared, thread, state, tile, row_token, act, i, act_scale,
                    act_rows, first, first + (rows - 1) * blocks, False,
                )  # fmt: skip
            tile = self.next_tile(queue, records, tile_state)
            tile_state.advance()

    @cute.jit
    def load_token_tile(
        self, ring: Ring, shared, thread: Int32, state, tile: Tile, row_token, tokens, width,
        scales, scale_stride, scale_0, scale_1, is_gemm1: cutlass.Constexpr,
    ):  # fmt: skip
        """All slots of one tile. tokens [*, width]; scales [width/group, scale_stride]; scale_0,
        scale_1 [width/128]: the two weight scales of a slot."""
        n = self.config.tokens
        threads = 32 * TOKEN_WARPS
        groups = 1 if is_gemm1 else self.groups2
        copy16 = cute.make_copy_atom(
            cpasync.CopyG2SOp(cache_mode=cute.nvgpu.LoadCacheMode.GLOBAL),
            Float8E4M3FN,
            num_bits_per_copy=128,
        )
        copy4 = cute.make_copy_atom(cpasync.CopyG2SOp(), Float32, num_bits_per_copy=32)
        # a thread copies 16-byte chunk `chunk` of rows row, row + 8, ...: its swizzle is constant
        row, chunk = thread // 8, thread % 8
        rows_per_pass = threads // 8
        passes = cute.ceil_div(n, rows_per_pass)
        source = []
        for p in cutlass.range_constexpr(passes):
            index = tile.row + cutlass.min(row + p * rows_per_pass, tile.rows - 1)
            if cutlass.const_expr(is_gemm1):
                index = row_token[index]
            source.append(index)
        tokens = tokens + chunk * 16
        target = shared.tokens.data_ptr() + row * BLOCK + ((chunk ^ (row % 8)) * 16)
        # scale `j` of a slot: token j % n of group j // n
        scale_passes = cute.ceil_div(groups * n, threads)
        scale_source = []
        for p in cutlass.range_constexpr(scale_passes):
            j = thread + p * threads
            index = tile.row + cutlass.min(j % n, tile.rows - 1)
            if cutlass.const_expr(is_gemm1):
                index = row_token[index]
            scale_source.append((j // n) * scale_stride + index)
        weight_scale = scale_1 if thread % 2 == 1 else scale_0

        for k in cutlass.range(width // BLOCK, unroll=1):
            ring.acquire(state)
            if thread < 2:
                cute.copy(
                    copy4,
                    vector(weight_scale + k, 1, 4),
                    vector(shared.weight_scale.data_ptr() + state.index * 2 + thread, 1, 4),
                )
            slot = shared.token_scale.data_ptr() + state.index * (self.groups2 * n)
            for p in cutlass.range_constexpr(scale_passes):
                j = thread + p * threads
                if j < groups * n:
                    cute.copy(
                        copy4,
                        vector(scales + (k * groups * scale_stride + scale_source[p]), 1, 4),
                        vector(slot + j, 1, 4),
                    )
            for p in cutlass.range_constexpr(passes):
                if row + p * rows_per_pass < tile.rows:
                    cute.copy(
                        copy16,
                        vector(tokens + (Int64(source[p]) * width + k * BLOCK), 16, 16),
                        vector(target + (state.index * n + p * rows_per_pass) * BLOCK, 16, 16),
                    )
            cute.arch.cp_async_mbarrier_arrive_noinc(ring.full_barrier(state))
            state.advance()
        return state
