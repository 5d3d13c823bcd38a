// Runs a grid: which warp goes on, for how long, and when asynchronous operations happen.
#include "operations.h"
#include "race.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

// What a launch is. Keep in step with launch.py.
typedef struct {
    u32 grid[3], threads[3], cluster[3], shared_base;
    const u8 *parameters;
    const Range *ranges;
    u32 num_ranges, parameter_bytes;
    s32 schedule, slice, omitted, race, overlaps;
    u64 seed, max_instructions;
    u64 *conflicts;  // of banks, per PTX line; or NULL
} Launch;

#define LATEST_START 64   // round in which the last CTA starts, where the schedule is random
#define STUCK_ROUNDS 2000  // without progress, while every warp keeps waiting

void stop_grid(Grid *grid) { longjmp(grid->run->stop, 1); }

static int append(char *text, int n, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int room = MESSAGE_BYTES - n, written = vsnprintf(text + n, room, format, arguments);
    va_end(arguments);
    return n + (written < room ? written : room - 1);
}

void fault(Warp *w, const char *format, ...) {
    Grid *grid = w->cta->grid;
    va_list arguments;
    va_start(arguments, format);
    char *message = message_of(grid);
    vsnprintf(message, MESSAGE_BYTES, format, arguments);
    va_end(arguments);
    int n = strlen(message);
    append(message, n, " [cta %u %u %u warp %d, PTX line %d]", w->cta->id[0], w->cta->id[1], w->cta->id[2], w->index, w->line);
    stop_grid(grid);
}

static u32 draw(Grid *grid, u32 below) {  // xorshift64*
    grid->random ^= grid->random >> 12, grid->random ^= grid->random << 25, grid->random ^= grid->random >> 27;
    return (grid->random * 2685821657736338717ull >> 33) % below;
}

// ------------------------------------------------------------------------------------------ a warp
// The lanes `*active` of a predicate, or of its negation.
INLINE Reg guarded(const Warp *w, Reg active, u16 guard, int negated) {
    if (guard == NO_SLOT) return active;
    return active & (negated ? ~w->r[guard] : w->r[guard]);
}

static void perform_next(Queue *queue, int which) {
    Operation o = take(queue, which);
    perform(&o);
}

// The shared memory of a block that has ended may be another one's already.
static void refuse_in_flight(const Queue *queue, const char *what) {
    for (int i = queue->first; i < queue->end; i++) {
        const Operation *o = &queue->items[i];
        if (o->kind == COMMIT) continue;
        o->issuer->line = o->line;
        fault(o->issuer, "the block has ended, but %s its shared memory", what);
    }
}

static void leave(Warp *w) {
    Cta *cta = w->cta;
    while (queued(&w->tmem_loads)) perform_next(&w->tmem_loads, 0);
    while (queued(&w->tmem_stores)) perform_next(&w->tmem_stores, 0);
    w->status = EXITED;
    for (u32 i = 0; i < cta->num_warps; i++)
        if (cta->warps[i].status != EXITED) return;
    for (u32 i = 0; i < cta->num_warps; i++) refuse_in_flight(&cta->warps[i].stores, "this store may still read");
    refuse_in_flight(&cta->loads, "this load may still write to");
    cta->life = ENDED;
    cta->triggered = 1;
}

static void run_block(Warp *w, const Program *program, u32 number, Reg active) {
    const Block *block = &program->blocks[number];
    Grid *grid = w->cta->grid;
    if (block->convergent && ballot(active) != w->alive) {
        w->held |= ballot(active);
        return;
    }
    grid->executed[number]++;
    w->instructions += block->instructions;
    for (u32 i = block->first; i < block->end; i++) {
        const Op *op = &program->ops[i];
        w->line = op->line;
        if (__builtin_expect(op->synchronises && op->line == grid->omitted, 0) && op->run != op_mbarrier_test) continue;
        if (__builtin_expect(queued(&w->tmem_loads), 0)) await_registers(w, op);
        if (op->guard == NO_SLOT) {
            op->run(w, op, &active);
        } else {
            Reg lanes = guarded(w, active, op->guard, op->guard_negated);
            if (ballot(lanes)) op->run(w, op, &lanes);
        }
    }
    if (block->ending == EXIT) {
        w->alive &= ~ballot(active);
        w->block = choose(active, splat(~0u), w->block);
        if (!w->alive) leave(w);
        return;
    }
    w->block = choose(active, splat(number + 1), w->block);
    if (block->ending == BRANCH)
        w->block = choose(guarded(w, active, block->guard, block->guard_negated), splat(block->target), w->block);
}

