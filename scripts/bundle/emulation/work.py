"""What cutedsl_moe_fp8_v3's tiles on sm_100a take of every unit, by rows per expert.

Counts follow from the sizes of the tiles alone; tests compare them with what the emulator counts.
Clocks are the counts over the units' rates, of which that of tensor memory is an assumption. Times
are estimates: nothing of this has been run on a B200.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

from solutions.common.cutedsl.config import BLOCK_K, PAIR_STEP, GemmConfig, candidates_for, choose
from solutions.common.geometry import Geometry

SMS, CLOCK_GHZ = 148, 1.85
DRAM_TBS, FP8_TFLOPS = 8.0, 4500.0  # NVIDIA's figures of a B200
# Assumed: a read rate as an H200 reaches it of its own, and what FP8 GEMMs with promotion do of it
PRACTICAL_TBS, PRACTICAL_TFLOPS = 7.2, 2500.0
# What v3 adds to that on an H200 in the harness: us up to 1024 tokens; beyond, shares and us
FEW_TOKENS, ADDED_US, ADDED_SHARE = 1024, (35.0, 50.0), (1.20, 1.25)

MACS = 8192  # fp8 multiply-adds of a multiprocessor per clock
LANES = 128  # fp32 FMAs per clock
SHARED_BYTES, TMEM_BYTES = 128, 512  # per clock; the latter is assumed
ROWS = 128  # weight rows of a block
CHUNK = 16  # columns of a partial sum that a warp loads at once, by two instructions
BOX, SCALE_BOX = 32, 64  # tokens, and tokens' scales, that TMA brings to a pair at once


@dataclass(frozen=True)
class Work:
    """Sums over all blocks. slots: of 128 columns of K; multiplications, tmem_loads, fmas:
    instructions of a warp (tcgen05.mma, tcgen05.ld, fma.rn.f32x2); tma_bytes: that TMA brings.

    Clocks of one multiprocessor's unit: multiply, promote, read_tmem, read_shared (operands) and
    write_shared (weights and tokens).
    """

    slots: int = 0
    multiplications: int = 0
    tmem_loads: int = 0
    fmas: int = 0
    tma_bytes: int = 0
    multiply: float = 0.0
    promote: float = 0.0
    read_tmem: float = 0.0
    read_shared: float = 0.0
    write_shared: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))


def work(geometry: Geometry, config: GemmConfig, rows_per_expert: Iterable[int]) -> Work:
    """Of both GEMMs of the layer."""
    total = Work()
    for rows in rows_per_expert:
        for tokens in tile_rows(config, rows):
            for spans, slots in slots_of_tile(geometry, config):
                total += slots_work(config, tokens, spans, slots)
    return total


def tile_rows(config: GemmConfig, rows: int) -> Iterator[int]:
    """Rows of an expert's token tiles, which share them evenly; a pair's in steps."""
    tiles = -(-rows // config.block_m)
    most = -(-rows // max(tiles, 1))
    if config.paired:
        most = -(-most // PAIR_STEP) * PAIR_STEP
    for first in range(0, rows, max(most, 1)):
        yield min(most, rows - first)


def slots_of_tile(geometry: Geometry, config: GemmConfig) -> tuple[tuple[int, int], ...]:
    """Partial sums of a slot, and slots with all weights, of GEMM1 and of GEMM2 of a token tile."""
    h, i = geometry.hidden_size, geometry.intermediate_size
    return (
        (1, i // config.act_columns * h // BLOCK_K),
        (config.act_spans, h // config.block_n * i // BLOCK_K),
    )


def slots_work(config: GemmConfig, tokens: int, spans: int, slots: int) -> Work:
    """Of `slots` slots of a tile with `tokens` rows, in all blocks that share them."""
    blocks, step = config.cluster, CHUNK * config.cluster
    n = -(-tokens // step) * step  # of the instruction
    warps = 4 * config.num_warpgroups * blocks
    chunks = -(-(n // config.num_warpgroups) // CHUNK) * spans
    if config.paired:
        brought = -(-(n // blocks) // BOX) * BOX  # tokens to a block
        scales = 4 * SCALE_BOX * -(-tokens // SCALE_BOX)
    else:
        brought, scales = tokens, 0
    by_tma = blocks * (ROWS * BLOCK_K + scales + (brought * BLOCK_K if config.paired else 0))
    return Work(
        slots=slots,
        multiplications=4 * slots,
        tmem_loads=2 * warps * chunks * slots,
        fmas=8 * warps * chunks * slots,
        tma_bytes=by_tma * slots,
        multiply=blocks * slots * n * ROWS * BLOCK_K / MACS,
        promote=blocks * slots * spans * n * ROWS / LANES,
        read_tmem=blocks * slots * spans * n * ROWS * 4 / TMEM_BYTES,
        read_shared=blocks * slots * BLOCK_K * (ROWS + n // blocks) / SHARED_BYTES,
        write_shared=blocks * slots * BLOCK_K * (ROWS + brought) / SHARED_BYTES,
    )


@dataclass(frozen=True)
class Estimate:
    """Of one call with `num_tokens` tokens. Times in us; units: of each unit of the
    multiprocessors, if nothing else took time; expected: least and most."""

    num_tokens: int
    experts: int
    rows: int
    config: GemmConfig
    work: Work
    floor: float
    units: dict[str, float]
    practical: float
    expected: tuple[float, float]


def estimate(geometry: Geometry, num_tokens: int, rows_per_expert: Sequence[int]) -> Estimate:
    """Of v3 with the configuration that it chooses."""
    config = choose(candidates_for(num_tokens, 100), rows_per_expert)
    done = work(geometry, config, rows_per_expert)
    experts, rows = sum(rows > 0 for rows in rows_per_expert), sum(rows_per_expert)
    weights = 3 * geometry.hidden_size * geometry.intermediate_size  # of an expert, in bytes
    flop = 2 * weights * rows
    units = {
        name: getattr(done, name) / (SMS * CLOCK_GHZ * 1e3)
        for name in ("multiply", "promote", "read_tmem", "read_shared", "write_shared")
    }
    practical = max(
        experts * weights / PRACTICAL_TBS / 1e6, flop / PRACTICAL_TFLOPS / 1e6, *units.values()
    )
    low, high = (practical + added for added in ADDED_US)
    if num_tokens > FEW_TOKENS:
        low, high = practical * ADDED_SHARE[0], practical * ADDED_SHARE[1] + ADDED_US[1]
    return Estimate(
        num_tokens, experts, rows, config, done,
        max(experts * weights / DRAM_TBS / 1e6, flop / FP8_TFLOPS / 1e6),
        units, practical, (low, high),
    )  # fmt: skip
