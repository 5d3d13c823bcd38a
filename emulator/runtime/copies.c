// cp.async
#include "async.h"

void perform_copy(Operation *o) {
    Copy *c = &o->copy;
    Warp *w = o->issuer;
    Cta *owner = shared_owner(w, c->destination, c->bytes);
    u32 offset = SHARED_OFFSET(c->destination);
    write_shared(owner, offset, c->bytes, of_operation(o));
    memset(owner->shared + offset, 0, c->bytes);
    if (c->source_bytes) {
        const u8 *source = global(w, c->source, c->source_bytes);
        read_global(owner->grid, c->source, c->source_bytes, of_operation(o));
        memcpy(owner->shared + offset, source, c->source_bytes);
    }
    written(w, owner, offset, c->bytes);
    owner->grid->counters.copy_bytes += c->source_bytes;
}

void copy_async(Warp *w, Reg active, Reg to, Reg64 from, u32 bytes, Reg source_bytes) {
    w->cta->grid->time++;
    FOR_LANES(active) {
        check_aligned(w, "shared", to[l], bytes);
        if (source_bytes[l] > bytes) fault(w, "cp.async of %u bytes from %u", bytes, source_bytes[l]);
        if (source_bytes[l]) check_aligned(w, "global", from[l], bytes);
        issue(&w->copies, (Operation){.kind = COPY, .issuer = w, .agent = w->agent, .lanes = 1u << l,
            .copy = {.destination = to[l], .bytes = bytes, .source_bytes = source_bytes[l], .source = from[l]}});
    }
}

void copy_arrive(Warp *w, Reg active, Reg mbarrier) {
    FOR_LANES(active)
        issue(&w->copies, (Operation){.kind = COPY_ARRIVE, .issuer = w, .agent = w->agent, .lanes = 1u << l, .copy = {.mbarrier = mbarrier[l]}});
}

void store_async(Warp *w, Reg active, Reg to, int n, const u16 *slots, Reg mbarrier) {
    store_shared(w, active, to, 4, 0, n, slots);
    FOR_LANES(active) complete_bytes(w, mbarrier[l], 4 * n, of_lane(w, l));
}
