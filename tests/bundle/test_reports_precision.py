"""Error analysis and grouped GEMM kernels on toy sizes: known errors must come out as they are."""

import sys
from types import SimpleNamespace

import precision
import pytest
import torch
from bundle.dataset.oracle import build_oracle
from bundle.paths import ROOT
from bundle.probes.cases import Case, Solution
from bundle.probes.grouped_gemms import TritonGemm, kernels
from bundle.probes.kernels.read_kernel import read
from bundle.probes.numerics import (
    differing_share,
    errors_of,
    identity_gemm2,
    quantize,
    seen_intermediate,
    simulate,
)
from bundle.probes.precision import PrecisionReport, precision_sheets
from bundle.probes.problem import FP8, dequantize
from bundle.probes.reporting import collect
from gemm import Operands, relative_error
from layers import DEVICE, LAYERS, ROUTES, TOY, inputs, routed_to
from report_factory import provenance
from rich.console import Console
from toy_reference import toy_definition

ROUTE = ROUTES[TOY]


def case(name: str) -> Case:
    return Case(name, name, "toy_moe", 9, 8, 2.5, None)


def solution(name: str) -> Solution:
    return Solution(name.split("-", maxsplit=1)[0], LAYERS[name], returns_output=False)


def one_expert_each(seq_len: int) -> dict:
    """Toy arguments in which token t goes to local expert t % 8, and to others elsewhere."""
    logits = 0.2 * torch.randn(seq_len, 32, generator=torch.Generator().manual_seed(1))
    logits[:, 8:] -= 8.0  # the local experts are group 1; group 0 fills the places left
    logits[torch.arange(seq_len), 8 + torch.arange(seq_len) % 8] += 12.0
    return inputs(seq_len, routing_logits=logits, routing_bias=torch.zeros(32).bfloat16())


def test_the_fp64_layer_without_requantisation_is_the_reference():
    arguments = inputs(9, seed=3)
    reference = build_oracle(toy_definition(ROOT))(**arguments)
    layer = simulate(arguments, ROUTE)
    assert torch.allclose(layer.output.bfloat16().float(), reference.float(), rtol=1e-2, atol=1e-3)
    assert layer.activation is layer.requantized or torch.equal(layer.activation, layer.requantized)


def test_a_layer_without_local_pairs_is_zero():
    layer = simulate(inputs(5, **routed_to([], 5)), ROUTE, block=128)
    assert not layer.output.any() and layer.activation.shape == (0, 256)


def test_requantisation_costs_what_e4m3_costs():
    layer = simulate(inputs(33, seed=2), ROUTE, block=128)
    error = errors_of(layer.requantized, layer.activation)
    assert 0.015 < error.relative_l2 < 0.035  # rounding to 4 significant bits
    codes, scales = quantize(layer.activation, 128)
    assert codes.float().abs().amax() == 448 and scales.shape == (len(codes), 2)


def test_errors_are_those_put_in():
    reference = torch.randn(64, 64, dtype=torch.float64) + 3.0
    exact = errors_of(reference, reference)
    assert exact.cosine == pytest.approx(1) and exact.max_absolute == 0
    assert set(exact.matched.values()) == {1.0}
    off = errors_of(reference * 1.25, reference)
    assert off.relative_l2 == pytest.approx(0.25) and off.max_relative == pytest.approx(0.25)
    assert off.cosine == pytest.approx(1)
    assert off.matched["1 / 0.3"] == 1.0 and off.matched["0.01 / 0.01"] < 0.1
    spoiled = reference.clone()
    spoiled[:16] = float("nan")
    assert errors_of(spoiled, reference).matched["0.1 / 0.2"] == 0.75


def test_bits_are_compared_as_bits():
    one = torch.tensor([1.0, -0.0, float("nan"), 4.0]).bfloat16()
    other = torch.tensor([1.0, 0.0, float("nan"), 4.0]).bfloat16()
    assert differing_share(one, one.clone()) == 0
    assert differing_share(one, other) == 0.25


def test_the_identity_shows_the_intermediate():
    arguments = one_expert_each(16)
    layer = simulate(arguments, ROUTE)
    output = torch.zeros(16, 256, dtype=torch.bfloat16, device=DEVICE)
    LAYERS["torch_moe"](*identity_gemm2(arguments).values(), output)
    seen = seen_intermediate(output, layer)
    assert errors_of(seen, layer.activation).relative_l2 < 3e-3  # bf16 alone


def run(tasks) -> dict:
    made = PrecisionReport(provenance=provenance("precision.py"), planned=0)
    for task in tasks:
        results = task.measure()
        assert [result.key for result in results] == [*task.keys]
        made.add(results)
    assert not made.failed
    return {row.key: row for row in made.rows}


def test_own_errors_are_told_from_those_of_fp8():
    names = ["torch_moe", next(name for name in LAYERS if name.startswith("triton"))]
    solutions = [solution(name) for name in names]
    rows = run(precision.output_tasks(case("T=9"), lambda: inputs(9), solutions, ROUTE))
    fp8 = rows["fp8 model", "T=9", "output", "fp32"].errors.relative_l2
    plain = rows["torch_moe", "T=9", "output", "own fp64 model"]
    assert plain.block == 0 and plain.errors.relative_l2 < 3e-3
    triton = "triton_fused_moe_v3"
    own = rows[triton, "T=9", "output", "own fp64 model"]
    assert own.block == 128
    whole = rows[triton, "T=9", "output", "fp32"]
    assert own.errors.relative_l2 < 0.3 * whole.errors.relative_l2
    assert whole.errors.relative_l2 == pytest.approx(fp8, rel=0.3)
    assert rows["torch_moe", "T=9", "bits", triton].differing > 0.1


