// e4m3 products as the tensor cores add them.
#pragma once
#include "async.h"

#define STEP 32          // columns of K of an instruction
#define MAX_COLUMNS 256  // N
#define LINE 16          // columns are computed in multiples of it

// Values and exponents of an operand's codes; value = significand * 2^exponent, 1 <= significand < 2
// for normal numbers.
typedef struct {
    float value[TMEM_LANES][STEP];
    s32 exponent[TMEM_LANES][STEP];
    u8 is_nan[TMEM_LANES];
} LeftOperand;
typedef struct {
    float value[STEP][MAX_COLUMNS];
    s32 exponent[STEP][MAX_COLUMNS];
    u8 is_nan[MAX_COLUMNS];
} RightOperand;

typedef enum { HOPPER, BLACKWELL } Generation;

// `rows` rows of 32 codes of a K-major operand with 128-byte swizzle in shared memory, from
// first_row on, become those of the operand that start at `into`.
void read_left(Operation *o, Cta *cta, u64 descriptor, Generation g, int first_row, int rows, LeftOperand *left);
void read_right(Operation *o, Cta *cta, u64 descriptor, Generation g, int into, int rows, RightOperand *right);

// sums[row][column] += left . right, each row `stride` floats apart
void multiply_add(const LeftOperand *left, int rows, const RightOperand *right, int columns, Generation g, float *sums, int stride);
