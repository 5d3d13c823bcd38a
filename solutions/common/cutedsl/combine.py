"""Weighted combine, pull style, in the kernel that computes y: out[t] = sum of token t's rows of y.

  y [max_rows, H] bf16 (rows already weighted)    token_rows [T, top_k] int32, ascending, -1 padded
  output [T, H] bf16 (zeros for a token without rows)

Where there are many rows, GEMM2 goes through its columns panel by panel: while one panel is
multiplied, the columns before it are complete and can be combined. An item of work is four tokens
by 512 columns for a warp. Its rows come by cp.async, several in flight, each lane's 2 x 16 bytes
into memory that only this lane reads. They are added in fp32 in ascending order: the result does
not depend on the schedule.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64
from cutlass.cute.nvgpu import cpasync

from ..geometry import Geometry
from .device import select, vector
from .operands import GemmOperands
from .tile_scheduler import PANEL_ROWS, TileScheduler

TOP_K = 8
ITEM_TOKENS = 32 // TOP_K  # a lane for each of their row numbers
ITEM_COLUMNS = 512
VECTOR = 8  # columns that a lane copies at once
VECTORS = ITEM_COLUMNS // 32 // VECTOR  # of a row, per lane
DEPTH = 5  # rows in flight
BUFFER_BYTES = DEPTH * ITEM_COLUMNS * 2  # shared memory of a warp


class Combine:
    """See the module's docstring. A panel has `panel_columns` columns."""

    def __init__(self, geometry: Geometry, scheduler: TileScheduler, panel_columns: int):
        if geometry.top_k != TOP_K:
            raise ValueError(f"top_k must be {TOP_K}, got {geometry.top_k}")
        if geometry.hidden_size % panel_columns or panel_columns % ITEM_COLUMNS:
            raise ValueError(
                f"panel_columns must be a multiple of {ITEM_COLUMNS} and divide "
                f"{geometry.hidden_size}, got {panel_columns}"
            )
        self.scheduler = scheduler
        self.hidden_size = geometry.hidden_size
        self.panel_columns = panel_columns
        self.panels = geometry.hidden_size // panel_columns

    def early_panels(self, operands: GemmOperands) -> Int32:
        """Panels that are combined while GEMM2 still works on later ones."""
        experts = self.scheduler.experts
        offsets = cute.make_tensor(operands.expert_offsets, cute.make_layout(experts + 1))
        return select(offsets[experts] < PANEL_ROWS, 0, self.panels - 1)

    def items(self, panels, num_tokens: Int32) -> Int32:
        """Items of the first panels; they are numbered in this order."""
        slices = panels * self.panel_columns // ITEM_COLUMNS
        return slices * cute.ceil_div(num_tokens, ITEM_TOKENS)

    @cute.jit
    def rows(
        self, worker: Int32, workers: cutlass.Constexpr, panels: tuple, buffer: cute.Pointer,
        operands: GemmOperands,
    ):  # fmt: skip
        """The share of warp `worker` of `workers` in panels[0] .. panels[1] - 1; each waits until
        GEMM2 has written it. buffer: BUFFER_BYTES of shared memory."""
        num_tokens = operands.num_tokens
        tiles = self.scheduler.tile_list(operands.expert_offsets).total * self.scheduler.panel_count
        self.work(
            self.items(panels[0], num_tokens) + worker, Int32(workers),
            self.items(panels[1], num_tokens), buffer, operands.y, operands.token_rows,
            operands.output, self.scheduler.panel_counters(operands.counters), tiles, num_tokens,
        )  # fmt: skip

    @cute.jit
    def work(
        self, first: Int32, step: Int32, end: Int32, buffer: cute.Pointer, y, token_rows, output,
        finished, panel_tiles: Int32, num_tokens: Int32,
    ):  # fmt: skip
        """A warp's items first, first + step, ... before `end`.

        buffer: BUFFER_BYTES of shared memory; finished int32 [panels]: tiles of y that are
        written, of panel_tiles each.
        """
        lane = cute.arch.lane_idx()
        blocks = cute.ceil_div(num_tokens, ITEM_TOKENS)
        buffer = cute.recast_ptr(buffer, dtype=BFloat16) + lane * VECTOR
        complete = Int32(-1)  # panels up to this one are known to be
        row = self.load_row(token_rows, first % blocks, num_tokens)
        for item in cutlass.range(first, end, step, unroll=1):
            slice_, block = item // blocks, item % blocks
            column = slice_ * ITEM_COLUMNS + lane * VECTOR
            panel = slice_ // (self.panel_columns // ITEM_COLUMNS)
            if panel > complete:
                while (
                    cute.arch.load(finished + panel, Int32, sem="acquire", scope="gpu")
                    < panel_tiles
                ):
                    cute.arch.inline_ptx("nanosleep.u32 100;")
                complete = panel
            rows = cute.arch.vote_ballot_sync(row >= 0)  # of all four tokens
            left = rows
            for slot in cutlass.range_constexpr(DEPTH):
                left = self.load(buffer, Int32(slot), y + column, row, left)
            next_row = self.load_row(token_rows, (item + step) % blocks, num_tokens)
            slot = Int32(0)
            for t in cutlass.range_constexpr(ITEM_TOKENS):
                total = cute.make_rmem_tensor((VECTOR, VECTORS), Float32)
                total.fill(0.0)
                count = cute.arch.popc((rows >> (TOP_K * t)) & (2**TOP_K - 1))
                for _ in cutlass.range(count, unroll=1):
                    cute.arch.cp_async_wait_group(DEPTH - 1)
                    for v in cutlass.range_constexpr(VECTORS):
                        summand = cute.make_rmem_tensor((VECTOR,), BFloat16)
                        cute.autovec_copy(vector(self.slot(buffer, slot, v), VECTOR, 16), summand)
                        total[None, v].store(total[None, v].load() + summand.load().to(Float32))
                    left = self.load(buffer, slot, y + column, row, left)
                    slot = select(slot == DEPTH - 1, 0, slot + 1)
                token = block * ITEM_TOKENS + t
                if token < num_tokens:
                    target = output + (Int64(token) * self.hidden_size + column)
                    for v in cutlass.range_constexpr(VECTORS):
                        rounded = cute.make_rmem_tensor((VECTOR,), BFloat16)
                        rounded.store(total[None, v].load().to(BFloat16))
                        cute.autovec_copy(rounded, vector(target + v * 32 * VECTOR, VECTOR, 16))
            row = next_row

    def slot(self, buffer: cute.Pointer, slot: Int32, v: int) -> cute.Pointer:
        return buffer + (slot * ITEM_COLUMNS + v * 32 * VECTOR)

    @cute.jit
    def load_row(self, token_rows, block: Int32, num_tokens: Int32) -> Int32:
        """Lane TOP_K t + k: row k of the block's token t, or -1."""
        index = block * 32 + cute.arch.lane_idx()
        row = Int32(-1)
        if index < num_tokens * TOP_K:
            row = token_rows[index]
        return row

    @cute.jit
    def load(self, buffer, slot: Int32, y, row: Int32, left: Int32) -> Int32:
        """Start to load the row of the lowest bit in `left`, if any, as one group of copies."""
        if left != 0:
            bit = left & -left
            number = cute.arch.shuffle_sync(row, cute.arch.popc(bit - 1))
            copy16 = cute.make_copy_atom(
                cpasync.CopyG2SOp(cache_mode=cute.nvgpu.LoadCacheMode.GLOBAL),
                BFloat16,
                num_bits_per_copy=128,
            )
            source = y + Int64(number) * self.hidden_size
            for v in cutlass.range_constexpr(VECTORS):
                cute.copy(
                    copy16,
                    vector(source + v * 32 * VECTOR, VECTOR, 16),
                    vector(self.slot(buffer, slot, v), VECTOR, 16),
                )
            left = left ^ bit
        cute.arch.cp_async_commit_group()
        return left
