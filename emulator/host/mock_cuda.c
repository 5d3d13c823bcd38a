// Takes the CUDA runtime's place for exported host code: everything succeeds, launches are kept.
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define MAX_KERNELS 64
#define MAX_PARAMETERS 64
#define MAX_LAUNCHES 64
#define CLUSTER_DIMENSION 4  // cudaLaunchAttributeClusterDimension
#define OVERLAPS 6           // cudaLaunchAttributeProgrammaticStreamSerialization

typedef struct {  // cudaLaunchConfig_t
    unsigned grid[3], block[3];
    size_t shared;
    void *stream, *attributes;
    unsigned count;
} Config;
typedef struct {  // cudaLaunchAttribute
    int id, reserved;
    unsigned value[16];
} Attribute;

// Set by Python: see host.py.
typedef struct {
    char name[2048];
    int num_parameters, sizes[MAX_PARAMETERS];
} Kernel;
typedef struct {
    int kernel;
    unsigned grid[3], block[3], cluster[3], overlaps;
    unsigned long shared;
    unsigned char parameters[8192];
} Launch;
Kernel kernels[MAX_KERNELS];
Launch launches[MAX_LAUNCHES];
int num_kernels, num_launches;

int _cudaLaunchKernelEx(const Config *config, void *kernel, void **arguments) {
    if (num_launches == MAX_LAUNCHES) return 1;
    Launch *launch = &launches[num_launches++];
    launch->kernel = (int)(size_t)kernel - 1;
    memcpy(launch->grid, config->grid, sizeof launch->grid);
    memcpy(launch->block, config->block, sizeof launch->block);
    launch->shared = config->shared;
    launch->cluster[0] = launch->cluster[1] = launch->cluster[2] = 1;
    launch->overlaps = 0;
    for (unsigned i = 0; i < config->count; i++) {
        const Attribute *attribute = (const Attribute *)config->attributes + i;
        if (attribute->id == CLUSTER_DIMENSION) memcpy(launch->cluster, attribute->value, sizeof launch->cluster);
        if (attribute->id == OVERLAPS) launch->overlaps = attribute->value[0];
    }
    const Kernel *launched = &kernels[launch->kernel];
    unsigned char *to = launch->parameters;
    for (int i = 0; i < launched->num_parameters; i++) {
        if (to + launched->sizes[i] > launch->parameters + sizeof launch->parameters) return 1;
        memcpy(to, arguments[i], launched->sizes[i]);
        to += launched->sizes[i];
    }
    return 0;
}
int _cudaLibraryLoadData(void **library) { *library = (void *)1; return 0; }
int _cudaLibraryGetKernel(void **kernel, void *library, const char *name) {
    for (int i = 0; i < num_kernels; i++)
        if (!strcmp(kernels[i].name, name)) {
            *kernel = (void *)(size_t)(i + 1);
            return 0;
        }
    fprintf(stderr, "the PTX has no kernel %s\n", name);
    return 1;
}
int _cuKernelGetAttribute(int *value) { *value = 0; return 0; }
int _cudaDeviceGetAttribute(int *value) { *value = 227 * 1024; return 0; }
int _cudaGetDevice(int *device) { *device = 0; return 0; }
int _cudaFuncSetAttribute(void) { return 0; }
int _cudaKernelSetAttributeForDevice(void) { return 0; }

// A CUtensorMap as runtime/tma.c reads it. Returns 1 for what is not known: interleaved elements,
// steps within the tensor, doubles.
int _cuTensorMapEncodeTiled(unsigned *map, int type, unsigned rank, unsigned long base, const unsigned long *dim,
                            const unsigned long *stride, const unsigned *box, const unsigned *step, int interleave,
                            int swizzle, int promotion, int fill) {
    const int BF16 = 9, CODE_OF_BF16 = 10, LAST = 7;
    if (interleave || fill || (type > LAST && type != BF16) || swizzle > 3) return 1;
    memset(map, 0, 128);
    map[0] = base, map[1] = base >> 32;
    map[2] = (rank - 1) << 4 | (type == BF16 ? CODE_OF_BF16 : type) << 7 | swizzle << 13;
    for (unsigned i = 0; i < rank; i++) {
        if (step[i] != 1) return 1;
        map[8 + i] = dim[i] - 1;
        if (i == 0) map[13] = (box[0] - 1) << 24;
        else map[14] |= (box[i] - 1) << (8 * (i - 1));
        if (i == 0) continue;
        map[2 + i] = stride[i - 1] / 16;
        map[7] |= (unsigned)(stride[i - 1] / 16 >> 32) << (4 * (i - 1));
    }
    (void)promotion;
    return 0;
}
