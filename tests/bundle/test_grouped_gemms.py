"""The grouped GEMM kernels of the sweep against fp32, and cutedsl_v3_gemm without a GPU."""

import ctypes
import itertools

import pytest
import torch
from bundle.probes.grouped_gemms import NOT_ALONE, kernels
from bundle.probes.problem import FP8, dequantize
from bundle.runs.requirements import current_device, why_not
from child import facts_of
from gemm import Operands, choose_kernels
from layers import DEVICE

from solutions.common.cutedsl.config import CONFIGS, candidates_for, choose

N, K = 1024, 512
KERNELS = {kernel.name: kernel for kernel in kernels()}


def relative_errors(problem, result) -> list[float]:
    """Of every expert that has rows."""
    errors, first = [], 0
    for expert, count in enumerate(problem.rows_per_expert):
        if count:
            expected = problem.exact(expert, slice(0, count))
            error = result[first : first + count].float() - expected
            errors.append((error.norm() / expected.norm()).item())
        first += count
    return errors


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "loads",  # of the tiles of each solution's table; experts without rows in between
    [
        [5],
        [1, 0, 3],
        pytest.param([0, 3, 0, 17, 1, 0], marks=pytest.mark.gpu),
        pytest.param([70, 0, 41], marks=pytest.mark.gpu),
        pytest.param([0, 300, 0, 5, 129], marks=pytest.mark.gpu),
        pytest.param([0, 3] * 14 + [1, 2, 64, 0], marks=pytest.mark.gpu),
    ],
    ids=str,
)
def test_kernel_against_fp32(name, loads):
    kernel = KERNELS[name]
    if reason := why_not(kernel.requires, current_device()):
        pytest.skip(reason)
    problem = Operands([(loads, N, K)], DEVICE).problem(loads, N, K)
    launch = kernel.make(problem)
    first = kernel.extract(problem, launch()).clone()
    assert first.shape == (sum(loads), N) and first.dtype is torch.bfloat16
    assert max(relative_errors(problem, first)) < 4e-3
    for _ in range(150 if DEVICE == "cuda" else 1):
        again = kernel.extract(problem, launch())
    assert torch.equal(first, again)


def test_what_is_not_there_is_named(capsys):
    choose_kernels(None)
    said = capsys.readouterr().err
    assert all(f"{name} has no kernel here: {why}" in said for name, why in NOT_ALONE.items())
    choose_kernels(["torch_gemm"])
    assert not capsys.readouterr().err


# cutedsl_v3_gemm -------------------------------------------------------------------------------


def tensor_at(address: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    memory = (ctypes.c_uint8 * size).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)


