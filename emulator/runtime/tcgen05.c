// Blackwell's tensor core and its memory: 128 lanes of 512 columns, of which a warp reaches 32.
#include "tensor_core.h"

#include <stdlib.h>

#define TMEM_LANE(address) ((address) >> 16)
#define TMEM_COLUMN(address) ((address) & 0xffff)

// A pair's CTAs: both take part in what has cta_group::2.
static Cta **pair(Warp *w) {
    if (w->cta->cluster_size < 2) fault(w, "tcgen05 for a pair in a cluster of one CTA");
    return &w->cta->cluster[w->cta->rank & ~1u];
}

int all_free(const Cta *cta, u32 first, u32 n) {
    for (u32 i = first; i < first + n; i++)
        if (cta->allocated[i] != NOT_ALLOCATED) return 0;
    return 1;
}

void tcgen05_alloc(Warp *w, Reg to, Reg columns, int ctas) {
    Cta *cta = w->cta;
    u32 n = columns[0];
    for (int h = 0; ctas == 2 && h < 2; h++)
        if (pair(w)[h]->life != PRESENT) fault(w, "tcgen05.alloc for a pair: cta %u need not have started", pair(w)[h]->id[0]);
    if (n < 32 || n > TMEM_COLUMNS || n & (n - 1))
        fault(w, "tcgen05.alloc of %u columns: a power of two from 32 to 512 is needed", n);
    for (u32 first = 0; first + n <= TMEM_COLUMNS; first += 32) {
        if (!all_free(cta, first, n)) continue;
        memset(cta->allocated + first, ALLOCATED, n);
        u32 address = SHARED_OFFSET(to[0]);
        check_aligned(w, "shared", address, 4);
        Cta *owner = shared_owner(w, to[0], 4);
        write_shared(owner, address, 4, of_warp(w));
        memcpy(owner->shared + address, &first, 4);
        w->cta->grid->run->progress++;
        return;
    }
    fault(w, "tcgen05.alloc of %u columns would wait for ever: too few are free", n);
}

static void check_columns(Warp *w, Cta *cta, u32 first, u32 n) {
    for (u32 i = first; i < first + n; i++)
        if (i >= TMEM_COLUMNS || cta->allocated[i] != ALLOCATED) fault(w, "TMEM column %u of cta %u is not allocated", i, cta->id[0]);
}

// Of a pair, the first one to give back may do it for both. To the race checker that is a write, behind
// which nobody may access the columns.
void tcgen05_dealloc(Warp *w, Reg tmem, Reg columns, int ctas) {
    u32 first = TMEM_COLUMN(tmem[0]), n = columns[0];
    u8 *own = w->cta->allocated + first;
    if (first + n > TMEM_COLUMNS || *own != GIVEN_BACK_BY_PEER) {
        check_columns(w, w->cta, first, n);
        for (int h = 0; h < ctas; h++) {
            Cta *cta = ctas == 2 ? pair(w)[h] : w->cta;
            check_columns(w, cta, first, n);
            memset(cta->allocated + first, GIVEN_BACK_BY_PEER, n);
            for (u32 i = first; i < first + n; i++)
                for (int lane = 0; lane < TMEM_LANES; lane += LANES) write_tmem(cta, lane, i, of_warp(w));
        }
    }
    memset(own, NOT_ALLOCATED, n);
}

