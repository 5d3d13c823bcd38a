// The machine that a grid runs on.
//
// A shared address holds the CTA's rank in its cluster in bits 24 and up, as on the hardware.
#pragma once
#include "lanes.h"

#include <setjmp.h>

#define SHARED_BYTES (228 * 1024)  // of a multiprocessor
#define SHARED_OFFSET(address) ((address) & 0xffffff)
#define SHARED_RANK(address) ((address) >> 24)
#define TMEM_LANES 128
#define TMEM_COLUMNS 512
#define NAMED_BARRIERS 16
#define MAX_CLUSTER 16
#define BANKS 32
#define GRANULE 16  // bytes of shared memory whose last writer is remembered
#define MESSAGE_BYTES 16384

typedef struct Grid Grid;
typedef struct Cta Cta;
typedef struct Warp Warp;
typedef struct Cell Cell;
typedef struct Race Race;
typedef struct Run Run;
typedef struct Time Time;
typedef struct Program Program;

// ------------------------------------------------------------------------ asynchronous operations
typedef enum { COPY, COPY_ARRIVE, TMA_LOAD, TMA_STORE, WGMMA, TCGEN05_MMA, TCGEN05_COMMIT, TMEM_LOAD, TMEM_STORE, COMMIT } Kind;

typedef struct {
    u32 destination, bytes, source_bytes, mbarrier;
    u64 source;
} Copy;
typedef struct {
    u64 descriptor;
    s32 coordinates[5];
    u32 shared, mbarrier;
    u16 multicast;  // mask of CTAs, or 0
    u8 pair, gather;
} Tma;
typedef struct {
    u64 a, b;
    u32 columns, accumulate;
    const u16 *slots;
} Wgmma;
typedef struct {
    u32 tmem, instruction, accumulate, mbarrier;
    u64 a, b;
    u16 multicast;  // mask of CTAs, or 0
    u8 ctas;
} Tcgen05;
typedef enum { ROWS_32, COLUMNS_64B, COLUMNS_128B, COLUMNS_256B } TmemShape;
typedef struct {
    u32 tmem, n;
    TmemShape shape;
    const u16 *slots;
    Reg *values;  // of a store, as they were when it was issued
} Transfer;

typedef struct {
    Kind kind;
    Warp *issuer;
    int line, agent;
    u32 lanes;    // that issue it; 0: the warp as a whole
    u64 fenced;   // when the issuer last fenced the proxies
    Time *clock;  // of the issuer, for the race checker
    union {
        Copy copy;
        Tma tma;
        Wgmma wgmma;
        Tcgen05 tcgen05;
        Transfer transfer;
    };
} Operation;

typedef struct {
    Operation *items;
    int first, end, capacity;
} Queue;

INLINE int queued(const Queue *queue) { return queue->end - queue->first; }
void issue(Queue *queue, Operation operation);  // at once where the schedule is eager
void perform(Operation *operation);
Operation take(Queue *queue, int which);
void commit_group(Warp *w, Queue *queue);
void wait_groups(Warp *w, Queue *queue, int pending);
void wait_all(Warp *w, Queue *queue);

// --------------------------------------------------------------------------------------- machine
typedef enum { RUNNING, AT_NAMED_BARRIER, AT_CLUSTER_BARRIER, AT_LAUNCH, EXITED } Status;
typedef enum { NO_WAIT, FOR_MBARRIER, FOR_GLOBAL, FOR_TIME } WaitKind;

typedef struct {  // the last wait that did not succeed
    WaitKind kind;
    int line;
    u64 address;
    u32 parity;
} Wait;

struct Warp {
    Reg *r;     // register file
    Reg block;  // each lane's next basic block
    u32 alive, held;  // lanes that have not exited; that wait for the others to converge
    Status status;
    int yielded, line, index;
    Cta *cta;
    Wait wait;
    u32 barrier, generation;  // where it waits
    Queue copies, stores, wgmmas, tmem_loads, tmem_stores;
    u8 *loading;  // per slot, whether a load of tensor memory is on its way to it; or NULL
    u64 fenced, instructions, last_yield;
    int racer, agent;  // threads of the race checker: the warp, and what it issues
    Time *initialised;  // clock of its last fence of mbarrier inits, for the race checker
    Time **ahead;       // clocks of lanes that have waited alone since the warp's lanes last met
};

typedef struct {
    u32 arrived, generation;
    Time *clock;
} Barrier;

