"""Each arithmetic instruction form against NumPy."""

import numpy as np
import pytest
from ptx_kernel import launch, module

from emulator import Buffers, UnsupportedInstruction

LANES = 32
U16, S16, U32, S32 = np.uint16, np.int16, np.uint32, np.int32
U64, S64, F32 = np.uint64, np.int64, np.float32
REGISTERS = {2: "%rs", 4: "%r", 8: "%rd"}
_EDGES = {
    F32: [0.0, -0.0, 1.0, -1.5, 3.4e38, 1e-30, -7.25, 448.0],
    S32: [0, 1, -1, 2**31 - 1, -(2**31), 7, -8, 65536],
    U32: [0, 1, 2**32 - 1, 2**31, 5, 31, 32, 40],
    S16: [0, 1, -1, 32767, -32768, 9, -9, 300],
    U16: [0, 1, 65535, 32768, 10, 15, 17, 3],
    S64: [0, 1, -1, 2**63 - 1, -(2**63), 2**32, -(2**33), 12],
    U64: [0, 1, 2**64 - 1, 2**63, 2**32, 77, 2**40, 3],
}


def values(dtype, seed: int) -> np.ndarray:
    """Edge cases in a random order, then random numbers."""
    rng = np.random.default_rng(seed)
    edges = np.array(_EDGES[dtype], dtype)
    if dtype is F32:
        rest = (rng.standard_normal(LANES - len(edges)) * 100).astype(F32)
    else:
        info = np.iinfo(dtype)
        rest = rng.integers(info.min, info.max, LANES - len(edges), dtype, endpoint=True)
    return rng.permutation(np.concatenate([edges, rest]))


def compute(form: str, inputs: list[np.ndarray], result, before: str = "") -> np.ndarray:
    """One thread for each element: result of the form on the inputs."""
    buffers = Buffers()
    arrays = [buffers.array(array) for array in inputs]
    output = buffers.unwritten((LANES,), result)
    lines, operands = ["mov.u32 %r100, %tid.x;"], []
    for i, array in enumerate(arrays):
        size = array.itemsize
        register = f"{REGISTERS[size]}{10 + i}"
        lines += [
            f"mul.wide.u32 %rd20, %r100, {size};",
            f"add.s64 %rd20, %rd20, %rd{i};",
            f"ld.global.b{8 * size} {register}, [%rd20];",
        ]
        operands.append(register)
    size = np.dtype(result).itemsize
    target = f"{REGISTERS[size]}9"
    lines += [
        before.format(target, *operands) or f"{form} {', '.join([target, *operands])};",
        f"mul.wide.u32 %rd20, %r100, {size};",
        f"add.s64 %rd20, %rd20, %rd{len(arrays)};",
        f"st.global.b{8 * size} [%rd20], {target};",
    ]  # fmt: skip
    launch(module("\n".join(lines), len(arrays) + 1), [*arrays, output], buffers)
    return output


def shifted(a, by, left):
    bits = a.dtype.itemsize * 8
    by = np.minimum(by.astype(U64), U64(bits))
    wide = a.astype(object)
    exact = [(x << int(n)) if left else (x >> int(n)) for x, n in zip(wide, by, strict=True)]
    return np.array([x & (2**bits - 1) for x in exact], dtype=f"u{a.dtype.itemsize}")


def high(a, b):
    bits = a.dtype.itemsize * 8
    return np.array([(int(x) * int(y) >> bits) & (2**bits - 1) for x, y in zip(a, b, strict=True)],
                    dtype=f"u{a.dtype.itemsize}")  # fmt: skip


def wide(a, b):
    size = 2 * a.dtype.itemsize
    return np.array([int(x) * int(y) & (2 ** (8 * size) - 1) for x, y in zip(a, b, strict=True)],
                    dtype=f"u{size}")  # fmt: skip


def truncated(a, b):
    """Quotient and remainder towards zero; by zero as the hardware does."""
    q, r = [], []
    for x, y in zip(a.astype(object), b.astype(object), strict=True):
        quotient = -1 if y == 0 else abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        q.append(quotient & 0xFFFFFFFF)
        r.append((x if y == 0 else x - quotient * y) & 0xFFFFFFFF)
    return np.array(q, U32), np.array(r, U32)