// The instruction descriptor's D type is in bits 4-5, A's and B's in 7-12, N / 8 in 17-22, M / 16 in
// 24-28; the other bits negate, transpose or ask for sparsity.
void perform_tcgen05_mma(Operation *o) {
    static _Thread_local LeftOperand left;
    static _Thread_local RightOperand right;
    Tcgen05 *m = &o->tcgen05;
    Warp *w = o->issuer;
    Cta *cta = w->cta;
    u32 n = (m->instruction >> 17 & 63) * 8, rows = (m->instruction >> 24 & 31) * 16;
    if ((m->instruction & ~(63u << 17 | 31u << 24)) != 1u << 4)
        fault(w, "tcgen05 instruction descriptor %#x: only K-major e4m3 into fp32 is known", m->instruction);
    if (rows != 128u * m->ctas) fault(w, "tcgen05.mma with %u rows on %u CTAs is not known", rows, m->ctas);
    if (n < 16 || n > MAX_COLUMNS || n % 16) fault(w, "tcgen05.mma with %u columns", n);
    u32 column = TMEM_COLUMN(m->tmem);
    if (TMEM_LANE(m->tmem)) fault(w, "tcgen05.mma into TMEM lane %u", TMEM_LANE(m->tmem));
    Cta **ctas = m->ctas == 2 ? pair(w) : &cta->cluster[cta->rank];
    for (int h = 0; h < m->ctas; h++) peer(w, ctas[h]->rank);
    // each CTA of a pair holds half of the rows of A and D, and half of the columns of B
    for (int h = 0; h < m->ctas; h++) read_right(o, ctas[h], m->b, BLACKWELL, h * n / m->ctas, n / m->ctas, &right);
    for (int h = 0; h < m->ctas; h++) {
        check_columns(w, ctas[h], column, n);
        read_left(o, ctas[h], m->a, BLACKWELL, 0, TMEM_LANES, &left);
        for (u32 j = 0; j < n; j++)
            for (int lane = 0; lane < TMEM_LANES; lane += LANES) write_tmem(ctas[h], lane, column + j, of_operation(o));
        float *sums = ctas[h]->tmem + column;
        if (!m->accumulate)
            for (int lane = 0; lane < TMEM_LANES; lane++) memset(sums + lane * TMEM_COLUMNS, 0, 4 * n);
        multiply_add(&left, TMEM_LANES, &right, n, BLACKWELL, sums, TMEM_COLUMNS);
        cta->grid->counters.multiply_adds += (u64)TMEM_LANES * n * STEP;
    }
}

void perform_tcgen05_commit(Operation *o) {
    Tcgen05 *c = &o->tcgen05;
    Warp *w = o->issuer;
    if (!c->multicast) arrive(w, c->mbarrier, 1, of_operation(o));
    for (u32 r = 0; r < MAX_CLUSTER; r++)
        if (c->multicast >> r & 1) arrive(w, r << 24 | SHARED_OFFSET(c->mbarrier), 1, of_operation(o));
}

void tcgen05_mma(Warp *w, Reg active, Reg tmem, Reg64 a, Reg64 b, Reg instruction, Reg accumulate, int ctas) {
    FOR_LANES(active)
        issue(&w->cta->tensor, (Operation){.kind = TCGEN05_MMA, .issuer = w, .agent = w->cta->tensor_agent, .lanes = 1u << l,
            .tcgen05 = {.tmem = tmem[l], .instruction = instruction[l], .accumulate = accumulate[l], .a = a[l], .b = b[l], .ctas = ctas}});
}

void tcgen05_commit(Warp *w, Reg active, Reg mbarrier, int ctas, Reg multicast) {
    FOR_LANES(active)
        issue(&w->cta->tensor, (Operation){.kind = TCGEN05_COMMIT, .issuer = w, .agent = w->cta->tensor_agent, .lanes = 1u << l,
            .tcgen05 = {.mbarrier = mbarrier[l], .multicast = multicast[l], .ctas = ctas}});
}

// Row and column of register i of lane l, from the address on.
INLINE void place(TmemShape shape, int l, int i, int *row, int *column) {
    switch (shape) {
    case ROWS_32: *row = l, *column = i; break;
    case COLUMNS_64B: *row = l / 4 + 8 * (l % 2), *column = l / 2 % 2 + 2 * i; break;
    case COLUMNS_128B: *row = l / 4 + 8 * (i % 2), *column = l % 4 + 4 * (i / 2); break;
    case COLUMNS_256B: *row = l / 4 + 8 * (i / 2 % 2), *column = i % 2 + 2 * (l % 4) + 8 * (i / 4); break;
    }
}

