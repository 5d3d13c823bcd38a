// Happens-before checks with vector clocks.
//
// Racers are a CTA's warps, for each warp an agent for what it issues (cp.async, wgmma, TMA
// stores), and one agent each for its TMA loads and its tensor core. Lanes of a warp are told
// apart by the synchronisations of the warp that lie between two accesses.
#pragma once
#include "machine.h"

struct Cell {  // the last accesses to 4 bytes
    u32 writer, write_clock, write_epoch, write_line;  // racer + 1, 0 for none
    u32 reader, read_clock, read_epoch, read_line;
    u32 *readers;  // clocks of all racers that have read since, where they are several
    u8 write_lane, read_lane, write_bytes, read_bytes;
};

struct Race {
    int racers, per_cta;
    u32 **clocks;
    Cell ***pages;  // of global memory, per range
    struct Released *released;
};

#define ANY_LANE 255  // an asynchronous operation's
typedef enum { IN_SHARED, IN_TMEM, IN_GLOBAL } Space;

// Who accesses: racer, lane, epoch and PTX line.
typedef struct {
    int racer, lane, line;
    u32 epoch;
} Access;

INLINE Access of_lane(const Warp *w, int lane) { return (Access){w->racer, lane, w->line, w->epoch}; }
INLINE Access of_operation(const Operation *o) { return (Access){o->agent, ANY_LANE, o->line, 0}; }

void race_start(Grid *grid);
void race_end(Grid *grid);

// No-ops without a race checker.
void read_shared(Cta *cta, u32 offset, u32 bytes, Access access);
void write_shared(Cta *cta, u32 offset, u32 bytes, Access access);
void read_tmem(Cta *cta, u32 lane, u32 column, Access access);
void write_tmem(Cta *cta, u32 lane, u32 column, Access access);
void read_global(Grid *grid, u64 address, u32 bytes, Access access);
void write_global(Grid *grid, u64 address, u32 bytes, Access access);
u32 *issue_clock(Warp *w);                         // the issuer's clock, for its operation
void begin_operation(Grid *grid, Operation *o);    // the agent is behind its issue
void join_agent(Warp *w);                          // the warp is behind its agent
void release(Grid *grid, int racer, u32 **clock);  // *clock is behind the racer
void pass_on(Grid *grid, const u32 *from, u32 **into);  // *into is behind what `from` is behind
void acquire(Grid *grid, int racer, const u32 *clock);
void release_global(Grid *grid, int racer, u64 address);
void acquire_global(Grid *grid, int racer, u64 address);
