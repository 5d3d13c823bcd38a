"""Both grouped GEMMs and the combine in one persistent kernel: who does what in a block.

One list of tiles runs through GEMM1 and GEMM2 (`tile_scheduler`), so the weight stream never drains
between them: a GEMM2 tile waits only for the GEMM1 tiles of its own expert (counters in global
memory), and its weights are already on the way while it waits. Where the list ends, the consumers
add up the rows of y (`combine`), in the last panel of columns if there are several.

A GEMM1 tile is R weight rows, half of them up and half gate rows for the same R/2 columns of the
activation, which is quantised to e4m3 with one scale per token and R/2 columns. A GEMM2 tile is R
plain weight rows.

Block: a producer warpgroup (warps 0 to TOKEN_WARPS fill the ring, warp 3 schedules), then the
consumers. Who fills the ring how is a `TokenProducer`'s: `streamed_tokens` or `gathered_tokens`.
How a slot is multiplied, and where the sums lie, is the `Consumers`' of an architecture: those of
sm_90a are in `sm90`.

The blocks of a cluster work on neighbours in the list. Where these are two token tiles of the same
weights, each block loads half the weight rows into both. The first one's scheduler hands out tiles
for both.

Shared memory of a slot, BLOCK_K columns wide: R * 128 bytes of weights and N * 128 bytes of tokens
(both 128-byte swizzled), N * 256/R token scales (at most two spans of columns), two weight scales.
TMA writes scales at multiples of 128 bytes only.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float32, Int16, Int32, Int64
from cutlass.cute import struct
from cutlass.cute.nvgpu import cpasync
from cutlass.memory import SmemAllocator
from cutlass.pipeline import NamedBarrier

from ..geometry import Geometry, max_rows
from .combine import BUFFER_BYTES, Combine
from .config import BLOCK_K, GemmConfig
from .device import prefetch_to_l2, select
from .operands import Buffer, GemmOperands, GemmScratch, Inputs, Rows
from .ring import Ring, block_rank
from .roles import Role, barriers_of, check_warps
from .tile_scheduler import QUEUE_SLOTS, RECORD, TileQueue, TileScheduler

PRODUCER_WARPS = 4
TOKEN_WARPS = 2
COMBINE_BARRIER = 2
PREFETCH_TOKENS = 2048  # up to here the hidden states fit into a fraction of the L2 cache


class Block(NamedTuple):
    """What the roles of a block share. shared: its memory, a `cute.struct`."""

    shared: Any
    ring: Ring
    queue: TileQueue


class WeightLoads(NamedTuple):
    """TMA atoms and tensors of both GEMMs' weights."""

    atom1: cute.CopyAtom
    tensor1: cute.Tensor
    atom2: cute.CopyAtom
    tensor2: cute.Tensor


class WeightBoxes(NamedTuple):
    """For each GEMM the slots in shared memory, indexed [None, block of the cluster, slot], and the
    boxes in global memory, indexed [None, column block, box, expert]; a tile of weights has one
    box per block of the cluster."""

    slots1: cute.Tensor
    boxes1: cute.Tensor
    slots2: cute.Tensor
    boxes2: cute.Tensor


@cute.jit
def load_weights(
    atom: cute.CopyAtom, boxes: tuple, slots: cute.Tensor, index: Int32, barrier: cute.Pointer,
    multicast: Int32, cluster: cutlass.Constexpr, policy=None,
):  # fmt: skip
    """By all lanes of a warp: the boxes of a tile's weights, one per block of the cluster, into
    slot number `index`.

    multicast: whether the other blocks want the same weights (1). Then each block loads its box
    into all of them, else all boxes into itself. policy: of the L2 cache, Int64.
    """
    if cutlass.const_expr(cluster == 1):
        cute.copy(atom, boxes[0], slots[None, 0, index], tma_bar_ptr=barrier, cache_policy=policy)
    else:
        rank = block_rank(cluster)
        receivers = Int16(select(multicast == 1, 2**cluster - 1, Int32(1) << rank))
        for part in cutlass.range_constexpr(cluster):
            if multicast == 0 or rank == part:
                cute.copy(
                    atom, boxes[part], slots[None, part, index], tma_bar_ptr=barrier,
                    mcast_mask=receivers, cache_policy=policy,
                )  # fmt: skip


