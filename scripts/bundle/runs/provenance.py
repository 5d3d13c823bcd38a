"""What a trace says about where it was made, beyond what the harness records.

All of it goes into environment.libs, the only place for it in the harness's schema.
"""

from __future__ import annotations

import subprocess
from functools import cache

import torch

from ..hardware import UNKNOWN
from ..harness import harness_version
from ..machine import bundle_version

HARNESS, BUNDLE, DRIVER = "flashinfer_bench", "bundle", "driver"
KERNELS = "kernels"
CLOCKS, POWER_LIMIT = "gpu_clocks", "gpu_power_limit"
MACHINE = "machine"
"""Which GPU of which machine, in a run on several."""
QUERY = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")


@cache
def facts() -> dict[str, str]:
    """Versions of harness, bundle and driver; the GPU's greatest clocks and power limit."""
    found = {HARNESS: harness_version(), BUNDLE: bundle_version()}
    if torch.cuda.is_available():
        driver, sm, memory, power = _query_gpu()
        found |= {DRIVER: driver, CLOCKS: f"SM {sm}, memory {memory}", POWER_LIMIT: power}
    else:
        found[KERNELS] = "Triton is interpreted and CuTe DSL emulated on a CPU"
    return found


def _query_gpu() -> list[str]:
    """The fields of QUERY, of the first GPU that is visible here."""
    gpu = torch.cuda.get_device_properties(0).uuid
    query = f"--query-gpu={','.join(QUERY)}"
    command = ["nvidia-smi", query, "--format=csv,noheader", f"--id=GPU-{gpu}"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return [UNKNOWN] * len(QUERY)  # nvidia-smi is not part of every container
    fields = [field.strip() for field in done.stdout.split(",")]
    return fields if len(fields) == len(QUERY) else [UNKNOWN] * len(QUERY)
