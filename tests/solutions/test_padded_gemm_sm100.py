"""The padded grouped GEMM for Blackwell: what its tiles compile to, without a GPU."""

import shutil
from itertools import accumulate

import pytest
import torch
from child import facts_of
from padded_batch import digest, operands

pytest.importorskip("cutlass")
from solutions.common.cutedsl.architecture import backend_of
from solutions.common.cutedsl.padded_gemm import KERNELS, padded_gemm
from solutions.common.cutedsl.sm100 import padded_gemm as gemm
from solutions.common.cutedsl.sm100 import tmem
from solutions.common.cutedsl.sm100.padded_gemm import TILES, GemmTile, tile_for

SHARED_LIMIT = 232_448  # bytes a block may use on sm_100
EXPERTS, MAX_M, N, K = 5, 44, 384, 256  # of compile_padded_gemm.py
tiles = pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.block_m}x{tile.block_n}")


@pytest.fixture(scope="module", params=["sm_100a", pytest.param("sm_103a", marks=pytest.mark.long)])
def kernels(request):
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler for the mock of the CUDA runtime")
    facts = facts_of("compile_padded_gemm.py", request.param)
    assert [fact["tile"] for fact in facts] == [str(tile) for tile in TILES]
    return dict(zip(TILES, facts, strict=True))


def test_both_architectures_have_as_many_tiles():
    """The tests on a GPU count them."""
    assert len(KERNELS[90].TILES) == len(KERNELS[100].TILES)


@tiles
def test_resources(kernels, tile):
    kernel = kernels[tile]
    assert kernel["shared"] <= SHARED_LIMIT and kernel["stack"] == 0
    assert kernel["registers"] == 168 and kernel["threads"] == gemm.THREADS == 384
    # what setmaxnreg shares out, in steps of 8
    shares = gemm.OTHER_REGISTERS, *[gemm.PROMOTING_REGISTERS] * gemm.HALVES
    assert sum(shares) <= 3 * 168 and all(share % 8 == 0 for share in shares)


@tiles
def test_rings(tile):
    """Two partial sums at least; scales of the slots and partial sums in flight and of one more."""
    columns = tile.sums * tile.block_n
    assert tile.sums >= 2 and 32 <= columns <= tmem.COLUMNS and columns & (columns - 1) == 0
    assert tile.num_stages + tile.sums < gemm.SCALE_SLOTS


@tiles
def test_instructions(kernels, tile):
    count = kernels[tile]["instructions"]
    pair = ".2CTA" if tile.cluster == 2 else ""
    scales = 0 if pair else 1  # these go to the block's own barrier
    assert count["UTCQMMA" + pair] == 4 and count["UTCBAR"] == 2
    assert count["UTMALDG.3D" + pair] == 2 + scales and count["UTMALDG.3D"] == 1 + 2 * scales
    assert count["UTMASTG.3D"] == tile.half_columns // tile.box_columns
    assert count["LDTM"] == tile.half_columns // gemm.CHUNK
    assert count["FFMA2"] == tile.half_columns // 2
    assert count["USETMAXREG"] == 2 and "LDL" not in count and "STL" not in count
    # the loop over K promotes two by two, and all of it
    assert kernels[tile]["promotion"] == {name: count[name] for name in ("LDTM", "FFMA2")}


@tiles
def test_launch(kernels, tile):
    """Grid, block, shared memory and the TMA descriptors' address, sizes, strides and boxes."""
    launch = kernels[tile]["launch"]
    assert launch["grid"] == [132, 1, 1] and launch["cluster"] == [tile.cluster, 1, 1]
    assert launch["block"] == [gemm.THREADS, 1, 1]
    assert launch["shared"] == kernels[tile]["shared"]
    expected = (  # pointer, sizes, strides in bytes, box
        (1, (K, MAX_M, EXPERTS), (K, MAX_M * K), (128, 128)),
        (2, (MAX_M, EXPERTS, K // 128), (4 * MAX_M, 4 * MAX_M * EXPERTS), (128, 1)),
        (3, (K, N, EXPERTS), (K, N * K), (128, tile.block_n // tile.cluster)),
        (6, (N, MAX_M, EXPERTS), (2 * N, 2 * N * MAX_M), (tile.box_columns, 32)),
    )
    for words, (pointer, sizes, strides, box) in zip(launch["descriptors"], expected, strict=True):
        assert words[:2] == [0, pointer]  # compile_padded_gemm.py passes pointer << 32
        assert words[3:5] == [stride // 16 for stride in strides]
        assert words[8:11] == [size - 1 for size in sizes]
        assert [words[13] >> 24, words[14]] == [size - 1 for size in box]


@pytest.mark.parametrize(
    "experts, max_m, n, blocks, columns",
    [
        (8, 512, 4096, 2, 256),
        (1, 512, 4096, 2, 128),
        (32, 64, 4096, 1, 128),
        (1, 64, 4096, 1, 64),
        (1, 4, 128, 1, 64),
    ],
)
def test_tile_choice(experts, max_m, n, blocks, columns):
    """Pairs for much work; one block for few rows; narrow tiles to keep the GPU busy."""
    tile = tile_for(experts, max_m, n, 148)
    assert (tile.cluster, tile.block_n) == (blocks, columns)


@pytest.mark.parametrize(
    "arguments, message", [((3, 64, 4), "cluster .* 3"), ((1, 512, 4), "block_n .* 512")]
)
def test_bad_tile(arguments, message):
    with pytest.raises(ValueError, match=message):
        GemmTile(*arguments)


CASES = ("128:1", "512:140,0,65", "1152:0,3,260")  # K, and the experts' rows


def check(orders: int, case: str) -> None:
    """Correct, and the same bits in all orders, with all tiles and whatever the padding is."""
    facts = facts_of("emulate_padded_gemm.py", str(orders), *CASES)
    facts = [fact for fact in facts if fact["case"] == case]
    assert [fact["tile"] for fact in facts] == [str(tile) for tile in TILES]
    assert all(fact["error"] < 2e-3 for fact in facts)  # bf16's rounding
    assert all(len(fact["digests"]) == 2 * (orders + 2) for fact in facts)  # both paddings
    assert len({digest for fact in facts for digest in fact["digests"]}) == 1


@pytest.mark.parametrize("case", CASES)
def test_in_the_emulator(case):
    check(2, case)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_in_many_orders(case):
    check(20, case)


@pytest.mark.gpu
def test_as_in_the_emulator():
    """On a GPU of sm_100 or sm_103: the same bits as the emulator's, from every tile."""
    if backend_of(torch.device("cuda", 0)) != 100:
        pytest.skip("needs a GPU of sm_100 or sm_103")
    k, rows = 512, [140, 0, 65]
    facts = facts_of("emulate_padded_gemm.py", "2", f"{k}:{','.join(map(str, rows))}")
    offsets = torch.tensor([0, *accumulate(rows)], dtype=torch.int32, device="cuda")
    a, a_scale, b, b_scale = (tensor.cuda() for tensor in operands(k, rows, padding_is_nan=True))
    for tile, fact in zip(TILES, facts, strict=True):
        c = padded_gemm(a, a_scale, b, b_scale, offsets, tile)
        assert digest(c.view(torch.int16).cpu().numpy(), rows) == fact["digests"][0], tile
