"""1 x 128 e4m3 quantisation of activations, inside a kernel."""

import triton
import triton.language as tl

E4M3_MAX = tl.constexpr(448.0)  # largest finite e4m3fn value
MIN_AMAX = tl.constexpr(1e-10)  # keeps the scale of an all-zero block finite
INTERPRETING = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _e4m3_bits(x):
    """Round fp32 to the nearest e4m3fn (ties to even), saturating: the hardware's cvt in integers.

    Triton's interpreter casts to fp8 without carries, subnormals or saturation, so on the CPU this
    takes the cast's place.
    """
    magnitude = tl.minimum(tl.abs(x), E4M3_MAX)
    exponent = tl.maximum((magnitude.to(tl.int32, bitcast=True) >> 23) - 127, -6)
    quantum = ((exponent - 3 + 127) << 23).to(tl.float32, bitcast=True)
    steps = (magnitude / quantum + 12582912.0) - 12582912.0  # 1.5 * 2**23: rounds to an integer
    code = ((exponent + 6) << 3) + steps.to(tl.int32)
    code = tl.where(x == x, code, 0x7F) | tl.where(x < 0, 0x80, 0)
    return code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)


@triton.jit
def operand(x):
    """e4m3 as tl.dot takes it. Triton's interpreter reads the two bytes of NaN as 480 and -480, so
    on the CPU the values are decoded here."""
    if INTERPRETING:
        is_nan = (x.to(tl.uint8, bitcast=True) & 0x7F) == 0x7F
        return tl.where(is_nan, float("nan"), x.to(tl.float32))
    else:
        return x


@triton.jit
def quantize_e4m3(x):
    """fp32 [rows, 128] -> e4m3 [rows, 128] and one fp32 scale per row, x = q * scale."""
    amax = tl.maximum(tl.max(tl.abs(x), 1), MIN_AMAX)
    scale = amax / E4M3_MAX
    x = x / scale[:, None]
    if INTERPRETING:
        return _e4m3_bits(x), scale
    else:
        return x.to(tl.float8e4nv), scale
