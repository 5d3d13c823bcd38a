// Phases of an mbarrier: it completes when no arrival and no byte is missing.
#pragma once
#include "memory.h"

typedef union {
    u64 word;
    struct {
        u64 phase : 1, expected : 20, missing : 20;
        s64 bytes : 23;
    };
} Mbarrier;

// `by` arrives `count` times, or brings bytes; w is whom a fault names
void arrive(Warp *w, u32 address, u32 count, Access by);
void complete_bytes(Warp *w, u32 address, u32 bytes, Access by);
