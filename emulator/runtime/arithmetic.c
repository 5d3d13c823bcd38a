// Arithmetic lane by lane. The approximate functions equal a Hopper GPU's: see approximate.h.
#include "approximate.h"
#include "lanes.h"

#include <fenv.h>

const u32 *ex2_table, *rcp_table;

#define EACH_LANE(name, parameters, expression)  \
    Reg name parameters {                        \
        Reg result;                              \
        for (int l = 0; l < LANES; l++) result[l] = (expression); \
        return result;                           \
    }

Reg fma_nearest(Reg a, Reg b, Reg c) {
    float x[LANES], y[LANES], z[LANES];
    memcpy(x, &a, sizeof x), memcpy(y, &b, sizeof y), memcpy(z, &c, sizeof z);
    for (int l = 0; l < LANES; l++) x[l] = __builtin_fmaf(x[l], y[l], z[l]);
    memcpy(&a, x, sizeof a);
    return a;
}

Reg fma_down(Reg a, Reg b, Reg c) {
    volatile float result[LANES];  // volatile: the compiler must not fold across the mode's change
    fesetround(FE_DOWNWARD);
    for (int l = 0; l < LANES; l++) {
        volatile float x = as_float(a[l]), y = as_float(b[l]), z = as_float(c[l]);
        result[l] = fmaf(x, y, z);
    }
    fesetround(FE_TONEAREST);
    for (int l = 0; l < LANES; l++) a[l] = as_bits(result[l]);
    return a;
}

INLINE u32 nan_free(float a, float b, int larger) {
    if (a != a && b != b) return 0x7fffffff;
    if (a != a) return as_bits(b);
    if (b != b) return as_bits(a);
    if (a == b) return larger ? as_bits(a) & as_bits(b) : as_bits(a) | as_bits(b);  // -0 < +0
    return as_bits((a > b) == larger ? a : b);
}
INLINE float saturated(float a) { return a > 1 ? 1 : a > 0 ? a : 0; }  // NaN gives 0

EACH_LANE(divide, (Reg a, Reg b), as_bits(as_float(a[l]) / as_float(b[l])))
EACH_LANE(maximum, (Reg a, Reg b), nan_free(as_float(a[l]), as_float(b[l]), 1))
EACH_LANE(minimum, (Reg a, Reg b), nan_free(as_float(a[l]), as_float(b[l]), 0))
EACH_LANE(saturate, (Reg a), as_bits(saturated(as_float(a[l]))))
EACH_LANE(approximate_ex2, (Reg a), ex2(a[l]))
EACH_LANE(approximate_rcp, (Reg a), rcp(a[l]))

// conversions, to nearest even
INLINE u32 bf16(u32 a) {
    if (as_float(a) != as_float(a)) return 0x7fff;
    return (a + 0x7fff + (a >> 16 & 1)) >> 16;
}
INLINE u32 e4m3(u32 bits) {
    float a = fabsf(as_float(bits));
    u32 sign = bits >> 31 << 7;
    if (a != a) return 0x7f;
    if (a >= 448) return sign | 0x7e;
    if (a < 0x1p-6f) return sign | (u32)rintf(a * 512);  // 8 of these are the smallest normal
    int exponent;
    float significand = rintf(ldexpf(frexpf(a, &exponent), 4));  // 8 to 16: a carry fits the sum
    u32 code = ((exponent + 6) << 3) + (u32)significand - 8;
    return sign | (code > 0x7e ? 0x7e : code);
}
EACH_LANE(to_bf16, (Reg a), bf16(a[l]))
EACH_LANE(to_bf16x2, (Reg upper, Reg lower), bf16(upper[l]) << 16 | bf16(lower[l]))
EACH_LANE(to_e4m3x2, (Reg upper, Reg lower), e4m3(upper[l]) << 8 | e4m3(lower[l]))

// integers; by zero as the hardware does
EACH_LANE(divide_u32, (Reg a, Reg b), b[l] ? a[l] / b[l] : ~0u)
EACH_LANE(remainder_u32, (Reg a, Reg b), b[l] ? a[l] % b[l] : a[l])
EACH_LANE(divide_s32, (Reg a, Reg b), !b[l] ? ~0u : b[l] == ~0u ? -a[l] : (u32)((s32)a[l] / (s32)b[l]))
EACH_LANE(remainder_s32, (Reg a, Reg b), !b[l] ? a[l] : b[l] == ~0u ? 0 : (u32)((s32)a[l] % (s32)b[l]))
EACH_LANE(shift_left, (Reg a, Reg by), by[l] > 31 ? 0 : a[l] << by[l])
EACH_LANE(shift_right, (Reg a, Reg by), by[l] > 31 ? 0 : a[l] >> by[l])
EACH_LANE(shift_right_signed, (Reg a, Reg by), (u32)((s32)a[l] >> (by[l] > 31 ? 31 : by[l])))
EACH_LANE(population, (Reg a), (u32)__builtin_popcount(a[l]))
EACH_LANE(leading_zeros, (Reg a), a[l] ? (u32)__builtin_clz(a[l]) : 32)

#define EACH_LANE64(name, expression)            \
    Reg64 name(Reg64 a, Reg by) {                \
        for (int l = 0; l < LANES; l++) a[l] = (expression); \
        return a;                                \
    }
EACH_LANE64(shift_left64, by[l] > 63 ? 0 : a[l] << by[l])
EACH_LANE64(shift_right64, by[l] > 63 ? 0 : a[l] >> by[l])
EACH_LANE64(shift_right_signed64, (u64)((s64)a[l] >> (by[l] > 63 ? 63 : by[l])))

INLINE u32 permuted(u32 a, u32 b, u32 selector) {
    u64 source = (u64)b << 32 | a;
    u32 result = 0;
    for (int i = 0; i < 4; i++) {
        u32 select = selector >> (4 * i) & 15;
        u32 byte = source >> (8 * (select & 7)) & 255;
        if (select & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << (8 * i);
    }
    return result;
}
EACH_LANE(permute, (Reg a, Reg b, Reg selector), permuted(a[l], b[l], selector[l]))

// pairs of fp32
typedef float Pairs[2 * LANES];
#define EACH_PAIR(name, parameters, expression)          \
    Reg64 name parameters {                              \
        Pairs x, y, z;                                   \
        memcpy(x, &a, sizeof x), memcpy(y, &b, sizeof y), memcpy(z, &c, sizeof z); \
        for (int i = 0; i < 2 * LANES; i++) x[i] = (expression); \
        memcpy(&a, x, sizeof a);                         \
        return a;                                        \
    }
EACH_PAIR(fma_f32x2, (Reg64 a, Reg64 b, Reg64 c), __builtin_fmaf(x[i], y[i], z[i]))
#define c b
EACH_PAIR(add_f32x2, (Reg64 a, Reg64 b), x[i] + y[i])
EACH_PAIR(mul_f32x2, (Reg64 a, Reg64 b), x[i] * y[i])
#undef c
