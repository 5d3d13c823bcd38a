"""ex2.approx and rcp.approx as a Hopper GPU computes them.

Both were dumped on an H100 (hardware/dump.py) over one binade of arguments; how the other binades
follow is in runtime/approximate.h. `hardware/NAME.xz` holds by how many units in the last place
each result differs from the correctly rounded one.
"""

from __future__ import annotations

import hashlib
import lzma
import os
from pathlib import Path

import numpy as np

from .errors import EmulatorError

HARDWARE = Path(__file__).parent / "hardware"
BINADE = 1 << 23  # fp32 numbers of one sign and exponent
# SHA-256 of the results' bits, so that no other libm can change them
_DIGESTS = {
    "ex2": "b2a42c4a626469c986e33e43f16f41bde9d84de94347cd9ceaa1bd68d36bcdf0",
    "rcp": "c408381446132e07fa5581e930dc33fb790bea7ec4276ef3621e322df2492a55",
}


def results(name: str) -> np.ndarray:
    """uint32 [2^23]: bits of 2^f for f in [0, 1), or of 1/m for m in [1, 2), in steps of 2^-23.

    Raises EmulatorError if they are not those of the dump.
    """
    fraction = np.arange(BINADE) / BINADE
    rounded = (np.exp2(fraction) if name == "ex2" else 1 / (1 + fraction)).astype(np.float32)
    residuals = np.frombuffer(
        lzma.decompress((HARDWARE / f"{name}.xz").read_bytes()), dtype=np.int8
    )
    bits = (rounded.view(np.int32) + residuals).view(np.uint32)
    if hashlib.sha256(bits.tobytes()).hexdigest() != _DIGESTS[name]:
        raise EmulatorError(f"{name}: the table is not the one that was dumped")
    return bits


def mapped(name: str, folder: Path) -> np.ndarray:
    """`results`, kept in a file of the folder."""
    path = folder / f"{name}-{_DIGESTS[name][:16]}.bin"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        results(name).tofile(part)
        part.replace(path)
    return np.memmap(path, np.uint32, "r", shape=(BINADE,))
