"""Arithmetic that the PTX ISA leaves open, against what an H100 computed."""

import ctypes

import numpy as np

from emulator.build import runtime
from emulator.hardware.dump import wgmma_inputs
from emulator.tables import HARDWARE, results

HOPPER = 0
ROWS, COLUMNS, STEP = 128, 256, 32  # as in tensor_core.h


class Left(ctypes.Structure):
    _fields_ = [
        ("value", ctypes.c_float * STEP * ROWS),
        ("exponent", ctypes.c_int32 * STEP * ROWS),
        ("is_nan", ctypes.c_uint8 * ROWS),
    ]


class Right(ctypes.Structure):
    _fields_ = [
        ("value", ctypes.c_float * COLUMNS * STEP),
        ("exponent", ctypes.c_int32 * COLUMNS * STEP),
        ("is_nan", ctypes.c_uint8 * COLUMNS),
    ]


def decoded(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and exponents of e4m3 codes; zero has a very small exponent."""
    biased, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
    magnitude = np.ldexp(mantissa + np.where(biased > 0, 8, 0), np.maximum(biased, 1) - 10)
    exponent = np.where(codes & 127, np.maximum(biased, 1) - 7, -200)
    return np.where(codes & 128, -magnitude, magnitude).astype(np.float32), exponent


def test_wgmma_cuts_sums_as_the_hardware_does():
    a, b, d = wgmma_inputs()
    expected = np.load(HARDWARE / "wgmma.npz")["d"]
    for case in range(0, len(a), 4):
        left, right = Left(), Right()
        for field, part in zip(("value", "exponent"), decoded(a[case]), strict=True):
            np.ctypeslib.as_array(getattr(left, field))[: len(part)] = part
        for field, part in zip(("value", "exponent"), decoded(b[case]), strict=True):
            np.ctypeslib.as_array(getattr(right, field))[:, : len(part)] = part.T
        sums = d[case].copy()
        address = sums.ctypes.data_as(ctypes.c_void_p)
        runtime().multiply_add(ctypes.byref(left), 64, ctypes.byref(right), 16, HOPPER, address, 16)
        assert sums.tobytes() == expected[case].tobytes()


def test_tables_are_within_two_units_of_the_exact_values():
    fraction = np.arange(1 << 23) / (1 << 23)
    for name, exact in (("ex2", np.exp2(fraction)), ("rcp", 1 / (1 + fraction))):
        computed = results(name).view(np.float32)
        assert np.abs(computed / exact - 1).max() < 2 * 2.0**-23