def test_stages_of_solutions_and_kernels():
    names = ["torch_moe", next(name for name in LAYERS if name.startswith("triton"))]
    gemms = [kernel for kernel in kernels() if kernel.name == "triton_v3_gemm"]
    solutions = [solution(name) for name in names]
    tasks = precision.stage_tasks(
        case("T=8 probe"), lambda: one_expert_each(8), solutions, gemms, ROUTE
    )
    rows = run(tasks)
    gemm1 = rows["triton_v3_gemm", "T=8 probe", "GEMM1", "own fp64 model"]
    assert gemm1.errors.relative_l2 < 5e-3  # bf16 result
    requantised = rows["triton_fused_moe_v3", "T=8 probe", "requantised", "own fp64 model"]
    assert requantised.block == 128 and requantised.differing < 0.02
    assert requantised.errors.relative_l2 < 0.01
    against = rows["triton_fused_moe_v3", "T=8 probe", "requantised", "fp32"]
    assert 0.015 < against.errors.relative_l2 < 0.04
    assert rows["torch_moe", "T=8 probe", "requantised", "own fp64 model"].block == 0


def test_a_solution_that_is_wrong_by_five_percent_shows():
    def off(*arguments):
        LAYERS["torch_moe"](*arguments)
        arguments[-1].mul_(1.05)

    rows = run(
        precision.output_tasks(case("T=9"), lambda: inputs(9), [Solution("x", off, False)], ROUTE)
    )
    own = rows["x", "T=9", "output", "own fp64 model"]
    assert own.errors.relative_l2 == pytest.approx(0.05, rel=0.1)


def test_a_failing_solution_leaves_the_others_their_rows(tmp_path):
    def boom(*arguments):
        raise RuntimeError("boom")

    solutions = [Solution("bad", boom, False), solution("torch_moe")]
    made = PrecisionReport(provenance=provenance("precision.py"), planned=0)
    tasks = precision.output_tasks(case("T=3"), lambda: inputs(3), solutions, ROUTE)
    assert collect(made, tmp_path / "p.json", tasks, Console(quiet=True))
    failed = {each.key for each in made.failed}
    assert failed == {
        ("bad", "T=3", "output", "fp32"), ("bad", "T=3", "output", "own fp64 model"),
        ("bad", "T=3", "bits", "torch_moe"),
    }  # fmt: skip
    titles = [sheet.title for sheet in precision_sheets(made)]
    assert titles[0] == "Output against fp32" and len(titles) == 3


# Kernels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loads", [[3, 0, 17, 1], [0, 0, 40, 0]])
def test_the_triton_gemm_multiplies_ragged_experts(loads):
    problem = Operands([(loads, 512, 256)], DEVICE).problem(loads, 512, 256)
    launch = TritonGemm().make(problem)
    assert relative_error(problem, launch()) < 5e-3
    result, first = launch().float(), 0
    for expert, count in enumerate(loads):
        expected = problem.exact(expert, slice(0, count))
        assert torch.allclose(result[first : first + count], expected, rtol=2e-2, atol=0.5)
        first += count


def test_a_wrong_result_has_a_large_error():
    problem = Operands([([4, 4], 256, 256)], DEVICE).problem([4, 4], 256, 256)
    result = TritonGemm().make(problem)()
    assert relative_error(problem, result * 1.5) == pytest.approx(0.5, rel=0.01)


def test_the_triton_gemm_refuses_what_it_cannot_do():
    problem = Operands([([4], 128, 256)], DEVICE).problem([4], 128, 256)
    with pytest.raises(ValueError, match="N a multiple of 256, got 1 and 128"):
        TritonGemm().make(problem)


def test_padding_for_the_cutedsl_kernel_comes_off_again(monkeypatch):
    """The kernel's place is taken by PyTorch; it needs a GPU."""
    loads = [3, 0, 6]
    problem = Operands([(loads, 256, 256)], DEVICE).problem(loads, 256, 256)

    def padded_gemm(a, a_scale, b, b_scale, offsets):
        assert a.shape == (3, 8, 256) and a_scale.shape == (2, 3, 8) and a_scale.is_contiguous()
        assert offsets.tolist() == [0, 3, 3, 9]
        scale = a_scale.permute(1, 2, 0).repeat_interleave(128, dim=2)
        weights = [dequantize(*each, torch.float32) for each in zip(b, b_scale, strict=True)]
        return torch.einsum("emk,enk->emn", a.float() * scale, torch.stack(weights)).bfloat16()

    module = SimpleNamespace(padded_gemm=padded_gemm)
    monkeypatch.setitem(sys.modules, "solutions.common.cutedsl.padded_gemm", module)
    kernel = next(kernel for kernel in kernels() if kernel.name == "cutedsl_padded_gemm")
    result = kernel.extract(problem, kernel.make(problem)())
    assert result.shape == (9, 256) and relative_error(problem, result) < 5e-3


def test_operands_are_fp8_without_nan():
    operands = Operands([([2, 3], 256, 512), ([8], 512, 128)], DEVICE)
    assert operands.a.dtype is FP8 and operands.a.numel() == 5 * 512
    assert operands.b.float().isfinite().all()


@pytest.mark.parametrize("steps", [1, 3])
def test_the_read_kernel_reads_everything(steps):
    values = torch.randint(-100, 100, (steps * 4 * 64,), dtype=torch.int32, device=DEVICE)
    assert read(values, programs=4, block=64).sum() == values.sum()
    with pytest.raises(ValueError, match="expected a multiple of 256 elements, got 100"):
        read(values[:100], programs=4, block=64)
