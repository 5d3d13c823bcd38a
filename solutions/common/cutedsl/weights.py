"""Weight tiles: how TMA brings them to a block's slots, on every architecture.

GEMM1's weight rows are up and gate rows, taken alternately in groups of 8 by one five-dimensional
TMA box: the accumulator of wgmma, and tensor memory read in its order, then give a thread up and
gate of the same column, and SwiGLU needs no exchange.
"""

from __future__ import annotations

import cutlass.cute as cute
from cutlass.cute.nvgpu import cpasync

from ..geometry import Geometry
from .config import BLOCK_K, GemmConfig
from .device import swizzled, swizzled_tensor
from .moe_gemms import WeightBoxes, WeightLoads

ROWS = 8  # of up, then of gate, in a GEMM1 tile


class WeightTiles:
    """Part of `Consumers`. A tile's weight rows come in boxes, as many as the cluster has blocks.

    slot_boxes: boxes of a tile that a block has; load: makes the TMA operation that brings
    one, which only a compilation for its architecture may.
    """

    def __init__(self, geometry: Geometry, config: GemmConfig, slot_boxes: int, load):
        self.geometry = geometry
        self.config = config
        self.slot_boxes = slot_boxes
        self.load = load

    def weight_loads(self, w1: cute.Pointer, w2: cute.Pointer) -> WeightLoads:
        """TMA atoms and tensors of w1 [E, 2I, H] and w2 [E, H, I]."""
        g = self.geometry
        h, i, e = g.hidden_size, g.intermediate_size, g.num_local_experts
        # (column, row in 8, up or gate, group of 8, expert) and (row, column, expert)
        w1_tensor = cute.make_tensor(
            w1,
            cute.make_layout((h, ROWS, 2, i // ROWS, e), stride=(1, h, i * h, ROWS * h, 2 * i * h)),
        )
        w2_tensor = cute.make_tensor(w2, cute.make_layout((h, i, e), stride=(i, 1, h * i)))
        rows, shape1, stride1 = self.box()
        return WeightLoads(
            *cpasync.make_tiled_tma_atom(self.load(), w1_tensor, swizzled(shape1, stride1), shape1),
            *cpasync.make_tiled_tma_atom(
                self.load(), w2_tensor, swizzled((rows, BLOCK_K), (BLOCK_K, 1)), (rows, BLOCK_K)
            ),
        )

    def box(self) -> tuple[int, tuple, tuple]:
        """Weight rows of a box, and the shape and strides of GEMM1's in shared memory."""
        rows = self.config.block_n // self.config.cluster
        return (
            rows,
            (BLOCK_K, ROWS, 2, rows // (2 * ROWS)),
            (1, BLOCK_K, ROWS * BLOCK_K, 2 * ROWS * BLOCK_K),
        )

    def weight_boxes(self, shared, loads: WeightLoads) -> WeightBoxes:
        """See `Consumers`."""
        boxes, s = self.slot_boxes, self.config.num_stages
        rows, shape1, stride1 = self.box()
        size = BLOCK_K * rows
        slots1 = swizzled_tensor(
            shared.weights, (*shape1, boxes, s), (*stride1, size, boxes * size)
        )
        slots2 = swizzled_tensor(
            shared.weights, (rows, BLOCK_K, boxes, s), (BLOCK_K, 1, size, boxes * size)
        )
        boxes1 = cute.local_tile(loads.tensor1, shape1, (None, None, None, None, None))
        boxes2 = cute.local_tile(loads.tensor2, (rows, BLOCK_K), (None, None, None))
        single = cute.make_layout(1)
        slots1, boxes1 = cpasync.tma_partition(
            loads.atom1, 0, single, cute.group_modes(slots1, 0, 4), cute.group_modes(boxes1, 0, 4)
        )
        slots2, boxes2 = cpasync.tma_partition(
            loads.atom2, 0, single, cute.group_modes(slots2, 0, 2), cute.group_modes(boxes2, 0, 2)
        )
        boxes1 = boxes1[None, None, 0, 0, None, None]
        by_column = cute.make_tensor(boxes2.iterator, cute.select(boxes2.layout, [0, 2, 1, 3]))
        return WeightBoxes(slots1, boxes1, slots2, by_column)
