"""Compile cutedsl_v3_gemm's kernels for sm_90a; one JSON line of facts per configuration.

Arguments: numbers of configurations, by default all.
"""

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

SCRATCH = tempfile.mkdtemp()
os.environ.update(CUTE_DSL_ARCH="sm_90a", CUTE_DSL_DUMP_DIR=SCRATCH)

import cutlass.cute as cute  # noqa: E402
from bundle.probes.kernels.cutedsl_v3_gemm import GroupedGemm  # noqa: E402
from mock_cuda import MockRuntime  # noqa: E402
from sass import fingerprints, inspect, resources  # noqa: E402

from solutions.common.cutedsl.config import CONFIGS  # noqa: E402
from solutions.common.geometry import DEEPSEEK_V3_EP8  # noqa: E402

INSTRUCTIONS = r"\b(QGMMA|UTMALDG|LDL|STL|WARPGROUP\.DEPBAR)"
N, K, MAX_ROWS = 2048, 4096, 48
POINTERS = [i << 32 for i in range(1, 9)]


def main():
    os.chdir(SCRATCH)
    geometry = replace(DEEPSEEK_V3_EP8, hidden_size=N, intermediate_size=K)
    for number in map(int, sys.argv[1:] or range(len(CONFIGS))):
        config = CONFIGS[number]
        gemm = GroupedGemm(geometry, config, num_sms=132)
        compiled = gemm.compile(cute.KeepCUBIN)
        usage, sass = inspect(compiled.artifacts.CUBIN, Path(SCRATCH))
        facts = {
            "config": str(config),
            "threads": gemm.gemms.threads,
            "weight_tiles": gemm.gemms.scheduler.weight_tiles,
            "shared": gemm.gemms.shared.size_in_bytes(),
            **resources(usage, sass, INSTRUCTIONS),
            "code": fingerprints(compiled.artifacts.CUBIN, usage),
            "launch": MockRuntime(compiled, Path(SCRATCH)).launch(
                POINTERS, [MAX_ROWS], descriptors=2
            ),
        }
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
