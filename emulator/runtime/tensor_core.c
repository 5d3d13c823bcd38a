// The sum of an instruction: its 32 products and the accumulator are cut off (towards zero) some
// bits below the largest exponent among them, added exactly, and the sum is cut off again.
// Exponents are those of the factors, not of the normalised products. Hopper keeps 13 bits below
// the largest exponent and 13 fraction bits of the sum; Blackwell 25 bits, and fp32.
// Measured and published: arXiv 2511.10909, arXiv 2512.07004.
#include "tensor_core.h"

#define NOTHING_EXPONENT (-200)  // of zero: below all others

INLINE float value(u8 code) {  // of NaN: anything
    s32 biased = code >> 3 & 15, mantissa = code & 7;
    float magnitude = biased ? ldexpf(8 + mantissa, biased - 10) : ldexpf(mantissa, -9);
    return code & 128 ? -magnitude : magnitude;
}
INLINE s32 exponent(u8 code) {
    s32 biased = code >> 3 & 15;
    return code & 127 ? (biased ? biased : 1) - 7 : NOTHING_EXPONENT;
}
INLINE int is_nan(u8 code) { return (code & 127) == 127; }

static struct {
    float value[256];
    s32 exponent[256];
} e4m3;
__attribute__((constructor)) static void fill_e4m3(void) {
    for (int code = 0; code < 256; code++) e4m3.value[code] = value(code), e4m3.exponent[code] = exponent(code);
}

static void read_row(Operation *o, Cta *cta, u64 descriptor, Generation g, int row, u8 *codes) {
    Warp *w = o->issuer;
    u32 start = (descriptor & 0x3fff) << 4, eight_rows = (descriptor >> 32 & 0x3fff) << 4;
    if (g == HOPPER ? descriptor >> 62 != 1 : descriptor >> 61 != 2)
        fault(w, "matrix descriptor %#lx: only 128-byte swizzle is known", descriptor);
    if (descriptor >> 49 & 7) fault(w, "matrix descriptor %#lx: base offset", descriptor);
    if (g == BLACKWELL && (descriptor >> 46 & 7) != 1)
        fault(w, "matrix descriptor %#lx: bits 46 to 48 must be 1", descriptor);
    u32 address = start + row / 8 * eight_rows + row % 8 * 128;
    for (int half = 0; half < 2; half++) {
        u32 place = address + 16 * half;
        place ^= (place >> 7 & 7) << 4;
        if (place + 16 > SHARED_BYTES) fault(w, "matrix descriptor %#lx: row %d is outside", descriptor, row);
        read_shared(cta, place, 16, of_operation(o));
        read_by_async_proxy(o, cta, place, 16);
        memcpy(codes + 16 * half, cta->shared + place, 16);
    }
}

void read_left(Operation *o, Cta *cta, u64 descriptor, Generation g, int first_row, int rows, LeftOperand *left) {
    u8 codes[STEP];
    for (int i = 0; i < rows; i++) {
        read_row(o, cta, descriptor, g, first_row + i, codes);
        left->is_nan[i] = 0;
        for (int k = 0; k < STEP; k++) {
            left->value[i][k] = e4m3.value[codes[k]];
            left->exponent[i][k] = e4m3.exponent[codes[k]];
            left->is_nan[i] |= is_nan(codes[k]);
        }
    }
}

void read_right(Operation *o, Cta *cta, u64 descriptor, Generation g, int into, int rows, RightOperand *right) {
    u8 codes[STEP];
    for (int j = into; j < into + rows; j++) {
        read_row(o, cta, descriptor, g, j - into, codes);
        right->is_nan[j] = 0;
        for (int k = 0; k < STEP; k++) {
            right->value[k][j] = e4m3.value[codes[k]];
            right->exponent[k][j] = e4m3.exponent[codes[k]];
            right->is_nan[j] |= is_nan(codes[k]);
        }
    }
}

INLINE s32 exponent_of(float x) {
    s32 biased = as_bits(x) >> 23 & 255;
    return x ? (biased ? biased : 1) - 127 : NOTHING_EXPONENT;
}
INLINE float power_of_two(s32 e) { return as_float((u32)(e < -126 ? 1 : e > 127 ? 254 : e + 127) << 23); }

// One row: sums[0..columns) += left . right. Scaled so that the cut is the conversion to integers,
// products and accumulator are exact in fp32.
INLINE void add_row(const float *left, const s32 *left_exponent, const RightOperand *right, int columns, Generation g, float *sums) {
    const int fraction = g == HOPPER ? 13 : 25;
    s32 largest[MAX_COLUMNS], sum[MAX_COLUMNS];
    s64 total[MAX_COLUMNS];
    float scale[MAX_COLUMNS];
    for (int j = 0; j < columns; j++) largest[j] = exponent_of(sums[j]);
    for (int k = 0; k < STEP; k++)
        for (int j = 0; j < columns; j++) {
            s32 e = left_exponent[k] + right->exponent[k][j];
            largest[j] = e > largest[j] ? e : largest[j];
        }
    for (int j = 0; j < columns; j++) {
        scale[j] = power_of_two(fraction - largest[j]);
        sum[j] = (s32)(sums[j] * scale[j]);
        total[j] = 0;
    }
    for (int k = 0; k < STEP; k++) {
        for (int j = 0; j < columns; j++) sum[j] += (s32)(left[k] * (right->value[k][j] * scale[j]));
        if (g == BLACKWELL && k % 8 == 7)  // 32 bits are full
            for (int j = 0; j < columns; j++) total[j] += sum[j], sum[j] = 0;
    }
    for (int j = 0; j < columns; j++) {
        float cut;
        if (g == HOPPER) {  // at most 21 bits: exact in fp32, of whose fraction 13 bits stay
            cut = as_float(as_bits((float)sum[j]) & ~0x3ffu);
        } else {  // exact in fp64, of whose fraction 23 bits stay
            double exact = (double)total[j];
            u64 bits;
            memcpy(&bits, &exact, 8);
            bits &= ~0x1fffffffull;
            memcpy(&exact, &bits, 8);
            cut = (float)exact;
        }
        sums[j] = cut * power_of_two(largest[j] - fraction);
    }
}

static void add_rows(const LeftOperand *left, int rows, const RightOperand *right, int columns, Generation g, float *sums, int stride) {
    int whole_lines = (columns + LINE - 1) / LINE * LINE;
    float row[MAX_COLUMNS] = {0};
    for (int i = 0; i < rows; i++, sums += stride) {
        memcpy(row, sums, columns * sizeof(float));
        add_row(left->value[i], left->exponent[i], right, whole_lines, g, row);
        for (int j = 0; j < columns; j++)
            sums[j] = left->is_nan[i] | right->is_nan[j] | !isfinite(sums[j]) ? as_float(0x7fffffff) : row[j];
    }
}

void multiply_add(const LeftOperand *left, int rows, const RightOperand *right, int columns, Generation g, float *sums, int stride) {
    if (g == HOPPER) add_rows(left, rows, right, columns, HOPPER, sums, stride);
    else add_rows(left, rows, right, columns, BLACKWELL, sums, stride);
}
