#include "race.h"

#include <stdio.h>
#include <stdlib.h>

#define PAGE_CELLS 1024
#define RELEASED 4096  // words of global memory that may synchronise

struct Released {
    u64 address;
    u32 *clock;
};

static u32 *new_clock(const Race *race) { return calloc(race->racers, sizeof(u32)); }

static void merge(const Race *race, u32 *into, const u32 *from) {
    for (int i = 0; i < race->racers; i++) into[i] = into[i] > from[i] ? into[i] : from[i];
}

void race_start(Grid *grid) {
    Race *race = grid->race = calloc(1, sizeof *race);
    race->per_cta = 2 * grid->ctas[0].num_warps + 2;
    race->racers = race->per_cta * grid->num_ctas;
    race->clocks = calloc(race->racers, sizeof *race->clocks);
    race->pages = calloc(grid->num_ranges, sizeof *race->pages);
    race->released = calloc(RELEASED, sizeof *race->released);
    for (int i = 0; i < race->racers; i++) {
        race->clocks[i] = new_clock(race);
        race->clocks[i][i] = 1;
    }
    for (u32 i = 0; i < grid->num_ctas; i++) {
        Cta *cta = &grid->ctas[i];
        cta->shared_cells = calloc(SHARED_BYTES / 4, sizeof(Cell));
        cta->tmem_cells = calloc(TMEM_LANES / LANES * TMEM_COLUMNS, sizeof(Cell));
        cta->mbarrier_arriving = calloc(SHARED_BYTES / 8, sizeof(u32 *));
        cta->mbarrier_done = calloc(SHARED_BYTES / 8, sizeof(u32 *));
    }
}

static void free_cells(Cell *cells, int count) {
    for (int i = 0; i < count; i++) free(cells[i].readers);
    free(cells);
}

void race_end(Grid *grid) {
    Race *race = grid->race;
    for (u32 i = 0; i < grid->num_ctas; i++) {
        Cta *cta = &grid->ctas[i];
        free_cells(cta->shared_cells, SHARED_BYTES / 4);
        free_cells(cta->tmem_cells, TMEM_LANES / LANES * TMEM_COLUMNS);
        for (int k = 0; k < SHARED_BYTES / 8; k++)
            free(cta->mbarrier_arriving[k]), free(cta->mbarrier_done[k]);
        free(cta->mbarrier_arriving), free(cta->mbarrier_done);
        for (int k = 0; k < NAMED_BARRIERS; k++) free(cta->barriers[k].clock);
        free(cta->cluster_barrier.clock);
        for (u32 j = 0; j < cta->num_warps; j++) free(cta->warps[j].initialised);
    }
    for (u32 i = 0; i < grid->num_ranges; i++) {
        if (!race->pages[i]) continue;
        u64 pages = (grid->ranges[i].end - grid->ranges[i].first) / (4 * PAGE_CELLS) + 1;
        for (u64 k = 0; k < pages; k++)
            if (race->pages[i][k]) free_cells(race->pages[i][k], PAGE_CELLS);
        free(race->pages[i]);
    }
    for (int i = 0; i < race->racers; i++) free(race->clocks[i]);
    for (int i = 0; i < RELEASED; i++) free(race->released[i].clock);
    free(race->clocks), free(race->pages), free(race->released), free(race);
}

// ---------------------------------------------------------------------------------------- accesses
static int describe(const Race *race, char *text, int size, int racer, int lane, int line) {
    int inside = racer % race->per_cta, warps = (race->per_cta - 2) / 2;
    int n = snprintf(text, size, "cta %d ", racer / race->per_cta);
    if (inside < warps) n += snprintf(text + n, size - n, "warp %d lane %d", inside, lane);
    else if (inside < 2 * warps)
        n += snprintf(text + n, size - n, "asynchronous operation of warp %d", inside - warps);
    else n += snprintf(text + n, size - n, "%s", inside == 2 * warps ? "TMA load" : "tensor core");
    return n + (line ? snprintf(text + n, size - n, " (PTX line %d)", line) : 0);
}

