"""All solutions at the real geometry where arithmetic or addresses come to their ends."""

import pytest
import torch
from every_solution import every_solution, run_of
from layers import routed_to
from real_layer import real_inputs, run_real

from solutions.common.geometry import DEEPSEEK_V3_EP8
from solutions.torch_moe import main as torch_moe

OFFSET = 64
# FlashInfer's sigmoid is 0.5 * tanh(x / 2) + 0.5: 0 below -17.3, and coarse before
TANH = {"flashinfer_moe"}


def all_local(seq_len: int) -> dict:
    return routed_to(range(OFFSET, OFFSET + 8), seq_len, DEEPSEEK_V3_EP8, OFFSET)


def of_tokens(arguments: dict, tokens: slice) -> dict:
    parts = {name: arguments[name][tokens] for name in ("routing_logits", "hidden_states")}
    scale = arguments["hidden_states_scale"][:, tokens].contiguous()
    return arguments | parts | {"hidden_states_scale": scale}


@pytest.mark.gpu
@every_solution
@pytest.mark.parametrize("seq_len, routing", [(65_536, "random"), (40_960, "all local")])
def test_many_tokens(name, seq_len, routing):
    """Offsets into the largest buffers pass 2^31 elements."""
    run = run_of(name)
    chosen = all_local(seq_len) if routing == "all local" else None
    arguments = real_inputs(seq_len, chosen, OFFSET)
    actual = run_real(run, arguments)
    for first in (0, seq_len // 2 - 100, seq_len - 200):
        tokens = slice(first, first + 200)
        expected = run_real(torch_moe.run, of_tokens(arguments, tokens)).double()
        difference = (actual[tokens].double() - expected).norm() / expected.norm()
        assert difference < 0.05


@pytest.mark.gpu
@every_solution
@pytest.mark.parametrize("seq_len", [12, 300])
def test_very_negative_logits(name, seq_len):
    run = run_of(name)
    routing = all_local(seq_len)
    for token, logit in enumerate((-200.0, float("-inf"), -50.0, -20.0, -12.0)):
        routing["routing_logits"][token] = logit
    arguments = real_inputs(seq_len, routing, OFFSET)
    actual = run_real(run, arguments).double()
    expected = run_real(torch_moe.run, arguments).double()
    assert not expected[:2].any() and not actual[:2].any()
    if name not in TANH:
        for token in range(2, 6):
            difference = (actual[token] - expected[token]).norm()
            assert difference <= 0.05 * expected[token].norm(), token


@pytest.mark.gpu
@every_solution
@pytest.mark.parametrize("seq_len", [5, 300])
@pytest.mark.parametrize("place", ["hidden_states", "hidden_states_scale", "gemm1_weights_scale"])
def test_nan_stays(name, seq_len, place):
    run = run_of(name)
    arguments = real_inputs(seq_len, all_local(seq_len), OFFSET)
    tensor = arguments[place]
    if place == "hidden_states":
        tensor.view(torch.uint8)[3, 1000] = 0x7F
    else:
        tensor[{"hidden_states_scale": (5, 3), "gemm1_weights_scale": (2, 1, 1)}[place]] = torch.nan
    expected = run_real(torch_moe.run, arguments).isnan()
    assert expected.any() and torch.equal(run_real(run, arguments).isnan(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cutedsl_moe_fp8_v3", "triton_fused_moe_v3"])
@pytest.mark.parametrize("seq_len", [3, 1500])
@pytest.mark.parametrize(
    "up, gate, w2", [(1e20, -1e20, 1.0), (1e19, 1.5e19, 2e-38), (1e37, -50.0, 1.0)]
)
def test_huge_but_finite_sums(name, seq_len, up, gate, w2):
    """The reference is finite: silu(gate) * up, and the sums of GEMM2."""
    run = run_of(name)
    arguments = real_inputs(seq_len, all_local(seq_len), OFFSET)
    for tensor in ("hidden_states", "gemm1_weights", "gemm2_weights"):
        arguments[tensor].view(torch.uint8).fill_(0)
    one = 0x38
    arguments["hidden_states"].view(torch.uint8)[:, 0] = one
    arguments["hidden_states_scale"].fill_(1.0)
    arguments["gemm1_weights"].view(torch.uint8)[:, :, 0] = one
    arguments["gemm1_weights_scale"][:, :16] = up
    arguments["gemm1_weights_scale"][:, 16:] = gate
    arguments["gemm2_weights"].view(torch.uint8).fill_(one)
    arguments["gemm2_weights_scale"].fill_(w2)
    actual = run_real(run, arguments).double()
    expected = run_real(torch_moe.run, arguments).double()
    assert expected.isfinite().all() and actual.isfinite().all()
    assert (actual - expected).norm() <= 0.05 * expected.norm()