static void transfer(Operation *o) {
    Transfer *t = &o->transfer;
    Warp *w = o->issuer;
    Cta *cta = w->cta;
    u32 first_lane = TMEM_LANE(t->tmem), first_column = TMEM_COLUMN(t->tmem);
    for (u32 i = 0; i < t->n; i++)
        for (int l = 0; l < LANES; l++) {
            int row = 0, column = 0;
            place(t->shape, l, i, &row, &column);
            u32 at = first_column + column;
            if (at >= TMEM_COLUMNS || cta->allocated[at] != ALLOCATED) check_columns(w, cta, at, 1);
            float *cell = cta->tmem + (first_lane + row) * TMEM_COLUMNS + at;
            if (o->kind == TMEM_STORE) {
                write_tmem(cta, first_lane, at, of_operation(o));
                *cell = as_float(t->values[i][l]);
            } else {
                read_tmem(cta, first_lane, at, cta->grid->schedule == EAGER ? of_warp(w) : of_operation(o));
                w->r[t->slots[i]][l] = as_bits(*cell);
            }
        }
}

void perform_tmem_load(Operation *o) {
    transfer(o);
    for (u32 i = 0; i < o->transfer.n; i++)
        if (o->issuer->loading) o->issuer->loading[o->transfer.slots[i]] = 0;
}
void perform_tmem_store(Operation *o) {
    transfer(o);
    free(o->transfer.values);
}

static Operation new_transfer(Warp *w, Kind kind, Reg tmem, TmemShape shape, int n, const u16 *slots) {
    u32 first_lane = TMEM_LANE(tmem[0]);
    if (first_lane / LANES != w->index % 4u || first_lane % (shape == ROWS_32 ? 32 : 16))
        fault(w, "warp %d accesses TMEM lane %u; its own start at %d", w->index, first_lane, w->index % 4 * LANES);
    return (Operation){.kind = kind, .issuer = w, .agent = w->agent, .transfer = {tmem[0], n, shape, slots, 0}};
}

// A load is behind its warp's use of a register as well as behind tcgen05.wait::ld: PTX asks for the
// latter, but NVIDIA's own kernels leave it to the former, as ptxas does.
void tcgen05_load(Warp *w, Reg tmem, TmemShape shape, int n, const u16 *slots) {
    Grid *grid = w->cta->grid;
    issue(&w->tmem_loads, new_transfer(w, TMEM_LOAD, tmem, shape, n, slots));
    if (grid->schedule == EAGER) return;
    if (!w->loading) w->loading = calloc(grid->program->num_slots, 1);
    for (int i = 0; i < n; i++) w->loading[slots[i]] = 1;
}

INLINE int loads(const Warp *w, u16 slot) { return slot != NO_SLOT && w->loading[slot]; }

// Before an instruction reads or writes registers.
void await_registers(Warp *w, const Op *op) {
    const u16 *slots = w->cta->grid->program->pool + op->list;
    int any = loads(w, op->to) | loads(w, op->to2) | loads(w, op->a) | loads(w, op->b) | loads(w, op->c) | loads(w, op->guard);
    for (int i = 0; i < op->n; i++) any |= loads(w, slots[i]);
    if (any) wait_all(w, &w->tmem_loads);
}

void tcgen05_store(Warp *w, Reg tmem, TmemShape shape, int n, const u16 *slots) {
    Operation o = new_transfer(w, TMEM_STORE, tmem, shape, n, slots);
    o.transfer.values = aligned_alloc(sizeof(Reg), n * sizeof(Reg));
    for (int i = 0; i < n; i++) o.transfer.values[i] = w->r[slots[i]];
    issue(&w->tmem_stores, o);
}

void tcgen05_wait_loads(Warp *w) { wait_all(w, &w->tmem_loads); }
void tcgen05_wait_stores(Warp *w) { wait_all(w, &w->tmem_stores); }
