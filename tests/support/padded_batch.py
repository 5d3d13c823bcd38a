"""Operands of the padded GEMM for tests, the same bits on every machine."""

import hashlib

import numpy as np
import torch

N = 384  # columns of c
NAN = 0x7F  # in e4m3


def operands(k: int, rows: list[int], padding_is_nan: bool) -> tuple[torch.Tensor, ...]:
    """a, a_scale, b, b_scale; the same for both kinds of padding where there are rows."""
    generator = torch.Generator().manual_seed(k)
    experts, max_m = len(rows), max(4, -(-max(rows) // 4) * 4)

    def codes(*shape):
        bits = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        return bits.bitwise_and_(0xBF)

    a, b = codes(experts, max_m, k), codes(experts, N, k)
    a_scale = torch.randn(k // 128, experts, max_m, generator=generator)
    b_scale = torch.randn(experts, N // 128, k // 128, generator=generator)
    if padding_is_nan:
        for expert, count in enumerate(rows):
            a[expert, count:], a_scale[:, expert, count:] = NAN, float("nan")
    fp8 = torch.float8_e4m3fn
    return a.view(fp8), a_scale, b.view(fp8), b_scale


def digest(c: np.ndarray, rows: list[int]) -> str:
    """Of the valid rows of c [E, max_m, N], whose bf16 are 16-bit integers here."""
    valid = np.concatenate([c[expert, :count] for expert, count in enumerate(rows)])
    return hashlib.sha256(valid.tobytes()).hexdigest()
