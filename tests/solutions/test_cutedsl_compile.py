"""Every shipped CuTe DSL configuration compiles for Hopper, without a GPU, to what was meant."""

import math
from dataclasses import replace

import pytest
from child import facts_of

pytest.importorskip("cutlass")
from solutions.common.cutedsl.config import CONFIGS, SM_90, GemmConfig, candidates_for, only
from solutions.common.cutedsl.layer import MoeLayer
from solutions.common.cutedsl.operands import scratch_size
from solutions.common.geometry import DEEPSEEK_V3_EP8

SHARED_LIMIT = 232_448  # bytes a block may use on sm_90
REGISTERS = 65_536  # of a multiprocessor


@pytest.fixture(scope="module")
def facts():
    return facts_of("compile_cutedsl.py")


@pytest.fixture(scope="module")
def kernels(facts):
    """Of one configuration each."""
    return facts[:-1]


def test_all_configurations(kernels):
    assert [kernel["config"] for kernel in kernels] == [str(config) for config in CONFIGS]


def test_several_configurations(facts):
    """One kernel with the code of all, in the memory of the largest, with as many registers as
    alone."""
    several = facts[-1]
    assert several["candidates"] == len(SM_90[-1][1])
    assert several["stack"] == 0 and several["registers"] == 168
    count = several["instructions"]
    assert "LDL" not in count and "STL" not in count
    own = facts[1:-1]  # without the one for few tokens
    for name in ("QGMMA", "UTMALDG.2D", "UTMALDG.3D", "UTMALDG.5D"):
        assert count[name] == sum(kernel["instructions"].get(name, 0) for kernel in own)
    (launch,) = several["launches"]
    assert launch["grid"] == [132, 1, 1] and launch["cluster"] == [2, 1, 1]
    assert launch["block"] == [384, 1, 1]
    assert launch["shared"] == max(kernel["shared"] for kernel in own)


def test_uniform_registers(facts):
    """ptxas keeps what wgmma's descriptors are made of in uniform registers, in every loop."""
    loops = facts[-1]["descriptor_moves"]  # else 3 and more per wgmma
    assert len(loops) == 2 * (len(facts) - 2), loops  # GEMM1's and GEMM2's of each configuration
    assert max(loops) == 0, loops


def test_resources(kernels):
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_LIMIT, kernel
        assert kernel["registers"] * kernel["threads"] <= REGISTERS, kernel
        for registers, threads in kernel["routing"]:
            assert registers * threads <= REGISTERS, kernel
        assert kernel["stack"] == 0, kernel
        if kernel["threads"] == 384:  # what setmaxnreg redistributes (moe_gemms.py)
            assert kernel["registers"] == 168, kernel


def test_instructions(kernels):
    for kernel, config in zip(kernels, CONFIGS, strict=True):
        count = kernel["instructions"]
        # a box of weights for each block of a cluster
        assert count["UTMALDG.5D"] == count["UTMALDG.3D"] == config.cluster, kernel
        assert count["LDGSTS"] > 0, kernel
        # weights of the first tiles go to L2 ahead of the routing's results
        assert count.get("UTMAPF", 0) == (config.cluster if config.swap_ab else 0), kernel
        assert "LDL" not in count and "STL" not in count, kernel
        # one wait per wgmma instead of one per chain: the compiler serialised them
        assert count["QGMMA"] >= 2 * count["WARPGROUP.DEPBAR"] > 0, kernel


