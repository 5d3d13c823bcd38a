#include "memory.h"

#include <stdio.h>

void written(Warp *w, Cta *cta, u32 offset, u32 bytes) {
    for (u32 i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; i++)
        cta->written[i] = (Written){cta->grid->time, w};
}

void written_by_async_proxy(Cta *cta, u32 offset, u32 bytes) {
    for (u32 i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; i++) cta->written[i].when = 0;
}

void read_by_async_proxy(Operation *o, Cta *cta, u32 offset, u32 bytes) {
    for (u32 i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; i++) {
        Written last = cta->written[i];
        if (!last.when || last.when <= o->fenced || last.when <= last.writer->fenced) continue;
        Grid *grid = cta->grid;
        if (!grid->counters.proxy_violations++ && !grid->run->message[0])
            snprintf(message_of(grid), MESSAGE_BYTES,
                     "no proxy fence between a store by warp %d and the asynchronous read (PTX line %d) of shared memory %#x of cta %u",
                     last.writer->index, o->line, i * GRANULE, cta->id[0]);
    }
}

void fence_proxy(Warp *w) { w->fenced = w->cta->grid->time; }
void fence_global(Warp *w, Reg active) {
    Race *race = w->cta->grid->race;
    FOR_LANES(active) if (race) release(w->cta->grid, of_lane(w, l), &race->fenced);
}

// ----------------------------------------------------------------------------------- loads, stores
// A register may be wider than what is loaded to it (the rest is zero) or stored from it.
INLINE void to_slot(Warp *w, int lane, int bytes, int wide, u16 slot, const u8 *from) {
    if (wide) {
        u64 value = 0;
        memcpy(&value, from, bytes);
        memcpy((u64 *)&w->r[slot] + lane, &value, 8);
    } else {
        u32 value = 0;
        memcpy(&value, from, bytes);
        w->r[slot][lane] = value;
    }
}
INLINE void from_slot(const Warp *w, int lane, int bytes, int wide, u16 slot, u8 *to) {
    memcpy(to, (const u8 *)&w->r[slot] + lane * (wide ? 8 : 4), bytes);
}

void load_parameter(Warp *w, Reg active, Reg64 from, int bytes, int wide, int n, const u16 *slots) {
    Grid *grid = w->cta->grid;
    FOR_LANES(active) {
        u64 offset = from[l] - (u64)grid->parameters;
        if (offset + bytes * n > grid->parameter_bytes) fault(w, "parameter at byte %ld of %u", (s64)offset, grid->parameter_bytes);
        for (int i = 0; i < n; i++) to_slot(w, l, bytes, wide, slots[i], grid->parameters + offset + i * bytes);
    }
}

void load_global(Warp *w, Reg active, Reg64 from, int bytes, int wide, int n, const u16 *slots) {
    FOR_LANES(active) {
        check_aligned(w, "global", from[l], bytes * n);
        const u8 *memory = global(w, from[l], bytes * n);
        read_global(w->cta->grid, from[l], bytes * n, of_lane(w, l));
        for (int i = 0; i < n; i++) to_slot(w, l, bytes, wide, slots[i], memory + i * bytes);
        w->cta->grid->counters.global_load_bytes += bytes * n;
    }
}

void load_acquire(Warp *w, Reg active, Reg64 from, int bytes, int wide, int n, const u16 *slots) {
    FOR_LANES(active) {
        check_aligned(w, "global", from[l], bytes * n);
        const u8 *memory = global(w, from[l], bytes * n);
        acquire_global(w, from[l] == from[__builtin_ctz(ballot(active))] ? ballot(active) : 1u << l, from[l]);
        for (int i = 0; i < n; i++) to_slot(w, l, bytes, wide, slots[i], memory + i * bytes);
        yield(w, FOR_GLOBAL, from[l], 0);  // a loop may wait for another value
    }
}

// Shared memory serves 32 words at a time, one of each bank: of all lanes, or of as many as ask for
// 32 words. Each further word of a bank takes it another turn, which is counted per PTX line.
static void count_conflicts(const Warp *w, Reg active, Reg at, int bytes) {
    u64 *conflicts = w->cta->grid->conflicts;
    if (!conflicts) return;
    int lanes = bytes > 4 ? LANES * 4 / bytes : LANES;
    for (int first = 0; first < LANES; first += lanes) {
        u32 words[BANKS][LANES], used[BANKS] = {}, turns = 1;
        for (int l = first; l < first + lanes; l++) {
            for (u32 word = at[l] / 4; active[l] && word <= (at[l] + bytes - 1) / 4; word++) {
                u32 bank = word % BANKS, k = 0;
                while (k < used[bank] && words[bank][k] != word) k++;
                if (k < used[bank]) continue;
                words[bank][used[bank]++] = word;
                if (used[bank] > turns) turns = used[bank];
            }
        }
        conflicts[w->line] += turns - 1;
    }
}