static void report(Grid *grid, const char *what, Space space, Cta *cta, u64 where, int other, int lane, int line, Access access) {
    if (grid->counters.races++ || grid->message[0]) return;
    const char *names[] = {"shared memory", "TMEM column", "global memory"};
    int n = snprintf(grid->message, MESSAGE_BYTES, "race: %s, %s %#lx", what, names[space], where);
    if (cta) n += snprintf(grid->message + n, MESSAGE_BYTES - n, " of cta %u", cta->id[0]);
    n += snprintf(grid->message + n, MESSAGE_BYTES - n, ": ");
    n += describe(grid->race, grid->message + n, MESSAGE_BYTES - n, other, lane, line);
    n += snprintf(grid->message + n, MESSAGE_BYTES - n, ", then ");
    describe(grid->race, grid->message + n, MESSAGE_BYTES - n, access.racer, access.lane, access.line);
}

// Is an access of `racer` at `clock` before this one?
INLINE int ordered(const u32 *clocks, u32 racer, u32 clock, u32 epoch, u8 lane, Access now) {
    if (racer != (u32)now.racer) return clock <= clocks[racer];
    return lane == now.lane || lane == ANY_LANE || now.lane == ANY_LANE || epoch != now.epoch;
}

static void read_cell(Grid *grid, Cell *cell, u8 bytes, Space space, Cta *cta, u64 where, Access now) {
    const u32 *clocks = grid->race->clocks[now.racer];
    if (cell->writer && cell->write_bytes & bytes &&
        !ordered(clocks, cell->writer - 1, cell->write_clock, cell->write_epoch, cell->write_lane, now))
        report(grid, "a read is not ordered behind a write", space, cta, where, cell->writer - 1, cell->write_lane, cell->write_line, now);
    u32 clock = clocks[now.racer];
    if (cell->readers) {
        cell->readers[now.racer] = clock;
    } else if (cell->reader && cell->reader != (u32)now.racer + 1 && cell->read_clock > clocks[cell->reader - 1]) {
        cell->readers = new_clock(grid->race);
        cell->readers[cell->reader - 1] = cell->read_clock;
        cell->readers[now.racer] = clock;
    }
    int again = cell->reader == (u32)now.racer + 1 && cell->read_epoch == now.epoch;
    cell->read_lane = again && cell->read_lane != now.lane ? ANY_LANE : now.lane;
    cell->reader = now.racer + 1, cell->read_clock = clock, cell->read_epoch = now.epoch;
    cell->read_line = now.line, cell->read_bytes = (again ? cell->read_bytes : 0) | bytes;
}

static void write_cell(Grid *grid, Cell *cell, u8 bytes, Space space, Cta *cta, u64 where, Access now) {
    const u32 *clocks = grid->race->clocks[now.racer];
    if (cell->writer && cell->write_bytes & bytes &&
        !ordered(clocks, cell->writer - 1, cell->write_clock, cell->write_epoch, cell->write_lane, now))
        report(grid, "two writes are not ordered", space, cta, where, cell->writer - 1, cell->write_lane, cell->write_line, now);
    if (cell->readers) {
        for (int i = 0; i < grid->race->racers; i++) {
            if (i == now.racer || cell->readers[i] <= clocks[i]) continue;
            report(grid, "a write is not ordered behind a read", space, cta, where, i, 0, 0, now);
            break;
        }
        free(cell->readers), cell->readers = 0;
    } else if (cell->reader && cell->read_bytes & bytes) {
        // several lanes of this warp may have read: one of them is another
        int several = cell->read_lane == ANY_LANE && cell->reader == (u32)now.racer + 1 && now.lane != ANY_LANE && cell->read_epoch == now.epoch;
        if (several || !ordered(clocks, cell->reader - 1, cell->read_clock, cell->read_epoch, cell->read_lane, now))
            report(grid, "a write is not ordered behind a read", space, cta, where, cell->reader - 1, cell->read_lane, cell->read_line, now);
    }
    cell->reader = 0;
    cell->writer = now.racer + 1, cell->write_clock = clocks[now.racer], cell->write_epoch = now.epoch;
    cell->write_line = now.line, cell->write_lane = now.lane, cell->write_bytes = bytes;
}

// bytes first to end of the cell that starts at `at`
INLINE u8 bytes_of(u64 at, u64 first, u64 end) {
    u8 low = first > at ? first - at : 0, past = end < at + 4 ? end - at : 4;
    return (15 >> (4 - past)) & (15 << low);
}

void read_shared(Cta *cta, u32 offset, u32 bytes, Access access) {
    if (!cta->grid->race) return;
    for (u32 at = offset & ~3u; at < offset + bytes; at += 4)
        read_cell(cta->grid, &cta->shared_cells[at / 4], bytes_of(at, offset, offset + bytes), IN_SHARED, cta, at, access);
}

