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

// `racer` arrives `count` times, or brings bytes; w is whom a fault names
void arrive(Warp *w, u32 address, u32 count, int racer);
void complete_bytes(Warp *w, u32 address, u32 bytes, int racer);
