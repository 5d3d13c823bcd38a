"""Calls kernels of the bundle's in one shipped configuration, for compute-sanitizer.

Arguments: "layer" and a number of the device's configurations, or "choice" for the one that the
device chooses, for cutedsl_moe_fp8_v3; "padded" and a number of the device's tiles for the GEMM of
v1 and v2; "toy" and a name of LAYERS for the other solutions, with kernels in Triton.

Sizes are small, because a tool slows the kernels down a thousandfold. Inputs are made on the CPU
and nothing else runs on the device, so no tool needs a filter. Prints how many calls were right.
"""

import sys
from dataclasses import replace
from unittest.mock import patch

import deepgemm_standin
import sgl_standin
import torch

sgl_standin.install()
deepgemm_standin.install()  # for what `layers` imports, as in conftest.py

from layers import LAYERS, REFERENCE, TOY, inputs, routed_to  # noqa: E402
from padded_batch import operands  # noqa: E402
from real_layer import real_inputs  # noqa: E402

from solutions.common.cutedsl.architecture import backend_of  # noqa: E402
from solutions.common.cutedsl.config import CONFIGS, CONFIGS_100  # noqa: E402
from solutions.common.cutedsl.padded_gemm import KERNELS, padded_gemm  # noqa: E402
from solutions.common.geometry import DEEPSEEK_V3_EP8  # noqa: E402
from solutions.cutedsl_moe_fp8_v3 import main as v3  # noqa: E402
from solutions.torch_moe import main as torch_moe  # noqa: E402

OFFSET = 64
SMALL = replace(DEEPSEEK_V3_EP8, intermediate_size=256)
# few rows per expert; and one expert with three token tiles of 128 rows: pairs of both kinds
ROUTINGS = {24: None, 300: [70]}
REPEATS = 2
K, ROWS = 384, [64, 0, 65, 3, 129]  # of the padded batch
TOY_TOKENS = 3, 300
TOLERANCE, GEMM_TOLERANCE = 0.04, 4e-3


def on_device(values: dict) -> list:
    return [value.cuda() if isinstance(value, torch.Tensor) else value for value in values.values()]


def check(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Both on the CPU, where the device's kernels are not in the way of a tool."""
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error < tolerance, f"relative error {error}"


def call_layer(config) -> int:
    for num_tokens, experts in ROUTINGS.items():
        routing = experts and routed_to(experts, num_tokens, DEEPSEEK_V3_EP8, OFFSET)
        given = real_inputs(num_tokens, routing, OFFSET, geometry=SMALL, device="cpu")
        nan = torch.full((num_tokens, SMALL.hidden_size), torch.nan, dtype=torch.bfloat16)
        expected = nan.clone()
        torch_moe.moe(SMALL, tuple(given.values()), expected)
        inputs, results = on_device(given), []
        for _ in range(REPEATS):
            output = nan.cuda()
            v3.moe(SMALL, inputs, output, config)
            results.append(output.cpu())
        check(results[0], expected, TOLERANCE)
        assert all(torch.equal(results[0], result) for result in results)
    return REPEATS * len(ROUTINGS)


def call_padded_gemm(tile) -> int:
    a, a_scale, b, b_scale = operands(K, ROWS, padding_is_nan=False)
    ends = torch.tensor([0, *ROWS], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    on_gpu = [tensor.cuda() for tensor in (a, a_scale, b, b_scale, ends)]
    for _ in range(REPEATS):
        with patch("torch.empty", torch.zeros):  # initcheck does not see that TMA writes c
            c = padded_gemm(*on_gpu, tile)
        for expert, rows in enumerate(ROWS):
            if rows:
                x = torch_moe.dequantize(a[expert, :rows], a_scale[:, expert, :rows].t(), 128)
                w = torch_moe.dequantize(b[expert], b_scale[expert], 128)
                check(c[expert, :rows].cpu(), x.double() @ w.double().t(), GEMM_TOLERANCE)
    return REPEATS


def call_toy(layer) -> int:
    for num_tokens in TOY_TOKENS:
        given = inputs(num_tokens)
        output = torch.full((num_tokens, TOY.hidden_size), torch.nan, dtype=torch.bfloat16).cuda()
        layer(*given.values(), output)
        on_cpu = {
            name: value.cpu() if isinstance(value, torch.Tensor) else value
            for name, value in given.items()
        }
        check(output.cpu(), REFERENCE(**on_cpu), TOLERANCE)
    return len(TOY_TOKENS)


def main():
    kind, number = sys.argv[1], sys.argv[2]
    backend = backend_of(torch.device("cuda", 0))
    if kind == "toy":
        done = call_toy(LAYERS[number])
    elif kind == "padded":
        done = call_padded_gemm(KERNELS[backend].TILES[int(number)])
    elif number == "choice":
        done = call_layer(None)
    else:
        done = call_layer((CONFIGS if backend == 90 else CONFIGS_100)[int(number)])
    print(f"{done} calls right")


if __name__ == "__main__":
    main()
