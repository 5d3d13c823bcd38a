// What the kinds of asynchronous operations do when they happen.
#pragma once
#include "mbarrier.h"

void perform_copy(Operation *o);
void perform_tma_load(Operation *o);
void perform_tma_store(Operation *o);
void perform_wgmma(Operation *o);
void perform_tcgen05_mma(Operation *o);
void perform_tcgen05_commit(Operation *o);
void perform_tmem_load(Operation *o);
void perform_tmem_store(Operation *o);
