#include "race.h"

#include <stdio.h>
#include <stdlib.h>

#define PAGE_CELLS 1024
#define RELEASED 4096  // words of global memory that may synchronise

struct Released {
    u64 address;
    Time *clock;
};

static Time *new_clock(const Race *race) { return calloc(race->racers, sizeof(Time)); }

INLINE void widen(Time *into, Time from) {
    if (from.all > into->all) into->all = from.all;
    if (from.last <= into->all) {
        if (into->last <= into->all) into->last = into->all, into->lanes = 0;
        return;
    }
    if (into->last <= into->all) into->last = from.last, into->lanes = from.lanes;
    else into->lanes |= from.lanes, into->last = into->last > from.last ? into->last : from.last;
    if (into->lanes == ~0u) into->all = into->last, into->lanes = 0;
}

static void merge(const Race *race, Time *into, const Time *from) {
    for (int i = 0; i < race->racers; i++)
        if (from[i].last > into[i].all || from[i].all > into[i].all) widen(&into[i], from[i]);
}

void race_start(Grid *grid) {
    Race *race = grid->race = calloc(1, sizeof *race);
    race->per_cta = 2 * grid->ctas[0].num_warps + 2;
    race->racers = race->per_cta * grid->num_ctas;
    race->clocks = calloc(race->racers, sizeof *race->clocks);
    race->ticks = malloc(race->racers * sizeof *race->ticks);
    race->pages = calloc(grid->num_ranges, sizeof *race->pages);
    race->released = calloc(RELEASED, sizeof *race->released);
    for (int i = 0; i < race->racers; i++) {
        race->clocks[i] = new_clock(race);
        race->ticks[i] = 1;
    }
    for (u32 i = 0; i < grid->num_ctas; i++) {
        Cta *cta = &grid->ctas[i];
        cta->shared_cells = calloc(SHARED_BYTES / 4, sizeof(Cell));
        cta->tmem_cells = calloc(TMEM_LANES / LANES * TMEM_COLUMNS, sizeof(Cell));
        cta->mbarrier_arriving = calloc(SHARED_BYTES / 8, sizeof(Time *));
        cta->mbarrier_done = calloc(SHARED_BYTES / 8, sizeof(Time *));
        for (u32 j = 0; j < cta->num_warps; j++) cta->warps[j].ahead = calloc(LANES, sizeof(Time *));
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
        for (u32 j = 0; j < cta->num_warps; j++) {
            for (int l = 0; l < LANES; l++) free(cta->warps[j].ahead[l]);
            free(cta->warps[j].initialised), free(cta->warps[j].ahead);
        }
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
    free(race->clocks), free(race->ticks), free(race->fenced), free(race->pages), free(race->released), free(race);
}

// ---------------------------------------------------------------------------------------- accesses
static int describe(const Race *race, char *text, int size, int racer, u32 lanes, int line) {
    int inside = racer % race->per_cta, warps = (race->per_cta - 2) / 2;
    int n = snprintf(text, size, "cta %d ", racer / race->per_cta);
    if (inside < warps) n += snprintf(text + n, size - n, "warp %d", inside);
    else if (inside < 2 * warps)
        n += snprintf(text + n, size - n, "asynchronous operation of warp %d", inside - warps);
    else n += snprintf(text + n, size - n, "%s", inside == 2 * warps ? "TMA load" : "tensor core");
    if (inside < 2 * warps && lanes && !(lanes & (lanes - 1))) n += snprintf(text + n, size - n, " lane %d", __builtin_ctz(lanes));
    return n + (line ? snprintf(text + n, size - n, " (PTX line %d)", line) : 0);
}

static void report(Grid *grid, const char *what, Space space, Cta *cta, u64 where, Stamp before, Access now) {
    if (grid->counters.races++ || grid->run->message[0]) return;
    char *text = message_of(grid);
    const char *names[] = {"shared memory", "TMEM column", "global memory"};
    int n = snprintf(text, MESSAGE_BYTES, "race: %s, %s %#lx", what, names[space], where);
    if (cta) n += snprintf(text + n, MESSAGE_BYTES - n, " of cta %u", cta->id[0]);
    n += snprintf(text + n, MESSAGE_BYTES - n, ": ");
    n += describe(grid->race, text + n, MESSAGE_BYTES - n, before.racer - 1, before.lanes, before.line);
    n += snprintf(text + n, MESSAGE_BYTES - n, ", then ");
    describe(grid->race, text + n, MESSAGE_BYTES - n, now.racer, now.lanes, now.line);
}

// What an access knows of others.
INLINE const Time *clock_of(const Race *race, Access now) {
    if (now.warp && now.lanes && now.warp->ahead[__builtin_ctz(now.lanes)]) return now.warp->ahead[__builtin_ctz(now.lanes)];
    return race->clocks[now.racer];
}

// Is an access before this one? A lane is behind itself, and behind its own part of its agent.
INLINE int ordered(const Time *clocks, Stamp before, Access now) {
    Time known = clocks[before.racer - 1];
    if (before.when <= known.all) return 1;
    u32 others = before.lanes;
    if (before.racer - 1 == (u32)now.racer) {
        if (!now.warp || !now.lanes || !before.lanes) return 1;
        others &= ~now.lanes;
        if (!others) return 1;
    } else if (now.warp && before.racer - 1 == (u32)now.warp->agent) {
        others &= now.lanes ? ~now.lanes : 0;
    }
    return before.when <= known.last && !(others & ~known.lanes);
}

INLINE Stamp stamp_of(const Race *race, Access now) {
    return (Stamp){now.racer + 1, race->ticks[now.racer], now.lanes, now.line};
}

static void read_cell(Grid *grid, Cell *cell, u8 bytes, Space space, Cta *cta, u64 where, Access now) {
    const Race *race = grid->race;
    const Time *clocks = clock_of(race, now);
    if (cell->written.racer && cell->write_bytes & bytes && !ordered(clocks, cell->written, now))
        report(grid, "a read is not ordered behind a write", space, cta, where, cell->written, now);
    Stamp stamp = stamp_of(race, now);
    Stamp last = cell->readers ? cell->readers[now.racer] : cell->read;
    if (last.racer == stamp.racer && last.when > clocks[now.racer].all && last.lanes && stamp.lanes) {
        stamp.lanes |= last.lanes;  // further lanes, that have not met the first
        bytes |= cell->read_bytes;
    } else if (!cell->readers && last.racer && last.racer != stamp.racer && !ordered(clocks, last, now)) {
        cell->readers = calloc(race->racers, sizeof(Stamp));
        cell->readers[last.racer - 1] = last;
    }
    if (cell->readers) cell->readers[now.racer] = stamp;
    cell->read = stamp, cell->read_bytes = bytes;
}

static void write_cell(Grid *grid, Cell *cell, u8 bytes, Space space, Cta *cta, u64 where, Access now) {
    const Race *race = grid->race;
    const Time *clocks = clock_of(race, now);
    const char *behind_read = "a write is not ordered behind a read";
    Stamp stamp = stamp_of(race, now), last = cell->written;
    int behind = !last.racer || ordered(clocks, last, now);
    if (!behind && cell->write_bytes & bytes) report(grid, "two writes are not ordered", space, cta, where, last, now);
    if (!behind && last.racer == stamp.racer && last.lanes && stamp.lanes) {
        stamp.lanes |= last.lanes;  // other bytes, by lanes that have not met
        cell->write_bytes |= bytes;
    } else {
        cell->write_bytes = bytes;
    }
    if (cell->readers) {
        for (int i = 0; i < race->racers; i++) {
            if (!cell->readers[i].racer || ordered(clocks, cell->readers[i], now)) continue;
            report(grid, behind_read, space, cta, where, cell->readers[i], now);
            break;
        }
        free(cell->readers), cell->readers = 0;
    } else if (cell->read.racer && cell->read_bytes & bytes && !ordered(clocks, cell->read, now)) {
        report(grid, behind_read, space, cta, where, cell->read, now);
    }
    cell->read.racer = 0;
    cell->written = stamp;
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
    read_cell(cta->grid, &cta->tmem_cells[lane / LANES * TMEM_COLUMNS + column], 15, IN_TMEM, cta, column, access);
}

void write_tmem(Cta *cta, u32 lane, u32 column, Access access) {
    if (!cta->grid->race) return;
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

void load_unordered(Grid *grid, u64 address, u32 bytes, Access access, u8 *to) {
    const Race *race = grid->race;
    if (!race) return;
    for (u64 at = address & ~3ull; at < address + bytes; at += 4) {
        Cell *cell = global_cell(grid, at);
        u8 part = bytes_of(at, address, address + bytes);
        Stamp written = cell->written;
        if (!written.racer || !(cell->write_bytes & part)) continue;
        int by_warp = (written.racer - 1) % race->per_cta < (race->per_cta - 2u) / 2;
        if (ordered(clock_of(race, access), written, access) && (!by_warp || (race->fenced && ordered(race->fenced, written, access)))) continue;
        for (int i = 0; i < 4; i++)
            if (part >> i & 1) to[at + i - address] = 0xff, grid->counters.unordered_load_bytes++;
    }
}

// ------------------------------------------------------------------------------------------- order
// Adds what these lanes of a warp know, and have done themselves; lanes 0: all.
static void know(const Race *race, Warp *w, u32 lanes, Time *into) {
    const Time *clock = race->clocks[w->racer];
    u32 now = race->ticks[w->racer];
    if (!lanes) {
        merge(race, into, clock);
        for (int l = 0; l < LANES; l++)
            if (w->ahead[l]) merge(race, into, w->ahead[l]);
        lanes = ~0u;
    } else {
        if (w->ahead[__builtin_ctz(lanes)]) clock = w->ahead[__builtin_ctz(lanes)];
        merge(race, into, clock);
    }
    widen(&into[w->racer], (Time){clock[w->racer].all, now, lanes});
    widen(&into[w->agent], (Time){clock[w->agent].all, clock[w->agent].last, lanes});
}

Time *issue_clock(const Operation *o) {
    Warp *w = o->issuer;
    Race *race = w->cta->grid->race;
    if (!race) return 0;
    Time *copy = new_clock(race);
    know(race, w, o->lanes, copy);
    race->ticks[w->racer]++;
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
    Time *clock = race->clocks[w->racer];
    u32 now = race->ticks[w->agent]++;
    if (now > clock[w->agent].last) clock[w->agent].last = now;
    for (int l = 0; l < LANES; l++)
        if (w->ahead[l]) w->ahead[l][w->agent] = clock[w->agent];
}

void release(Grid *grid, Access by, Time **clock) {
    Race *race = grid->race;
    if (!race) return;
    if (!*clock) *clock = new_clock(race);
    if (by.warp) {
        know(race, by.warp, by.lanes, *clock);
    } else {
        merge(race, *clock, race->clocks[by.racer]);
        widen(&(*clock)[by.racer], (Time){race->ticks[by.racer], race->ticks[by.racer], 0});
    }
    race->ticks[by.racer]++;
}

void pass_on(Grid *grid, const Time *from, Time **into) {
    if (!grid->race || !from) return;
    if (!*into) *into = new_clock(grid->race);
    merge(grid->race, *into, from);
}

void acquire(Warp *w, u32 lanes, const Time *clock) {
    Race *race = w->cta->grid->race;
    if (!race || !clock) return;
    int all = (lanes & w->alive) == w->alive;
    if (all) merge(race, race->clocks[w->racer], clock);
    for (int l = 0; l < LANES; l++) {
        if (!(lanes >> l & 1) || (all && !w->ahead[l])) continue;
        if (!w->ahead[l]) {
            w->ahead[l] = new_clock(race);
            merge(race, w->ahead[l], race->clocks[w->racer]);
        }
        merge(race, w->ahead[l], clock);
    }
}

void meet(Warp *w) {
    Race *race = w->cta->grid->race;
    if (!race) return;
    Time *clock = race->clocks[w->racer];
    for (int l = 0; l < LANES; l++) {
        if (!w->ahead[l]) continue;
        merge(race, clock, w->ahead[l]);
        free(w->ahead[l]), w->ahead[l] = 0;
    }
    clock[w->racer] = (Time){race->ticks[w->racer], race->ticks[w->racer], 0};
    race->ticks[w->racer]++;
    clock[w->agent].all = clock[w->agent].last, clock[w->agent].lanes = 0;
}

static struct Released *released(Grid *grid, u64 address) {
    for (u64 i = address / 4 * 2654435761u % RELEASED, tried = 0; tried < RELEASED; tried++, i = (i + 1) % RELEASED) {
        struct Released *entry = &grid->race->released[i];
        if (!entry->address) entry->address = address;
        if (entry->address == address) return entry;
    }
    snprintf(message_of(grid), MESSAGE_BYTES, "race checker: more than %d words of global memory synchronise", RELEASED);
    stop_grid(grid);
}

void release_global(Warp *w, int lane, u64 address) {
    Grid *grid = w->cta->grid;
    if (grid->race) release(grid, of_lane(w, lane), &released(grid, address)->clock);
}

void acquire_global(Warp *w, u32 lanes, u64 address) {
    Grid *grid = w->cta->grid;
    if (grid->race) acquire(w, lanes, released(grid, address)->clock);
}
