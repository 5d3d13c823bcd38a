// wgmma: each warp of a warpgroup multiplies its 16 of 64 rows.
#include "tensor_core.h"

// Lane l holds columns 8 j + l % 4 * 2 + {0, 1} of rows l / 4 and l / 4 + 8, in this order.
void perform_wgmma(Operation *o) {
    static _Thread_local LeftOperand left;
    static _Thread_local RightOperand right;
    Wgmma *m = &o->wgmma;
    Warp *w = o->issuer;
    float sums[16][MAX_COLUMNS];
    read_left(o, w->cta, m->a, HOPPER, w->index % 4 * 16, 16, &left);
    read_right(o, w->cta, m->b, HOPPER, 0, m->columns, &right);
    for (int i = 0; i < 16; i++)
        for (u32 j = 0; j < m->columns; j++) {
            const Reg *value = &w->r[m->slots[j / 8 * 4 + i / 8 * 2 + j % 2]];
            sums[i][j] = m->accumulate ? as_float((*value)[i % 8 * 4 + j % 8 / 2]) : 0;
        }
    multiply_add(&left, 16, &right, m->columns, HOPPER, sums[0], MAX_COLUMNS);
    for (int i = 0; i < 16; i++)
        for (u32 j = 0; j < m->columns; j++) {
            Reg *value = &w->r[m->slots[j / 8 * 4 + i / 8 * 2 + j % 2]];
            (*value)[i % 8 * 4 + j % 8 / 2] = as_bits(sums[i][j]);
        }
    w->cta->grid->counters.multiply_adds += 16ull * m->columns * STEP;
}

void wgmma(Warp *w, Reg64 a, Reg64 b, Reg accumulate, u32 columns, const u16 *slots) {
    issue(&w->wgmmas, (Operation){.kind = WGMMA, .issuer = w, .agent = w->agent,
        .wgmma = {a[0], b[0], columns, accumulate[0], slots}});
}
