"""What both kinds of consumers on sm_90a have in common: wgmma and its warpgroups."""

from __future__ import annotations

import math

import cutlass.cute as cute
from cutlass import Float8E4M3FN, Float32
from cutlass.cute.nvgpu import OperandMajorMode, cpasync
from cutlass.utils.hopper_helpers import make_trivial_tiled_mma

from ...geometry import Geometry
from ..config import GemmConfig
from ..moe_gemms import WeightLoads
from ..roles import Role
from ..weights import WeightTiles

# With two consumer warpgroups a thread starts with 168 registers, the most that 384 can have; the
# producers then give some to the consumers. 56 + 2 * 224 = 3 * 168: asking for more would hang.
REGISTERS = (56, 224)


class WgmmaConsumers(WeightTiles):
    """See the module's docstring. A subclass defines `mma_shape`, `result_size` and `consume`."""

    own_words = 0
    row_block = 64  # rows that wgmma multiplies at least, with tokens on its M side

    def __init__(self, geometry: Geometry, config: GemmConfig):
        if config.num_warpgroups not in (1, 2):
            raise ValueError(f"num_warpgroups must be 1 or 2, got {config.num_warpgroups}")
        if config.cluster == 1:
            load = cpasync.CopyBulkTensorTileG2SOp
        else:
            load = cpasync.CopyBulkTensorTileG2SMulticastOp
        super().__init__(geometry, config, config.cluster, load)
        self.threads = 128 * config.num_warpgroups
        self.slot_rows = config.block_n, config.block_m
        self.scale_slots = config.num_stages
        self.registers = REGISTERS if config.num_warpgroups == 2 else None
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
            (self.config.num_warpgroups, 1, 1), self.mma_shape,
        )  # fmt: skip

    def init_barriers(self, shared) -> None:
        """None but the block's."""

    def start(self, shared, warp) -> None:
        """Nothing: the sums are in registers."""

    def finish(self, shared, warp) -> None:
        """Nothing."""

    def prefetch_weights(self, shared, loads: WeightLoads, weight_tiles: int, num_tokens) -> None:
        """Nothing: while many tokens are routed, the memory is not idle."""
