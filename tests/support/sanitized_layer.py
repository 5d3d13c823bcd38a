"""Calls cutedsl_moe_fp8_v3's kernels in every shipped configuration, and in the one that the device
chooses; for compute-sanitizer.

The intermediate size is 256 instead of 2048, because a tool slows the kernels down a thousandfold.
Prints how many calls gave the same finite output twice.
"""

from dataclasses import replace
from itertools import product

import sgl_standin
import torch

sgl_standin.install()  # for what `layers` imports, as in conftest.py

from layers import routed_to  # noqa: E402
from real_layer import real_inputs, run_real  # noqa: E402

from solutions.common.cutedsl.config import CONFIGS  # noqa: E402
from solutions.common.geometry import DEEPSEEK_V3_EP8  # noqa: E402
from solutions.cutedsl_moe_fp8_v3 import main as v3  # noqa: E402

OFFSET = 64
SMALL = replace(DEEPSEEK_V3_EP8, intermediate_size=256)
# few rows per expert; and one expert with three token tiles of 128 rows: pairs of both kinds
ROUTINGS = {24: None, 300: [70]}


def main():
    done = 0
    for config, (num_tokens, experts) in product((*CONFIGS, None), ROUTINGS.items()):
        routing = experts and routed_to(experts, num_tokens, DEEPSEEK_V3_EP8, OFFSET)
        arguments = real_inputs(num_tokens, routing, OFFSET, geometry=SMALL)

        def run(*arguments, config=config):
            *inputs, output = arguments
            v3.moe(SMALL, inputs, output, config)

        first, second = (run_real(run, arguments) for _ in range(2))
        assert torch.isfinite(first).all(), (config, num_tokens)
        assert torch.equal(first, second), (config, num_tokens)
        done += 1
    print(f"{done} calls")


if __name__ == "__main__":
    main()
