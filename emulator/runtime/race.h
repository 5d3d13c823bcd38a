// Happens-before checks with vector clocks.
//
// Racers are a CTA's warps, for each warp an agent for what it issues (cp.async, wgmma, TMA
// stores, transfers of tensor memory), and one agent each for its TMA loads and its tensor core.
// Each lane of a warp is a thread of its own: what one lane makes known to others (an arrival at an
// mbarrier) covers the other lanes' accesses only as far as the lanes have met before
// (bar.warp.sync, or a barrier of the CTA). Shuffles and votes order no accesses.
#pragma once
#include "machine.h"

// How much of a racer somebody knows: all accesses up to `all`, those of `lanes` up to `last`.
// Where two differ in lanes and in `last`, their union covers a little more than both.
struct Time {
    u32 all, last, lanes;
};

typedef struct {  // an access that has been made
    u32 racer, when, lanes;  // racer + 1, 0 for none; lanes: 0 for the warp as a whole, or an agent
    s32 line;
} Stamp;

struct Cell {  // the last accesses to 4 bytes
    Stamp written, read;
    Stamp *readers;  // of all racers that have read since, where they are several
    u8 write_bytes, read_bytes;
};

struct Race {
    int racers, per_cta;
    Time **clocks;
    u32 *ticks;     // a racer's own time
    Time *fenced;   // what somebody has fenced between the proxies, in global memory
    Cell ***pages;  // of global memory, per range
    struct Released *released;
};

typedef enum { IN_SHARED, IN_TMEM, IN_GLOBAL } Space;

// Who accesses: lanes of a warp (0: the warp as a whole), or its agent (then `warp` is NULL).
typedef struct {
    Warp *warp;
    int racer, line;
    u32 lanes;
} Access;

INLINE Access of_lane(Warp *w, int lane) { return (Access){w, w->racer, w->line, 1u << lane}; }
INLINE Access of_warp(Warp *w) { return (Access){w, w->racer, w->line, 0}; }
INLINE Access of_operation(const Operation *o) { return (Access){0, o->agent, o->line, o->lanes}; }

void race_start(Grid *grid);
void race_end(Grid *grid);

// No-ops without a race checker.
void read_shared(Cta *cta, u32 offset, u32 bytes, Access access);
void write_shared(Cta *cta, u32 offset, u32 bytes, Access access);
void read_tmem(Cta *cta, u32 lane, u32 column, Access access);
void write_tmem(Cta *cta, u32 lane, u32 column, Access access);
void read_global(Grid *grid, u64 address, u32 bytes, Access access);
void write_global(Grid *grid, u64 address, u32 bytes, Access access);
// What TMA loads to `to`: bytes that somebody else writes at that time, or that a warp has written
// without a proxy fence behind it, become 0xff. Part of a box may be of no use, and then it does not
// matter; what is used makes the results wrong.
void load_unordered(Grid *grid, u64 address, u32 bytes, Access access, u8 *to);
Time *issue_clock(const Operation *o);             // the issuer's clock, for its operation
void begin_operation(Grid *grid, Operation *o);    // the agent is behind its issue
void join_agent(Warp *w);                          // each lane is behind its part of the agent
void release(Grid *grid, Access by, Time **clock);  // *clock is behind who releases
void pass_on(Grid *grid, const Time *from, Time **into);  // *into is behind what `from` is behind
void acquire(Warp *w, u32 lanes, const Time *clock);  // these lanes are behind the clock
void meet(Warp *w);                                // all lanes of a warp are behind each other
void release_global(Warp *w, int lane, u64 address);
void acquire_global(Warp *w, u32 lanes, u64 address);