typedef struct {
    u64 when;
    Warp *writer;
} Written;

typedef enum { NOT_STARTED, PRESENT, ENDED } Life;
typedef enum { NOT_ALLOCATED, ALLOCATED, GIVEN_BACK_BY_PEER } Allocation;

struct Cta {
    Grid *grid;
    Warp *warps;
    Cta **cluster;
    u32 id[3], rank, cluster_size, num_warps;
    Life life;
    u64 first_round;  // in which it starts, where the schedule is random
    u8 triggered;     // the launch behind this one may start, as far as this CTA is concerned
    u8 *shared;
    float *tmem;  // [lane][column]
    u8 allocated[TMEM_COLUMNS];  // an Allocation
    Written *written;  // by the generic proxy, per granule
    Barrier barriers[NAMED_BARRIERS], cluster_barrier;
    Queue loads, tensor;  // TMA loads; tcgen05, in order
    int load_agent, tensor_agent;
    Cell *shared_cells, *tmem_cells;
    Time **mbarrier_arriving, **mbarrier_done;
};

typedef struct {
    u64 first, end;
} Range;

typedef enum { EAGER, LAZY, RANDOM } Schedule;

// What Python reads: keep in step with launch.py.
typedef struct {
    u64 instructions, multiply_adds, proxy_violations, races, rounds;
    u64 tma_load_bytes, tma_store_bytes, copy_bytes, global_load_bytes, global_store_bytes;
    u64 shared_load_bytes, shared_store_bytes, tma_loads, tma_stores, unordered_load_bytes;
} Counters;

// Launches of a stream. One that overlaps with the one before (programmatic dependent launch)
// starts when all CTAs of that one have triggered it or ended; others start when it has ended.
struct Run {
    u64 progress;
    jmp_buf stop;
    char *message;
    int failed;  // number of the launch that the message is about
};

struct Grid {
    Run *run;
    Grid *before;  // of the stream, or NULL
    int number, overlaps, ended;
    Warp **warps;  // of all CTAs, in the order of their turns
    u32 num_warps;
    u64 stuck;     // rounds without progress
    Cta *ctas;
    u32 num_ctas, dim[3], cluster[3], threads[3], shared_base;
    const Program *program;
    const u8 *parameters;
    u32 parameter_bytes;
    const Range *ranges;
    u32 num_ranges, last_range;
    Schedule schedule;
    u64 random, time, max_instructions;
    int omitted;  // PTX line of an instruction that is left out, or 0
    Counters counters;
    u64 *executed;   // per basic block
    u64 *conflicts;  // of banks, per PTX line; or NULL
    Race *race;
};

// ---------------------------------------------------------------------------------------- program
// Keep in step with program.py.
typedef struct Op Op;
struct Op {
    void (*run)(Warp *, const Op *, const Reg *);
    u16 function;       // index in OPERATIONS, until `run` is set
    u16 guard;          // slot of a predicate, or NO_SLOT
    u16 to, to2, a, b, c;
    u16 n;              // number of entries of the list
    u32 list;           // first entry in the program's pool of slots
    s32 x, y;           // constants of the operation
    s32 line;
    u8 guard_negated, synchronises;
    s64 offset;         // of an address
};
#define NO_SLOT 0xffff

typedef enum { FALL_THROUGH, BRANCH, EXIT } Ending;
typedef struct {
    u32 first, end;  // ops
    u32 ending, target;
    u16 guard;  // of a branch, or NO_SLOT
    u8 guard_negated, convergent;
    u32 instructions;
} Block;

typedef struct {  // a slot whose value is known when a warp starts
    u16 slot, kind;
    u32 axis;
    u64 value;
} Initial;

struct Program {
    Op *ops;
    const Block *blocks;
    const Initial *initials;
    const u16 *pool;
    u32 num_ops, num_blocks, num_initials, num_slots;
};

// ------------------------------------------------------------------------------- what can go wrong
// Ends the run; the message names warp and line.
void fault(Warp *w, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3), cold));
void stop_grid(Grid *grid) __attribute__((noreturn, cold));
INLINE char *message_of(Grid *grid) {
    grid->run->failed = grid->number;
    return grid->run->message;
}

INLINE void yield(Warp *w, WaitKind kind, u64 address, u32 parity) {
    w->yielded = 1;
    w->wait = (Wait){kind, w->line, address, parity};
}

