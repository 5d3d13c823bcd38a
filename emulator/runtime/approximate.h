// ex2.approx.ftz.f32 and rcp.approx.ftz.f32 as an H100 computes them, equal for all 2^32 arguments
// (hardware/verify.py). The tables are of the results' bits, see tables.py.
#pragma once
#include "lanes.h"

#define BINADE (1u << 23)

extern const u32 *ex2_table, *rcp_table;

// A number by the bits of one with the exponent 0 to -1, times a power of two; flushed to zero.
INLINE u32 scaled(u32 bits, s32 power) {
    s32 exponent = (s32)(bits >> 23) + power;
    if (exponent <= 0) return 0;
    return exponent >= 255 ? 0x7f800000 : bits + ((u32)power << 23);
}

// x is cut to multiples of 2^-23; a negative one is then complemented, not negated, but for the
// integers.
INLINE u32 ex2(u32 a) {
    float x = fabsf(as_float(a));
    int negative = a >> 31;
    if (x != x) return 0x7fffffff;
    if (x >= 256) return negative ? 0 : 0x7f800000;
    s32 steps = (s32)(x * BINADE);
    if (negative) steps = steps & (BINADE - 1) ? ~steps : -steps;
    return scaled(ex2_table[steps & (BINADE - 1)], steps >> 23);
}

INLINE u32 rcp(u32 a) {
    u32 sign = a & 0x80000000u, biased = a >> 23 & 255, fraction = a & (BINADE - 1);
    if (biased == 255) return fraction ? 0x7fffffff : sign;
    if (biased == 0) return sign | 0x7f800000;
    return sign | scaled(rcp_table[fraction], 127 - (s32)biased);
}
