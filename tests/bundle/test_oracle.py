"""The lean oracle gives the reference's own bits."""

import os
from pathlib import Path

import pytest
import torch
from bundle.dataset.oracle import LazyExperts, build_oracle, execute_reference
from bundle.dataset.replicas import make_routing
from bundle.dataset.workload_table import read_table
from toy_reference import FP8, real_definition, toy_definition, toy_inputs

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("seq_len", [0, 1, 7, 200])
@pytest.mark.parametrize("offset", [0, 8, 13, 24])
def test_oracle_is_bit_equal(seq_len, offset):
    definition = toy_definition(ROOT)
    inputs = toy_inputs(seq_len, offset)
    expected = execute_reference(definition)["run"](**inputs)
    actual = build_oracle(definition)(**inputs)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual.view(torch.int16), expected.view(torch.int16))


def test_oracle_dequantizes_hit_experts_only():
    definition = toy_definition(ROOT)
    inputs = toy_inputs(1)
    dequantized = []
    names = execute_reference(definition)

    def dequantize(weights, scales):
        dequantized.append(tuple(weights.shape))
        return names["dequantize_weights"](weights, scales)

    used: set[int] = set()
    experts = LazyExperts(dequantize, inputs["gemm1_weights"], inputs["gemm1_weights_scale"], used)
    assert dequantized == []
    all_experts = names["dequantize_weights"](
        inputs["gemm1_weights"], inputs["gemm1_weights_scale"]
    )
    assert torch.equal(experts[5], all_experts[5])
    assert dequantized == [(1, 512, 256)]
    assert used == {5}


def test_oracle_tells_which_experts_the_last_call_used():
    oracle = build_oracle(toy_definition(ROOT))
    oracle(**toy_inputs(200))
    assert len(oracle.used) > 1
    oracle(**toy_inputs(0))
    assert oracle.used == set()


def test_oracle_checks_arguments_as_the_reference_does():
    inputs = toy_inputs(3) | {"local_expert_offset": 25}
    with pytest.raises(ValueError, match=r"local_expert_offset: expected .*\[0, 24\], got 25"):
        build_oracle(toy_definition(ROOT))(**inputs)


def test_oracle_needs_dequantize_weights():
    definition = toy_definition(ROOT)
    renamed = definition.reference.replace("dequantize_weights", "dequantise")
    definition = definition.model_copy(update={"reference": renamed})
    with pytest.raises(ValueError, match="toy_moe: expected .* dequantize_weights.*, got None"):
        build_oracle(definition)


@pytest.mark.skipif(
    not os.environ.get("FULL_SIZE_TESTS"),
    reason="needs 14 GiB and a minute; set FULL_SIZE_TESTS=1 to run it",
)
def test_oracle_is_bit_equal_at_full_size():
    definition = real_definition(ROOT)
    row = next(row for row in read_table(ROOT) if row.seq_len == 7)
    generator = torch.Generator().manual_seed(0)

    def fp8(*shape):
        # All finite codes below 2 in magnitude, negative ones too; fast, and in place.
        codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return codes.bitwise_and_(0xBF).view(FP8)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    logits, bias = (torch.from_numpy(array) for array in make_routing(row))
    inputs = {
        "routing_logits": logits,
        "routing_bias": bias.to(torch.bfloat16),
        "hidden_states": fp8(row.seq_len, 7168),
        "hidden_states_scale": normal(56, row.seq_len),
        "gemm1_weights": fp8(32, 4096, 7168),
        "gemm1_weights_scale": normal(32, 32, 56),
        "gemm2_weights": fp8(32, 7168, 2048),
        "gemm2_weights_scale": normal(32, 56, 16),
        "local_expert_offset": row.local_expert_offset,
        "routed_scaling_factor": row.routed_scaling_factor,
    }
    actual = build_oracle(definition)(**inputs)
    expected = execute_reference(definition)["run"](**inputs)
    assert expected.count_nonzero() > 0
    assert torch.equal(actual.view(torch.int16), expected.view(torch.int16))
