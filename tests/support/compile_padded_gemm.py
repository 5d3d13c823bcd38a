"""Compile the padded GEMM's tiles for sm_90a, or for the architecture that the first argument
names; one JSON line of facts per tile.

Besides what the binary has, what the host hands to the driver, which a mock of the CUDA runtime
takes, and for sm_90a the accumulator's map (a row and a column of the tile for every thread's every
value).
"""

import json
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

SCRATCH = tempfile.mkdtemp()
ARCHITECTURE = sys.argv[1] if len(sys.argv) > 1 else "sm_90a"
os.environ.update(CUTE_DSL_ARCH=ARCHITECTURE, CUTE_DSL_DUMP_DIR=SCRATCH)

import cutlass.cute as cute  # noqa: E402
from accumulator import places  # noqa: E402
from mock_cuda import MockRuntime  # noqa: E402
from sass import fingerprints, inspect, loops_around, resources  # noqa: E402

from solutions.common.cutedsl.padded_gemm import KERNELS  # noqa: E402

BACKEND = 90 if ARCHITECTURE == "sm_90a" else 100
INSTRUCTIONS = {
    90: r"\b(QGMMA|UTMALDG\.\dD|UTMASTG\.\dD|LDL|STL|WARPGROUP\.DEPBAR)",
    100: (
        r"\b(U(?:TCQMMA|TMALDG\.\dD)(?:\.2CTA)?|UTCBAR|UTMASTG\.\dD|USETMAXREG|LDTM|FFMA2?|LDL"
        r"|STL)\b"
    ),
}
EXPERTS, MAX_M, N, K = 5, 44, 384, 256
POINTERS = [i << 32 for i in range(1, 7)]


def main():
    os.chdir(SCRATCH)
    module = KERNELS[BACKEND]
    for tile in module.TILES:
        kernel = module.PaddedGemmKernel(tile, num_sms=132)
        compiled = kernel.compile(cute.KeepCUBIN)
        usage, sass = inspect(compiled.artifacts.CUBIN, Path(SCRATCH))
        launch = MockRuntime(compiled, Path(SCRATCH)).launch(
            POINTERS, [EXPERTS, MAX_M, N, K], descriptors=4
        )
        facts = {
            "tile": str(tile),
            "threads": module.THREADS,
            "shared": kernel.shared.size_in_bytes(),
            **resources(usage, sass, INSTRUCTIONS[BACKEND]),
            "code": fingerprints(compiled.artifacts.CUBIN, usage),
            "launch": launch,
        }
        if BACKEND == 100:
            (loop,) = loops_around(sass, "LDTM")
            facts["promotion"] = Counter(re.findall(INSTRUCTIONS[BACKEND], loop))
        else:
            facts["accumulator"] = places(kernel.tiled_mma, module.CONSUMERS)
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