def test_accumulator(kernels):
    """The map in the docstrings of swap_ab.py and tokens_on_m.py, and each place once."""
    for kernel, config in zip(kernels, CONFIGS, strict=True):
        columns = config.block_m if config.swap_ab else 128
        expected = []
        for thread in range(128 * config.num_warpgroups):
            warp, lane = thread // 32, thread % 32
            expected += [
                [16 * warp + lane // 4 + 8 * i, 8 * j + 2 * (lane % 4) + c]
                for j in range(columns // 8)
                for i in range(2)
                for c in range(2)
            ]
        assert kernel["accumulator"] == expected, kernel["config"]
        assert len(set(map(tuple, expected))) == 64 * config.num_warpgroups * columns


def test_launches(kernels):
    """Grid, block, cluster and shared memory of the routing's kernels and the GEMMs'."""
    for kernel, config in zip(kernels, CONFIGS, strict=True):
        *routing, gemms = kernel["launches"]
        assert all(launch["launches"] == len(routing) + 1 for launch in kernel["launches"])
        chunks = -(-kernel["num_tokens"] // 16)
        shapes = [(launch["grid"], launch["block"], launch["cluster"]) for launch in routing]
        if kernel["num_tokens"] <= 16:
            assert shapes == [([1, 1, 1], [512, 1, 1], [1, 1, 1])]
        elif kernel["num_tokens"] <= 128:
            assert shapes == [([8, 1, 1], [512, 1, 1], [8, 1, 1])]
        else:
            blocks = -(-chunks // 32)
            assert shapes == [
                ([chunks, 1, 1], [512, 1, 1], [1, 1, 1]), ([blocks, 1, 1], [1024, 1, 1], [1, 1, 1])
            ]  # fmt: skip
        assert gemms["grid"] == [132, 1, 1] and gemms["cluster"] == [config.cluster, 1, 1]
        assert gemms["block"] == [kernel["threads"], 1, 1]
        assert gemms["shared"] == kernel["shared"]


def test_tma_descriptors(kernels):
    """Address, sizes, strides and box of the weights and, where TMA loads them, of the tokens."""
    h, i, experts = 7168, 2048, 32
    for kernel, config in zip(kernels, CONFIGS, strict=True):
        rows, r = 8 * kernel["num_tokens"] + experts * 64, config.block_n
        part, groups = r // config.cluster, 2 * i // r
        # compile_cutedsl.py passes argument number << 32; the scratch memory begins with act
        act = 9 << 32
        layer = MoeLayer(DEEPSEEK_V3_EP8, only(config), num_sms=132)
        ((act_buffer, *_), *_) = layer.scratch(kernel["num_tokens"])
        act_scale = act + act_buffer.size()
        expected = {
            # address, sizes, strides in bytes, box
            0: (5 << 32, (h, 8, 2, i // 8, experts), (h, i * h, 8 * h, 2 * i * h),
                (128, 8, 2, part // 16)),
            1: (7 << 32, (i, h, experts), (i, h * i), (128, part)),
        }  # fmt: skip
        if not config.swap_ab:
            box = (config.block_m, 128 // config.act_columns)
            expected |= {
                18: (act + rows * i, (h, rows), (h,), (128, 64)),
                20: (act, (i, rows), (i,), (128, 64)),
                22: (act_scale + 4 * rows * groups, (rows, h // 128), (4 * rows,), (box[0], 1)),
                24: (act_scale, (rows, groups), (4 * rows,), box),
            }
        descriptors = kernel["launches"][-1]["descriptors"]
        for index, (address, sizes, strides, box) in expected.items():
            words = descriptors[index]
            assert words[0] | words[1] << 32 == address, (kernel["config"], index)
            assert words[3 : 3 + len(strides)] == [stride // 16 for stride in strides]
            assert words[8 : 8 + len(sizes)] == [size - 1 for size in sizes]
            boxes = [words[13] >> 24, *words[14].to_bytes(4, "little")]
            assert boxes[: len(box)] == [size - 1 for size in box], (kernel["config"], index)


GOOD = GemmConfig(swap_ab=True, block_m=80, block_n=256, num_warpgroups=2, num_stages=4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"block_n": 192}, "block_n must be 128 or 256, got 192"),
        ({"cluster": 4}, "cluster must be 1 or 2, got 4"),
        ({"num_warpgroups": 3}, "num_warpgroups must be 1 or 2, got 3"),
        ({"num_warpgroups": 1}, "block_n must be 128 with swap_ab and one warpgroup, got 256"),
        ({"block_m": 12}, r"block_m must be a multiple of 8 in 16\.\.128, got 12"),
        ({"swap_ab": False}, "block_m must be 64 per warpgroup without swap_ab, got 80 for 2"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_configurations_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        MoeLayer(DEEPSEEK_V3_EP8, only(replace(GOOD, **change)), num_sms=132)


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend: expected 90.*, got 80"):
        candidates_for(1, 80)


@pytest.mark.parametrize("num_tokens", [1, 128, 129, 3000, 65_536])
def test_scratch_holds_every_buffer(num_tokens):
    """The buffers' places, as the compiled host code computes them, do not overlap."""
    for candidates in (*map(only, CONFIGS), *(candidates for _, candidates in SM_90)):
        groups = MoeLayer(DEEPSEEK_V3_EP8, candidates, num_sms=132).scratch(num_tokens)
        sizes = [buffer.size() for group in groups for buffer in group]
        assert scratch_size(groups) == sum(sizes) and not any(size % 256 for size in sizes)
        for group in groups:
            for buffer in group:
                assert buffer.size() >= math.prod(buffer.shape) * buffer.dtype.width // 8
