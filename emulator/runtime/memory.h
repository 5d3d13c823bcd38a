// Addresses, with their checks.
#pragma once
#include "race.h"

// A CTA of the cluster whose memory is accessed: it must have started, and not have ended.
INLINE Cta *peer(Warp *w, u32 rank) {
    Cta *cta = w->cta->cluster[rank];
    if (__builtin_expect(cta != w->cta && cta->life != PRESENT, 0))
        fault(w, "shared memory of cta %u %u %u, which %s", cta->id[0], cta->id[1], cta->id[2],
              cta->life == ENDED ? "has ended" : "need not have started");
    return cta;
}

INLINE Cta *shared_owner(Warp *w, u32 address, u32 bytes) {
    Cta *cta = w->cta;
    u32 rank = SHARED_RANK(address), offset = SHARED_OFFSET(address);
    if (__builtin_expect(rank >= cta->cluster_size || offset + bytes > SHARED_BYTES, 0))
        fault(w, "shared address %#x (%u bytes) is outside the memory of the cluster's %u CTAs", address, bytes, cta->cluster_size);
    return peer(w, rank);
}

INLINE u8 *global(Warp *w, u64 address, u32 bytes) {
    Grid *grid = w->cta->grid;
    Range range = grid->ranges[grid->last_range];
    if (__builtin_expect(address >= range.first && address + bytes <= range.end, 1)) return (u8 *)address;
    for (u32 i = 0; i < grid->num_ranges; i++) {
        range = grid->ranges[i];
        if (address >= range.first && address + bytes <= range.end) {
            grid->last_range = i;
            return (u8 *)address;
        }
    }
    fault(w, "global address %#lx (%u bytes) is in no buffer", address, bytes);
}

INLINE void check_aligned(Warp *w, const char *space, u64 address, u32 bytes) {
    if (__builtin_expect(address % bytes, 0))
        fault(w, "%s address %#lx is not aligned to %u bytes", space, address, bytes);
}

// The generic proxy has written; the asynchronous proxy reads, so a fence must lie between.
void written(Warp *w, Cta *cta, u32 offset, u32 bytes);
void read_by_async_proxy(Operation *o, Cta *cta, u32 offset, u32 bytes);
void written_by_async_proxy(Cta *cta, u32 offset, u32 bytes);
