"""Consumers and token producer for pairs of blocks that take one tile of 256 weight rows together.

Each block loads its own 128 weight rows and half of the tile's tokens, which the tensor cores read
from both; the first block's multiplying warp works for both, and each has the sums of its own rows
in its own tensor memory. Weights and tokens of both arrive at the first block's barriers. Scales
have a ring of their own in each block, which needs those of all the tile's tokens.

The two blocks' rows make up 128 columns of the activation, which share a scale for each token: the
promoting warps tell each other the maxima.

Warps: 0 loads, 1 gathers tokens and combines, 2 multiplies, 3 schedules, then eight that promote.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass.cute.nvgpu import cpasync

from ...geometry import Geometry
from ..combine import BUFFER_BYTES
from ..config import BLOCK_K, GemmConfig
from ..device import swizzled_tensor, vector
from ..gathered_tokens import GatheredTokens
from ..moe_gemms import Block, MoeGemms, WeightLoads
from ..operands import GemmOperands
from ..ring import Ring, block_rank, producer_state
from ..roles import Role
from ..tile_scheduler import Tile
from . import tmem
from .swap_ab import ROWS, SwapAb

TOKEN_BOX = 32  # tokens that TMA loads at once
MULTIPLYING_WARP = 2
# 384 threads start with 168 registers each; 56 + 2 * 224 = 3 * 168: asking for more would hang
REGISTERS = (56, 224)


class PairedSwapAb(SwapAb):
    """See the module's docstring; `Consumers`."""

    registers = REGISTERS

    def __init__(self, geometry: Geometry, config: GemmConfig):
        super().__init__(geometry, config)
        if geometry.hidden_size // BLOCK_K <= self.sums:
            raise ValueError(
                f"hidden_size must be more than {self.sums * BLOCK_K}, got {geometry.hidden_size}"
            )
        self.threads = self.promoting_threads
        self.roles = (Role("promotion", self.promoting_threads // 32, reads_queue=True),)
        # a slot is free for weights before its scales are: no more are in use than slots and
        # partial sums together
        self.scale_slots = config.num_stages + self.sums + 1
        self.scales_at = self.own_words  # their barriers
        self.own_words += 2 * self.scale_slots

    def scales_ring(self, block: Block) -> Ring:
        """Of the slots' scales in this block."""
        return self.ring_of_scales(block.shared)

    def ring_of_scales(self, shared) -> Ring:
        """The same, of the block's memory."""
        return Ring(shared.own.data_ptr() + self.scales_at, self.scale_slots)

    def init_barriers(self, shared) -> None:
        """By one thread, with the block's other barriers."""
        super().init_barriers(shared)
        # an expectation of bytes, and a warp's cp.async
        self.ring_of_scales(shared).init(1 + 32, self.promoting_threads)


class PairedTokens(GatheredTokens):
    """See the module's docstring; a `TokenProducer`."""

    consumers: PairedSwapAb
    gathering_warps = 1
    row_size = BUFFER_BYTES

    def __init__(self, gemms: MoeGemms):
        super().__init__(gemms)
        # of both blocks; what is said of slots with all tokens holds for the others
        expected = self.slot_bytes(gemms.config.block_m // 2 // TOKEN_BOX, 0)
        self.roles = (
            Role("slots", 1, reads_queue=True, fills=1, announced=expected,
                 brought=gemms.consumers.weight_bytes + BLOCK_K * gemms.config.block_m),
            Role("gather", self.gathering_warps),
            Role("multiplication", 1, reads_queue=True, releases=1),
        )  # fmt: skip

    def slot_bytes(self, boxes, spans: int):
        """That TMA brings to both blocks' slots with so many boxes of token rows each; scales go
        elsewhere."""
        return 2 * BLOCK_K * (ROWS + boxes * TOKEN_BOX)

    def token_operation(self):
        """A pair's loads arrive at its first block's barrier."""
        return cpasync.CopyBulkTensorTileG2SOp(SwapAb.group(self.config))

    @property
    def token_box(self) -> int:
        """Token rows that TMA loads at once."""
        return TOKEN_BOX

    @property
    def scale_box(self) -> int:
        """Tokens whose scales TMA loads at once: none of the next expert's."""
        return self.consumers.row_block

    def slot_states(self) -> tuple:
        """Where the warp that loads begins: with the slots and with those of the scales."""
        return producer_state(self.config.num_stages), producer_state(self.consumers.scale_slots)

    @cute.jit
    def produce(
        self, block: Block, thread: Int32, loads: WeightLoads, token_loads: tuple,
        operands: GemmOperands,
    ):  # fmt: skip
        """The first warp fills the rings, the second gathers and combines, the third multiplies."""
        if thread < 32 * MULTIPLYING_WARP:
            GatheredTokens.produce(self, block, thread, loads, token_loads, operands)
        else:
            memory = tmem.allocated(self.consumers.tmem_place(block.shared))
            self.consumers.multiply(block, memory)

    @cute.jit
    def load_tile(
        self, block: Block, state, tile: Tile, tma_weights, weights, weight_slots, token_load,
        scale_load, weight_scale, to_second: cutlass.Constexpr, is_gemm1: cutlass.Constexpr,
    ):  # fmt: skip
        """All slots of one tile, as far as this block has them. weights: a [box, column block] for
        either block's rows; weight_scale: of the first 128 rows (in GEMM1 the up rows), `to_second`
        before those of the second. state: of the slots, then of their scales."""
        shared, n, s = block.shared, self.config.block_m, self.config.num_stages
        slot, scale_slot = state
        width = self.geometry.hidden_size if is_gemm1 else self.geometry.intermediate_size
        rank, scale_ring = block_rank(2), self.consumers.scales_ring(block)
        half = self.consumers.tile_columns(tile.rows) // 2
        boxes = (half + (TOKEN_BOX - 1)) // TOKEN_BOX
        tma_tokens, tokens = token_load
        tma_scales, scales = scale_load
        token_slots = swizzled_tensor(
            shared.tokens, (TOKEN_BOX, BLOCK_K, n // 2 // TOKEN_BOX, s),
            (BLOCK_K, 1, TOKEN_BOX * BLOCK_K, n // 2 * BLOCK_K),
        )  # fmt: skip
        scale_box = self.scale_box
        scale_boxes = (tile.rows + (scale_box - 1)) // scale_box
        scale_slots = shared.token_scale.get_tensor(
            cute.make_layout(
                (scale_box, 1, n // scale_box, self.consumers.scale_slots),
                stride=(1, n, scale_box, n),
            )
        )
        tokens = cute.local_tile(
            cute.domain_offset((tile.padded_row + rank * half, 0), tokens), (TOKEN_BOX, BLOCK_K),
            (None, None),
        )  # fmt: skip
        scales = cute.local_tile(
            cute.domain_offset((tile.padded_row, 0), scales), (scale_box, 1), (None, None)
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
        weight_scale = weight_scale + (lane & 1) * to_second
        expected = self.slot_bytes(boxes, 0)
        for k in cutlass.range(width // BLOCK_K, unroll=1):
            block.ring.wait_empty(slot)
            barrier = block.ring.full_barrier(slot)
            if rank == 0:
                with cute.arch.elect_one():
                    cute.arch.mbarrier_arrive_and_expect_tx(barrier, expected)
            for part in cutlass.range_constexpr(2):
                if rank == part:
                    cute.copy(
                        tma_weights, weights[part][None, k], weight_slots[None, 0, slot.index],
                        tma_bar_ptr=barrier,
                    )  # fmt: skip
            for b in cutlass.range_constexpr(n // 2 // TOKEN_BOX):
                if b < boxes:
                    cute.copy(
                        tma_tokens, tokens[None, b, k], token_slots[None, b, slot.index],
                        tma_bar_ptr=barrier,
                    )  # fmt: skip
            slot.advance()
            scale_ring.wait_empty(scale_slot)
            barrier = scale_ring.full_barrier(scale_slot)
            if lane < 2:
                target = shared.weight_scale.data_ptr() + scale_slot.index * 2 + lane
                cute.copy(copy4, vector(weight_scale + k, 1, 4), vector(target, 1, 4))
            cute.arch.cp_async_mbarrier_arrive_noinc(barrier)
            with cute.arch.elect_one():
                cute.arch.mbarrier_arrive_and_expect_tx(barrier, 4 * scale_box * scale_boxes)
            for b in cutlass.range_constexpr(n // scale_box):
                if b < scale_boxes:
                    cute.copy(
                        tma_scales, scales[None, b, k], scale_slots[None, b, scale_slot.index],
                        tma_bar_ptr=barrier,
                    )  # fmt: skip
            scale_slot.advance()
        return slot, scale_slot
