// Boxes of a tensor between global and shared memory, by their CUtensorMap.
//
// The bits of a CUtensorMap are not documented; these were found by varying what is encoded.
#include "async.h"

typedef struct {
    u64 base, stride[5];
    u32 rank, element, swizzle, dim[5], box[5];
} Map;

static Map decode(Warp *w, u64 descriptor) {
    static const u8 ELEMENT_BYTES[16] = {1, 2, 4, 4, 8, 8, 2, 4, 0, 0, 2};  // 0: not known
    if (descriptor % 64) fault(w, "TMA descriptor at %#lx is not aligned to 64 bytes", descriptor);
    u32 words[16];
    memcpy(words, (const void *)descriptor, sizeof words);
    Map m = {.base = words[0] | (u64)words[1] << 32, .rank = (words[2] >> 4 & 7) + 1,
             .element = ELEMENT_BYTES[words[2] >> 7 & 15], .swizzle = words[2] >> 13 & 3};
    if (m.rank > 5 || !m.element) fault(w, "TMA descriptor %#x: rank %u, unknown element", words[2], m.rank);
    m.stride[0] = m.element;
    for (int i = 1; i < 5; i++)
        m.stride[i] = (words[2 + i] | (u64)(words[7] >> (4 * (i - 1)) & 15) << 32) * 16;
    for (int i = 0; i < 5; i++) m.dim[i] = words[8 + i] + 1;
    m.box[0] = (words[13] >> 24) + 1;
    for (int i = 1; i < 5; i++) m.box[i] = (words[14] >> (8 * (i - 1)) & 255) + 1;
    return m;
}

// Bits 4 and up of a shared address, exclusive or its bits 7 and up; mode 1, 2, 3: 32, 64, 128 bytes.
static u32 swizzled(u32 address, u32 mode) { return address ^ (address >> 7 & ((1u << mode) - 1)) << 4; }

// Where row `index` of the box starts in global memory, and whether it is inside the tensor.
static int row_of_box(const Map *m, const Tma *t, u32 index, u64 *address) {
    int inside = 1;
    *address = m->base;
    for (u32 d = 1; d < m->rank; d++) {
        s32 x = t->gather ? t->coordinates[1 + index] : t->coordinates[d] + (s32)(index % m->box[d]);
        index /= m->box[d];
        inside &= x >= 0 && (u32)x < m->dim[d];
        *address += (s64)x * (s64)m->stride[d];
    }
    return inside;
}

typedef struct {
    Map map;
    u32 offset, row_bytes, rows;
    s64 first, end;  // columns of the box that are inside the tensor
} Box;

static Box box_of(Operation *o) {
    Tma *t = &o->tma;
    Warp *w = o->issuer;
    Box box = {.map = decode(w, t->descriptor), .offset = SHARED_OFFSET(t->shared), .rows = 1};
    Map *m = &box.map;
    for (u32 d = 1; d < m->rank; d++) box.rows *= m->box[d];
    if (t->gather) box.rows = 4;
    box.row_bytes = m->box[0] * m->element;
    if (m->swizzle && box.row_bytes > 16u << m->swizzle)
        fault(w, "TMA: rows of %u bytes with a swizzle of %u", box.row_bytes, 16u << m->swizzle);
    if (box.row_bytes % 16) fault(w, "TMA: rows of %u bytes, not a multiple of 16", box.row_bytes);
    // not in the PTX ISA: an H100 raises an illegal instruction
    if ((s64)t->coordinates[0] * m->element % 16)
        fault(w, "TMA: column %d of %u bytes each is not at a multiple of 16 bytes", t->coordinates[0], m->element);
    check_aligned(w, "shared", t->shared, 128);
    check_aligned(w, "global", m->base, 16);
    if (box.offset + box.row_bytes * box.rows > SHARED_BYTES)
        fault(w, "TMA: a box of %u bytes at shared address %#x", box.row_bytes * box.rows, t->shared);
    s64 x = t->coordinates[0], left = (s64)m->dim[0] - x;
    box.first = x < 0 ? -x : 0;
    box.end = left < m->box[0] ? left : m->box[0];
    return box;
}

