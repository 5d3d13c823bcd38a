"""Compile every shipped CuTe DSL configuration for sm_90a, then the kernel that has several of
them; one JSON line of facts per compilation."""

import json
import os
import re
import tempfile
from pathlib import Path

SCRATCH = tempfile.mkdtemp()
os.environ.update(CUTE_DSL_ARCH="sm_90a", CUTE_DSL_DUMP_DIR=SCRATCH)

import cutlass.cute as cute  # noqa: E402
from accumulator import places  # noqa: E402
from mock_cuda import MockRuntime  # noqa: E402
from sass import fingerprints, inspect, loops_around, resources  # noqa: E402

from solutions.common.cutedsl import routing  # noqa: E402
from solutions.common.cutedsl.config import CONFIGS, FEW, SM_90, only  # noqa: E402
from solutions.common.cutedsl.layer import MoeLayer  # noqa: E402
from solutions.common.geometry import DEEPSEEK_V3_EP8  # noqa: E402

ROUTING_THREADS = {
    "route_chunk": routing.CHUNK * routing.LANES,
    "route_few": routing.CHUNK * routing.LANES,
    "pick": routing.CHUNK * routing.LANES,
    "number": routing.NUMBER_WARPS * routing.LANES,
}
INSTRUCTIONS = r"\b(QGMMA|UTMALDG\.\dD|UTMAPF|LDGSTS|LDL|STL|WARPGROUP\.DEPBAR)"


POINTERS = [i << 32 for i in range(1, 1 + len(MoeLayer.POINTERS))]
FACTOR_BITS = 0x40200000  # 2.5


def launches(layer: MoeLayer, compiled, num_tokens: int) -> list[dict]:
    """What each kernel of a call is launched with; the GEMMs' last, its TMA descriptors with it."""
    runtime = MockRuntime(compiled, Path(SCRATCH))
    integers = [num_tokens, 32, FACTOR_BITS]
    number = 2 if num_tokens <= routing.FEW_TOKENS else 3  # the last is the GEMMs'
    # behind the two of the weights come 14 pointers and 2 integers, then four and their tensors
    descriptors = 2 if layer.candidates[-1].config.swap_ab else 26
    return [
        runtime.launch(POINTERS, integers, descriptors if kernel == number - 1 else 0, kernel)
        for kernel in range(number)
    ]


def descriptor_moves(sass: str) -> list[int]:
    """Of each loop with wgmmas, its moves from vector to uniform registers."""
    (kernel,) = (part for part in sass.split(".text.kernel_cutlass_") if "QGMMA" in part)
    return [loop.count("R2UR") for loop in loops_around(kernel, "QGMMA")]


def main():
    os.chdir(SCRATCH)
    for config in CONFIGS:
        layer = MoeLayer(DEEPSEEK_V3_EP8, only(config), num_sms=132)
        compiled = layer.compile(cute.KeepCUBIN)
        usage, sass = inspect(compiled.artifacts.CUBIN, Path(SCRATCH))
        kernels = re.findall(r"kernel_cutlass_(\w+?)_solutions\S+\s+REG:(\d+)", usage)
        routing_registers = {name: int(count) for name, count in kernels if name != "kernel"}
        facts = {
            "config": str(config),
            "threads": layer.gemms.threads,
            "shared": layer.gemms.shared.size_in_bytes(),
            **resources(usage, sass, INSTRUCTIONS),
            "code": fingerprints(compiled.artifacts.CUBIN, usage),
            "registers": max(int(count) for name, count in kernels if name == "kernel"),
            "routing": [(n, ROUTING_THREADS[name]) for name, n in routing_registers.items()],
            "accumulator": places(layer.gemms.consumers.tiled_mma, config.num_warpgroups),
            "num_tokens": (num_tokens := 16 if config == FEW else 3000),
            "launches": launches(layer, compiled, num_tokens),
        }
        print(json.dumps(facts))
    candidates = SM_90[-1][1]
    layer = MoeLayer(DEEPSEEK_V3_EP8, candidates, num_sms=132)
    compiled = layer.compile(cute.KeepCUBIN)
    usage, sass = inspect(compiled.artifacts.CUBIN, Path(SCRATCH))
    facts = {
        **resources(usage, sass, INSTRUCTIONS),
        "code": fingerprints(compiled.artifacts.CUBIN, usage),
        "launches": launches(layer, compiled, 3000)[2:],
        "descriptor_moves": descriptor_moves(sass),
    }
    print(json.dumps({"candidates": len(candidates), **facts}))


if __name__ == "__main__":
    main()