class Consumers(Protocol):
    """The warps that multiply, promote and write results; made from geometry and configuration.

    threads: of these warps. row_block: the rows that they multiply at least, which gathered tokens
    are padded to. roles: what these warps arrive at. weight_bytes: that the weight boxes bring to a
    slot, of all blocks of the cluster. result_size: bytes of shared memory for their results.
    registers: of a producer's and of a consumer's thread, or None to leave them as they are.
    own_words: of 64 bits of shared memory, for barriers and the like that only they know.
    slot_rows: rows of weights and of tokens in a slot of a block; scale_slots: slots of scales.
    """

    threads: int
    row_block: int
    roles: tuple[Role, ...]
    weight_bytes: int
    result_size: int
    registers: Any  # tuple[int, int] | None, which const_expr does not narrow
    own_words: int
    slot_rows: tuple[int, int]
    scale_slots: int

    def __init__(self, geometry: Geometry, config: GemmConfig): ...

    def init_barriers(self, shared) -> None:
        """Their own, by one thread, with the block's others."""

    def start(self, shared, warp: Int32) -> None:
        """By all warps, counted from the first consumer's, before the barrier of the block behind
        which all roles begin."""

    def tiled_mma(self) -> cute.TiledMma:
        """The multiplication of a slot."""

    def weight_loads(self, w1: cute.Pointer, w2: cute.Pointer) -> WeightLoads:
        """How GEMM1's up and gate rows are interleaved is for the accumulator to say."""

    def weight_boxes(self, shared, loads: WeightLoads) -> WeightBoxes:
        """What the loads are taken from and brought to."""

    def prefetch_weights(self, shared, loads: WeightLoads, weight_tiles: int, num_tokens) -> None:
        """By warp 0, while the routing still runs. weight_tiles: of GEMM1."""

    def consume(self, block: Block, thread: Int32, tiled_mma, operands: GemmOperands) -> None:
        """All tiles of the block. thread: counted from the first consumer's."""

    def finish(self, shared, warp: Int32) -> None:
        """By all warps, counted as for `start`, when no consumer works any more, in no block of the
        cluster."""


class TokenProducer(Protocol):
    """Warps 0 to TOKEN_WARPS, which fill the ring with weights and tokens; made from the launch.

    panel_columns: columns of y that are completed, and combined, together; None for all of them.
    roles: what these warps arrive at, with how many bytes in a slot. row_size: bytes of shared
    memory in which these warps combine rows.
    """

    panel_columns: int | None
    roles: tuple[Role, ...]
    row_size: int

    def __init__(self, gemms: MoeGemms): ...

    def act_rows(self, num_tokens):
        """Rows of act for this many tokens."""

    def scratch(self, act: Buffer, act_scale: Buffer) -> tuple[Buffer, Buffer]:
        """The same, with what the producer keeps behind them."""

    def token_loads(self, act, act_scale, act_rows) -> tuple:
        """TMA atoms and tensors of the tokens, where TMA loads them."""

    def prepare(self, warp: Int32, operands: GemmOperands) -> None:
        """What all warps of the block do once the routing is there."""

    def produce(
        self, block: Block, thread: Int32, loads: WeightLoads, token_loads: tuple,
        operands: GemmOperands,
    ) -> None:  # fmt: skip
        """All slots of the block."""


def gemm_operands(
    inputs: Inputs, rows: Rows, scratch: GemmScratch, output: cute.Pointer, num_tokens: Int32,
    act_rows: Int32,
) -> GemmOperands:  # fmt: skip
    """What the kernel takes of all these."""
    return GemmOperands(
        inputs.hidden_states, inputs.hidden_states_scale, inputs.gemm1_weights_scale,
        inputs.gemm2_weights_scale, rows.expert_offsets, rows.row_token, rows.row_weight,
        *scratch, rows.token_rows, output, rows.counters, num_tokens, act_rows,
    )  # fmt: skip


