"""Compare the emulator's ex2 and rcp with a Hopper GPU for all 2^32 arguments.

`python -m emulator.hardware.verify` needs what hardware/dump.py needs.
"""

from __future__ import annotations

import sys

import torch

from ..tables import BINADE, results
from .dump import EX2, RCP, Probe, arguments

NAN, INFINITY = 0x7FFFFFFF, 0x7F800000


def _scaled(bits: torch.Tensor, power: torch.Tensor | int) -> torch.Tensor:
    exponent = (bits >> 23) + power
    scaled = bits + (power << 23)
    scaled = torch.where(exponent >= 255, INFINITY, scaled)
    return torch.where(exponent <= 0, 0, scaled)


def expected(function: int, first: int, table: torch.Tensor) -> torch.Tensor:
    """The bits that runtime/approximate.h gives for the binade of arguments from `first` on."""
    sign, exponent = first >> 31, first >> 23 & 255
    fraction = torch.arange(BINADE, device="cuda")
    if exponent == 255:
        infinite = {EX2: 0 if sign else INFINITY, RCP: sign << 31}[function]
        return torch.where(fraction == 0, infinite, NAN)
    if function == RCP:
        if exponent == 0:
            return torch.full_like(fraction, sign << 31 | INFINITY)
        return _scaled(table, 127 - exponent) | sign << 31
    steps = (arguments(first).double().abs().clamp(max=256) * BINADE).long()
    if sign:
        steps = torch.where(steps & (BINADE - 1) > 0, ~steps, -steps)
    return _scaled(table[steps & (BINADE - 1)], steps >> 23)


def main() -> None:
    probe, wrong = Probe(), 0
    for function, name in ((EX2, "ex2"), (RCP, "rcp")):
        table = torch.from_numpy(results(name).astype("int64")).cuda()
        for binade in range(512):
            first = binade << 23
            bits = probe.evaluate(function, first).view(torch.int32).long() & 0xFFFFFFFF
            different = int((bits != expected(function, first, table)).sum())
            wrong += different
            if different:
                print(f"{name}: {different} of the arguments from {first:#x} on differ")
        print(f"{name}: compared for all 2^32 arguments", flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
