"""Compile every kernel of both GEMMs that cutedsl_moe_fp8_v3 ships for sm_100a, or for sm_103a if
the first argument says so, each with one configuration or several; one JSON line of facts per
kernel."""

import json
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

SCRATCH = tempfile.mkdtemp()
ARCHITECTURE = sys.argv[1] if len(sys.argv) > 1 else "sm_100a"
os.environ.update(CUTE_DSL_ARCH=ARCHITECTURE, CUTE_DSL_DUMP_DIR=SCRATCH)

import cutlass.cute as cute  # noqa: E402
from mock_cuda import MockRuntime  # noqa: E402
from sass import inspect, loops_around, resources  # noqa: E402

from solutions.common.cutedsl.config import CONFIGS_100, SM_100  # noqa: E402
from solutions.common.cutedsl.layer import MoeLayer  # noqa: E402
from solutions.common.cutedsl.routing import FEW_TOKENS  # noqa: E402
from solutions.common.geometry import DEEPSEEK_V3_EP8  # noqa: E402

INSTRUCTIONS = (
    r"\b(U(?:TCQMMA|TMALDG\.\dD)(?:\.2CTA)?|UTCBAR|UTMAPF|USETMAXREG|LDGSTS|LDTM|FFMA2?|FMUL2|LDL"
    r"|STL)\b"
)
POINTERS = [i << 32 for i in range(1, 1 + len(MoeLayer.POINTERS))]
FACTOR_BITS = 0x40200000  # 2.5


def main():
    os.chdir(SCRATCH)
    for max_tokens, candidates in SM_100:
        num_tokens = min(max_tokens, 3000)
        layer = MoeLayer(DEEPSEEK_V3_EP8, candidates, 148, 100)
        compiled = layer.compile(cute.KeepCUBIN)
        usage, sass = inspect(compiled.artifacts.CUBIN, Path(SCRATCH))
        launch = MockRuntime(compiled, Path(SCRATCH)).launch(
            POINTERS, [num_tokens, 32, FACTOR_BITS], descriptors=2 * len(candidates),
            kernel=1 if num_tokens <= FEW_TOKENS else 2,
        )  # fmt: skip
        kernels = re.findall(r"kernel_cutlass_(\w+?)_solutions\S+\s+REG:(\d+)", usage)
        facts = {
            "configs": [CONFIGS_100.index(candidate.config) for candidate in candidates],
            "threads": layer.gemms.threads,
            **resources(usage, sass, INSTRUCTIONS),
            "registers": max(int(count) for name, count in kernels if name == "kernel"),
            "loops": {
                name: [Counter(re.findall(INSTRUCTIONS, loop)) for loop in loops_around(sass, name)]
                for name in ("LDTM", "UTCQMMA")
            },
            "launch": launch,
        }
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