class MoeGemms:
    """See the module's docstring. num_sms: multiprocessors of the device, of which each gets one
    block. Raises ValueError for a geometry or configuration that the parts cannot do."""

    Scheduler = TileScheduler
    Combine = Combine

    def __init__(
        self, geometry: Geometry, config: GemmConfig, num_sms: int, consumers: type[Consumers],
        tokens: type[TokenProducer],
    ):  # fmt: skip
        self.geometry = geometry
        self.config = config
        self.num_blocks = num_sms - num_sms % config.cluster
        # a launch with clusters of one block would take the host longer than one without
        self.cluster = (config.cluster, 1, 1) if config.cluster > 1 else None
        self.consumers = consumers(geometry, config)
        self.threads = 32 * PRODUCER_WARPS + self.consumers.threads
        weight_tiles = (
            geometry.intermediate_size // config.act_columns,
            geometry.hidden_size // config.block_n,
        )
        panel_columns = tokens.panel_columns or geometry.hidden_size
        self.scheduler = self.Scheduler(
            geometry.num_local_experts, config, weight_tiles, panel_columns // config.block_n,
            self.consumers.row_block,
        )  # fmt: skip
        self.combine = self.Combine(geometry, self.scheduler, panel_columns)
        self.tokens = tokens(self)
        scheduler = Role("scheduler", PRODUCER_WARPS - 1 - TOKEN_WARPS)
        fillers, readers = self.tokens.roles, self.consumers.roles
        check_warps((*fillers, scheduler), readers, self.consumers.registers)
        self.barriers = barriers_of((*fillers, *readers), scheduler, config.cluster, 4 * RECORD)

    def act_rows(self, num_tokens):
        """Rows of act for this many tokens."""
        return self.tokens.act_rows(num_tokens)

    def scratch(self, num_tokens) -> GemmScratch:
        """The memory of a call with this many tokens, as Buffers."""
        g, rows = self.geometry, self.act_rows(num_tokens)
        act = Buffer(Float8E4M3FN, (rows, g.intermediate_size))
        act_scale = Buffer(Float32, (rows, g.intermediate_size // self.config.act_columns))
        y = Buffer(BFloat16, (max_rows(g, num_tokens), g.hidden_size))
        return GemmScratch(*self.tokens.scratch(act, act_scale), y)

    @cute.jit
    def __call__(
        self,
        inputs: Inputs,
        rows: Rows,
        scratch: GemmScratch,
        output: cute.Pointer,
        num_tokens: Int32,
        act_rows: Int32,
        stream: cuda.CUstream,
    ):
        """Launch. inputs: routing_logits and routing_bias are not read. The kernel waits for what
        runs before it (griddepcontrol.wait) as soon as it reads `rows`."""
        operands = gemm_operands(inputs, rows, scratch, output, num_tokens, act_rows)
        loads = self.consumers.weight_loads(inputs.gemm1_weights, inputs.gemm2_weights)
        token_loads = self.tokens.token_loads(scratch.act, scratch.act_scale, act_rows)
        self.shared = self.storage()
        self.kernel(loads, self.consumers.tiled_mma(), operands, token_loads).launch(
            grid=(self.num_blocks, 1, 1), cluster=self.cluster,
            block=(self.threads, 1, 1), min_blocks_per_mp=1, stream=stream, use_pdl=True,
        )  # fmt: skip

    @cute.jit  # which evaluates the annotations; in other functions they are strings
    def storage(self) -> type:
        """A block's shared memory."""
        n, s, scale_slots = self.config.block_m, self.config.num_stages, self.consumers.scale_slots
        weight_rows, token_rows = self.consumers.slot_rows
        spans, result_size = self.config.act_spans, self.consumers.result_size
        row_size, own_words = self.tokens.row_size, self.consumers.own_words

        @struct
        class Shared:
            ring: struct.MemRange[Int64, 2 * s]
            queue: struct.MemRange[Int64, 2 * QUEUE_SLOTS]
            own: struct.MemRange[Int64, own_words]
            tiles: struct.Align[struct.MemRange[Int32, RECORD * QUEUE_SLOTS], 16]
            weight_scale: struct.MemRange[Float32, 2 * scale_slots]
            token_scale: struct.Align[struct.MemRange[Float32, spans * n * scale_slots], 128]
            weights: struct.Align[struct.MemRange[Float8E4M3FN, BLOCK_K * weight_rows * s], 1024]
            tokens: struct.Align[struct.MemRange[Float8E4M3FN, BLOCK_K * token_rows * s], 1024]
            result: struct.Align[struct.MemRange[BFloat16, result_size // 2], 1024]
            rows: struct.Align[struct.MemRange[Float8E4M3FN, row_size], 16]

        return Shared

    @cute.kernel
    def kernel(
        self,
        loads: WeightLoads,
        tiled_mma: cute.TiledMma,
        operands: GemmOperands,
        token_loads: tuple,
    ):
        shared = SmemAllocator().allocate(self.shared)
        block = self.block(shared)
        self.start(block, loads)
        self.prefetch(operands)
        self.prefetch_weights(shared, loads, operands.num_tokens)
        self.sync_cluster()
        cute.arch.griddepcontrol_launch_dependents()
        cute.arch.griddepcontrol_wait()
        self.work(block, loads, tiled_mma, operands, token_loads)

    def block(self, shared) -> Block:
        """Of the block's memory."""
        cluster = self.config.cluster
        return Block(
            shared,
            Ring(shared.ring.data_ptr(), self.config.num_stages, cluster),
            TileQueue.of(shared.queue.data_ptr(), shared.tiles.data_ptr(), cluster),
        )

    @cute.jit
    def start(self, block: Block, loads: WeightLoads):
        """By all threads of a block, before `sync_cluster`."""
        thread, _, _ = cute.arch.thread_idx()
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        if thread == 0:
            self.init_barriers(block, block_rank(self.config.cluster))
        if warp == 0:
            cpasync.prefetch_descriptor(loads.atom1)
            cpasync.prefetch_descriptor(loads.atom2)
        self.consumers.start(block.shared, warp - PRODUCER_WARPS)

    @cute.jit
    def sync_cluster(self):
        """A barrier of all threads of the block, or of the cluster."""
        cute.arch.sync_threads()
        if cutlass.const_expr(self.config.cluster > 1):
            cute.arch.cluster_arrive()
            cute.arch.cluster_wait()

    @cute.jit
    def work(
        self, block: Block, loads: WeightLoads, tiled_mma: cute.TiledMma, operands: GemmOperands,
        token_loads: tuple,
    ):  # fmt: skip
        """What all threads do once the routing is there."""
        thread, _, _ = cute.arch.thread_idx()
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        rank = block_rank(self.config.cluster)
        self.tokens.prepare(warp, operands)

        registers = self.consumers.registers
        if warp < PRODUCER_WARPS:
            if cutlass.const_expr(registers is not None):
                cute.arch.setmaxregister_decrease(registers[0])
            if warp <= TOKEN_WARPS:
                self.tokens.produce(block, thread, loads, token_loads, operands)
            elif rank == 0:
                self.scheduler.schedule(block.queue, operands.expert_offsets, operands.counters)
            else:
                self.scheduler.publish(block.queue, operands.counters)
        else:
            if cutlass.const_expr(registers is not None):
                cute.arch.setmaxregister_increase(registers[1])
            self.consumers.consume(block, thread - 32 * PRODUCER_WARPS, tiled_mma, operands)
            # the ring is empty, and its memory free once all consumers have left it
            NamedBarrier(COMBINE_BARRIER, self.consumers.threads).arrive_and_wait()
            number = warp - PRODUCER_WARPS
            self.combine.rows(
                number * self.num_blocks + cute.arch.block_idx()[0],
                self.num_blocks * (self.consumers.threads // 32),
                (self.combine.early_panels(operands), self.combine.panels),
                block.shared.weights.data_ptr() + number * BUFFER_BYTES, operands,
            )  # fmt: skip
        # till then the others' loads and arrivals come here
        if cutlass.const_expr(self.config.cluster > 1):
            cute.arch.cluster_arrive()
            cute.arch.cluster_wait()
        self.consumers.finish(block.shared, warp - PRODUCER_WARPS)

    def init_barriers(self, block: Block, rank: Int32) -> None:
        """By one thread."""
        barriers = self.barriers
        block.ring.init(barriers.ring_full.count, barriers.ring_empty.count)
        first, other = barriers.queue_empty
        block.queue.ring.init(
            barriers.queue_full.count, select(rank == 0, first.count, other.count)
        )
        self.consumers.init_barriers(block.shared)
        cute.arch.mbarrier_init_fence()

    @cute.jit
    def prefetch(self, operands: GemmOperands):
        """Inputs that many blocks read in small pieces go to L2 before the weight stream starts:
        behind it, each would wait for the megabytes that are queued at the memory already."""
        g, num_tokens = self.geometry, operands.num_tokens
        h, i, e = g.hidden_size, g.intermediate_size, g.num_local_experts
        thread, _, _ = cute.arch.thread_idx()
        block, _, _ = cute.arch.block_idx()
        worker, workers = block * self.threads + thread, self.num_blocks * self.threads
        scales = e * (h // BLOCK_K) * (i // BLOCK_K) * 4
        prefetch_to_l2(operands.w1_scale, Int32(2 * scales), worker, workers)
        prefetch_to_l2(operands.w2_scale, Int32(scales), worker, workers)
        if num_tokens <= PREFETCH_TOKENS:
            prefetch_to_l2(operands.hidden, num_tokens * h, worker, workers)
            prefetch_to_l2(operands.hidden_scale, num_tokens * (h // BLOCK_K * 4), worker, workers)

    @cute.jit
    def prefetch_weights(self, shared, loads: WeightLoads, num_tokens: Int32):
        """By all threads, while the routing still runs."""
        if cute.arch.make_warp_uniform(cute.arch.warp_idx()) == 0:
            self.consumers.prefetch_weights(
                shared, loads, self.scheduler.weight_tiles[0], num_tokens
            )