void perform_tma_load(Operation *o) {
    Tma *t = &o->tma;
    Warp *w = o->issuer;
    Cta *cta = w->cta, *targets[MAX_CLUSTER];
    Grid *grid = cta->grid;
    int num_targets = 0;
    Box box = box_of(o);
    if (!t->multicast) targets[num_targets++] = shared_owner(w, t->shared, 1);
    for (u32 r = 0; r < MAX_CLUSTER; r++) {
        if (!(t->multicast >> r & 1)) continue;
        if (r >= cta->cluster_size) fault(w, "TMA multicast to CTA %u of a cluster of %u", r, cta->cluster_size);
        targets[num_targets++] = peer(w, r);
    }
    u8 row[1024];
    for (u32 i = 0; i < box.rows; i++) {
        u64 address;
        memset(row, 0, box.row_bytes);
        if (row_of_box(&box.map, t, i, &address) && box.end > box.first) {
            u32 element = box.map.element, bytes = (box.end - box.first) * element;
            address += (t->coordinates[0] + box.first) * element;
            memcpy(row + box.first * element, global(w, address, bytes), bytes);
            load_unordered(grid, address, bytes, of_operation(o), row + box.first * element);
        }
        u32 offset = box.offset + i * box.row_bytes;
        for (int k = 0; k < num_targets; k++) {
            for (u32 b = 0; b < box.row_bytes; b += 16) {
                u32 place = swizzled(offset + b, box.map.swizzle);
                memcpy(targets[k]->shared + place, row + b, 16);
                write_shared(targets[k], place, 16, of_operation(o));
            }
            written_by_async_proxy(targets[k], offset, box.row_bytes);
        }
    }
    u32 bytes = box.row_bytes * box.rows;
    grid->counters.tma_loads++;
    grid->counters.tma_load_bytes += bytes;
    for (int k = 0; k < num_targets; k++) {
        u32 mbarrier = t->mbarrier;
        // of a pair, the CTA with the parity of the given barrier's
        u32 rank = t->pair ? (targets[k]->rank & ~1u) | (SHARED_RANK(mbarrier) & 1) : targets[k]->rank;
        if (t->multicast) mbarrier = rank << 24 | SHARED_OFFSET(mbarrier);
        complete_bytes(w, mbarrier, bytes, of_operation(o));
    }
}

void perform_tma_store(Operation *o) {
    Tma *t = &o->tma;
    Warp *w = o->issuer;
    Cta *cta = w->cta;
    Box box = box_of(o);
    if (box.first) fault(w, "TMA store at column %d", t->coordinates[0]);
    u8 row[1024];
    for (u32 i = 0; i < box.rows; i++) {
        u32 offset = box.offset + i * box.row_bytes;
        for (u32 b = 0; b < box.row_bytes; b += 16) {
            u32 place = swizzled(offset + b, box.map.swizzle);
            memcpy(row + b, cta->shared + place, 16);
            read_shared(cta, place, 16, of_operation(o));
        }
        read_by_async_proxy(o, cta, offset, box.row_bytes);
        u64 address;
        if (!row_of_box(&box.map, t, i, &address) || box.end <= 0) continue;
        u32 bytes = box.end * box.map.element;
        address += (u64)t->coordinates[0] * box.map.element;
        memcpy(global(w, address, bytes), row, bytes);
        write_global(cta->grid, address, bytes, of_operation(o));
    }
    cta->grid->counters.tma_stores++;
    cta->grid->counters.tma_store_bytes += box.row_bytes * box.rows;
}

void tma_load(Warp *w, Reg active, Reg64 descriptor, int rank, const Reg *coordinates, Reg to, Reg mbarrier, Reg multicast, int pair, int gather) {
    FOR_LANES(active) {
        Tma t = {.descriptor = descriptor[l], .shared = to[l], .mbarrier = mbarrier[l], .multicast = multicast[l], .pair = pair, .gather = gather};
        for (int i = 0; i < rank; i++) t.coordinates[i] = coordinates[i][l];
        issue(&w->cta->loads, (Operation){.kind = TMA_LOAD, .issuer = w, .agent = w->cta->load_agent, .lanes = 1u << l, .tma = t});
    }
}

void tma_store(Warp *w, Reg active, Reg64 descriptor, int rank, const Reg *coordinates, Reg from) {
    FOR_LANES(active) {
        Tma t = {.descriptor = descriptor[l], .shared = from[l]};
        for (int i = 0; i < rank; i++) t.coordinates[i] = coordinates[i][l];
        issue(&w->stores, (Operation){.kind = TMA_STORE, .issuer = w, .agent = w->agent, .lanes = 1u << l, .tma = t});
    }
}