// --------------------------------------------------------------------------- what operations call
// memory.c: n slots of `bytes` bytes each; wide: of 64-bit registers
void load_parameter(Warp *w, Reg active, Reg64 from, int bytes, int wide, int n, const u16 *slots);
void load_global(Warp *w, Reg active, Reg64 from, int bytes, int wide, int n, const u16 *slots);
void load_acquire(Warp *w, Reg active, Reg64 from, int bytes, int wide, int n, const u16 *slots);
void load_shared(Warp *w, Reg active, Reg from, int bytes, int wide, int n, const u16 *slots);
void store_global(Warp *w, Reg active, Reg64 to, int bytes, int wide, int n, const u16 *slots);
void store_shared(Warp *w, Reg active, Reg to, int bytes, int wide, int n, const u16 *slots);
void store_matrices(Warp *w, Reg to, int n, const u16 *slots, int transposed);
void store_async(Warp *w, Reg active, Reg to, int n, const u16 *slots, Reg mbarrier);
typedef enum { ADD, MAX_S32, MIN_S32, AND, OR, EXCHANGE, COMPARE_EXCHANGE } Atomic;
Reg atomic_global(Warp *w, Reg active, Reg64 at, Reg value, Reg swap, Atomic operation, int acquire, int release);
void fence_proxy(Warp *w);  // of shared memory
void fence_global(Warp *w, Reg active);
void fence_release(Warp *w);

// mbarrier.c
void mbarrier_init(Warp *w, Reg active, Reg at, Reg count);
void mbarrier_arrive(Warp *w, Reg active, Reg at, Reg count);
void mbarrier_arrive_expect(Warp *w, Reg active, Reg at, Reg bytes);
void mbarrier_expect(Warp *w, Reg active, Reg at, Reg bytes);
Reg mbarrier_test(Warp *w, Reg active, Reg at, Reg parity, int omitted);

// copies.c, tma.c
void copy_async(Warp *w, Reg active, Reg to, Reg64 from, u32 bytes, Reg source_bytes);
void copy_arrive(Warp *w, Reg active, Reg mbarrier);
void tma_load(Warp *w, Reg active, Reg64 descriptor, int rank, const Reg *coordinates, Reg to, Reg mbarrier, Reg multicast, int pair, int gather);
void tma_store(Warp *w, Reg active, Reg64 descriptor, int rank, const Reg *coordinates, Reg from);

// wgmma.c, tcgen05.c
void wgmma(Warp *w, Reg64 a, Reg64 b, Reg accumulate, u32 columns, const u16 *slots);
int all_free(const Cta *cta, u32 first, u32 n);  // columns of tensor memory
void tcgen05_alloc(Warp *w, Reg to, Reg columns, int ctas);
void tcgen05_dealloc(Warp *w, Reg tmem, Reg columns, int ctas);
void tcgen05_mma(Warp *w, Reg active, Reg tmem, Reg64 a, Reg64 b, Reg instruction, Reg accumulate, int ctas);
void tcgen05_commit(Warp *w, Reg active, Reg mbarrier, int ctas, Reg multicast);
void tcgen05_load(Warp *w, Reg tmem, TmemShape shape, int n, const u16 *slots);
void tcgen05_store(Warp *w, Reg tmem, TmemShape shape, int n, const u16 *slots);
void tcgen05_wait_loads(Warp *w);
void tcgen05_wait_stores(Warp *w);
void await_registers(Warp *w, const Op *op);

// warp.c
typedef enum { SHUFFLE_INDEX, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_BUTTERFLY } Shuffle;
typedef enum { REDUCE_ADD, REDUCE_MAX, REDUCE_MIN, REDUCE_MAX_U32, REDUCE_MIN_U32, REDUCE_AND, REDUCE_OR, REDUCE_XOR } Reduction;
Reg shuffle(Warp *w, Reg active, Reg value, Reg by, Reg clamp, Shuffle mode, Reg *in_range);
u32 reduce(Reg active, Reg value, Reduction reduction);
void sync_lanes(Warp *w);
void sync_threads(Warp *w, u32 barrier, u32 threads, int wait);
void fence_inits(Warp *w, Reg active);
void cluster_arrive(Warp *w, int release);
void cluster_wait(Warp *w);
void trigger_launch(Warp *w);
void wait_for_launch(Warp *w);
int can_run(Warp *w);
