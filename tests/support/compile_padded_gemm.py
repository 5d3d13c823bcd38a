"""Compile the padded GEMM's tiles for sm_90a; one JSON line of facts per tile.

Besides what the binary has, the accumulator's map (a row and a column of the tile for every
thread's every value) and what the host hands to the driver, which a mock of the CUDA runtime takes.
"""

import json
import os
import tempfile
from pathlib import Path

SCRATCH = tempfile.mkdtemp()
os.environ.update(CUTE_DSL_ARCH="sm_90a", CUTE_DSL_DUMP_DIR=SCRATCH)

import cutlass.cute as cute  # noqa: E402
from accumulator import places  # noqa: E402
from mock_cuda import MockRuntime  # noqa: E402
from sass import fingerprints, inspect, resources  # noqa: E402

from solutions.common.cutedsl.sm90.padded_gemm import (  # noqa: E402
    CONSUMERS,
    THREADS,
    TILES,
    PaddedGemmKernel,
)

INSTRUCTIONS = r"\b(QGMMA|UTMALDG\.\dD|UTMASTG\.\dD|LDL|STL|WARPGROUP\.DEPBAR)"
EXPERTS, MAX_M, N, K = 5, 44, 384, 256
POINTERS = [i << 32 for i in range(1, 7)]


def main():
    os.chdir(SCRATCH)
    for tile in TILES:
        kernel = PaddedGemmKernel(tile, num_sms=132)
        compiled = kernel.compile(cute.KeepCUBIN)
        usage, sass = inspect(compiled.artifacts.CUBIN, Path(SCRATCH))
        launch = MockRuntime(compiled, Path(SCRATCH)).launch(
            POINTERS, [EXPERTS, MAX_M, N, K], descriptors=4
        )
        facts = {
            "tile": str(tile),
            "threads": THREADS,
            "shared": kernel.shared.size_in_bytes(),
            **resources(usage, sass, INSTRUCTIONS),
            "code": fingerprints(compiled.artifacts.CUBIN, usage),
            "accumulator": places(kernel.tiled_mma, CONSUMERS),
            "launch": launch,
        }
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
