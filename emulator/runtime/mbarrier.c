#include "mbarrier.h"

#include <stdlib.h>

static Mbarrier *find(Warp *w, u32 address, Cta **owner) {
    check_aligned(w, "mbarrier", address, 8);
    *owner = shared_owner(w, address, 8);
    return (Mbarrier *)((*owner)->shared + SHARED_OFFSET(address));
}

static void finish_phase(Cta *owner, u32 address, Mbarrier *m, Access by) {
    Grid *grid = owner->grid;
    Time **arriving = grid->race ? &owner->mbarrier_arriving[SHARED_OFFSET(address) / 8] : 0;
    if (arriving) release(grid, by, arriving);
    grid->run->progress++;
    if (m->missing || m->bytes) return;
    m->phase ^= 1;
    m->missing = m->expected;
    if (arriving) pass_on(grid, *arriving, &owner->mbarrier_done[SHARED_OFFSET(address) / 8]);
}

void arrive(Warp *w, u32 address, u32 count, Access by) {
    Cta *owner;
    Mbarrier *m = find(w, address, &owner);
    read_shared(owner, SHARED_OFFSET(address), 8, by);
    if (m->missing < count)
        fault(w, "mbarrier %#x: %u arrivals, %u of %u were missing", address, count, (u32)m->missing, (u32)m->expected);
    m->missing -= count;
    finish_phase(owner, address, m, by);
}

void complete_bytes(Warp *w, u32 address, u32 bytes, Access by) {
    Cta *owner;
    Mbarrier *m = find(w, address, &owner);
    read_shared(owner, SHARED_OFFSET(address), 8, by);
    m->bytes -= bytes;
    finish_phase(owner, address, m, by);
}

void mbarrier_init(Warp *w, Reg active, Reg at, Reg count) {
    FOR_LANES(active) {
        Cta *owner;
        Mbarrier *m = find(w, at[l], &owner);
        write_shared(owner, SHARED_OFFSET(at[l]), 8, of_lane(w, l));
        *m = (Mbarrier){.word = 0};
        m->expected = m->missing = count[l];
    }
    w->cta->grid->run->progress++;
}

void mbarrier_arrive(Warp *w, Reg active, Reg at, Reg count) {
    FOR_LANES(active) arrive(w, at[l], count[l], of_lane(w, l));
}

void mbarrier_expect(Warp *w, Reg active, Reg at, Reg bytes) {
    FOR_LANES(active) {
        Cta *owner;
        find(w, at[l], &owner)->bytes += bytes[l];
    }
}

void mbarrier_arrive_expect(Warp *w, Reg active, Reg at, Reg bytes) {
    FOR_LANES(active) {
        Cta *owner;
        find(w, at[l], &owner)->bytes += bytes[l];
        arrive(w, at[l], 1, of_lane(w, l));
    }
}

Reg mbarrier_test(Warp *w, Reg active, Reg at, Reg parity, int always) {
    Reg passed = {};
    FOR_LANES(active) {
        Cta *owner;
        Mbarrier *m = find(w, at[l], &owner);
        read_shared(owner, SHARED_OFFSET(at[l]), 8, of_lane(w, l));
        if (always || m->phase != (parity[l] & 1)) passed[l] = ~0u;
        else yield(w, FOR_MBARRIER, at[l], parity[l] & 1);
    }
    for (u32 left = always || !w->cta->grid->race ? 0 : ballot(passed); left;) {
        u32 address = at[__builtin_ctz(left)], same = left & ballot((Reg)(at == splat(address)));
        acquire(w, same, w->cta->cluster[SHARED_RANK(address)]->mbarrier_done[SHARED_OFFSET(address) / 8]);
        left &= ~same;
    }
    return passed;
}
