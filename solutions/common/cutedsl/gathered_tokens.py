"""Token producers for many tokens per expert: gather every row once, then load tiles by TMA.

cp.async into the ring costs a multiprocessor about 240 cycles per slot of 128 rows, next to the
consumers' 1,300; TMA costs nothing, but reads neighbouring rows only. So the warps that would
gather a token row for each of its 2I/R weight tiles copy it just once, to x, in the order of the
flat list and far ahead of GEMM1. All warps of the block take part in the first rows, which the
first tiles wait for.

  x [act_rows, H] e4m3 follows act, and x_scale [H/128, act_rows] fp32 follows act_scale

In these four tensors every expert is padded with zeros to blocks of row_block rows: TMA reads at
aligned places, and multiplying zeros takes less power, which bounds the clock at this size. GEMM1
turns rows of zeros into rows of zeros.

An expert's counter counts its gathered rows, then its finished GEMM1 tiles: a GEMM1 tile waits for
the former, a GEMM2 tile for both.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float8E4M3FN, Float32, Int32, Int64
from cutlass.cute.nvgpu import cpasync

from ..geometry import max_rows
from .combine import BUFFER_BYTES
from .config import BLOCK_K
from .device import select, swizzled, swizzled_tensor, vector
from .moe_gemms import TOKEN_WARPS, Block, MoeGemms, WeightLoads, load_weights
from .operands import Buffer, GemmOperands
from .ring import consumer_state, producer_state
from .roles import Role
from .tile_scheduler import END, GEMM1, GEMM2, QUEUE_SLOTS, Tile, next_tile, padded

WARP_BYTES = 512  # that a warp copies with one instruction
PANEL_COLUMNS = 1024  # of y that are combined while the next are multiplied
BATCH = 7  # instructions in flight of a gathering warp


class GatheredTokens:
    """See the module's docstring; a `TokenProducer`."""

    panel_columns = PANEL_COLUMNS
    gathering_warps = TOKEN_WARPS
    row_size = TOKEN_WARPS * BUFFER_BYTES

    def __init__(self, gemms: MoeGemms):
        self.geometry = gemms.geometry
        self.config = gemms.config
        self.consumers = gemms.consumers
        self.scheduler = gemms.scheduler
        self.combine = gemms.combine
        self.num_blocks = gemms.num_blocks
        self.check_hidden_size()
        n, row_block = gemms.config.block_m, gemms.scheduler.row_block
        spans = gemms.config.act_spans
        self.roles: tuple[Role, ...] = (
            # a lane announces, all arrive once their scales are there; what is said of GEMM2's
            # slots with all rows holds for the others
            Role("slots", 1, reads_queue=True, fills=1 + 32,
                 announced=self.slot_bytes(n // row_block, spans),
                 brought=gemms.consumers.weight_bytes + BLOCK_K * n + 4 * n * spans),
            Role("gather", TOKEN_WARPS),
        )  # fmt: skip

    def slot_bytes(self, boxes, spans: int):
        """That TMA brings to a slot with so many boxes of token rows and spans of their scales."""
        rows = self.config.block_n + boxes * self.scheduler.row_block
        return BLOCK_K * rows + 4 * self.config.block_m * spans

    def check_hidden_size(self) -> None:
        """Raise ValueError unless whole batches of copies make up a token's row."""
        multiple = WARP_BYTES * BATCH
        if self.geometry.hidden_size % multiple:
            raise ValueError(
                f"hidden_size must be a multiple of {multiple}, got {self.geometry.hidden_size}"
            )

    def act_rows(self, num_tokens):
        """Every expert is padded to whole blocks."""
        padding = self.geometry.num_local_experts * self.scheduler.row_block
        return max_rows(self.geometry, num_tokens) + padding

    def scratch(self, act: Buffer, act_scale: Buffer) -> tuple[Buffer, Buffer]:
        """x behind act and x_scale behind act_scale."""
        h = self.geometry.hidden_size
        (rows, i), (_, spans) = act.shape, act_scale.shape
        return (
            Buffer(act.dtype, (rows, i + h)), Buffer(act_scale.dtype, (rows, spans + h // BLOCK_K))
        )  # fmt: skip

    def token_loads(self, act, act_scale, act_rows) -> tuple:
        """(atom, tensor) of x, act, x_scale and act_scale, one after the other."""
        g, rows, scale_rows = self.geometry, self.token_box, self.scale_box
        x, x_scale = self.gathered(act, act_scale, act_rows)
        act_rows = cute.assume(act_rows, divby=4)
        load_scales = cpasync.CopyBulkTensorTileG2SOp()
        box = swizzled((rows, BLOCK_K), (BLOCK_K, 1))
        loads = []
        for tokens, width in ((x, g.hidden_size), (act, g.intermediate_size)):
            tensor = cute.make_tensor(
                tokens, cute.make_layout((act_rows, width), stride=(width, 1))
            )
            loads += cpasync.make_tiled_tma_atom(
                self.token_operation(), tensor, box, (rows, BLOCK_K)
            )
        for scales, all_spans, spans in (
            (x_scale, g.hidden_size // BLOCK_K, 1),
            (act_scale, g.intermediate_size // self.config.act_columns, self.config.act_spans),
        ):
            tensor = cute.make_tensor(
                scales, cute.make_layout((act_rows, all_spans), stride=(1, act_rows))
            )
            loads += cpasync.make_tiled_tma_atom(
                load_scales, tensor, cute.make_layout((scale_rows, spans)), (scale_rows, spans)
            )
        return tuple(loads)

    def token_operation(self):
        """How TMA brings tokens."""
        return cpasync.CopyBulkTensorTileG2SOp()

    @property
    def token_box(self) -> int:
        """Token rows that TMA loads at once."""
        return self.scheduler.row_block

    @property
    def scale_box(self) -> int:
        """Tokens whose scales TMA loads at once: a whole tile's, however many rows it has.

        What lies behind its padded rows is another expert's, perhaps being gathered at the time, or
        nobody's. A scale meets the sums of its own row only, and of these rows nothing is written.
        """
        return self.config.block_m

    def slot_states(self):
        """Where the warp that loads begins."""
        return producer_state(self.config.num_stages)

    def gathered(self, act, act_scale, act_rows) -> tuple[cute.Pointer, cute.Pointer]:
        """x and x_scale."""
        i = self.geometry.intermediate_size
        spans = i // self.config.act_columns
        return act + Int64(act_rows) * i, act_scale + Int64(act_rows) * spans

    # ------------------------------------------------------------------------------------ gather

    @cute.jit
    def prepare(self, warp: Int32, operands: GemmOperands):
        """Gather one of the first rows per warp."""
        self.gather(operands, False)

    @cute.jit
    def gather(self, operands: GemmOperands, all_rows: cutlass.Constexpr):
        """By a warp: draw a padded row, copy it and its scales; and again, if all_rows, until there
        are no more. A drawn row is copied without waiting for anything."""
        g, act_rows = self.geometry, operands.act_rows
        h, experts, blocks = g.hidden_size, g.num_local_experts, g.hidden_size // BLOCK_K
        lane = cute.arch.lane_idx()
        x, x_scale = self.gathered(operands.act, operands.act_scale, act_rows)
        drawn = self.scheduler.draw_row(operands.counters)  # comes while the list is loaded
        tiles = self.scheduler.tile_list(operands.expert_offsets)
        end = cute.arch.shuffle_sync(tiles.padded_end, 31)
        place = cute.arch.shuffle_sync(drawn, 0)
        while place < end:
            if cutlass.const_expr(all_rows):  # the next one comes while this one is copied
                drawn = self.scheduler.draw_row(operands.counters)
            ends_before = tiles.padded_end <= place and lane < experts
            expert = cute.arch.popc(cute.arch.vote_ballot_sync(ends_before))
            row = place - cute.arch.shuffle_sync(tiles.padded_first - tiles.first, expert)
            valid = row < cute.arch.shuffle_sync(tiles.end, expert)
            token = Int32(0)
            if valid:
                token = operands.row_token[row]
            source = operands.hidden + (Int64(token) * h + lane * 16)
            target = x + (Int64(place) * h + lane * 16)
            for start in cutlass.range_constexpr(0, h, WARP_BYTES * BATCH):
                words = cute.make_rmem_tensor((4, BATCH), Int32)
                words.fill(0)
                batch = cute.recast_tensor(words, Float8E4M3FN)
                if valid:
                    for c in cutlass.range_constexpr(BATCH):
                        part = vector(source + (start + c * WARP_BYTES), 16, 16)
                        cute.autovec_copy(part, batch[None, c])
                for c in cutlass.range_constexpr(BATCH):
                    part = vector(target + (start + c * WARP_BYTES), 16, 16)
                    cute.autovec_copy(batch[None, c], part)
            for p in cutlass.range_constexpr(cute.ceil_div(blocks, 32)):
                k = lane + 32 * p
                if k < blocks:
                    scale = operands.hidden_scale[k * operands.num_tokens + token]
                    x_scale[Int64(k) * act_rows + place] = scale
            cute.arch.fence_proxy("async.global")  # TMA will read the row
            cute.arch.sync_warp()
            self.scheduler.raise_counter(operands.counters, expert + 1)
            if cutlass.const_expr(all_rows):
                place = cute.arch.shuffle_sync(drawn, 0)
            else:
                place = end

    # --------------------------------------------------------------------------------- slot warp

    @cute.jit
    def produce(
        self, block: Block, thread: Int32, loads: WeightLoads, token_loads: tuple,
        operands: GemmOperands,
    ):  # fmt: skip
        """Warp 0 fills the ring; the others gather, then combine the early panels of y."""
        if thread < 32:
            self.load_slots(block, loads, token_loads, operands)
        else:
            worker = cute.arch.block_idx()[0] * self.gathering_warps + thread // 32 - 1
            workers = self.num_blocks * self.gathering_warps
            self.gather(operands, True)
            self.combine.rows(
                worker, workers, (0, self.combine.early_panels(operands)),
                block.shared.rows.data_ptr() + (thread // 32 - 1) * BUFFER_BYTES, operands,
            )  # fmt: skip

    @cute.jit
    def load_slots(
        self, block: Block, loads: WeightLoads, token_loads: tuple, operands: GemmOperands
    ):
        """Load weights, tokens and scales of every tile, once its tokens are ready."""
        g, offsets = self.geometry, operands.expert_offsets
        h, i = g.hidden_size, g.intermediate_size
        weight_boxes = self.consumers.weight_boxes(block.shared, loads)
        state, tile_state = self.slot_states(), consumer_state(QUEUE_SLOTS)
        tile = next_tile(block.queue, tile_state)
        tile_state.advance()
        while tile.gemm != END:
            expert_rows = offsets[tile.expert + 1] - offsets[tile.expert]
            expected = padded(expert_rows, self.scheduler.row_block)
            expected += select(tile.gemm == GEMM2, self.scheduler.gemm1_count(tile), 0)
            self.scheduler.wait_for(
                self.scheduler.expert_counter(operands.counters, tile.expert), expected
            )
            cute.arch.fence_proxy("async.global")
            parts = self.config.cluster  # boxes of a tile of weights
            boxes = [tile.n_block * parts + part for part in range(parts)]
            if tile.gemm == GEMM1:
                row, blocks = tile.n_block * self.config.act_columns // BLOCK_K, h // BLOCK_K
                up = operands.w1_scale + (tile.expert * (2 * i // BLOCK_K) + row) * blocks
                weights = [weight_boxes.boxes1[None, None, box, tile.expert] for box in boxes]
                state = self.load_tile(
                    block, state, tile, loads.atom1, weights, weight_boxes.slots1,
                    token_loads[0:2], token_loads[4:6], up, i // BLOCK_K * blocks, True,
                )  # fmt: skip
            else:
                rows, blocks = self.config.block_n // BLOCK_K, i // BLOCK_K
                row = tile.expert * (h // BLOCK_K) + tile.n_block * rows
                upper = operands.w2_scale + row * blocks
                weights = [weight_boxes.boxes2[None, None, box, tile.expert] for box in boxes]
                state = self.load_tile(
                    block, state, tile, loads.atom2, weights, weight_boxes.slots2,
                    token_loads[2:4], token_loads[6:8], upper, (rows - 1) * blocks, False,
                )  # fmt: skip
            tile = next_tile(block.queue, tile_state)
            tile_state.advance()

    @cute.jit
    def load_tile(
        self, block: Block, state, tile: Tile, tma_weights, weights, weight_slots, token_load,
        scale_load, weight_scale, to_second: cutlass.Constexpr, is_gemm1: cutlass.Constexpr,
    ):  # fmt: skip
        """All slots of one tile. weights: a [box, column block] for each part of the weight rows;
        weight_scale: of the first 128 rows (in GEMM1 the up rows), `to_second` before those of the
        second."""
        ring, shared, row_block = block.ring, block.shared, self.scheduler.row_block
        n, s = self.config.block_m, self.config.num_stages
        spans = 1 if is_gemm1 else self.config.act_spans
        width = self.geometry.hidden_size if is_gemm1 else self.geometry.intermediate_size
        tma_tokens, tokens = token_load
        tma_scales, scales = scale_load
        token_slots = swizzled_tensor(
            shared.tokens, (row_block, BLOCK_K, n // row_block, s),
            (BLOCK_K, 1, row_block * BLOCK_K, n * BLOCK_K),
        )  # fmt: skip
        scale_slots = shared.token_scale.get_tensor(
            cute.make_layout((n, spans, s), stride=(1, n, self.config.act_spans * n))
        )
        tokens = cute.local_tile(
            cute.domain_offset((tile.padded_row, 0), tokens), (row_block, BLOCK_K), (None, None)
        )
        scales = cute.local_tile(
            cute.domain_offset((tile.padded_row, 0), scales), (n, spans), (0, None)
        )
        single = cute.make_layout(1)
        token_slots, tokens = cpasync.tma_partition(
            tma_tokens, 0, single, cute.group_modes(token_slots, 0, 2),
            cute.group_modes(tokens, 0, 2),
        )  # fmt: skip
        scale_slots, scales = cpasync.tma_partition(
            tma_scales, 0, single, cute.group_modes(scale_slots, 0, 2),
            cute.group_modes(scales, 0, 2),
        )  # fmt: skip
        copy4 = cute.make_copy_atom(cpasync.CopyG2SOp(), Float32, num_bits_per_copy=32)
        lane = cute.arch.lane_idx()
        weight_scale = weight_scale + lane % 2 * to_second
        boxes = (tile.rows + (row_block - 1)) // row_block
        expected = self.slot_bytes(boxes, spans)
        for k in cutlass.range(width // BLOCK_K, unroll=1):
            ring.wait_empty(state)
            barrier = ring.full_barrier(state)
            if lane < 2:
                target = shared.weight_scale.data_ptr() + state.index * 2 + lane
                cute.copy(copy4, vector(weight_scale + k, 1, 4), vector(target, 1, 4))
            cute.arch.cp_async_mbarrier_arrive_noinc(barrier)
            with cute.arch.elect_one():
                cute.arch.mbarrier_arrive_and_expect_tx(barrier, expected)
            boxes_of_k = [box[None, k] for box in weights]
            load_weights(
                tma_weights, boxes_of_k, weight_slots, state.index, barrier, tile.multicast,
                self.config.cluster,
            )  # fmt: skip
            for b in cutlass.range_constexpr(n // row_block):
                if b < boxes:
                    cute.copy(
                        tma_tokens, tokens[None, b, k], token_slots[None, b, state.index],
                        tma_bar_ptr=barrier,
                    )  # fmt: skip
            cute.copy(
                tma_scales, scales[None, k], scale_slots[None, state.index], tma_bar_ptr=barrier
            )
            state.advance()
        return state