# form, types of the operands, type of the result, function
FORMS = [
    *((f"{n}.{t}", (d, d), d, f) for t, d in (("s16", S16), ("s32", S32), ("s64", S64))
      for n, f in (("add", np.add), ("sub", np.subtract))),
    *((f"mul.lo.{t}", (d, d), d, np.multiply)
      for t, d in (("s16", S16), ("s32", S32), ("s64", S64))),
    *((f"{n}.b{8 * np.dtype(d).itemsize}", (d, d), d, f) for d in (U16, U32, U64)
      for n, f in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor))),
    *((f"not.b{8 * np.dtype(d).itemsize}", (d,), d, np.invert) for d in (U16, U32, U64)),
    ("neg.s32", (S32,), S32, np.negative),
    ("abs.s32", (S32,), S32, np.abs),
    *((f"{n}.{t}", (d, d), d, f) for t, d in (("s32", S32), ("u32", U32), ("s16", S16))
      for n, f in (("max", np.maximum), ("min", np.minimum))),
    ("mad.lo.s32", (S32, S32, S32), S32, lambda a, b, c: a * b + c),
    ("mad.lo.s64", (S64, S64, S64), S64, lambda a, b, c: a * b + c),
    *((f"mul.wide.{t}", (d, d), r, wide) for t, d, r in
      (("s16", S16, U32), ("u16", U16, U32), ("s32", S32, U64), ("u32", U32, U64))),
    *((f"mul.hi.{t}", (d, d), d, high) for t, d in (("u16", U16), ("u32", U32), ("s32", S32))),
    ("div.s32", (S32, S32), U32, lambda a, b: truncated(a, b)[0]),
    ("rem.s32", (S32, S32), U32, lambda a, b: truncated(a, b)[1]),
    *((f"shl.b{8 * np.dtype(d).itemsize}", (d, U32), d, lambda a, b: shifted(a, b, True))
      for d in (U16, U32, U64)),
    *((f"shr.{t}", (d, U32), f"u{np.dtype(d).itemsize}", lambda a, b: shifted(a, b, False))
      for t, d in (("s16", S16), ("u16", U16), ("s32", S32), ("u32", U32), ("u64", U64),
                   ("s64", S64))),
    ("popc.b32", (U32,), U32, lambda a: np.array([int(x).bit_count() for x in a], U32)),
    ("clz.b32", (U32,), U32, lambda a: np.array([32 - int(x).bit_length() for x in a], U32)),
    ("add.f32", (F32, F32), F32, np.add),
    ("sub.f32", (F32, F32), F32, np.subtract),
    ("mul.f32", (F32, F32), F32, np.multiply),
    ("div.rn.f32", (F32, F32), F32, np.divide),
    ("max.f32", (F32, F32), F32, np.maximum),
    ("min.f32", (F32, F32), F32, np.minimum),
    ("neg.f32", (F32,), F32, np.negative),
    ("abs.f32", (F32,), F32, np.abs),
    ("cvt.sat.f32.f32", (F32,), F32, lambda a: np.clip(a, F32(0), F32(1)) + F32(0)),
    ("cvt.rn.f32.s32", (S32,), F32, lambda a: a.astype(F32)),
    ("cvt.f32.bf16", (U16,), F32, lambda a: (a.astype(U32) << 16).view(F32)),
    ("cvt.s64.s32", (S32,), S64, lambda a: a.astype(S64)),
    ("cvt.u64.u32", (U32,), U64, lambda a: a.astype(U64)),
    ("cvt.u16.u32", (U32,), U16, lambda a: a.astype(U16)),
    ("cvt.s32.s16", (S16,), S32, lambda a: a.astype(S32)),
    ("cvt.s32.s8", (S16,), S32, lambda a: a.astype(np.int8).astype(S32)),
    ("cvt.u32.u64", (U64,), U32, lambda a: a.astype(U32)),
]  # fmt: skip


@pytest.mark.parametrize(("form", "types", "result", "function"), FORMS, ids=[f[0] for f in FORMS])
def test_form_equals_numpy(form, types, result, function):
    inputs = [values(dtype, seed) for seed, dtype in enumerate(types)]
    with np.errstate(all="ignore"):
        expected = np.asarray(function(*inputs)).astype(result)
    actual = compute(form, inputs, result)
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", [("s32", S32), ("u32", U32), ("s64", S64), ("f32", F32)],
                         ids=lambda kind: kind[0])  # fmt: skip
@pytest.mark.parametrize(
    ("name", "function"),
    [("eq", np.equal), ("ne", np.not_equal), ("lt", np.less), ("le", np.less_equal),
     ("gt", np.greater), ("ge", np.greater_equal)],
)  # fmt: skip
def test_comparison_equals_numpy(name, function, kind):
    a, b = values(kind[1], 1), values(kind[1], 2)
    b[:16] = a[:16]
    if kind[1] is F32:
        a[3] = b[20] = np.nan
    text = f"setp.{name}.{kind[0]} %p1, {{1}}, {{2}}; selp.b32 {{0}}, 1, 0, %p1;"
    with np.errstate(invalid="ignore"):
        expected = function(a, b) & ~(np.isnan(a.astype(float)) | np.isnan(b.astype(float)))
    assert np.array_equal(compute("", [a, b], U32, text), expected.astype(U32))


def test_unordered_comparison_is_true_with_nan():
    a, b = values(F32, 1), values(F32, 1)
    a[5] = np.nan
    text = "setp.gtu.f32 %p1, {1}, {2}; selp.b32 {0}, 1, 0, %p1;"
    assert np.array_equal(compute("", [a, b], U32, text), np.isnan(a).astype(U32))


