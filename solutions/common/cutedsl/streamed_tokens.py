"""Token producers for few tokens per expert: copied into the ring by cp.async as they are needed.

Warp 0 loads the weights by TMA and never waits for activations; warps 1 and 2 copy token rows,
found by token id in GEMM1, and all scales.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float8E4M3FN, Float32, Int32, Int64
from cutlass.cute.nvgpu import cpasync

from ..geometry import max_rows
from .config import BLOCK_K
from .device import vector
from .moe_gemms import TOKEN_WARPS, Block, MoeGemms, WeightLoads, load_weights
from .operands import Buffer, GemmOperands
from .ring import Ring, consumer_state, producer_state
from .roles import Role
from .tile_scheduler import END, GEMM1, QUEUE_SLOTS, Tile, few_weights, next_tile

# what createpolicy.fractional gives for L2::evict_first and L2::evict_normal, of all accesses
EVICT_FIRST, EVICT_NORMAL = 0x12F0000000000000, 0x1000000000000000


class StreamedTokens:
    """See the module's docstring; a `TokenProducer`."""

    panel_columns = None
    row_size = 0

    def __init__(self, gemms: MoeGemms):
        self.geometry = gemms.geometry
        self.config = gemms.config
        self.consumers = gemms.consumers
        self.scheduler = gemms.scheduler
        self.weight_bytes = BLOCK_K * gemms.config.block_n  # of a slot
        self.roles = (
            Role("weights", 1, reads_queue=True, fills=1, announced=self.weight_bytes,
                 brought=gemms.consumers.weight_bytes),
            # every lane's cp.async arrive once they are there
            Role("tokens", TOKEN_WARPS, reads_queue=True, fills=32 * TOKEN_WARPS),
        )  # fmt: skip

    def act_rows(self, num_tokens):
        """As many as there are pairs."""
        return max_rows(self.geometry, num_tokens)

    def scratch(self, act: Buffer, act_scale: Buffer) -> tuple[Buffer, Buffer]:
        """Nothing else is kept."""
        return act, act_scale

    def token_loads(self, act, act_scale, act_rows) -> tuple:
        """TMA loads no tokens."""
        return ()

    def prepare(self, warp: Int32, operands: GemmOperands) -> None:
        """Nothing is needed before the tiles are."""

    @cute.jit
    def produce(
        self, block: Block, thread: Int32, loads: WeightLoads, token_loads: tuple,
        operands: GemmOperands,
    ):  # fmt: skip
        """Warp 0 loads weights, the others tokens."""
        if thread < 32:
            self.stream_weights(block, loads, operands)
        else:
            self.load_tokens(block, thread - 32, operands)

    # ------------------------------------------------------------------------------- weight warp

    @cute.jit
    def stream_weights(self, block: Block, loads: WeightLoads, operands: GemmOperands):
        """Stream the weight boxes of the tiles into the ring; never waits for activations."""
        g = self.geometry
        policy = self.cache_policy(operands.expert_offsets)
        boxes = self.consumers.weight_boxes(block.shared, loads)
        state, tile_state = producer_state(self.config.num_stages), consumer_state(QUEUE_SLOTS)
        tile = next_tile(block.queue, tile_state)
        tile_state.advance()
        while tile.gemm != END:
            if tile.gemm == GEMM1:
                for k in cutlass.range(g.hidden_size // BLOCK_K, unroll=1):
                    self.load_slot(
                        block, state, tile, loads.atom1, boxes.boxes1, boxes.slots1, k, policy
                    )
                    state.advance()
            else:
                for k in cutlass.range(g.intermediate_size // BLOCK_K, unroll=1):
                    self.load_slot(
                        block, state, tile, loads.atom2, boxes.boxes2, boxes.slots2, k, policy
                    )
                    state.advance()
            tile = next_tile(block.queue, tile_state)
            tile_state.advance()

    @cute.jit
    def load_slot(
        self, block: Block, state, tile: Tile, atom, boxes, slots, k: Int32, policy: Int64
    ):
        """One slot's weights; see `WeightBoxes`."""
        cluster = self.config.cluster
        barrier = self.expect_weights(block.ring, state)
        sources = [
            boxes[None, k, tile.n_block * cluster + part, tile.expert] for part in range(cluster)
        ]
        load_weights(atom, sources, slots, state.index, barrier, tile.multicast, cluster, policy)

    @cute.jit
    def cache_policy(self, expert_offsets: cute.Pointer) -> Int64:
        """By all lanes of a warp: how the L2 cache is to treat the weights.

        Where few experts have rows and every weight is read once, the weights give way to each
        other: what else the cache holds need not be written back on their account. With more
        weights it is written back anyway, and the hint costs time.
        """
        experts = self.geometry.num_local_experts
        offsets = cute.make_tensor(expert_offsets, cute.make_layout(experts + 1))
        few = few_weights(offsets, experts, self.config.block_m)
        return Int64(cutlass.select_(few, Int64(EVICT_FIRST), Int64(EVICT_NORMAL)))

    @cute.jit
    def expect_weights(self, ring: Ring, state) -> cute.Pointer:
        """Wait for the slot; its full barrier, told how many bytes TMA will bring."""
        ring.wait_empty(state)
        barrier = ring.full_barrier(state)
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(barrier, self.weight_bytes)
        return barrier

    # ------------------------------------------------------------------------------- token warps

    @cute.jit
    def load_tokens(self, block: Block, thread: Int32, operands: GemmOperands):
        """Copy token rows and their scales into the ring, GEMM2's once its expert is ready."""
        g = self.geometry
        h, i = g.hidden_size, g.intermediate_size
        state, tile_state = producer_state(self.config.num_stages), consumer_state(QUEUE_SLOTS)
        tile = next_tile(block.queue, tile_state)
        tile_state.advance()
        while tile.gemm != END:
            if tile.gemm == GEMM1:
                blocks = h // BLOCK_K
                row = tile.n_block * self.config.act_columns // BLOCK_K
                up = operands.w1_scale + (tile.expert * (2 * i // BLOCK_K) + row) * blocks
                state = self.load_tile(
                    block, thread, state, tile, operands.row_token, operands.hidden, h,
                    operands.hidden_scale, operands.num_tokens, up, up + (i // BLOCK_K) * blocks,
                    True,
                )  # fmt: skip
            else:
                ready = self.scheduler.expert_counter(operands.counters, tile.expert)
                self.scheduler.wait_for(ready, self.scheduler.gemm1_count(tile))
                blocks, rows = i // BLOCK_K, self.config.block_n // BLOCK_K
                row = tile.expert * (h // BLOCK_K) + tile.n_block * rows
                first = operands.w2_scale + row * blocks
                state = self.load_tile(
                    block, thread, state, tile, operands.row_token, operands.act, i,
                    operands.act_scale, operands.act_rows, first, first + (rows - 1) * blocks,
                    False,
                )  # fmt: skip
            tile = next_tile(block.queue, tile_state)
            tile_state.advance()

    @cute.jit
    def load_tile(
        self, block: Block, thread: Int32, state, tile: Tile, row_token, tokens, width, scales,
        scale_stride, scale_0, scale_1, is_gemm1: cutlass.Constexpr,
    ):  # fmt: skip
        """All slots of one tile. tokens [*, width]; scales [width/span, scale_stride]; scale_0,
        scale_1 [width/128]: the two weight scales of a slot."""
        ring, shared = block.ring, block.shared
        n = self.config.block_m
        threads = 32 * TOKEN_WARPS
        spans = 1 if is_gemm1 else self.config.act_spans
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
        target = shared.tokens.data_ptr() + row * BLOCK_K + ((chunk ^ (row % 8)) * 16)
        # scale `j` of a slot: token j % n of span j // n
        scale_passes = cute.ceil_div(spans * n, threads)
        scale_source = []
        for p in cutlass.range_constexpr(scale_passes):
            j = thread + p * threads
            index = tile.row + cutlass.min(j % n, tile.rows - 1)
            if cutlass.const_expr(is_gemm1):
                index = row_token[index]
            scale_source.append((j // n) * scale_stride + index)
        weight_scale = scale_1 if thread % 2 == 1 else scale_0

        for k in cutlass.range(width // BLOCK_K, unroll=1):
            ring.wait_empty(state)
            if thread < 2:
                cute.copy(
                    copy4,
                    vector(weight_scale + k, 1, 4),
                    vector(shared.weight_scale.data_ptr() + state.index * 2 + thread, 1, 4),
                )
            slot = shared.token_scale.data_ptr() + state.index * (self.config.act_spans * n)
            for p in cutlass.range_constexpr(scale_passes):
                j = thread + p * threads
                if j < spans * n:
                    cute.copy(
                        copy4,
                        vector(scales + (k * spans * scale_stride + scale_source[p]), 1, 4),
                        vector(slot + j, 1, 4),
                    )
            for p in cutlass.range_constexpr(passes):
                if row + p * rows_per_pass < tile.rows:
                    cute.copy(
                        copy16,
                        vector(tokens + (Int64(source[p]) * width + k * BLOCK_K), 16, 16),
                        vector(target + (state.index * n + p * rows_per_pass) * BLOCK_K, 16, 16),
                    )
            cute.arch.cp_async_mbarrier_arrive_noinc(ring.full_barrier(state))
            state.advance()
        return state
