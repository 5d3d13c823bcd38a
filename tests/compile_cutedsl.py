"""Compile every shipped CuTe DSL configuration for sm_90a; one JSON line of facts per kernel."""

import json
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

SCRATCH = tempfile.mkdtemp()
os.environ.update(CUTE_DSL_ARCH="sm_90a", CUTE_DSL_DUMP_DIR=SCRATCH)

import cutlass.cute as cute  # noqa: E402
from sass import inspect  # noqa: E402

from solutions.common.cutedsl import routing  # noqa: E402
from solutions.common.cutedsl.config import TABLE  # noqa: E402
from solutions.common.cutedsl.layer import MoeLayer  # noqa: E402
from solutions.common.geometry import DEEPSEEK_V3_EP8  # noqa: E402

ROUTING_THREADS = {
    "route_few": routing.CHUNK * routing.LANES,
    "pick": routing.CHUNK * routing.LANES,
    "number": routing.NUMBER_WARPS * routing.LANES,
}
INSTRUCTIONS = r"\b(QGMMA|UTMALDG\.\dD|UTMAPF|LDGSTS|LDL|STL|WARPGROUP\.DEPBAR)"


def main():
    os.chdir(SCRATCH)
    for _, config in TABLE:
        layer = MoeLayer(DEEPSEEK_V3_EP8, config, num_sms=132)
        usage, sass = inspect(layer.compile(cute.KeepCUBIN).artifacts.CUBIN, Path(SCRATCH))
        kernels = re.findall(r"kernel_cutlass_(\w+?)_solutions\S+\s+REG:(\d+)", usage)
        routing_registers = {name: int(count) for name, count in kernels if name != "kernel"}
        facts = {
            "config": str(config),
            "threads": layer.gemms.threads,
            "shared": layer.gemms.shared.size_in_bytes(),
            "registers": max(int(count) for name, count in kernels if name == "kernel"),
            "routing": [(routing_registers[name], n) for name, n in ROUTING_THREADS.items()],
            "stack": max(map(int, re.findall(r"STACK:(\d+)", usage))),
            "instructions": Counter(re.findall(INSTRUCTIONS, sass)),
        }
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
