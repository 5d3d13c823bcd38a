"""Ask a Hopper GPU for the arithmetic that the PTX ISA leaves open.

`python -m emulator.hardware.dump FOLDER` needs nvcc, torch and a GPU of compute capability 9.0. It
writes to FOLDER

* for ex2.approx.ftz.f32 and rcp.approx.ftz.f32, over some binades of arguments, by how many units
  in the last place each result differs from the correctly rounded one (`NAME.xz`: int8 [2^23]),
* `wgmma.npz`: d + a b^T of e4m3 wgmma for random codes and accumulators of several magnitudes,

and prints over all 2^32 arguments how often simple rules for the other binades fail.
"""

from __future__ import annotations

import ctypes
import lzma
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

EX2, RCP = 0, 1
BINADE = 1 << 23  # fp32 numbers of one sign and exponent
WGMMA_CASES = 96


class Probe:
    """The kernels of probe.cu."""

    def __init__(self) -> None:
        library = Path(tempfile.mkdtemp()) / "probe.so"
        source = Path(__file__).parent / "probe.cu"
        flags = ["-gencode=arch=compute_90a,code=sm_90a", "-O2", "-shared", "-Xcompiler", "-fPIC"]
        subprocess.run(["nvcc", *flags, "-o", library, source], check=True)
        self._library = ctypes.CDLL(str(library))

    def evaluate(self, function: int, first: int, count: int = BINADE) -> torch.Tensor:
        """fp32 results on the device for the arguments whose bits are first, first + 1, ..."""
        results = torch.empty(count, dtype=torch.float32, device="cuda")
        error = self._library.probe_evaluate(
            function, ctypes.c_uint32(first), count, ctypes.c_void_p(results.data_ptr())
        )
        if error:
            raise RuntimeError(f"CUDA error {error}")
        return results

    def multiply(self, a: np.ndarray, b: np.ndarray, d: np.ndarray) -> np.ndarray:
        """d [cases, 64, 16] fp32 plus a [cases, 64, 32] times b [cases, 16, 32] transposed."""
        on_gpu = [torch.from_numpy(array).cuda() for array in (a, b, d)]
        error = self._library.probe_multiply(
            *[ctypes.c_void_p(tensor.data_ptr()) for tensor in on_gpu], len(a)
        )
        if error:
            raise RuntimeError(f"CUDA error {error}")
        return on_gpu[2].cpu().numpy()


def arguments(first: int, count: int = BINADE) -> torch.Tensor:
    """The fp32 numbers whose bits are first, first + 1, ..., on the device."""
    bits = torch.arange(first, first + count, dtype=torch.int64, device="cuda")
    return bits.to(torch.int32).view(torch.float32)


def bits_of(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.int32).to(torch.int64)


def exact(function: int, values: torch.Tensor) -> torch.Tensor:
    """Rounded to fp32 from fp64."""
    values = values.double()
    return (torch.exp2(values) if function == EX2 else 1 / values).float()


def wgmma_inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random e4m3 codes without NaN, and accumulators from 0 to 2^20."""
    rng = np.random.default_rng(20261125)
    a = rng.integers(0, 256, (WGMMA_CASES, 64, 32), dtype=np.uint8)
    b = rng.integers(0, 256, (WGMMA_CASES, 16, 32), dtype=np.uint8)
    for codes in (a, b):
        codes[(codes & 127) == 127] = 0
        codes[WGMMA_CASES // 3 :][rng.random(codes[WGMMA_CASES // 3 :].shape) < 0.5] &= 0x9F
    scale = np.exp2(rng.integers(-24, 21, (WGMMA_CASES, 1, 1))).astype(np.float32)
    scale[::3] = 0
    return a, b, rng.standard_normal((WGMMA_CASES, 64, 16), dtype=np.float32) * scale


def dump_residuals(probe: Probe, folder: Path) -> None:
    binades = {
        "rcp_1": (RCP, 0x3F800000),  # [1, 2)
        "ex2_1": (EX2, 0x3F800000),
        "ex2_half": (EX2, 0x3F000000),  # [1/2, 1)
        "ex2_minus_half": (EX2, 0xBF000000),
        "ex2_quarter": (EX2, 0x3E800000),
    }
    for name, (function, first) in binades.items():
        results = probe.evaluate(function, first)
        residual = bits_of(results) - bits_of(exact(function, arguments(first)))
        counts = torch.unique(residual, return_counts=True)
        print(name, dict(zip(counts[0].tolist(), counts[1].tolist(), strict=True)), flush=True)
        data = residual.to(torch.int8).cpu().numpy().tobytes()
        (folder / f"{name}.xz").write_bytes(lzma.compress(data, preset=1))


def check_ex2(probe: Probe) -> None:
    """Is 2^x, for each sign and exponent, that of x on a grid of 2^-23 within [1, 2), scaled?"""
    table = probe.evaluate(EX2, 0x3F800000).double() / 2  # of the fraction, in [1, 2)
    rules = {"floor": torch.floor, "round": torch.round, "zero": torch.trunc}
    print("ex2: sign, exponent, wrong results by the rule for the grid")
    for sign in (0, 1):
        for exponent in range(256):
            first = sign << 31 | exponent << 23
            x, y = arguments(first).double(), probe.evaluate(EX2, first)
            wrong = {}
            for name, rule in rules.items():
                scaled = rule(x.clamp(-1000, 1000) * BINADE)
                whole = torch.floor(scaled / BINADE)
                fraction = (scaled - whole * BINADE).long().clamp(0, BINADE - 1)
                expected = (table[fraction] * torch.exp2(whole)).float()
                expected[expected.abs() < 2.0**-126] = 0
                wrong[name] = int((bits_of(expected) != bits_of(y)).sum())
            if any(wrong.values()):
                print(sign, exponent, wrong, flush=True)


def check_rcp(probe: Probe) -> None:
    """Is 1/x, for each sign and exponent, that of the mantissa, scaled?"""
    table = probe.evaluate(RCP, 0x3F800000).double()
    print("rcp: sign, exponent, wrong results")
    for sign in (0, 1):
        for exponent in range(256):
            first = sign << 31 | exponent << 23
            y = probe.evaluate(RCP, first)
            expected = (table * 2.0 ** (127 - exponent) * (1 - 2 * sign)).float()
            expected[expected.abs() < 2.0**-126] = 0.0
            if sign:
                expected = -expected.abs()
            wrong = int((bits_of(expected) != bits_of(y)).sum())
            if wrong:
                print(sign, exponent, wrong, [hex(v & 0xFFFFFFFF) for v in bits_of(y)[:3].tolist()])


def dump_samples(probe: Probe, folder: Path) -> None:
    """4096 pairs of ex2 per sign and exponent, for the rule of small arguments."""
    rng = np.random.default_rng(1)
    mantissas = np.sort(rng.integers(0, BINADE, 4096))
    samples = [
        probe.evaluate(EX2, sign << 31 | exponent << 23).cpu().numpy()[mantissas]
        for sign in (0, 1)
        for exponent in range(96, 140)
    ]
    np.savez_compressed(folder / "ex2_samples.npz", mantissas=mantissas, results=samples)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    print(torch.cuda.get_device_name(0))
    probe = Probe()
    np.savez_compressed(folder / "wgmma.npz", d=probe.multiply(*wgmma_inputs()))
    dump_residuals(probe, folder)
    dump_samples(probe, folder)
    check_rcp(probe)
    check_ex2(probe)


if __name__ == "__main__":
    main()
