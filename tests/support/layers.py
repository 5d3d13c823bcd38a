"""The bundle's own layers at toy geometry, and what surrounds a call to one of them."""

from collections.abc import Collection

import pytest
import torch
from bundle.dataset.oracle import execute_reference
from bundle.paths import ROOT
from deepgemm_standin import HAS_DEEP_GEMM
from sgl_standin import HAS_SGL_KERNEL
from toy_reference import AXES, real_definition, toy_definition, toy_inputs

from solutions.common.geometry import DEEPSEEK_V3_EP8, Geometry
from solutions.common.sgl.choice import SM_90
from solutions.deepgemm_moe import main as deepgemm_moe
from solutions.sglang_fp8_blockwise_moe import main as sglang_moe
from solutions.torch_moe import main as torch_moe
from solutions.triton_fused_moe_v2 import main as triton_v2
from solutions.triton_fused_moe_v3 import main as triton_v3
from solutions.triton_fused_moe_v3.tiles import SM_90 as TRITON_TILES

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

TOY = Geometry(
    num_experts=AXES["num_experts"],
    num_local_experts=AXES["num_local_experts"],
    hidden_size=AXES["hidden_size"],
    intermediate_size=AXES["intermediate_size"],
    num_groups=4,
    num_top_groups=2,
    top_k=4,
)


def at_toy(moe, *options):
    """layer(inputs in the definition's order, output) of a solution's `moe`."""
    return lambda *arguments: moe(TOY, arguments[:-1], arguments[-1], *options)


def with_sgl_kernel(main, choice):
    """A layer on sgl_kernel: the package's on a GPU, the stand-in's on the CPU."""

    def layer(*arguments):
        if DEVICE == "cuda" and not HAS_SGL_KERNEL:
            pytest.skip("needs the module sgl_kernel: pip install '.[sglang]'")
        at_toy(main.moe, choice)(*arguments)

    return layer


def with_deep_gemm(row_alignment: int):
    """A layer on deep_gemm: the package's on a GPU, the stand-in's on the CPU."""

    def layer(*arguments):
        if DEVICE == "cuda" and not HAS_DEEP_GEMM:
            pytest.skip("needs the module deep_gemm: pip install '.[deepgemm]'")
        at_toy(deepgemm_moe.moe, row_alignment)(*arguments)

    return layer


# name -> layer(inputs in the definition's order, output)
LAYERS = (
    {"torch_moe": at_toy(torch_moe.moe)}
    | {
        f"triton_fused_moe_v3-{tiles.max_tokens}": at_toy(triton_v3.moe, tiles)
        for tiles in TRITON_TILES
    }
    | {"triton_fused_moe_v2": with_sgl_kernel(triton_v2, SM_90[0])}
    | {"sglang_fp8_blockwise_moe": with_sgl_kernel(sglang_moe, SM_90[0])}
    | {"deepgemm_moe": with_deep_gemm(64)}
)


def inputs(seq_len: int, **changes) -> dict:
    """toy_inputs on the device under test; changes replace arguments by name."""
    offset, seed = changes.pop("offset", 8), changes.pop("seed", 0)
    arguments = toy_inputs(seq_len, offset, seed) | changes
    return {
        name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


NAMES = {
    geometry: execute_reference(definition(ROOT))
    for geometry, definition in {TOY: toy_definition, DEEPSEEK_V3_EP8: real_definition}.items()
}
ROUTES = {geometry: names["route"] for geometry, names in NAMES.items()}
REFERENCE = NAMES[TOY]["run"]


def routed_to(
    experts: Collection[int], seq_len: int, geometry: Geometry = TOY, offset: int = 8
) -> dict:
    """Logits and bias with which every token picks as many of `experts` as it may, and no other
    local expert.

    `experts` are in one group. The bias decides: scores end at 1, so a group with one large logit
    loses to any group with two good ones.
    """
    logits = torch.randn(
        seq_len, geometry.num_experts, generator=torch.Generator().manual_seed(seq_len)
    )
    bias = torch.zeros(geometry.num_experts, dtype=torch.bfloat16)
    for expert in range(offset, offset + geometry.num_local_experts):
        if expert in experts:
            bias[expert] = 4.0
        else:
            logits[:, expert] -= 20.0
    ids, _ = ROUTES[geometry](logits, bias, 2.5)
    local = ids[(ids >= offset) & (ids < offset + geometry.num_local_experts)].tolist()
    assert len(local) == seq_len * min(len(experts), geometry.top_k)
    assert set(local) <= set(experts)
    return {"routing_logits": logits, "routing_bias": bias}


def call(layer, arguments: dict) -> torch.Tensor:
    """The layer's output in a buffer that was NaN before."""
    seq_len = arguments["routing_logits"].shape[0]
    output = torch.full(
        (seq_len, TOY.hidden_size), float("nan"), dtype=torch.bfloat16, device=DEVICE
    )
    layer(*arguments.values(), output)
    return output


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Within what requantising the intermediate to e4m3 costs; zero tokens exactly zero.

    Not all of them may be: that would compare nothing.
    """
    actual, expected = actual.double().cpu(), expected.double().cpu()
    assert torch.isfinite(actual).all()
    silent = (expected == 0).all(dim=1)
    assert torch.equal(actual[silent], expected[silent])
    assert not silent.all()
    error = (actual - expected).norm() / expected.norm()
    assert error < 0.04, f"relative L2 error {error:.4f}"
