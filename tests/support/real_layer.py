"""Inputs of the real definition, on the device under test, and calls to a solution's `run`."""

from collections.abc import Callable

import torch
from layers import DEVICE

from solutions.common.geometry import DEEPSEEK_V3_EP8, Geometry
from solutions.torch_moe import main as torch_moe

FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16


def real_inputs(
    seq_len: int,
    routing: dict | None = None,
    offset: int = 64,
    spread: float = 0.0,
    geometry: Geometry = DEEPSEEK_V3_EP8,
    device: str = DEVICE,
) -> dict:
    """routing: logits and bias; by default random, the same on every device. spread: of the
    scales' logarithms."""
    generator = torch.Generator(device).manual_seed(seq_len)
    e, h, i = geometry.num_local_experts, geometry.hidden_size, geometry.intermediate_size
    if routing is None:
        random = torch.Generator().manual_seed(seq_len)
        logits = torch.randn(seq_len, 256, generator=random)
        bias = (0.1 * torch.randn(256, generator=random)).to(BF16)
        routing = {"routing_logits": logits, "routing_bias": bias}

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=device)

    def scales(*shape):
        return normal(*shape) * torch.exp(spread * normal(*shape))

    return {
        **{name: tensor.to(device) for name, tensor in routing.items()},
        "hidden_states": normal(seq_len, h).to(FP8),
        "hidden_states_scale": scales(h // 128, seq_len),
        "gemm1_weights": normal(e, 2 * i, h).to(FP8),
        "gemm1_weights_scale": 0.1 * scales(e, 2 * i // 128, h // 128),
        "gemm2_weights": normal(e, h, i).to(FP8),
        "gemm2_weights_scale": 0.1 * scales(e, h // 128, i // 128),
        "local_expert_offset": offset,
        "routed_scaling_factor": 2.5,
    }


def run_real(run: Callable, arguments: dict) -> torch.Tensor:
    """The output, in a buffer that was NaN before."""
    shape = arguments["hidden_states"].shape
    output = torch.full(shape, float("nan"), dtype=BF16, device=DEVICE)
    run(*arguments.values(), output)
    return output


def assert_close_to_torch(run: Callable, arguments: dict, tolerance: float) -> None:
    """tolerance: of the relative L2 error. Tokens without local experts must give exact zeros.

    Some token must have a local expert: otherwise this would compare nothing.
    """
    actual = run_real(run, arguments).double()
    expected = run_real(torch_moe.run, arguments).double()
    assert torch.isfinite(actual).all()
    silent = (expected == 0).all(dim=1)
    assert not silent.all() and not actual[silent].any()
    error = (actual - expected).norm() / expected.norm()
    assert error < tolerance, f"relative L2 error {error:.4f}"
