// Operations on memory, barriers, copies and tensor cores: they hand their operands on.
#include "operations.h"

#define ADDRESS (narrow(w, o->a) + (u32)o->offset)
#define ADDRESS_W (wide(w, o->a) + (u64)o->offset)
#define SLOTS (w->cta->grid->program->pool + o->list)

OPERATION(nothing) {}
OPERATION(sleep) { yield(w, FOR_TIME, 0, 0); }

// x: bytes of an element; y: whether registers have 64 bits
OPERATION(load_parameter) { load_parameter(w, *active, ADDRESS_W, o->x, o->y, o->n, SLOTS); }
OPERATION(load_global) { load_global(w, *active, ADDRESS_W, o->x, o->y, o->n, SLOTS); }
OPERATION(load_acquire) { load_acquire(w, *active, ADDRESS_W, o->x, o->y, o->n, SLOTS); }
OPERATION(load_shared) { load_shared(w, *active, ADDRESS, o->x, o->y, o->n, SLOTS); }
OPERATION(store_global) { store_global(w, *active, ADDRESS_W, o->x, o->y, o->n, SLOTS); }
OPERATION(store_shared) { store_shared(w, *active, ADDRESS, o->x, o->y, o->n, SLOTS); }
OPERATION(store_matrices) { store_matrices(w, ADDRESS, o->n, SLOTS, o->x); }
OPERATION(store_async) { store_async(w, *active, ADDRESS, o->n, SLOTS, B + o->x); }
OPERATION(atomic_global) {
    set(w, active, o->to, atomic_global(w, *active, ADDRESS_W, B, C, o->x, o->y & 1, o->y >> 1));
}
OPERATION(fence_proxy) {
    if (o->x) fence_proxy(w);
    if (o->y) fence_global(w, *active);
}

// x: bytes of a copy; groups that may be pending
OPERATION(copy_async) { copy_async(w, *active, narrow(w, o->a) + (u32)o->y, wide(w, o->b) + (u64)o->offset, o->x, C); }
OPERATION(copy_arrive) { copy_arrive(w, *active, ADDRESS); }
OPERATION(copy_commit) { commit_group(w, &w->copies); }
OPERATION(copy_wait) { wait_groups(w, &w->copies, o->x); }
OPERATION(store_commit) { commit_group(w, &w->stores); }
OPERATION(store_wait) { wait_groups(w, &w->stores, o->x); }

// The list is the coordinates; a: descriptor, b and c: shared memory and mbarrier, to2: multicast.
static void coordinates(const Warp *w, const Op *o, Reg *to) {
    for (int i = 0; i < o->n; i++) to[i] = narrow(w, SLOTS[i]);
}
OPERATION(tma_load) {
    Reg at[5];
    coordinates(w, o, at);
    Reg multicast = o->to2 == NO_SLOT ? splat(0) : narrow(w, o->to2);
    tma_load(w, *active, wide(w, o->a), o->n, at, B + (u32)o->offset, C + (u32)o->x, multicast, o->y & 1, o->y >> 1);
}
OPERATION(tma_store) {
    Reg at[5];
    coordinates(w, o, at);
    tma_store(w, *active, wide(w, o->a), o->n, at, B + (u32)o->offset);
}

OPERATION(mbarrier_init) { mbarrier_init(w, *active, ADDRESS, B); }
OPERATION(mbarrier_arrive) { mbarrier_arrive(w, *active, ADDRESS, B); }
OPERATION(mbarrier_arrive_expect) { mbarrier_arrive_expect(w, *active, ADDRESS, B); }
OPERATION(mbarrier_expect) { mbarrier_expect(w, *active, ADDRESS, B); }
OPERATION(mbarrier_test) {
    set(w, active, o->to, mbarrier_test(w, *active, ADDRESS, B, w->cta->grid->omitted == o->line));
}
NARROW(map_to_cta, (A & 0xffffffu) | B << 24)

OPERATION(sync_lanes) { sync_lanes(w); }
OPERATION(sync_threads) { sync_threads(w, A[0], B[0], o->x); }
OPERATION(fence_inits) { fence_inits(w, *active); }
OPERATION(cluster_arrive) { cluster_arrive(w, o->x); }
OPERATION(cluster_wait) { cluster_wait(w); }
OPERATION(trigger_launch) { trigger_launch(w); }
OPERATION(wait_for_launch) { wait_for_launch(w); }
OPERATION(shuffle) {
    Reg in_range, value = shuffle(w, *active, A, B, C, o->x, &in_range);
    set(w, active, o->to, value);
    if (o->to2 != NO_SLOT) set(w, active, o->to2, in_range);
}
NARROW(ballot, splat(ballot(*active & A)))
NARROW(vote_any, splat(ballot(*active & A) ? ~0u : 0))
NARROW(vote_all, splat(ballot(*active & ~A) ? 0 : ~0u))
NARROW(reduce, splat(reduce(*active, A, o->x)))
NARROW(active_mask, splat(ballot(*active)))
OPERATION(elect) {
    Reg first = splat(__builtin_ctz(ballot(*active)));
    set(w, active, o->to, first);
    set(w, active, o->to2, (Reg)(LANE_IDS == first));
}

// x: columns; the shape of a transfer; CTAs
OPERATION(wgmma) { wgmma(w, A_W, B_W, C, o->x, SLOTS); }
OPERATION(wgmma_commit) { commit_group(w, &w->wgmmas); }
OPERATION(wgmma_wait) { wait_groups(w, &w->wgmmas, o->x); }
OPERATION(tcgen05_alloc) { tcgen05_alloc(w, ADDRESS, B, o->x); }
OPERATION(tcgen05_dealloc) { tcgen05_dealloc(w, A, B, o->x); }
// The list is the instruction descriptor, whether to accumulate, and masks of disabled output lanes.
OPERATION(tcgen05_mma) {
    for (int i = 2; i < o->n; i++)
        if (ballot(*active & (Reg)(narrow(w, SLOTS[i]) != 0))) fault(w, "tcgen05.mma with disabled output lanes is not known");
    tcgen05_mma(w, *active, ADDRESS, B_W, C_W, narrow(w, SLOTS[0]), narrow(w, SLOTS[1]), o->x);
}
OPERATION(tcgen05_commit) { tcgen05_commit(w, *active, ADDRESS, o->x, B); }
OPERATION(tcgen05_load) { tcgen05_load(w, ADDRESS, o->x, o->n, SLOTS); }
OPERATION(tcgen05_store) { tcgen05_store(w, ADDRESS, o->x, o->n, SLOTS); }
OPERATION(tcgen05_wait_loads) { tcgen05_wait_loads(w); }
OPERATION(tcgen05_wait_stores) { tcgen05_wait_stores(w); }
