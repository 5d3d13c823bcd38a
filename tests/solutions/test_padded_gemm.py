"""The padded grouped GEMM: what its tiles compile to for Hopper, and on a GPU what they compute."""

import shutil
from itertools import accumulate

import pytest
import torch
from child import facts_of

cutlass = pytest.importorskip("cutlass")
from solutions.common.cutedsl.architecture import backend_of  # noqa: E402
from solutions.common.cutedsl.padded_gemm import KERNELS, padded_gemm  # noqa: E402
from solutions.common.cutedsl.padded_operands import store_chunk  # noqa: E402
from solutions.common.cutedsl.sm90 import padded_gemm as gemm  # noqa: E402
from solutions.common.cutedsl.sm90.padded_gemm import TILES, GemmTile, tile_for  # noqa: E402
from solutions.torch_moe.main import dequantize  # noqa: E402

SHARED_LIMIT = 232_448  # bytes a block may use on sm_90
REGISTERS = 65_536  # of a multiprocessor
EXPERTS, MAX_M, N, K = 5, 44, 384, 256  # of compile_padded_gemm.py
tiles = pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.block_m}x{tile.block_n}")


@pytest.fixture(scope="module")
def kernels():
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler for the mock of the CUDA runtime")
    facts = facts_of("compile_padded_gemm.py")
    assert [fact["tile"] for fact in facts] == [str(tile) for tile in TILES]
    return dict(zip(TILES, facts, strict=True))


@tiles
def test_resources(kernels, tile):
    kernel = kernels[tile]
    assert kernel["shared"] <= SHARED_LIMIT
    assert kernel["registers"] * kernel["threads"] <= REGISTERS
    assert kernel["stack"] == 0
    # what setmaxnreg shares out, in steps of 8
    assert kernel["registers"] == 168 and kernel["threads"] == gemm.THREADS == 384
    shares = gemm.PRODUCER_REGISTERS, *[gemm.CONSUMER_REGISTERS] * gemm.CONSUMERS
    assert sum(shares) <= 3 * 168 and all(share % 8 == 0 for share in shares)


@tiles
def test_instructions(kernels, tile):
    count = kernels[tile]["instructions"]
    assert count["UTMALDG.3D"] == 3  # a, its scales, b
    assert count["UTMASTG.3D"] == tile.warpgroup_columns // tile.box_columns
    assert "LDL" not in count and "STL" not in count
    parts = tile.warpgroup_columns // tile.mma_columns
    # one wait per chain of wgmmas: the compiler has not serialised them
    assert count["QGMMA"] == 4 * parts and count["WARPGROUP.DEPBAR"] == parts