static void run_slice(Warp *w, const Program *program, int blocks) {
    w->yielded = 0, w->cta->life = PRESENT;
    while (blocks-- > 0 && !w->yielded && w->status == RUNNING) {
        u32 ready = w->alive & ~w->held;
        if (!ready) {  // all lanes have come to a convergent instruction: it must be the same
            ready = w->alive, w->held = 0;
            u32 block = w->block[__builtin_ctz(ready)];
            for (int l = 0; l < LANES; l++)
                if (ready >> l & 1 && w->block[l] != block)
                    fault(w, "lanes %d and %d wait for each other at different instructions", __builtin_ctz(ready), l);
        }
        Reg lanes = lanes_of(ready), candidates = w->block | ~lanes;
        u32 block = ~0u;  // the lanes that are behind go on: they meet the others soonest
        for (int l = 0; l < LANES; l++) block = candidates[l] < block ? candidates[l] : block;
        if (block >= program->num_blocks) fault(w, "ran past the last instruction");
        run_block(w, program, block, (Reg)(w->block == splat(block)) & lanes);
    }
    if (w->yielded || w->status != RUNNING) w->last_yield = w->cta->grid->counters.rounds;
}

// ----------------------------------------------------------------------------------------- reports
static int describe_warp(char *text, int n, Warp *w) {
    n = append(text, n, "\n  cta %u %u %u warp %d: ", w->cta->id[0], w->cta->id[1], w->cta->id[2], w->index);
    if (w->status == AT_NAMED_BARRIER) {
        Barrier *barrier = &w->cta->barriers[w->barrier];
        return append(text, n, "at barrier %u, where %u threads are, PTX line %d", w->barrier, barrier->arrived, w->line);
    }
    if (w->status == AT_CLUSTER_BARRIER)
        return append(text, n, "at the cluster's barrier, where %u warps are, PTX line %d", w->cta->cluster[0]->cluster_barrier.arrived, w->line);
    if (w->status == AT_LAUNCH) return append(text, n, "waits for the launch before to end, PTX line %d", w->line);
    if (!w->yielded) return append(text, n, "runs, last at PTX line %d", w->line);
    switch (w->wait.kind) {
    case FOR_MBARRIER: {
        Cta *owner = w->cta->cluster[SHARED_RANK(w->wait.address)];
        u64 word;
        memcpy(&word, owner->shared + SHARED_OFFSET(w->wait.address), 8);
        return append(text, n, "waits for mbarrier %#lx of cta %u to leave phase %u (%u of %u arrivals missing, %d bytes), PTX line %d",
                      w->wait.address & 0xffffff, owner->id[0], w->wait.parity, (u32)(word >> 21 & 0xfffff),
                      (u32)(word >> 1 & 0xfffff), (s32)((s64)word >> 41), w->wait.line);
    }
    case FOR_GLOBAL:
        return append(text, n, "polls global address %#lx, PTX line %d", w->wait.address, w->wait.line);
    default: return append(text, n, "sleeps, PTX line %d", w->wait.line);
    }
}

static void stop_with_warps(Grid *grid, const char *what) {
    char *message = message_of(grid);
    int n = append(message, 0, "%s", what);
    for (u32 i = 0; i < grid->num_ctas; i++)
        for (u32 j = 0; j < grid->ctas[i].num_warps; j++) {
            Warp *w = &grid->ctas[i].warps[j];
            if (w->status != EXITED && n < MESSAGE_BYTES - 300) n = describe_warp(message, n, w);
        }
    stop_grid(grid);
}

// ------------------------------------------------------------------------- asynchronous operations
static void perform_copies(Warp *w, int count) {
    while (count && queued(&w->copies)) {
        count -= w->copies.items[w->copies.first].kind != COMMIT;
        perform_next(&w->copies, 0);
    }
}

