#include "operations.h"

// moves
NARROW(mov_32, A)
NARROW(mov_16, A & 0xffffu)
WIDE(mov_64, A_W)
WIDE(pack_64, join(A, B))
NARROW(pack_32, (A & 0xffffu) | B << 16)
NARROW(pack_16, (A & 0xffu) | (B & 0xffu) << 8)
OPERATION(unpack_64) {
    Reg64 whole = A_W;
    set(w, active, o->to, low(whole)), set(w, active, o->to2, high(whole));
}
OPERATION(unpack_32) {
    Reg whole = A;
    set(w, active, o->to, whole & 0xffffu), set(w, active, o->to2, whole >> 16);
}
NARROW(select_32, choose(C, A, B))
WIDE(select_64, choose64(extend_signed(C), A_W, B_W))

// integers
#define OF_EACH_WIDTH(name, operator)                 \
    NARROW(name##_16, (A operator B) & 0xffffu)       \
    NARROW(name##_32, A operator B)                   \
    WIDE(name##_64, A_W operator B_W)
#define LOGIC(name, operator)                         \
    NARROW(name##_32, A operator B)                   \
    WIDE(name##_64, A_W operator B_W)
OF_EACH_WIDTH(add, +)
OF_EACH_WIDTH(sub, -)
OF_EACH_WIDTH(mul, *)
LOGIC(and, &)
LOGIC(or, |)
LOGIC(xor, ^)
NARROW(not_16, ~A & 0xffffu)
NARROW(not_32, ~A)
WIDE(not_64, ~A_W)
NARROW(neg_16, -A & 0xffffu)
NARROW(neg_32, -A)
WIDE(neg_64, -A_W)
NARROW(abs_s32, choose((Reg)((RegS)A < 0), -A, A))
#define S16(x) ((RegS)sign_extend(x, 16))
NARROW(max_s16, choose((Reg)(S16(A) > S16(B)), A, B))
NARROW(min_s16, choose((Reg)(S16(A) < S16(B)), A, B))
NARROW(max_s32, choose((Reg)((RegS)A > (RegS)B), A, B))
NARROW(min_s32, choose((Reg)((RegS)A < (RegS)B), A, B))
NARROW(max_u32, choose((Reg)(A > B), A, B))
NARROW(min_u32, choose((Reg)(A < B), A, B))
NARROW(mad_32, A * B + C)
WIDE(mad_64, A_W * B_W + C_W)
NARROW(mul_wide_s16, S16(A) * S16(B))
NARROW(mul_wide_u16, (A & 0xffffu) * (B & 0xffffu))
WIDE(mul_wide_s32, extend_signed(A) * extend_signed(B))
WIDE(mul_wide_u32, extend(A) * extend(B))
WIDE(mad_wide_s32, extend_signed(A) * extend_signed(B) + C_W)
WIDE(mad_wide_u32, extend(A) * extend(B) + C_W)
NARROW(mul_hi_u16, (A & 0xffffu) * (B & 0xffffu) >> 16)
NARROW(mul_hi_s32, high(extend_signed(A) * extend_signed(B)))
NARROW(mul_hi_u32, high(extend(A) * extend(B)))
NARROW(div_s32, divide_s32(A, B))
NARROW(div_u32, divide_u32(A, B))
NARROW(rem_s32, remainder_s32(A, B))
NARROW(rem_u32, remainder_u32(A, B))
NARROW(shl_16, shift_left(A, B) & 0xffffu)
NARROW(shl_32, shift_left(A, B))
WIDE(shl_64, shift_left64(A_W, B))
NARROW(shr_s16, shift_right_signed(sign_extend(A, 16), B) & 0xffffu)
NARROW(shr_s32, shift_right_signed(A, B))
NARROW(shr_u32, shift_right(A, B))
WIDE(shr_s64, shift_right_signed64(A_W, B))
WIDE(shr_u64, shift_right64(A_W, B))
NARROW(popc, population(A))
NARROW(clz, leading_zeros(A))
NARROW(prmt, permute(A, B, C))

// From x bits to y; negative: signed.
OPERATION(convert_integer) {
    int bits = o->x < 0 ? -o->x : o->x, to = o->y < 0 ? -o->y : o->y;
    Reg value = bits == 64 ? low(A_W) : A;
    if (bits < 32) value = o->x < 0 ? sign_extend(value, bits) : value & ((1u << bits) - 1);
    if (to == 64) {
        set64(w, active, o->to, bits == 64 ? A_W : o->x < 0 ? extend_signed(value) : extend(value));
        return;
    }
    if (to == 8) value = o->y < 0 ? sign_extend(value, 8) : value & 0xffu;
    set(w, active, o->to, to < 32 ? value & 0xffffu : value);
}

// fp32
#define REAL(x) ((RegF)(x))
NARROW(add_f32, REAL(A) + REAL(B))
NARROW(sub_f32, REAL(A) - REAL(B))
NARROW(mul_f32, REAL(A) * REAL(B))
NARROW(fma_rn_f32, fma_nearest(A, B, C))
NARROW(fma_rm_f32, fma_down(A, B, C))
NARROW(div_f32, divide(A, B))
NARROW(max_f32, maximum(A, B))
NARROW(min_f32, minimum(A, B))
NARROW(neg_f32, A ^ 0x80000000u)
NARROW(abs_f32, A & 0x7fffffffu)
NARROW(ex2_f32, approximate_ex2(A))
NARROW(rcp_f32, approximate_rcp(A))
NARROW(sat_f32, saturate(A))
NARROW(add_f32_bf16, REAL(A << 16) + REAL(B))
NARROW(sub_f32_bf16, REAL(A << 16) - REAL(B))
NARROW(fma_f32_bf16, fma_nearest(A << 16, B << 16, C))
WIDE(add_f32x2, add_f32x2(A_W, B_W))
WIDE(mul_f32x2, mul_f32x2(A_W, B_W))
WIDE(fma_f32x2, fma_f32x2(A_W, B_W, C_W))
NARROW(f32_from_bf16, A << 16)
NARROW(f32_from_s32, CONVERT((RegS)A, RegF))
NARROW(f32_from_u32, CONVERT(A, RegF))
NARROW(bf16_from_f32, to_bf16(A))
NARROW(bf16x2_from_f32, to_bf16x2(A, B))
NARROW(e4m3x2_from_f32, to_e4m3x2(A, B))

// comparisons
#define COMPARE(type, result, x, y)                   \
    NARROW(eq_##type, result(x == y))                 \
    NARROW(ne_##type, result(x != y))                 \
    NARROW(lt_##type, result(x < y))                  \
    NARROW(le_##type, result(x <= y))                 \
    NARROW(gt_##type, result(x > y))                  \
    NARROW(ge_##type, result(x >= y))
#define ORDERED ((Reg)(REAL(A) == REAL(A)) & (Reg)(REAL(B) == REAL(B)))
#define MASK(x) (Reg)(x)
#define MASK_OF_WIDE(x) low((Reg64)(x))
#define MASK_IF_ORDERED(x) ((Reg)(x) & ORDERED)
#define MASK_OR_UNORDERED(x) ((Reg)(x) | ~ORDERED)
COMPARE(s16, MASK, S16(A), S16(B))
COMPARE(u32, MASK, A, B)
COMPARE(s32, MASK, (RegS)A, (RegS)B)
COMPARE(s64, MASK_OF_WIDE, (Reg64S)A_W, (Reg64S)B_W)
COMPARE(u64, MASK_OF_WIDE, A_W, B_W)
COMPARE(f32, MASK_IF_ORDERED, REAL(A), REAL(B))
COMPARE(unordered_f32, MASK_OR_UNORDERED, REAL(A), REAL(B))
NARROW(num_f32, ORDERED)
NARROW(nan_f32, ~ORDERED)
