// What the lanes of a warp and the warps of a CTA do together.
#include "race.h"

Reg shuffle(Warp *w, Reg active, Reg value, Reg by, Reg clamp, Shuffle mode, Reg *in_range) {
    Reg result = value;
    for (int l = 0; l < LANES; l++) {
        s32 segment = clamp[l] >> 8 & 31, limit = clamp[l] & 31, distance = by[l] & 31;
        s32 first = l & segment, last = first | (limit & ~segment), source;
        switch (mode) {
        case SHUFFLE_INDEX: source = first | (distance & ~segment); break;
        case SHUFFLE_UP: source = l - distance; break;
        case SHUFFLE_DOWN: source = l + distance; break;
        default: source = l ^ distance; break;
        }
        int inside = mode == SHUFFLE_UP ? source >= last : source <= last;
        if (!inside) source = l;
        if (active[l] && !active[source]) fault(w, "shfl reads lane %d, which does not take part", source);
        result[l] = value[source];
        (*in_range)[l] = -(u32)inside;
    }
    return result;
}

u32 reduce(Reg active, Reg value, Reduction reduction) {
    int first = 1;
    u32 result = 0;
    FOR_LANES(active) {
        u32 x = value[l];
        if (first) {
            result = x, first = 0;
            continue;
        }
        switch (reduction) {
        case REDUCE_ADD: result += x; break;
        case REDUCE_MAX: result = (s32)x > (s32)result ? x : result; break;
        case REDUCE_MIN: result = (s32)x < (s32)result ? x : result; break;
        case REDUCE_MAX_U32: result = x > result ? x : result; break;
        case REDUCE_MIN_U32: result = x < result ? x : result; break;
        case REDUCE_AND: result &= x; break;
        case REDUCE_OR: result |= x; break;
        case REDUCE_XOR: result ^= x; break;
        }
    }
    return result;
}

void sync_lanes(Warp *w) { meet(w); }

void sync_threads(Warp *w, u32 id, u32 threads, int wait) {
    Cta *cta = w->cta;
    if (id >= NAMED_BARRIERS) fault(w, "barrier %u: there are %d", id, NAMED_BARRIERS);
    if (threads == 0) threads = cta->num_warps * LANES;
    if (threads % LANES) fault(w, "barrier %u of %u threads: not whole warps", id, threads);
    Barrier *barrier = &cta->barriers[id];
    w->barrier = id, w->generation = barrier->generation;
    barrier->arrived += LANES;
    if (wait) meet(w);
    release(cta->grid, of_warp(w), &barrier->clock);
    cta->grid->run->progress++;
    if (barrier->arrived > threads) fault(w, "barrier %u: more than %u threads arrive", id, threads);
    if (barrier->arrived == threads) {
        barrier->arrived = 0;
        barrier->generation++;
        if (wait) acquire(w, ~0u, barrier->clock);
    } else if (wait) {
        w->status = AT_NAMED_BARRIER;
    }
}

// Taken to order all that came before, not only the inits.
void fence_inits(Warp *w, Reg active) {
    FOR_LANES(active) release(w->cta->grid, of_lane(w, l), &w->initialised);
}

void cluster_arrive(Warp *w, int releases) {
    Cta *cta = w->cta, *first = cta->cluster[0];
    Barrier *barrier = &first->cluster_barrier;
    w->generation = barrier->generation;
    if (releases) release(cta->grid, of_warp(w), &barrier->clock);
    else pass_on(cta->grid, w->initialised, &barrier->clock);
    if (++barrier->arrived == cta->num_warps * cta->cluster_size) {
        barrier->arrived = 0;
        barrier->generation++;
    }
    cta->grid->run->progress++;
}

void cluster_wait(Warp *w) {
    w->status = AT_CLUSTER_BARRIER;
    can_run(w);
}

void trigger_launch(Warp *w) { w->cta->triggered = 1; }

void wait_for_launch(Warp *w) {
    const Grid *before = w->cta->grid->before;
    if (before && !before->ended) w->status = AT_LAUNCH;
}

int can_run(Warp *w) {
    Barrier *barrier;
    if (w->status == RUNNING) return 1;
    if (w->status == EXITED) return 0;
    if (w->status == AT_LAUNCH) {
        if (w->cta->grid->before->ended) w->status = RUNNING;
        return w->status == RUNNING;
    }
    if (w->status == AT_NAMED_BARRIER) barrier = &w->cta->barriers[w->barrier];
    else barrier = &w->cta->cluster[0]->cluster_barrier;
    if (barrier->generation == w->generation) return 0;
    w->status = RUNNING;
    acquire(w, ~0u, barrier->clock);
    return 1;
}