@tiles
def test_accumulator(kernels, tile):
    """The map in the module's docstring, and each place once."""
    places = kernels[tile]["accumulator"]
    expected = []
    for thread in range(256):
        group, warp, lane = thread // 128, thread % 128 // 32, thread % 32
        row = group % tile.row_warpgroups * 64 + warp * 16 + lane // 4
        column = group // tile.row_warpgroups * tile.mma_columns + 2 * (lane % 4)
        expected += [
            [row + 8 * i, column + 8 * j + c]
            for j in range(tile.mma_columns // 8)
            for i in range(2)
            for c in range(2)
        ]
    assert places == expected
    assert (
        len(set(map(tuple, places))) == tile.block_m * tile.mma_columns * 2 // tile.row_warpgroups
    )


@pytest.mark.parametrize("chunks", [4, 8])
def test_store_swizzle(chunks):
    """TMA's swizzle is on addresses: it flips bits 4.. by bits 7.., as many as chunks have."""
    for row in range(64):
        stored = [store_chunk(row, chunk, chunks) for chunk in range(chunks)]
        assert sorted(stored) == [*range(chunks)]
        for chunk in range(chunks):
            address = (row * chunks + chunk) * 16
            swizzled = address ^ (address >> 3 & (chunks - 1) << 4)
            assert swizzled == (row * chunks + stored[chunk]) * 16


@tiles
def test_launch(kernels, tile):
    """Grid, block, shared memory and the TMA descriptors' address, sizes, strides and boxes."""
    launch = kernels[tile]["launch"]
    assert launch["grid"] == [132, 1, 1] and launch["block"] == [gemm.THREADS, 1, 1]
    assert launch["shared"] == kernels[tile]["shared"]
    expected = (  # pointer, sizes, strides in bytes, box
        (1, (K, MAX_M, EXPERTS), (K, MAX_M * K), (128, tile.block_m)),
        (2, (MAX_M, EXPERTS, K // 128), (4 * MAX_M, 4 * MAX_M * EXPERTS), (tile.block_m, 1)),
        (3, (K, N, EXPERTS), (K, N * K), (128, tile.block_n)),
        (6, (N, MAX_M, EXPERTS), (2 * N, 2 * N * MAX_M), (tile.box_columns, 64)),
    )
    for words, (pointer, sizes, strides, box) in zip(launch["descriptors"], expected, strict=True):
        assert words[:2] == [0, pointer]  # compile_padded_gemm.py passes pointer << 32
        assert words[3:5] == [stride // 16 for stride in strides]
        assert words[8:11] == [size - 1 for size in sizes]
        assert [words[13] >> 24, words[14]] == [size - 1 for size in box]


@pytest.mark.parametrize(
    "experts, max_m, n, rows, columns",
    [
        (8, 512, 4096, 128, 256),
        (1, 512, 4096, 128, 128),
        (32, 64, 4096, 64, 128),
        (1, 64, 4096, 64, 64),
        (1, 4, 128, 64, 64),
    ],
)
def test_tile_choice(experts, max_m, n, rows, columns):
    """Wide tiles for much work; no padded second half; small ones to keep the GPU busy."""
    tile = tile_for(experts, max_m, n, 132)
    assert (tile.block_m, tile.block_n) == (rows, columns)


@pytest.mark.parametrize(
    "arguments, message", [((96, 64, 4), "block_m .* 96"), ((64, 512, 4), "block_n .* 512")]
)
def test_bad_tile(arguments, message):
    with pytest.raises(ValueError, match=message):
        GemmTile(*arguments)


@pytest.mark.parametrize(
    "experts, max_m, n, k, message",
    [
        (33, 4, 128, 128, "a: expected at most 32 experts, got 33"),
        (1, 6, 128, 128, "max_m: expected a multiple of 4, got 6"),
        (1, 4, 64, 128, "N: expected a multiple of 128, got 64"),
        (1, 4, 128, 96, "K: expected a multiple of 128, got 96"),
    ],
)
def test_bad_size(experts, max_m, n, k, message):
    a, b = torch.empty(experts, max_m, k), torch.empty(experts, n, k)
    with pytest.raises(ValueError, match=message):
        padded_gemm(a, None, b, None, None)


def operands(sizes: list[int], n: int, k: int, scale_range: float):
    """Random operands on the GPU; what lies past an expert's rows is NaN."""
    generator = torch.Generator("cuda").manual_seed(sum(sizes) + n + k)
    experts, max_m = len(sizes), max(4, -(-max(sizes) // 4) * 4)

    def normal(*shape):
        return torch.randn(shape, generator=generator, device="cuda")

    def scales(*shape):
        return normal(*shape) * torch.exp(scale_range * normal(*shape))

    a = normal(experts, max_m, k)
    a_scale = scales(k // 128, experts, max_m)
    for expert, size in enumerate(sizes):
        a[expert, size:], a_scale[:, expert, size:] = float("nan"), float("nan")
    b, b_scale = normal(experts, n, k), scales(experts, n // 128, k // 128)
    offsets = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device="cuda")
    return a.to(torch.float8_e4m3fn), a_scale, b.to(torch.float8_e4m3fn), b_scale, offsets


def device_tiles():
    """Those of the GPU's architecture."""
    return KERNELS[backend_of(torch.device("cuda", 0))].TILES


@pytest.mark.gpu
@pytest.mark.parametrize("number", range(len(TILES)))
@pytest.mark.parametrize("sizes", [[1], [0, 0], [64, 0, 65, 3], [0, 129, 128, 1, 0, 257]])
@pytest.mark.parametrize("n, k", [(128, 128), (384, 256), (640, 1152)])
@pytest.mark.parametrize("scale_range", [0.0, 4.0], ids=["normal", "extreme"])
def test_against_fp32(number, sizes, n, k, scale_range):
    a, a_scale, b, b_scale, offsets = operands(sizes, n, k, scale_range)
    c = padded_gemm(a, a_scale, b, b_scale, offsets, device_tiles()[number])
    assert c.shape == (len(sizes), a.shape[1], n)
    for expert, size in enumerate(sizes):
        if size:
            x = dequantize(a[expert, :size], a_scale[:, expert, :size].t(), 128).double()
            expected = x @ dequantize(b[expert], b_scale[expert], 128).double().t()
            error = c[expert, :size].double() - expected
            assert error.norm() < 4e-3 * expected.norm()


@pytest.mark.gpu
def test_every_tile_gives_the_same_bits():
    arguments = operands([100, 7, 0, 200], 512, 1024, 1.0)
    valid = torch.arange(200, device="cuda") < arguments[-1].diff()[:, None]
    results = [padded_gemm(*arguments, tile)[valid] for tile in device_tiles() for _ in range(2)]
    assert all(torch.equal(results[0], result) for result in results)
