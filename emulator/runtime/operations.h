// The operations that PTX instructions are decoded to.
//
// An operand is a slot of the warp's register file, which holds constants and special registers,
// too; 64-bit values take two slots. `active` are the lanes that take part.
#pragma once
#include "machine.h"

INLINE Reg narrow(const Warp *w, int slot) { return w->r[slot]; }
INLINE Reg64 wide(const Warp *w, int slot) { return *(const Reg64 *)&w->r[slot]; }

INLINE void set(Warp *w, const Reg *active, int slot, Reg value) {
    w->r[slot] = choose(*active, value, w->r[slot]);
}
INLINE void set64(Warp *w, const Reg *active, int slot, Reg64 value) {
    Reg64 *to = (Reg64 *)&w->r[slot];
    *to = choose64(extend_signed(*active), value, *to);
}

#define OPERATION(name) void op_##name(Warp *w, const Op *o, const Reg *active)

// A, B, C: the operands; _W: 64-bit
#define A narrow(w, o->a)
#define B narrow(w, o->b)
#define C narrow(w, o->c)
#define A_W wide(w, o->a)
#define B_W wide(w, o->b)
#define C_W wide(w, o->c)
#define NARROW(name, expression) OPERATION(name) { set(w, active, o->to, (Reg)(expression)); }
#define WIDE(name, expression) OPERATION(name) { set64(w, active, o->to, (Reg64)(expression)); }

#define COMPARISONS(X, type) X(eq_##type) X(ne_##type) X(lt_##type) X(le_##type) X(gt_##type) X(ge_##type)

#define OPERATIONS(X)                                                                              \
    X(mov_32) X(mov_16) X(mov_64) X(pack_64) X(unpack_64) X(pack_32) X(unpack_32) X(pack_16)       \
    X(select_32) X(select_64)                                                                      \
    X(add_16) X(add_32) X(add_64) X(sub_16) X(sub_32) X(sub_64) X(mul_16) X(mul_32) X(mul_64)      \
    X(and_32) X(and_64) X(or_32) X(or_64) X(xor_32) X(xor_64) X(not_16) X(not_32) X(not_64)        \
    X(neg_16) X(neg_32) X(neg_64) X(abs_s32)                                                       \
    X(max_s16) X(min_s16) X(max_s32) X(min_s32) X(max_u32) X(min_u32)                              \
    X(mad_32) X(mad_64) X(mad_wide_s32) X(mad_wide_u32)                                            \
    X(mul_wide_s16) X(mul_wide_u16) X(mul_wide_s32) X(mul_wide_u32)                                \
    X(mul_hi_u16) X(mul_hi_s32) X(mul_hi_u32) X(div_s32) X(div_u32) X(rem_s32) X(rem_u32)          \
    X(shl_16) X(shl_32) X(shl_64) X(shr_s16) X(shr_s32) X(shr_u32) X(shr_s64) X(shr_u64)           \
    X(popc) X(clz) X(prmt) X(convert_integer)                                                      \
    X(add_f32) X(sub_f32) X(mul_f32) X(fma_rn_f32) X(fma_rm_f32) X(div_f32) X(max_f32) X(min_f32)  \
    X(neg_f32) X(abs_f32) X(ex2_f32) X(rcp_f32) X(sat_f32)                                         \
    X(add_f32_bf16) X(sub_f32_bf16) X(fma_f32_bf16) X(add_f32x2) X(mul_f32x2) X(fma_f32x2)         \
    X(f32_from_bf16) X(f32_from_s32) X(f32_from_u32) X(bf16_from_f32) X(bf16x2_from_f32)           \
    X(e4m3x2_from_f32)                                                                             \
    COMPARISONS(X, s16) COMPARISONS(X, u32) COMPARISONS(X, s32) COMPARISONS(X, s64)                \
    COMPARISONS(X, u64) COMPARISONS(X, f32) COMPARISONS(X, unordered_f32) X(num_f32) X(nan_f32)    \
    X(load_parameter) X(load_global) X(load_acquire) X(load_shared) X(store_global) X(store_shared)\
    X(store_matrices) X(store_async) X(atomic_global) X(copy_async) X(copy_arrive) X(copy_commit) X(copy_wait)       \
    X(tma_load) X(tma_store) X(store_commit) X(store_wait) X(fence_proxy) X(nothing) X(sleep)      \
    X(mbarrier_init) X(mbarrier_arrive) X(mbarrier_arrive_expect) X(mbarrier_expect)               \
    X(mbarrier_test) X(map_to_cta) X(sync_lanes) X(sync_threads) X(fence_inits) X(cluster_arrive) X(cluster_wait) \
    X(trigger_launch) X(wait_for_launch)                                                           \
    X(shuffle) X(ballot) X(vote_any) X(vote_all) X(reduce) X(elect) X(active_mask)                 \
    X(wgmma) X(wgmma_commit) X(wgmma_wait) X(tcgen05_alloc) X(tcgen05_dealloc) X(tcgen05_mma)      \
    X(tcgen05_commit) X(tcgen05_load) X(tcgen05_store) X(tcgen05_wait_loads) X(tcgen05_wait_stores)

#define DECLARE(name) OPERATION(name);
OPERATIONS(DECLARE)
#undef DECLARE
