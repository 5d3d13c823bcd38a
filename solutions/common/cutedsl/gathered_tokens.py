"""Token producers for many tokens per expert: gather every row once, then load tiles by TMA.

cp.async into the ring costs a multiprocessor about 240 cycles per slot of 128 rows, next to the
consumers' 1,300; TMA costs nothing, but reads neighbouring rows only. So the warps that would
gather a token row for each of its 2I/R weight tiles copy it just once, to x, in the order of the
flat list and far ahead of GEMM1. All warps of the block take part in the first rows, which the
first tiles wait for.

  x [act_rows, H] e4m3 follows act, and x_scale [H/128, act_rows] fp32 follows act_scale

In these four tensors every expert is padded with zeros to blocks of 64 rows: TMA reads at aligned
places, and multiplying zeros takes less power, which bounds the clock at this size. GEMM1 turns
rows of zeros into rows of zeros.

An expert's counter counts its gathered rows, then its finished GEMM1 tiles: a GEMM1 tile waits for
the former, a GEMM2 tile for both.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float8E4M3FN, Float32, Int16, Int32, Int64
from cutlass.cute.nvgpu import cpasync

from .combine import BUFFER_BYTES
from .device import select, vector
from .moe_gemms import BLOCK, QUEUE_SLOTS, TOKEN_WARPS, MoeGemms, swizzled
from .ring import Ring, consumer_state, producer_state
from .tile_scheduler import END, GEMM1, GEMM2, ROW_BLOCK, Tile, padded

WARP_BYTES = 512  # that a warp copies with one instruction
GROUP_COLUMNS = 1024  # of y that are combined while the next are multiplied
BATCH = 7  # instructions in flight of a gathering warp


class GatheredTokens(MoeGemms):
    """See the module's docstring. A subclass defines the consumers."""

    def __init__(self, geometry, config, num_sms: int):
        super().__init__(geometry, config, num_sms)
        if geometry.hidden_size % (WARP_BYTES * BATCH):
            raise ValueError(
                f"hidden_size must be a multiple of {WARP_BYTES * BATCH}, "
                f"got {geometry.hidden_size}"
            )
        self.queue_readers = 1
        self.slot_arrivals = 1 + 32

    @property
    def group_columns(self) -> int:
        return GROUP_COLUMNS

    @property
    def row_bytes(self) -> int:
        return TOKEN_WARPS * BUFFER_BYTES

    def token_loads(self, act, act_scale, act_rows) -> tuple:
        """(atom, tensor) of x, act, x_scale and act_scale, one after the other."""
        g, n = self.geometry, self.config.tokens
        x, x_scale = self.gathered(act, act_scale, act_rows)
        act_rows = cute.assume(act_rows, divby=4)
        load = cpasync.CopyBulkTensorTileG2SOp()
        box = swizzled((ROW_BLOCK, BLOCK), (BLOCK, 1))
        loads = []
        for tokens, width in ((x, g.hidden_size), (act, g.intermediate_size)):
            tensor = cute.make_tensor(
                tokens, cute.make_layout((act_rows, width), stride=(width, 1))
            )
            loads += cpasync.make_tiled_tma_atom(load, tensor, box, (ROW_BLOCK, BLOCK))
        for scales, rows, groups in (
            (x_scale, g.hidden_size // BLOCK, 1),
            (act_scale, g.intermediate_size // self.config.act_columns, self.groups2),
        ):
            tensor = cute.make_tensor(
                scales, cute.make_layout((act_rows, rows), stride=(1, act_rows))
            )
            loads += cpasync.make_tiled_tma_atom(
                load, tensor, cute.make_layout((n, groups)), (n, groups)
            )
        return tuple(loads)

    def gathered(self, act, act_scale, act_rows) -> tuple[cute.Pointer, cute.Pointer]:
        """x and x_scale."""
        i = self.geometry.intermediate_size
        groups = i // self.config.act_columns
        return act + Int64(act_rows) * i, act_scale + Int64(act_rows) * groups

    # ------------------------------------------------------------------------------------ gather

    @cute.jit
    def prepare(
        self, warp: Int32, hidden, hidden_scale, offsets, row_token, act, act_scale, counters,
        num_tokens, act_rows,
    ):  # fmt: skip
        """Gather the first rows, one per warp of the grid."""
        block, _, _ = cute.arch.block_idx()
        warps = self.threads // 32
        self.gather(
            block * warps + warp, Int32(self.num_sms * warps), Int32(self.num_sms * warps), hidden,
            hidden_scale, offsets, row_token, act, act_scale, counters, num_tokens, act_rows,
        )  # fmt: skip

    @cute.jit
    def gather(
        self, first: Int32, step: Int32, end: Int32, hidden, hidden_scale, offsets, row_token, act,
        act_scale, counters, num_tokens, act_rows,
    ):  # fmt: skip
        """Copy padded rows first, first + step, ... before `end` and their scales, one by one."""
        g = self.geometry
        h, experts, blocks = g.hidden_size, g.num_local_experts, g.hidden_size // BLOCK
        lane = cute.arch.lane_idx()
        x, x_scale = self.gathered(act, act_scale, act_rows)
        tiles = self.tile_list(offsets)
        end = cutlass.min(end, cute.arch.shuffle_sync(tiles.place_end, 31))
        for place in cutlass.range(first, end, step, unroll=1):
            ends_before = tiles.place_end <= place and lane < experts
            expert = cute.arch.popc(cute.arch.vote_ballot_sync(ends_before))
            row = place - cute.arch.shuffle_sync(tiles.place - tiles.first, expert)
            valid = row < cute.arch.shuffle_sync(tiles.end, expert)
            token = Int32(0)
            if valid:
                token = row_token[row]
            source = hidden + (Int64(token) * h + lane * 16)
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
                    scale = hidden_scale[k * num_tokens + token]
                    x_scale[Int64(k) * act_rows + place] = scale
            cute.arch.fence_proxy("async.global")  # TMA will read the row
            cute.arch.sync_warp()
            self.raise_counter(counters, expert + 1)

    # --------------------------------------------------------------------------------- slot warp

    @cute.jit
    def produce(
        self, ring: Ring, queue: Ring, records, shared, thread: Int32, tma1, tma1_tensor, tma2,
        tma2_tensor, token_loads, hidden, hidden_scale, w1_scale, w2_scale, offsets, row_token,
        act, act_scale, y, token_rows, output, counters, num_tokens, act_rows,
    ):  # fmt: skip
        """Warp 0 fills the ring; the others gather, then combine all but the last group of y."""
        if thread < 32:
            self.load_slots(
                ring, queue, records, shared, tma1, tma1_tensor, tma2, tma2_tensor, token_loads,
                w1_scale, w2_scale, offsets, counters,
            )  # fmt: skip
        else:
            block, _, _ = cute.arch.block_idx()
            worker = block * TOKEN_WARPS + thread // 32 - 1
            done = self.num_sms * (self.threads // 32)  # by `prepare`
            self.gather(
                done + worker, Int32(self.num_sms * TOKEN_WARPS), act_rows, hidden, hidden_scale,
                offsets, row_token, act, act_scale, counters, num_tokens, act_rows,
            )  # fmt: skip
            self.combine_rows(
                worker, self.num_sms * TOKEN_WARPS, (0, self.combine.groups - 1),
                shared.rows.data_ptr() + (thread // 32 - 1) * BUFFER_BYTES, y, token_rows, output,
                offsets, counters, num_tokens,
            )  # fmt: skip

    @cute.jit
    def load_slots(
        self, ring: Ring, queue: Ring, records, shared, tma1, tma1_tensor, tma2, tma2_tensor,
        token_loads, w1_scale, w2_scale, offsets, counters,
    ):  # fmt: skip
        """Load weights, tokens and scales of every tile, once its tokens are ready."""
        g = self.geometry
        h, i = g.hidden_size, g.intermediate_size
        dst1, src1, dst2, src2 = self.weight_boxes(shared, tma1, tma1_tensor, tma2, tma2_tensor)
        state, tile_state = producer_state(self.config.stages), consumer_state(QUEUE_SLOTS)
        tile = self.next_tile(queue, records, tile_state)
        tile_state.advance()
        while tile.gemm != END:
            expected = padded(offsets[tile.expert + 1] - offsets[tile.expert])
            expected += select(tile.gemm == GEMM2, tile.ready, 0)
            while (
                cute.arch.load(counters + 1 + tile.expert, Int32, sem="acquire", scope="gpu")
                < expected
            ):
                pass
            cute.arch.fence_proxy("async.global")
            parts = self.config.cluster  # boxes of a tile of weights
            boxes = [tile.column * parts + part for part in range(parts)]
            if tile.gemm == GEMM1:
                row, blocks = tile.column * self.config.act_columns // BLOCK, h // BLOCK
                up = w1_scale + (tile.expert * (2 * i // BLOCK) + row) * blocks
                weights = [src1[None, None, 0, 0, box, tile.expert] for box in boxes]
                state = self.load_tile(
                    ring, shared, state, tile, tma1, weights, dst1, token_loads[0:2],
                    token_loads[4:6], up, i // BLOCK * blocks, True,
                )  # fmt: skip
            else:
                rows, blocks = self.config.weight_rows // BLOCK, i // BLOCK
                upper = w2_scale + (tile.expert * (h // BLOCK) + tile.column * rows) * blocks
                weights = [src2[None, box, None, tile.expert] for box in boxes]
                state = self.load_tile(
                    ring, shared, state, tile, tma2, weights, dst2, token_loads[2:4],
                    token_loads[6:8], upper, (rows - 1) * blocks, False,
                )  # fmt: skip
            tile = self.next_tile(queue, records, tile_state)
            tile_state.advance()

    @cute.jit
    def load_tile(
        self, ring: Ring, shared, state, tile: Tile, tma_weights, weights, weight_slots, token_load,
        scale_load, weight_scale, to_second: cutlass.Constexpr, is_gemm1: cutlass.Constexpr,
    ):  # fmt: skip
        """All slots of one tile. weights: a [box, column block] for each part of the weight rows;
        weight_scale: of the first 128 rows (in GEMM1 the up rows), `to_second` before those of the
        second."""
        n, s = self.config.tokens, self.config.stages
        groups = 1 if is_gemm1 else self.groups2
        width = self.geometry.hidden_size if is_gemm1 else self.geometry.intermediate_size
        tma_tokens, tokens = token_load
        tma_scales, scales = scale_load
        token_slots = shared.tokens.get_tensor(
            cute.make_layout(
                (ROW_BLOCK, BLOCK, n // ROW_BLOCK, s),
                stride=(BLOCK, 1, ROW_BLOCK * BLOCK, n * BLOCK),
            ),
            swizzle=cute.make_swizzle(3, 4, 3),
        )
        scale_slots = shared.token_scale.get_tensor(
            cute.make_layout((n, groups, s), stride=(1, n, self.groups2 * n))
        )
        tokens = cute.local_tile(
            cute.domain_offset((tile.place, 0), tokens), (ROW_BLOCK, BLOCK), (None, None)
        )
        scales = cute.local_tile(
            cute.domain_offset((tile.place, 0), scales), (n, groups), (0, None)
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
        boxes = (tile.rows + (ROW_BLOCK - 1)) // ROW_BLOCK
        expected = BLOCK * (self.config.weight_rows + boxes * ROW_BLOCK)
        expected += 4 * n * groups
        rank, cluster = self.rank(), self.config.cluster
        # each part by one block into both, or all by each block into itself
        receivers = Int16(select(tile.together == 1, 2**cluster - 1, Int32(1) << rank))
        for k in cutlass.range(width // BLOCK, unroll=1):
            ring.acquire(state)
            barrier = ring.full_barrier(state)
            if lane < 2:
                target = shared.weight_scale.data_ptr() + state.index * 2 + lane
                cute.copy(copy4, vector(weight_scale + k, 1, 4), vector(target, 1, 4))
            cute.arch.cp_async_mbarrier_arrive_noinc(barrier)
            with cute.arch.elect_one():
                cute.arch.mbarrier_arrive_and_expect_tx(barrier, expected)
            for part in cutlass.range_constexpr(cluster):
                if tile.together == 0 or rank == part:
                    cute.copy(
                        tma_weights, weights[part][None, k], weight_slots[None, part, state.index],
                        tma_bar_ptr=barrier, mcast_mask=receivers,
                    )  # fmt: skip
            for b in cutlass.range_constexpr(n // ROW_BLOCK):
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
