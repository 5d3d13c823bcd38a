#include "mbarrier.h"

#include <stdlib.h>

static Mbarrier *find(Warp *w, u32 address, Cta **owner) {
    check_aligned(w, "mbarrier", address, 8);
    *owner = shared_owner(w, address, 8);
    return (Mbarrier *)((*owner)->shared + SHARED_OFFSET(address));
}

static void finish_phase(Cta *owner, u32 address, Mbarrier *m, int racer) {
    Grid *grid = owner->grid;
    u32 **arriving = grid->race ? &owner->mbarrier_arriving[SHARED_OFFSET(address) / 8] : 0;
    if (arriving) release(grid, racer, arriving);
    grid->progress++;
    if (m->missing || m->bytes) return;
    m->phase ^= 1;
    m->missing = m->expected;
    if (arriving) {
        u32 **done = &owner->mbarrier_done[SHARED_OFFSET(address) / 8];
        if (!*done) *done = calloc(grid->race->racers, sizeof(u32));
        for (int i = 0; i < grid->race->racers; i++)
            if ((*arriving)[i] > (*done)[i]) (*done)[i] = (*arriving)[i];
    }
}

void arrive(Warp *w, u32 address, u32 count, int racer) {
    Cta *owner;
    Mbarrier *m = find(w, address, &owner);
    read_shared(owner, SHARED_OFFSET(address), 8, (Access){racer, ANY_LANE, w->line, w->epoch});
    if (m->missing < count)
        fault(w, "mbarrier %#x: %u arrivals, %u of %u were missing", address, count, (u32)m->missing, (u32)m->expected);
    m->missing -= count;
    finish_phase(owner, address, m, racer);
}

void complete_bytes(Warp *w, u32 address, u32 bytes, int racer) {
    Cta *owner;
    Mbarrier *m = find(w, address, &owner);
    read_shared(owner, SHARED_OFFSET(address), 8, (Access){racer, ANY_LANE, w->line, w->epoch});
    m->bytes -= bytes;
    finish_phase(owner, address, m, racer);
}

void mbarrier_init(Warp *w, Reg active, Reg at, Reg count) {
    FOR_LANES(active) {
        Cta *owner;
        Mbarrier *m = find(w, at[l], &owner);
        write_shared(owner, SHARED_OFFSET(at[l]), 8, of_lane(w, l));
        *m = (Mbarrier){.word = 0};
        m->expected = m->missing = count[l];
    }
    w->cta->grid->progress++;
}

void mbarrier_arrive(Warp *w, Reg active, Reg at, Reg count) {
    FOR_LANES(active) arrive(w, at[l], count[l], w->racer);
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
        arrive(w, at[l], 1, w->racer);
    }
}

Reg mbarrier_test(Warp *w, Reg active, Reg at, Reg parity, int always) {
    Reg passed = {};
    FOR_LANES(active) {
        Cta *owner;
        Mbarrier *m = find(w, at[l], &owner);
        read_shared(owner, SHARED_OFFSET(at[l]), 8, (Access){w->racer, ANY_LANE, w->line, w->epoch});
        if (always) {
            passed[l] = ~0u;
        } else if (m->phase != (parity[l] & 1)) {
            passed[l] = ~0u;
            if (owner->grid->race) acquire(owner->grid, w->racer, owner->mbarrier_done[SHARED_OFFSET(at[l]) / 8]);
            w->epoch++;
        } else {
            yield(w, FOR_MBARRIER, at[l], parity[l] & 1);
        }
    }
    return passed;
}
