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
def e4m3_values():
    """The value of every e4m3 byte, fp32 [256], for `operands`; an unused 0 but on the CPU.

    Not None, which Triton 3.6's compiler cannot pass on. The interpreter reads the two bytes of
    NaN as 480 and -480.
    """
    if INTERPRETING:
        code = tl.arange(0, 256)
        value = code.to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float32)
        return tl.where((code & 0x7F) == 0x7F, float("nan"), value)
    else:
        return 0.0


@triton.jit
def operands(x, w0, w1, values):
    """Three e4m3 tiles as tl.dot takes them: on the CPU they are decoded, by `e4m3_values`.

    One call for all: each takes the interpreter half a millisecond.
    """
    if INTERPRETING:
        codes = x.to(tl.uint8, bitcast=True).to(tl.int32)
        x = tl.reshape(tl.gather(values, tl.reshape(codes, [x.numel]), 0), x.shape)
        codes = w0.to(tl.uint8, bitcast=True).to(tl.int32)
        w0 = tl.reshape(tl.gather(values, tl.reshape(codes, [w0.numel]), 0), w0.shape)
        codes = w1.to(tl.uint8, bitcast=True).to(tl.int32)
        w1 = tl.reshape(tl.gather(values, tl.reshape(codes, [w1.numel]), 0), w1.shape)
    return x, w0, w1


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
