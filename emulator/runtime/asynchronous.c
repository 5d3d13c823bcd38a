// Asynchronous operations: issued now, performed when the schedule wants.
#include "async.h"

#include <stdlib.h>

static void push(Queue *queue, Operation operation) {
    if (queue->first == queue->end) queue->first = queue->end = 0;
    if (queue->end == queue->capacity) {
        queue->capacity = queue->capacity ? 2 * queue->capacity : 16;
        queue->items = realloc(queue->items, queue->capacity * sizeof(Operation));
    }
    queue->items[queue->end++] = operation;
}

Operation take(Queue *queue, int which) {
    Operation *front = queue->items + queue->first, taken = front[which];
    front[which] = front[0];
    queue->first++;
    return taken;
}

void perform(Operation *o) {
    int issuer_line = o->issuer->line;
    o->issuer->line = o->line;  // a fault is that of the instruction that issued
    begin_operation(o->issuer->cta->grid, o);
    switch (o->kind) {
    case COPY: perform_copy(o); break;
    case COPY_ARRIVE: arrive(o->issuer, o->copy.mbarrier, 1, of_operation(o)); break;
    case TMA_LOAD: perform_tma_load(o); break;
    case TMA_STORE: perform_tma_store(o); break;
    case WGMMA: perform_wgmma(o); break;
    case TCGEN05_MMA: perform_tcgen05_mma(o); break;
    case TCGEN05_COMMIT: perform_tcgen05_commit(o); break;
    case TMEM_LOAD: perform_tmem_load(o); break;
    case TMEM_STORE: perform_tmem_store(o); break;
    case COMMIT: break;
    }
    o->issuer->line = issuer_line;
    o->issuer->cta->grid->run->progress++;
}

void issue(Queue *queue, Operation o) {
    o.line = o.issuer->line;
    o.fenced = o.issuer->fenced;
    o.clock = issue_clock(&o);
    if (o.issuer->cta->grid->schedule == EAGER) perform(&o);
    else push(queue, o);
}

void commit_group(Warp *w, Queue *queue) {
    if (w->cta->grid->schedule != EAGER) push(queue, (Operation){.kind = COMMIT, .issuer = w});
}

void wait_groups(Warp *w, Queue *queue, int pending) {
    int groups = 0;
    for (int i = queue->first; i < queue->end; i++) groups += queue->items[i].kind == COMMIT;
    while (groups > pending) {
        Operation o = take(queue, 0);
        if (o.kind == COMMIT) groups--;
        else perform(&o);
    }
    join_agent(w);
}

void wait_all(Warp *w, Queue *queue) {
    while (queued(queue)) {
        Operation o = take(queue, 0);
        perform(&o);
    }
    join_agent(w);
}
