// A warp's registers as vectors of 32 lanes, and the arithmetic on them.
//
// Values of 32 bits or fewer and predicates (all bits set or none) are a Reg, 64-bit ones a Reg64.
// A 16-bit value has its upper half clear.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef int8_t s8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t s32;
typedef int64_t s64;

#define LANES 32
typedef u32 Reg __attribute__((vector_size(4 * LANES)));
typedef s32 RegS __attribute__((vector_size(4 * LANES)));
typedef float RegF __attribute__((vector_size(4 * LANES)));
typedef u64 Reg64 __attribute__((vector_size(8 * LANES)));
typedef s64 Reg64S __attribute__((vector_size(8 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define CONVERT(x, type) __builtin_convertvector(x, type)
#define FOR_LANES(mask) for (int l = 0; l < LANES; l++) if ((mask)[l])

static const Reg LANE_IDS = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                             16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

INLINE Reg splat(u32 x) { return (Reg){} + x; }
INLINE Reg64 splat64(u64 x) { return (Reg64){} + x; }
INLINE Reg64 extend(Reg x) { return CONVERT(x, Reg64); }
// of a mask, or with the sign
INLINE Reg64 extend_signed(Reg x) { return (Reg64)CONVERT((RegS)x, Reg64S); }
INLINE Reg low(Reg64 x) { return CONVERT(x, Reg); }
INLINE Reg high(Reg64 x) { return CONVERT(x >> 32, Reg); }
INLINE Reg64 join(Reg lower, Reg upper) { return extend(lower) | extend(upper) << 32; }
INLINE Reg choose(Reg mask, Reg yes, Reg no) { return (mask & yes) | (~mask & no); }
INLINE Reg64 choose64(Reg64 mask, Reg64 yes, Reg64 no) { return (mask & yes) | (~mask & no); }
INLINE Reg sign_extend(Reg x, int bits) { return (Reg)((RegS)(x << (32 - bits)) >> (32 - bits)); }

INLINE u32 ballot(Reg mask) {
    u32 bits = 0;
    for (int l = 0; l < LANES; l++) bits |= (mask[l] & 1u) << l;
    return bits;
}
INLINE Reg lanes_of(u32 bits) { return -((splat(bits) >> LANE_IDS) & 1u); }

INLINE float as_float(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
INLINE u32 as_bits(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}

// arithmetic.c: what is not one vector expression
Reg fma_nearest(Reg a, Reg b, Reg c);
Reg fma_down(Reg a, Reg b, Reg c);
Reg divide(Reg a, Reg b);
Reg maximum(Reg a, Reg b);
Reg minimum(Reg a, Reg b);
Reg saturate(Reg a);
Reg approximate_ex2(Reg a);
Reg approximate_rcp(Reg a);
Reg to_bf16(Reg a);
Reg to_bf16x2(Reg upper, Reg lower);
Reg to_e4m3x2(Reg upper, Reg lower);
Reg divide_s32(Reg a, Reg b);
Reg remainder_s32(Reg a, Reg b);
Reg divide_u32(Reg a, Reg b);
Reg remainder_u32(Reg a, Reg b);
Reg shift_left(Reg a, Reg by);
Reg shift_right(Reg a, Reg by);
Reg shift_right_signed(Reg a, Reg by);
Reg64 shift_left64(Reg64 a, Reg by);
Reg64 shift_right64(Reg64 a, Reg by);
Reg64 shift_right_signed64(Reg64 a, Reg by);
Reg population(Reg a);
Reg leading_zeros(Reg a);
Reg permute(Reg a, Reg b, Reg selector);
Reg64 add_f32x2(Reg64 a, Reg64 b);
Reg64 mul_f32x2(Reg64 a, Reg64 b);
Reg64 fma_f32x2(Reg64 a, Reg64 b, Reg64 c);
