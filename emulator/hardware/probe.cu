// What an NVIDIA GPU of compute capability 9.0 computes where the PTX ISA leaves it open: the
// approximate functions, and e4m3 wgmma. See dump.py.
#include <cstdint>

__device__ float approximate(int function, float x) {
    float y;
    if (function == 0) asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    else asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// results[i] = function of the fp32 number whose bits are first + i
__global__ void evaluate(int function, uint32_t first, uint32_t* results) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    results[i] = __float_as_uint(approximate(function, __uint_as_float(first + i)));
}

// d [64, 16] += a [64, 32] b [16, 32]^T for each block: e4m3 codes, K-major, accumulated in fp32.
// One warpgroup. In shared memory a row takes 128 bytes, 128-byte swizzled, of which 32 are used.
__global__ void multiply(const uint8_t* a, const uint8_t* b, float* d) {
    __shared__ __align__(1024) uint8_t rows_a[64 * 128];
    __shared__ __align__(1024) uint8_t rows_b[16 * 128];
    a += blockIdx.x * 64 * 32, b += blockIdx.x * 16 * 32, d += blockIdx.x * 64 * 16;
    int thread = threadIdx.x;
    auto place = [](int row, int k) { return row * 128 + (k ^ ((row % 8) << 4)); };
    for (int i = thread; i < 64 * 32; i += 128) rows_a[place(i / 32, i % 32)] = a[i];
    for (int i = thread; i < 16 * 32; i += 128) rows_b[place(i / 32, i % 32)] = b[i];
    asm volatile("fence.proxy.async;" ::: "memory");
    __syncthreads();
    auto descriptor = [](void* memory) {
        uint64_t address = __cvta_generic_to_shared(memory);
        return (address & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
    };
    uint64_t of_a = descriptor(rows_a), of_b = descriptor(rows_b);
    int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
    float v[8];
    for (int i = 0; i < 8; i++)
        v[i] = d[(row + i / 2 % 2 * 8) * 16 + column + i / 4 * 8 + i % 2];
    asm volatile(
        "wgmma.fence.sync.aligned;\n"
        "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 "
        "{%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, 1, 1, 1;\n"
        "wgmma.commit_group.sync.aligned;\n"
        "wgmma.wait_group.sync.aligned 0;\n"
        : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3]), "+f"(v[4]), "+f"(v[5]), "+f"(v[6]),
          "+f"(v[7])
        : "l"(of_a), "l"(of_b)
        : "memory");
    for (int i = 0; i < 8; i++)
        d[(row + i / 2 % 2 * 8) * 16 + column + i / 4 * 8 + i % 2] = v[i];
}

extern "C" int probe_evaluate(int function, uint32_t first, uint32_t count, uint32_t* results) {
    evaluate<<<count / 256, 256>>>(function, first, results);
    return cudaDeviceSynchronize();
}

extern "C" int probe_multiply(const uint8_t* a, const uint8_t* b, float* d, int blocks) {
    multiply<<<blocks, 128>>>(a, b, d);
    return cudaDeviceSynchronize();
}