static void perform_some(Grid *grid) {  // at random times, loads in any order
    for (u32 i = 0; i < grid->num_ctas; i++) {
        Cta *cta = &grid->ctas[i];
        for (u32 n = draw(grid, 4); n; n--) {
            if (queued(&cta->loads) && draw(grid, 2)) perform_next(&cta->loads, draw(grid, queued(&cta->loads)));
            if (queued(&cta->tensor) && draw(grid, 2)) perform_next(&cta->tensor, 0);
            Warp *w = &cta->warps[draw(grid, cta->num_warps)];
            perform_copies(w, 1 + draw(grid, 64));
            if (queued(&w->tmem_loads) && draw(grid, 2)) perform_next(&w->tmem_loads, draw(grid, queued(&w->tmem_loads)));
            if (queued(&w->tmem_stores) && draw(grid, 2)) perform_next(&w->tmem_stores, draw(grid, queued(&w->tmem_stores)));
        }
    }
}

static int perform_oldest(Grid *grid) {  // one of each kind in each CTA; whether there was any
    int any = 0;
    for (u32 i = 0; i < grid->num_ctas; i++) {
        Cta *cta = &grid->ctas[i];
        if (queued(&cta->loads)) perform_next(&cta->loads, 0), any = 1;
        if (queued(&cta->tensor)) perform_next(&cta->tensor, 0), any = 1;
        for (u32 j = 0; j < cta->num_warps; j++)
            if (queued(&cta->warps[j].copies)) perform_copies(&cta->warps[j], 64), any = 1;
    }
    return any;
}

// ---------------------------------------------------------------------------------------- the grid
static void *zeroed(u64 bytes) {
    void *memory = aligned_alloc(256, (bytes + 511) / 256 * 256);
    return memset(memory, 0, (bytes + 511) / 256 * 256);
}
static void *unwritten(u64 bytes) { return memset(zeroed(bytes), 0xff, bytes); }  // NaN in every type

// Special registers and constants. Keep in step with program.py.
typedef enum { CONSTANT, WIDE_CONSTANT, THREAD, THREADS, CTA, CTAS, CTA_IN_CLUSTER, CTAS_IN_CLUSTER,
               CLUSTER, CLUSTERS, RANK, CLUSTER_SIZE, LANE, WARP, SHARED, PARAMETER } InitialKind;

static void initialise(Warp *w, const Initial *initial) {
    const Cta *cta = w->cta;
    const Grid *grid = cta->grid;
    u32 axis = initial->axis, id = cta->id[axis], in_cluster = grid->cluster[axis], value = 0;
    Reg *to = &w->r[initial->slot], threads = LANE_IDS + w->index * LANES;
    switch ((InitialKind)initial->kind) {
    case CONSTANT: value = initial->value; break;
    case WIDE_CONSTANT: *(Reg64 *)to = splat64(initial->value); return;
    case PARAMETER: *(Reg64 *)to = splat64((u64)grid->parameters + initial->value); return;
    case THREAD:
        for (u32 d = 0; d < axis; d++) threads = threads / grid->threads[d];
        *to = threads % grid->threads[axis];
        return;
    case LANE: *to = LANE_IDS; return;
    case THREADS: value = grid->threads[axis]; break;
    case CTA: value = id; break;
    case CTAS: value = grid->dim[axis]; break;
    case CTA_IN_CLUSTER: value = id % in_cluster; break;
    case CTAS_IN_CLUSTER: value = in_cluster; break;
    case CLUSTER: value = id / in_cluster; break;
    case CLUSTERS: value = grid->dim[axis] / in_cluster; break;
    case RANK: value = cta->rank; break;
    case CLUSTER_SIZE: value = cta->cluster_size; break;
    case WARP: value = w->index; break;
    case SHARED: value = cta->rank << 24 | (grid->shared_base + initial->value); break;
    }
    *to = splat(value);
}