void load_shared(Warp *w, Reg active, Reg from, int bytes, int wide, int n, const u16 *slots) {
    count_conflicts(w, active, from, bytes * n);
    FOR_LANES(active) {
        check_aligned(w, "shared", from[l], bytes * n);
        Cta *owner = shared_owner(w, from[l], bytes * n);
        u32 offset = SHARED_OFFSET(from[l]);
        read_shared(owner, offset, bytes * n, of_lane(w, l));
        for (int i = 0; i < n; i++) to_slot(w, l, bytes, wide, slots[i], owner->shared + offset + i * bytes);
        w->cta->grid->counters.shared_load_bytes += bytes * n;
    }
}

void store_global(Warp *w, Reg active, Reg64 to, int bytes, int wide, int n, const u16 *slots) {
    FOR_LANES(active) {
        check_aligned(w, "global", to[l], bytes * n);
        u8 *memory = global(w, to[l], bytes * n);
        write_global(w->cta->grid, to[l], bytes * n, of_lane(w, l));
        for (int i = 0; i < n; i++) from_slot(w, l, bytes, wide, slots[i], memory + i * bytes);
        w->cta->grid->counters.global_store_bytes += bytes * n;
    }
    w->cta->grid->run->progress++;
}

void store_shared(Warp *w, Reg active, Reg to, int bytes, int wide, int n, const u16 *slots) {
    w->cta->grid->time++;
    count_conflicts(w, active, to, bytes * n);
    FOR_LANES(active) {
        check_aligned(w, "shared", to[l], bytes * n);
        Cta *owner = shared_owner(w, to[l], bytes * n);
        u32 offset = SHARED_OFFSET(to[l]);
        write_shared(owner, offset, bytes * n, of_lane(w, l));
        for (int i = 0; i < n; i++) from_slot(w, l, bytes, wide, slots[i], owner->shared + offset + i * bytes);
        written(w, owner, offset, bytes * n);
        w->cta->grid->counters.shared_store_bytes += bytes * n;
    }
    w->cta->grid->run->progress++;
}

// n matrices of 8 x 8 16-bit elements: lane l holds (l / 4, 2 (l % 4)) and the next of each, and
// lanes 8 i to 8 i + 7 where the rows of matrix i go.
void store_matrices(Warp *w, Reg to, int n, const u16 *slots, int transposed) {
    w->cta->grid->time++;
    count_conflicts(w, (Reg)(LANE_IDS < splat(8 * n)), to, 16);
    for (int i = 0; i < n; i++)
        for (int l = 0; l < LANES; l++)
            for (int e = 0; e < 2; e++) {
                int row = l / 4, column = 2 * (l % 4) + e;
                u32 line = to[8 * i + (transposed ? column : row)];
                u32 at = line + 2 * (transposed ? row : column);
                check_aligned(w, "shared", line, 16);
                Cta *owner = shared_owner(w, at, 2);
                write_shared(owner, SHARED_OFFSET(at), 2, of_lane(w, l));
                memcpy(owner->shared + SHARED_OFFSET(at), (const u8 *)&w->r[slots[i]] + 4 * l + 2 * e, 2);
                written(w, owner, SHARED_OFFSET(at), 2);
            }
    w->cta->grid->counters.shared_store_bytes += 128 * n;
    w->cta->grid->run->progress++;
}

Reg atomic_global(Warp *w, Reg active, Reg64 at, Reg value, Reg swap, Atomic operation, int acquires, int releases) {
    Reg before = {};
    FOR_LANES(active) {
        check_aligned(w, "global", at[l], 4);
        u32 *word = (u32 *)global(w, at[l], 4), old = *word, x = value[l];
        if (releases) release_global(w, l, at[l]);
        if (acquires) acquire_global(w, 1u << l, at[l]);
        switch (operation) {
        case ADD: *word = old + x; break;
        case MAX_S32: *word = (s32)x > (s32)old ? x : old; break;
        case MIN_S32: *word = (s32)x < (s32)old ? x : old; break;
        case AND: *word = old & x; break;
        case OR: *word = old | x; break;
        case EXCHANGE: *word = x; break;
        case COMPARE_EXCHANGE: *word = old == x ? swap[l] : old; break;
        }
        before[l] = old;
    }
    w->cta->grid->run->progress++;
    return before;
}
