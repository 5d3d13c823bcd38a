"""Which of the CuTe DSL backends a device takes."""

from __future__ import annotations

from functools import lru_cache

import torch

# by compute capability, 10 * major + minor; sm_103 (B300) has what the kernels of sm_100 (B200) use
BACKENDS = {90: 90, 100: 100, 103: 100}


@lru_cache
def backend_of(device: torch.device | int) -> int:
    """The kernels that the device runs: 90 (folder sm90) or 100 (folder sm100).

    Raises ValueError for a device of another compute capability.
    """
    major, minor = torch.cuda.get_device_capability(device)
    capability = 10 * major + minor
    if capability not in BACKENDS:
        known = ", ".join(map(str, BACKENDS))
        raise ValueError(f"device: expected compute capability {known}, got {capability}")
    return BACKENDS[capability]