static void make_cta(Grid *grid, u32 number, const Program *program) {
    Cta *cta = &grid->ctas[number];
    u32 *cluster = grid->cluster, cluster_of[3], inside[3];
    cta->grid = grid;
    for (int d = 0; d < 3; d++) {
        cta->id[d] = number % grid->dim[d], number /= grid->dim[d];
        cluster_of[d] = cta->id[d] / cluster[d], inside[d] = cta->id[d] % cluster[d];
    }
    cta->rank = inside[0] + cluster[0] * (inside[1] + cluster[1] * inside[2]);
    cta->cluster_size = cluster[0] * cluster[1] * cluster[2];
    cta->cluster = zeroed(cta->cluster_size * sizeof(Cta *));
    for (u32 r = 0; r < cta->cluster_size; r++) {
        u32 x = cluster_of[0] * cluster[0] + r % cluster[0];
        u32 y = cluster_of[1] * cluster[1] + r / cluster[0] % cluster[1];
        u32 z = cluster_of[2] * cluster[2] + r / cluster[0] / cluster[1];
        cta->cluster[r] = &grid->ctas[x + grid->dim[0] * (y + grid->dim[1] * z)];
    }
    cta->first_round = grid->schedule == RANDOM ? draw(grid, LATEST_START) : 0;
    cta->shared = unwritten(SHARED_BYTES);
    cta->tmem = unwritten(TMEM_LANES * TMEM_COLUMNS * sizeof(float));
    cta->written = zeroed(SHARED_BYTES / GRANULE * sizeof(Written));
    u32 threads = grid->threads[0] * grid->threads[1] * grid->threads[2];
    cta->num_warps = threads / LANES;
    cta->warps = zeroed(cta->num_warps * sizeof(Warp));
    int first_racer = (cta - grid->ctas) * (2 * cta->num_warps + 2);
    cta->load_agent = first_racer + 2 * cta->num_warps, cta->tensor_agent = cta->load_agent + 1;
    for (u32 i = 0; i < cta->num_warps; i++) {
        Warp *w = &cta->warps[i];
        w->r = unwritten(program->num_slots * sizeof(Reg));
        w->alive = ~0u, w->cta = cta, w->index = i;
        w->racer = first_racer + i, w->agent = first_racer + cta->num_warps + i;
        for (u32 k = 0; k < program->num_initials; k++) initialise(w, &program->initials[k]);
    }
}

static void free_grid(Grid *grid) {
    for (u32 i = 0; i < grid->num_ctas; i++) {
        Cta *cta = &grid->ctas[i];
        for (u32 j = 0; j < cta->num_warps; j++) {
            Warp *w = &cta->warps[j];
            for (Queue *stores = &w->tmem_stores; queued(stores);) free(take(stores, 0).transfer.values);
            free(w->r), free(w->copies.items), free(w->stores.items), free(w->wgmmas.items);
            free(w->tmem_loads.items), free(w->tmem_stores.items), free(w->loading);
        }
        free(cta->warps), free(cta->shared), free(cta->tmem), free(cta->written), free(cta->cluster);
        free(cta->loads.items), free(cta->tensor.items);
    }
    free(grid->ctas), free(grid->warps);
}

// Each warp's turn. Returns whether anything came of it.
static int run_round(Grid *grid, int slice) {
    Run *run = grid->run;
    Warp **warps = grid->warps;
    u64 progress = run->progress, instructions = 0, oldest_yield = ~0ull;
    u32 left = 0;
    if (grid->schedule == RANDOM)
        for (u32 i = grid->num_warps - 1; i > 0; i--) {
            u32 j = draw(grid, i + 1);
            Warp *w = warps[i];
            warps[i] = warps[j], warps[j] = w;
        }
    for (u32 i = 0; i < grid->num_warps; i++) {
        Warp *w = warps[i];
        instructions += w->instructions;
        if (w->status == EXITED) continue;
        left++;
        if (grid->counters.rounds >= w->cta->first_round && can_run(w))
            run_slice(w, grid->program, grid->schedule == RANDOM ? 1 + draw(grid, slice) : slice);
        else w->last_yield = grid->counters.rounds;
        if (w->last_yield < oldest_yield) oldest_yield = w->last_yield;
    }
    grid->counters.instructions = instructions;
    if (instructions > grid->max_instructions) stop_with_warps(grid, "the kernel has not ended within the limit of instructions:");
    if (grid->schedule == RANDOM) perform_some(grid);
    int some = run->progress != progress;
    if (some || !left) grid->stuck = 0;
    else if (grid->schedule != EAGER && perform_oldest(grid)) grid->stuck = 0, some = 1;
    else if (++grid->stuck > STUCK_ROUNDS && oldest_yield + STUCK_ROUNDS / 2 > grid->counters.rounds && (!grid->before || grid->before->ended))
        stop_with_warps(grid, "deadlock: every warp waits:");
    grid->counters.rounds++;
    grid->ended = !left;
    return some;
}