void write_shared(Cta *cta, u32 offset, u32 bytes, Access access) {
    if (!cta->grid->race) return;
    for (u32 at = offset & ~3u; at < offset + bytes; at += 4)
        write_cell(cta->grid, &cta->shared_cells[at / 4], bytes_of(at, offset, offset + bytes), IN_SHARED, cta, at, access);
}

void read_tmem(Cta *cta, u32 lane, u32 column, Access access) {
    if (!cta->grid->race) return;
    access.lane = ANY_LANE;
    read_cell(cta->grid, &cta->tmem_cells[lane / LANES * TMEM_COLUMNS + column], 15, IN_TMEM, cta, column, access);
}

void write_tmem(Cta *cta, u32 lane, u32 column, Access access) {
    if (!cta->grid->race) return;
    access.lane = ANY_LANE;
    write_cell(cta->grid, &cta->tmem_cells[lane / LANES * TMEM_COLUMNS + column], 15, IN_TMEM, cta, column, access);
}

static Cell *global_cell(Grid *grid, u64 address) {
    Range range = grid->ranges[grid->last_range];
    Cell ***pages = &grid->race->pages[grid->last_range];
    u64 index = (address - (range.first & ~3ull)) / 4;
    if (!*pages) *pages = calloc((range.end - range.first) / (4 * PAGE_CELLS) + 1, sizeof **pages);
    Cell **page = &(*pages)[index / PAGE_CELLS];
    if (!*page) *page = calloc(PAGE_CELLS, sizeof **page);
    return &(*page)[index % PAGE_CELLS];
}

// The range of the access is grid->last_range: its bounds have just been checked.
void read_global(Grid *grid, u64 address, u32 bytes, Access access) {
    if (!grid->race) return;
    for (u64 at = address & ~3ull; at < address + bytes; at += 4)
        read_cell(grid, global_cell(grid, at), bytes_of(at, address, address + bytes), IN_GLOBAL, 0, at, access);
}

void write_global(Grid *grid, u64 address, u32 bytes, Access access) {
    if (!grid->race) return;
    for (u64 at = address & ~3ull; at < address + bytes; at += 4)
        write_cell(grid, global_cell(grid, at), bytes_of(at, address, address + bytes), IN_GLOBAL, 0, at, access);
}

// ------------------------------------------------------------------------------------------- order
u32 *issue_clock(Warp *w) {
    Race *race = w->cta->grid->race;
    if (!race) return 0;
    u32 *copy = new_clock(race);
    memcpy(copy, race->clocks[w->racer], race->racers * sizeof(u32));
    race->clocks[w->racer][w->racer]++;
    return copy;
}

void begin_operation(Grid *grid, Operation *o) {
    if (!grid->race || !o->clock) return;
    merge(grid->race, grid->race->clocks[o->agent], o->clock);
    free(o->clock), o->clock = 0;
}

void join_agent(Warp *w) {
    Race *race = w->cta->grid->race;
    if (!race) return;
    merge(race, race->clocks[w->racer], race->clocks[w->agent]);
    race->clocks[w->agent][w->agent]++;
}

void release(Grid *grid, int racer, u32 **clock) {
    if (!grid->race) return;
    if (!*clock) *clock = new_clock(grid->race);
    merge(grid->race, *clock, grid->race->clocks[racer]);
    grid->race->clocks[racer][racer]++;
}

void pass_on(Grid *grid, const u32 *from, u32 **into) {
    if (!grid->race || !from) return;
    if (!*into) *into = new_clock(grid->race);
    merge(grid->race, *into, from);
}

void acquire(Grid *grid, int racer, const u32 *clock) {
    if (grid->race && clock) merge(grid->race, grid->race->clocks[racer], clock);
}

static struct Released *released(Grid *grid, u64 address) {
    for (u64 i = address / 4 * 2654435761u % RELEASED, tried = 0; tried < RELEASED; tried++, i = (i + 1) % RELEASED) {
        struct Released *entry = &grid->race->released[i];
        if (!entry->address) entry->address = address;
        if (entry->address == address) return entry;
    }
    snprintf(grid->message, MESSAGE_BYTES, "race checker: more than %d words of global memory synchronise", RELEASED);
    stop_grid(grid);
}

void release_global(Grid *grid, int racer, u64 address) {
    if (grid->race) release(grid, racer, &released(grid, address)->clock);
}

void acquire_global(Grid *grid, int racer, u64 address) {
    if (grid->race) acquire(grid, racer, released(grid, address)->clock);
}
