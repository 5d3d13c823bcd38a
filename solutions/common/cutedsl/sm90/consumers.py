"""What both kinds of consumers on sm_90a have in common: wgmma, its warpgroups, its weight boxes.

GEMM1's weight rows are up and gate rows, taken alternately in groups of 8 by one five-dimensional
TMA box: wgmma's accumulator then gives a thread up and gate of the same column, and SwiGLU needs no
exchange.
"""

from __future__ import annotations

import math

import cutlass
import cutlass.cute as cute
from cutlass import Float8E4M3FN, Float32
from cutlass.cute.nvgpu import OperandMajorMode, cpasync
from cutlass.utils.hopper_helpers import make_trivial_tiled_mma

from ...geometry import Geometry
from ..config import BLOCK_K, GemmConfig
from ..device import swizzled, swizzled_tensor
from ..moe_gemms import WeightBoxes, WeightLoads
from ..roles import Role

ROWS = 8  # of up, then of gate, in a GEMM1 tile
# With two consumer warpgroups a thread starts with 168 registers, the most that 384 can have; the
# producers then give some to the consumers. 56 + 2 * 224 = 3 * 168: asking for more would hang.
REGISTERS = (56, 224)


class WgmmaConsumers:
    """See the module's docstring. A subclass defines `mma_shape`, `result_size` and `consume`."""

    row_block = 64  # rows that wgmma multiplies at least, with tokens on its M side

    def __init__(self, geometry: Geometry, config: GemmConfig):
        if config.warpgroups not in (1, 2):
            raise ValueError(f"warpgroups must be 1 or 2, got {config.warpgroups}")
        self.geometry = geometry
        self.config = config
        self.threads = 128 * config.warpgroups
        self.registers = REGISTERS if config.warpgroups == 2 else None
        warps = self.threads // 32
        # all lanes release in their own block, one of each warp in the other blocks
        self.roles = (
            Role("consumers", warps, reads_queue=True, releases=32 * warps, remote_releases=warps),
        )
        self.weight_bytes = config.cluster * math.prod(self.box()[1])

    @property
    def mma_shape(self) -> tuple[int, int]:
        """M and N of one wgmma."""
        raise NotImplementedError

    def tiled_mma(self) -> cute.TiledMma:
        """wgmma for 32 columns of K, the warpgroups next to each other along M."""
        return make_trivial_tiled_mma(
            Float8E4M3FN, Float8E4M3FN, OperandMajorMode.K, OperandMajorMode.K, Float32,
            (self.config.warpgroups, 1, 1), self.mma_shape,
        )  # fmt: skip

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
        if cutlass.const_expr(self.config.cluster == 1):
            load = cpasync.CopyBulkTensorTileG2SOp()
        else:
            load = cpasync.CopyBulkTensorTileG2SMulticastOp()
        return WeightLoads(
            *cpasync.make_tiled_tma_atom(load, w1_tensor, swizzled(shape1, stride1), shape1),
            *cpasync.make_tiled_tma_atom(
                load, w2_tensor, swizzled((rows, BLOCK_K), (BLOCK_K, 1)), (rows, BLOCK_K)
            ),
        )

    def box(self) -> tuple[int, tuple, tuple]:
        """Weight rows of a box, and the shape and strides of GEMM1's in shared memory."""
        rows = self.config.weight_rows // self.config.cluster
        return (
            rows,
            (BLOCK_K, ROWS, 2, rows // (2 * ROWS)),
            (1, BLOCK_K, ROWS * BLOCK_K, 2 * ROWS * BLOCK_K),
        )

    def weight_boxes(self, shared, loads: WeightLoads) -> WeightBoxes:
        """See `Consumers`."""
        cluster, s = self.config.cluster, self.config.stages
        rows, shape1, stride1 = self.box()
        size = BLOCK_K * rows
        slots1 = swizzled_tensor(
            shared.weights, (*shape1, cluster, s), (*stride1, size, cluster * size)
        )
        slots2 = swizzled_tensor(
            shared.weights, (rows, BLOCK_K, cluster, s), (BLOCK_K, 1, size, cluster * size)
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

    def prefetch_weights(self, shared, loads: WeightLoads, weight_tiles: int, num_tokens) -> None:
        """Nothing: while many tokens are routed, the memory is not idle."""