def reading_addresses(geometry, config, device):
    """GroupedGemm's documented result, from the addresses that the compiled kernel takes."""
    n, k, experts = geometry.hidden_size, geometry.intermediate_size, geometry.num_local_experts

    def launch(a, a_scale, b, b_scale, offsets, row_weight, y, counters, act_rows, stream):
        assert act_rows % 4 == 0 and stream == 7
        offsets = tensor_at(offsets, torch.int32, experts + 1)
        counters = tensor_at(counters, torch.int32, 1 + experts)
        block = 1 if config.swap_ab else 64
        sizes = -(-offsets.diff() // block) * block
        assert counters[0] == 0 and torch.equal(counters[1:], sizes)
        counters += 1
        scale = tensor_at(a_scale, torch.float32, k // config.act_columns, act_rows).t()
        a = tensor_at(a, FP8, act_rows, k).float()
        a = a * scale.repeat_interleave(config.act_columns, 1)
        row_weight = tensor_at(row_weight, torch.float32, int(offsets[-1]))
        y = tensor_at(y, torch.bfloat16, int(offsets[-1]), n)
        b_scale = tensor_at(b_scale, torch.float32, experts, n // 128, k // 128)
        place = 0
        for expert, (first, end) in enumerate(itertools.pairwise(offsets)):
            if first < end:
                weights = tensor_at(b + expert * n * k, FP8, n, k)
                product = (
                    a[place:][: end - first] @ dequantize(weights, b_scale[expert], torch.float32).T
                )
                y[first:end] = product * row_weight[first:end, None]
            place += sizes[expert]

    return launch


@pytest.mark.parametrize("rows", [1, 9, 61, 130], ids=lambda rows: f"{rows} rows")
def test_v3_operands(monkeypatch, rows):
    """One number of rows per configuration; every launch finds fresh counters."""
    pytest.importorskip("cutlass")
    from bundle.probes.kernels import cutedsl_v3_gemm

    configs = []

    def compiled(geometry, config, device):
        configs.append(config)
        return reading_addresses(geometry, config, device)

    monkeypatch.setattr(cutedsl_v3_gemm, "_compiled", compiled)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 7, raising=False)
    loads = [rows, 0, rows]
    problem = Operands([(loads, 1024, 256)], "cpu").problem(loads, 1024, 256)
    launch = cutedsl_v3_gemm.cutedsl_v3(problem)
    for _ in range(cutedsl_v3_gemm.LAUNCHES + 2):
        result = launch()
    assert max(relative_errors(problem, result)) < 4e-3
    assert configs == [choose(candidates_for(32 * rows), loads)]


@pytest.mark.parametrize("experts, n, k", [(33, 1024, 256), (1, 512, 256), (1, 1024, 128)])
def test_v3_refuses_what_it_cannot_do(experts, n, k):
    pytest.importorskip("cutlass")
    loads = [1] * experts
    problem = Operands([(loads, n, k)], "cpu").problem(loads, n, k)
    with pytest.raises(ValueError, match=f"32 experts, .* 1024 .* 256, got {experts}, {n} and {k}"):
        KERNELS["cutedsl_v3_gemm"].make(problem)


# one warpgroup, a cluster, tokens on M: the other one has nothing that none of these has
KINDS = [0, len(CONFIGS) - 2, len(CONFIGS) - 1]


@pytest.fixture(scope="module", params=[KINDS, pytest.param([1], marks=pytest.mark.long)], ids=str)
def compiled_kernels(request):
    """(configuration, facts) of some."""
    pytest.importorskip("cutlass")
    facts = facts_of("compile_v3_gemm.py", *map(str, request.param))
    configs = [CONFIGS[number] for number in request.param]
    assert [kernel["config"] for kernel in facts] == [str(config) for config in configs]
    return list(zip(configs, facts, strict=True))


def test_v3_compiles_to_the_layers_kernel(compiled_kernels):
    for config, kernel in compiled_kernels:
        assert kernel["weight_tiles"] == [0, 2048 // config.block_n]
        assert kernel["registers"] * kernel["threads"] <= 65_536 and kernel["stack"] == 0
        count = kernel["instructions"]
        assert "LDL" not in count and "STL" not in count
        assert count["UTMALDG"] >= 2 and count["QGMMA"] >= 2 * count["WARPGROUP.DEPBAR"] > 0


def test_v3_launch(compiled_kernels):
    """Grid, block and shared memory; b's TMA descriptor: address, sizes, strides and box."""
    for config, kernel in compiled_kernels:
        launch = kernel["launch"]
        assert launch["grid"] == [132, 1, 1] and launch["block"] == [kernel["threads"], 1, 1]
        assert launch["shared"] == kernel["shared"] <= 232_448
        words = launch["descriptors"][1]
        assert words[:2] == [0, 3]  # compile_v3_gemm.py passes b's pointer as 3 << 32
        assert words[3:5] == [4096 // 16, 2048 * 4096 // 16]
        assert words[8:11] == [4096 - 1, 2048 - 1, 32 - 1]
        assert [words[13] >> 24, words[14]] == [127, config.block_n // config.cluster - 1]
