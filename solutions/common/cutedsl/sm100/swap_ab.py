"""Consumers for Blackwell: weights on M, tokens on N.

A block multiplies 128 weight rows with a tile's tokens, rounded up to what the matrix instruction
takes: N is set for every tile, and no padded row costs more than that. One warp issues the
instructions. The sums of 128 columns of K (64, where tokens have a scale for so many) come into
tensor memory, weight rows on its lanes and tokens on its columns; the promoting warpgroups, each
for its share of the tokens, scale them and add them to fp32 registers (DeepSeek-V3 technical
report, section 3.3.2).

Of a warpgroup's columns, thread `lane` of a warp holds weight rows r, r + 8, r + 16, r + 24 of the
warp's 32, r = lane / 4, and tokens 8 j + 2 (lane % 4) + c of every chunk: element [c, row half, j,
row group, chunk]. In GEMM1 the two row halves are up and gate of the same column of the activation.
That is wgmma's map, which tensor memory gives when it is read in the shape 16x256b.

Registers of a promoting thread: an fp32 sum for every token of its warpgroup, two chunks of partial
sums, and about 50 more.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass.cute.nvgpu import cpasync, tcgen05

from ...geometry import Geometry
from ..config import BLOCK_K, GemmConfig
from ..device import vector
from ..moe_gemms import Block, WeightLoads
from ..operands import GemmOperands
from ..ring import Ring, block_rank, consumer_state, producer_state
from ..roles import Role
from ..tile_scheduler import END, GEMM1, QUEUE_SLOTS, next_tile
from ..weights import WeightTiles
from . import tmem, umma
from .epilogue import Epilogue

ROWS = 128  # weight rows of a block, one per lane of tensor memory
MOST_SUMS = 4  # partial sums in tensor memory
SLOTS_AHEAD = 6  # of weights that a block prefetches: 14 MB in all, 2 us
AHEAD_FROM = 8  # tokens: with fewer, most experts have none


class SwapAb(WeightTiles):
    """See the module's docstring; `Consumers`. Promoting warps come first, then the one that
    multiplies; three more only combine."""

    row_block = 64  # of gathered tokens
    registers: tuple[int, int] | None = None

    def __init__(self, geometry: Geometry, config: GemmConfig):
        super().__init__(
            geometry, config, 1, lambda: cpasync.CopyBulkTensorTileG2SOp(self.group(config))
        )
        step = 16 * config.cluster  # of N
        if config.block_m % (step * config.num_warpgroups) or not step <= config.block_m <= 256:
            raise ValueError(
                f"block_m must be a multiple of {step * config.num_warpgroups} up to 256, "
                f"got {config.block_m}"
            )
        if config.cluster > 1 and not config.paired:
            raise ValueError(f"cluster must be 1 if its blocks are no pair, got {config.cluster}")
        if config.block_n != ROWS * config.cluster:
            raise ValueError(
                f"block_n must be {ROWS * config.cluster} for {config.cluster} blocks, "
                f"got {config.block_n}"
            )
        self.step = step
        self.promoting_threads = 128 * config.num_warpgroups
        self.threads = self.promoting_threads + 128
        # every lane that has read a slot's scales, and the tensor core; whole warpgroups, since
        # registers are shared out as if they were
        self.roles: tuple[Role, ...] = (
            Role("promotion", self.promoting_threads // 32, reads_queue=True,
                 releases=self.promoting_threads),
            Role("multiplication", 1, reads_queue=True, releases=1),
            Role("idle", 3),
        )  # fmt: skip
        self.weight_bytes = BLOCK_K * ROWS * config.cluster
        self.slot_rows = ROWS, config.block_m // config.cluster
        self.scale_slots = config.num_stages
        columns = config.block_m // config.num_warpgroups
        self.chunk = 16
        self.chunks = columns // self.chunk
        self.sums = min(MOST_SUMS, tmem.COLUMNS // config.block_m)
        self.tmem_columns = 32  # a power of two
        while self.tmem_columns < self.sums * config.block_m:
            self.tmem_columns *= 2
        self.epilogue = Epilogue(geometry, config, self.chunk, self.chunks)
        self.result_size = self.epilogue.size
        # barriers of the partial sums, tensor memory's address, barriers of the exchange
        self.own_words = 2 * self.sums + 2 + 2 * config.num_warpgroups

    @staticmethod
    def group(config: GemmConfig) -> tcgen05.CtaGroup:
        """Blocks whose loads arrive at one barrier: the first one's."""
        return tcgen05.CtaGroup.TWO if config.paired else tcgen05.CtaGroup.ONE

    # --------------------------------------------------------------------------- start and finish

    def tiled_mma(self):
        """The instruction is issued without one."""
        return

    def sums_ring(self, shared) -> Ring:
        """Of the partial sums in tensor memory."""
        return Ring(shared.own.data_ptr(), self.sums)

    def scales_ring(self, block: Block) -> Ring:
        """Of the slots' scales: they come with the weights and tokens."""
        return block.ring

    def exchange_ring(self, shared, group: Int32) -> Ring:
        """Of the maxima that a warpgroup gets from the other block of a pair."""
        return Ring(shared.own.data_ptr() + 2 * self.sums + 2 + 2 * group, 1)

    def tmem_place(self, shared) -> cute.Pointer:
        """Where tensor memory's address is kept."""
        return cute.recast_ptr(shared.own.data_ptr() + 2 * self.sums, dtype=Int32)

    def init_barriers(self, shared) -> None:
        """By one thread, with the block's other barriers."""
        self.sums_ring(shared).init(1, self.promoting_threads // 32 * self.config.cluster)
        if self.config.paired:
            for group in range(self.config.num_warpgroups):
                self.exchange_ring(shared, group).init(1, 1)

    @cute.jit
    def start(self, shared, warp: Int32):
        """Allocate tensor memory, in a pair once both blocks are there."""
        if cutlass.const_expr(self.config.cluster > 1):
            cute.arch.cluster_arrive_relaxed()
            cute.arch.cluster_wait()
        if warp == 0:
            tmem.allocate(self.tmem_columns, self.tmem_place(shared), self.config.cluster)

    @cute.jit
    def finish(self, shared, warp: Int32):
        """Free tensor memory."""
        if warp == 0:
            memory = tmem.allocated(self.tmem_place(shared))
            tmem.free(memory, self.tmem_columns, self.config.cluster)

    @cute.jit
    def prefetch_weights(self, shared, loads: WeightLoads, weight_tiles: int, num_tokens):
        """Bring the first slots of the block's first tile to L2 while the routing still runs, as
        if every expert had one token tile. What nobody needs takes time from an idle memory."""
        boxes = self.weight_boxes(shared, loads)
        block, _, _ = cute.arch.block_idx()
        if num_tokens >= AHEAD_FROM:
            for k in cutlass.range(SLOTS_AHEAD, unroll=1):
                source = boxes.boxes1[None, k, block % weight_tiles, block // weight_tiles]
                cute.prefetch(loads.atom1, source)

    @cute.jit
    def consume(self, block: Block, thread: Int32, tiled_mma, operands: GemmOperands):
        """All tiles: the promoting warps' part and the multiplying one's."""
        memory = tmem.allocated(self.tmem_place(block.shared))
        if thread < self.promoting_threads:
            self.promote(block, thread, memory, operands)
        elif thread < self.promoting_threads + 32:
            self.multiply(block, memory)

    def tile_columns(self, rows: Int32) -> Int32:
        """N of a tile with so many tokens."""
        return (rows + (self.step - 1)) // self.step * self.step

    # ----------------------------------------------------------------------------- multiplication

    @cute.jit
    def multiply(self, block: Block, memory: cute.Pointer):
        """By one warp: a partial sum for every span of every slot."""
        g, sums = self.geometry, self.sums_ring(block.shared)
        slot, sum_ = consumer_state(self.config.num_stages), producer_state(self.sums)
        tile_state = consumer_state(QUEUE_SLOTS)
        tile = next_tile(block.queue, tile_state)
        tile_state.advance()
        while tile.gemm != END and block_rank(self.config.cluster) != 0:
            tile = next_tile(block.queue, tile_state)  # the first block multiplies for both
            tile_state.advance()
        while tile.gemm != END:
            instruction = umma.instruction(ROWS * self.config.cluster, self.tile_columns(tile.rows))
            if tile.gemm == GEMM1:
                for _ in cutlass.range(g.hidden_size // BLOCK_K, unroll=1):
                    self.multiply_slot(block, sums, slot, sum_, memory, instruction, 1)
                    slot.advance()
                    sum_.advance()
            else:
                for _ in cutlass.range(g.intermediate_size // BLOCK_K, unroll=1):
                    for span in cutlass.range_constexpr(self.config.act_spans):
                        self.multiply_slot(
                            block, sums, slot, sum_, memory, instruction, self.config.act_spans,
                            span,
                        )  # fmt: skip
                        sum_.advance()
                    slot.advance()
            tile = next_tile(block.queue, tile_state)
            tile_state.advance()

    @cute.jit
    def multiply_slot(
        self, block: Block, sums: Ring, slot, sum_, memory: cute.Pointer, instruction: Int32,
        spans: cutlass.Constexpr, span: cutlass.Constexpr = 0,
    ):  # fmt: skip
        """One of the spans of a slot; after the last one the slot is free."""
        pair, n = self.config.cluster, self.config.block_m
        sums.wait_empty(sum_)
        if cutlass.const_expr(span == 0):
            block.ring.wait_full(slot)
            if cutlass.const_expr(not self.config.paired):
                cute.arch.fence_view_async_shared()  # tokens came by cp.async
        tmem.after_wait()
        weights = block.shared.weights.data_ptr() + slot.index * (ROWS * BLOCK_K)
        tokens = block.shared.tokens.data_ptr() + slot.index * (n // pair * BLOCK_K)
        steps = BLOCK_K // umma.STEP // spans
        with cute.arch.elect_one():
            umma.multiply(
                Int32((memory + sum_.index * n).toint()), umma.operand(weights),
                umma.operand(tokens), instruction, pair, span * steps, steps,
            )  # fmt: skip
            if cutlass.const_expr(span == spans - 1):
                umma.commit(block.ring.empty_barrier(slot), pair)
            umma.commit(sums.full_barrier(sum_), pair)

    # ---------------------------------------------------------------------------------- promotion

    @cute.jit
    def promote(self, block: Block, thread: Int32, memory: cute.Pointer, operands: GemmOperands):
        """By the promoting warps: scale and add up the partial sums of every tile, and write its
        results."""
        g, shared = self.geometry, block.shared
        final = cute.make_rmem_tensor((2, 2, self.chunk // 8, 2, self.chunks), Float32)
        number = cute.arch.make_warp_uniform(thread >> 5)
        group, warp = number >> 2, number & 3  # warpgroup, and warp of it
        scales, exchange = self.scales_ring(block), self.exchange_ring(shared, group)
        slot, sum_ = consumer_state(self.scale_slots), consumer_state(self.sums)
        exchanged, tile_state = consumer_state(1), consumer_state(QUEUE_SLOTS)
        tile = next_tile(block.queue, tile_state)
        tile_state.advance()
        while tile.gemm != END:
            columns = self.tile_columns(tile.rows) // self.config.num_warpgroups
            first = group * columns
            final.fill(0.0)
            if tile.gemm == GEMM1:
                for _ in cutlass.range(g.hidden_size // BLOCK_K, unroll=1):
                    self.promote_span(
                        block, scales, slot, sum_, memory, warp, first, columns, final, True
                    )
                    sum_.advance()
                    scales.release(slot, Int32(0))
                    slot.advance()
                self.epilogue.write_activation(
                    shared.result, group, warp, tile, first, columns, final, operands,
                    exchange, exchanged,
                )  # fmt: skip
                exchanged.advance()
            else:
                for _ in cutlass.range(g.intermediate_size // BLOCK_K, unroll=1):
                    for span in cutlass.range_constexpr(self.config.act_spans):
                        self.promote_span(
                            block,
                            scales,
                            slot,
                            sum_,
                            memory,
                            warp,
                            first,
                            columns,
                            final,
                            False,
                            span,
                        )
                        sum_.advance()
                    scales.release(slot, Int32(0))
                    slot.advance()
                self.epilogue.write_rows(
                    shared.result, group, warp, tile, first, columns, final, operands
                )
            tile = next_tile(block.queue, tile_state)
            tile_state.advance()

    @cute.jit
    def promote_span(
        self, block: Block, scales: Ring, slot, sum_, memory: cute.Pointer, warp: Int32,
        first: Int32, columns: Int32, final: cute.Tensor, is_gemm1: cutlass.Constexpr,
        span: cutlass.Constexpr = 0,
    ):  # fmt: skip
        """final += one partial sum * scales."""
        shared, sums, n = block.shared, self.sums_ring(block.shared), self.config.block_m
        if cutlass.const_expr(span == 0):
            scales.wait_full(slot)
        scale = shared.weight_scale.data_ptr() + slot.index * 2
        if cutlass.const_expr(is_gemm1):  # of up and gate rows
            halves = scale[0], scale[1]
        else:  # of the block's rows
            halves = (scale[block_rank(self.config.cluster)],) * 2
        token_scale = shared.token_scale.data_ptr() + (
            (slot.index * self.config.act_spans + span) * n + first + (cute.arch.lane_idx() & 3) * 2
        )
        partial = memory + sum_.index * n + first
        parts = [cute.make_rmem_tensor((2, 2, self.chunk // 8, 2), Float32) for _ in range(2)]
        sums.wait_full(sum_)
        tmem.after_wait()
        tmem.load_pairs(partial, self.chunk, warp * 32, parts[0])
        for i in cutlass.range_constexpr(self.chunks):
            if i * self.chunk < columns:
                tmem.wait_loads()
                if (i + 1) * self.chunk < columns:
                    if cutlass.const_expr(i + 1 < self.chunks):
                        place = partial + (i + 1) * self.chunk
                        tmem.load_pairs(place, self.chunk, warp * 32, parts[(i + 1) % 2])
                else:
                    self.release_sum(sums, sum_)
                self.add_chunk(
                    final[None, None, None, None, i], parts[i % 2], halves,
                    token_scale + i * self.chunk,
                )  # fmt: skip

    @cute.jit
    def release_sum(self, sums: Ring, sum_):
        """The warp has read its part of a partial sum."""
        tmem.before_arrival()
        cute.arch.sync_warp()
        with cute.arch.elect_one():
            if cutlass.const_expr(self.config.cluster == 1):
                sums.arrive_empty(sum_)
            else:
                sums.arrive_empty(sum_, Int32(0))

    @cute.jit
    def add_chunk(self, final: cute.Tensor, part: cute.Tensor, scales, token_scale: cute.Pointer):
        """final += part * scales of either row half and of the tokens, two by two."""
        for j in cutlass.range_constexpr(self.chunk // 8):
            tokens = cute.make_rmem_tensor((2,), Float32)
            cute.autovec_copy(vector(token_scale + 8 * j, 2, 8), tokens)
            for half in cutlass.range_constexpr(2):
                scale = cute.arch.mul_packed_f32x2(
                    (tokens[0], tokens[1]), (scales[half], scales[half])
                )
                for m in cutlass.range_constexpr(2):
                    even, odd = (0, half, j, m), (1, half, j, m)
                    final[even], final[odd] = cute.arch.fma_packed_f32x2(
                        (part[even], part[odd]), scale, (final[even], final[odd])
                    )