def test_fma_rounds_once():
    a, b, c = (values(F32, seed) for seed in range(3))
    a[0], b[0], c[0] = 1 + 2.0**-12, 1 + 2.0**-12, -(1 + 2.0**-11)  # the product's last bit
    with np.errstate(all="ignore"):
        exact = (a.astype(np.longdouble) * b.astype(np.longdouble) + c).astype(F32)
    actual = compute("fma.rn.f32", [a, b, c], F32)
    assert actual[0] == 2.0**-24
    assert np.array_equal(actual, exact)
    down = compute("fma.rm.f32", [a, b, c], F32)
    assert (down <= actual).all()
    assert (down != actual).any()


def test_e4m3_conversion_equals_torch():
    import torch

    a, b = values(F32, 3), values(F32, 4)
    a[:4] = 447.9, 464.0, 2.0**-10, 2.0**-9 * 1.5
    text = "cvt.rn.satfinite.e4m3x2.f32 %rs1, {1}, {2}; cvt.u32.u16 {0}, %rs1;"
    pairs = compute("", [a, b], U32, text)
    codes = [
        torch.from_numpy(np.clip(x, -448, 448)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        for x in (a, b)
    ]
    assert np.array_equal(pairs >> 8, codes[0])
    assert np.array_equal(pairs & 255, codes[1])


def test_bf16_conversion_equals_torch():
    import torch

    a, b = values(F32, 5), values(F32, 6)
    pairs = compute("cvt.rn.bf16x2.f32", [a, b], U32)
    halves = [torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(U16) for x in (a, b)]
    assert np.array_equal(pairs >> 16, halves[0])
    assert np.array_equal(pairs & 0xFFFF, halves[1])


def test_permute_picks_bytes_and_signs():
    a, b = values(U32, 1), values(U32, 2)
    text = "mov.b32 %r50, 0x9741; prmt.b32 {0}, {1}, {2}, %r50;"
    source = np.stack([(x >> (8 * i)) & 255 for x in (a, b) for i in range(4)])
    sign = np.where(source[1] & 128, 255, 0)
    expected = source[1] | source[4] << 8 | source[7] << 16 | sign.astype(U32) << 24
    assert np.array_equal(compute("", [a, b], U32, text), expected.astype(U32))


def test_registers_are_packed_and_unpacked():
    a, b = values(U32, 1), values(U32, 2)
    text = (
        "mov.b64 %rd25, {{{1}, {2}}}; mov.b64 {{%r60, %r61}}, %rd25;"
        "mov.b32 {{%rs5, %rs6}}, %r61; mov.b32 {0}, {{%rs6, %rs5}};"
    )
    expected = (b >> 16) | (b << 16)
    assert np.array_equal(compute("", [a, b], U32, text), expected.astype(U32))


def test_ex2_of_an_integer_is_a_power_of_two():
    exponents = np.arange(-16, 16, dtype=F32)
    assert np.array_equal(compute("ex2.approx.ftz.f32", [exponents], F32), np.exp2(exponents))


def test_pairs_of_fp32():
    a, b = (values(F32, seed).repeat(2) for seed in range(2))
    with np.errstate(all="ignore"):
        expected = np.asarray([np.add(a, b), np.multiply(a, b)])
    inputs = [x.view(U64) for x in (a, b)]
    for form, result in zip(("add.rn.f32x2", "mul.rn.f32x2"), expected, strict=True):
        assert compute(form, inputs, U64).tobytes() == result.tobytes()


def test_registers_may_be_wider_than_what_is_loaded_and_stored():
    a = values(U32, 1)
    text = (
        "ld.global.b32 %rd25, [%rd20]; shr.u64 %rd26, %rd25, 8;"
        "mov.b32 %r0, smem; mul.lo.s32 %r1, %r100, 8; add.s32 %r2, %r0, %r1;"
        "st.shared.b32 [%r2], %rd26; ld.shared.b32 {0}, [%r2];"
    )
    assert np.array_equal(compute("", [a], U32, text), a >> 8)


def test_a_load_that_extends_the_sign_is_refused():
    with pytest.raises(UnsupportedInstruction, match="extends the sign"):
        compute("", [values(U32, 1)], U32, "ld.global.s16 {0}, [%rd20];")


@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_of_16_bits_is_stored_by_rows_or_columns(transposed):
    matrix = np.arange(64, dtype=U16).reshape(8, 8)
    pairs = matrix.reshape(LANES, 2).astype(U32)
    qualifier = ".trans" if transposed else ""
    text = (
        "mov.b32 %r0, smem; and.b32 %r1, %r100, 7; shl.b32 %r2, %r1, 4; add.s32 %r3, %r0, %r2;"
        f"stmatrix.sync.aligned.m8n8.x1{qualifier}.shared.b16 [%r3], {{{{{{1}}}}}};"
        "bar.warp.sync -1; shl.b32 %r4, %r100, 2; add.s32 %r5, %r0, %r4; ld.shared.b32 {0}, [%r5];"
    )
    stored = compute("", [pairs[:, 0] | pairs[:, 1] << 16], U32, text)
    expected = np.ascontiguousarray(matrix.T if transposed else matrix)
    assert np.array_equal(stored, expected.view(U32).ravel())