static void end_launch(Grid *grid) {
    for (u32 i = 0; i < grid->num_ctas; i++)
        if (!all_free(&grid->ctas[i], 0, TMEM_COLUMNS)) fault(&grid->ctas[i].warps[0], "TMEM has not been deallocated");
    grid->run->progress++;
}

static int may_start(const Grid *grid) {
    const Grid *before = grid->before;
    if (!before || before->ended) return 1;
    if (!grid->overlaps || grid->schedule == EAGER) return 0;
    for (u32 i = 0; i < before->num_ctas; i++)
        if (!before->ctas[i].triggered) return 0;
    return may_start(before);
}

// Late: a launch goes on only where the one behind it can do nothing without it. Random: any.
static void run_launches(Grid *grids, int count, int slice) {
    while (!grids[count - 1].ended)
        for (int i = count; i-- > 0;) {
            Grid *grid = &grids[i];
            if (grid->ended || !may_start(grid) || (grid->schedule == RANDOM && count > 1 && draw(grid, 2))) continue;
            int some = run_round(grid, slice);
            if (grid->ended) end_launch(grid);
            if (some && grid->schedule != RANDOM) break;
        }
}

#define NAME(name) #name,
#define FUNCTION(name) op_##name,
const char *const OPERATION_NAMES[] = {OPERATIONS(NAME) 0};
static void (*const FUNCTIONS[])(Warp *, const Op *, const Reg *) = {OPERATIONS(FUNCTION)};

static void make_grid(Grid *grid, const Program *program, const Launch *launch, u64 *executed) {
    *grid = (Grid){.program = program, .parameters = launch->parameters, .ranges = launch->ranges, .num_ranges = launch->num_ranges,
                   .shared_base = launch->shared_base, .parameter_bytes = launch->parameter_bytes, .schedule = launch->schedule, .omitted = launch->omitted,
                   .random = launch->seed * 0x9E3779B97F4A7C15ull + 88172645463325252ull, .time = 1, .overlaps = launch->overlaps,
                   .max_instructions = launch->max_instructions, .executed = executed, .conflicts = launch->conflicts};
    for (u32 i = 0; i < program->num_ops; i++) program->ops[i].run = FUNCTIONS[program->ops[i].function];
    memcpy(grid->dim, launch->grid, 12), memcpy(grid->cluster, launch->cluster, 12), memcpy(grid->threads, launch->threads, 12);
    grid->num_ctas = grid->dim[0] * grid->dim[1] * grid->dim[2];
    grid->ctas = zeroed(grid->num_ctas * sizeof(Cta));
    for (u32 i = 0; i < grid->num_ctas; i++) make_cta(grid, i, program);
    u32 per_cta = grid->ctas[0].num_warps;
    grid->num_warps = grid->num_ctas * per_cta;
    grid->warps = zeroed(grid->num_warps * sizeof(Warp *));
    for (u32 i = 0; i < grid->num_warps; i++) grid->warps[i] = &grid->ctas[i / per_cta].warps[i % per_cta];
    if (launch->race) race_start(grid);
}

// Runs `count` launches, one behind the other in a stream. Returns whether they ended without a
// fault; message is empty or says what is wrong, with launch number *failed.
int run_grids(int count, const Program *const *programs, const Launch *launches, Counters *counters, u64 *const *executed, char *message, int *failed) {
    Run run = {.message = message};
    Grid *grids = zeroed(count * sizeof(Grid));
    for (int i = 0; i < count; i++) {
        make_grid(&grids[i], programs[i], &launches[i], executed[i]);
        grids[i].run = &run, grids[i].number = i, grids[i].before = i ? &grids[i - 1] : 0;
    }
    volatile int ended = 0;
    if (!setjmp(run.stop)) {
        run_launches(grids, count, launches[0].slice);
        ended = 1;
    }
    for (int i = 0; i < count; i++) {
        counters[i] = grids[i].counters;
        if (grids[i].race) race_end(&grids[i]);
        free_grid(&grids[i]);
    }
    free(grids);
    *failed = run.failed;
    return ended;
}
