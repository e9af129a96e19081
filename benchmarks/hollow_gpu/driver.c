/* The CUDA driver of a GPU that computes nothing: Triton's launches are counted, and the last one is
   kept for comparison. build.py adds an empty function for every other symbol of cuda.h, which is
   not included: it gives many of these functions other names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define EXPORT __attribute__((visibility("default")))

typedef struct { /* CUlaunchConfig */
    unsigned grid[3], block[3], shared;
    void *stream, *attributes;
    unsigned attribute_count;
} Config;

enum { /* of CUdevice_attribute, CUfunction_attribute and CUpointer_attribute */
    MAX_THREADS_PER_BLOCK = 1, MAX_SHARED_MEMORY_PER_BLOCK = 8, WARP_SIZE = 10,
    MAX_REGISTERS_PER_BLOCK = 12, MULTIPROCESSOR_COUNT = 16, MAX_THREADS_PER_MULTIPROCESSOR = 39,
    CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81,
    MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97, FUNCTION_THREADS = 0, FUNCTION_REGISTERS = 4,
    DEVICE_POINTER = 3, TYPE_DEVICE = 2
};
enum { MOST_ARGUMENTS = 32 };
static long launches;
static int arguments; /* of a launch that are kept; 0: nothing is */
static long kept[8 + MOST_ARGUMENTS];

int note(const char *name)
{
    if (getenv("HOLLOW_TRACE")) fprintf(stderr, "hollow driver: %s\n", name);
    return 0;
}

EXPORT long hollow_driver_launches(void) { return launches; }

/* Keeps grid, threads, memory, stream, function and `count` arguments of 8 bytes of each launch. */
EXPORT void hollow_keep(int count) { arguments = count < MOST_ARGUMENTS ? count : MOST_ARGUMENTS; }
EXPORT void hollow_kept(long *out) { memcpy(out, kept, sizeof kept); }

EXPORT int cuLaunchKernelEx(const Config *c, void *f, void **params, void **x)
{
    __sync_fetch_and_add(&launches, 1);
    if (!arguments) return 0;
    long head[] = {c->grid[0], c->grid[1], c->grid[2], c->block[0], c->shared, (long)c->stream,
                   (long)f, c->attribute_count};
    memset(kept, 0, sizeof kept);
    memcpy(kept, head, sizeof head);
    for (int i = 0; i < arguments; i++) memcpy(&kept[8 + i], params[i], 8);
    return 0;
}
EXPORT int cuLaunchKernel() { __sync_fetch_and_add(&launches, 1); return 0; }

EXPORT int cuInit(unsigned flags) { return 0; }
EXPORT int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
EXPORT int cuDeviceGetCount(int *n) { *n = 1; return 0; }
EXPORT int cuDeviceGet(int *d, int i) { *d = i; return 0; }
EXPORT int cuDeviceGetName(char *s, int n, int d)
{
    strncpy(s, "a GPU that computes nothing", n);
    return 0;
}
EXPORT int cuDeviceGetAttribute(int *v, int attribute, int d)
{
    switch (attribute) {
    case MAX_THREADS_PER_BLOCK: *v = 1024; break;
    case MAX_SHARED_MEMORY_PER_BLOCK: *v = 49152; break;
    case WARP_SIZE: *v = 32; break;
    case MAX_REGISTERS_PER_BLOCK: *v = 65536; break;
    case MULTIPROCESSOR_COUNT: *v = 132; break;
    case MAX_THREADS_PER_MULTIPROCESSOR: *v = 2048; break;
    case CAPABILITY_MAJOR: *v = 9; break;
    case CAPABILITY_MINOR: *v = 0; break;
    case MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *v = 233472; break;
    case MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *v = 232448; break;
    default: *v = 1;
    }
    return 0;
}
EXPORT int cuCtxGetCurrent(void **c) { *c = (void *)0x77; return 0; }
EXPORT int cuCtxGetDevice(int *d) { *d = 0; return 0; }
EXPORT int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)0x77; return 0; }
EXPORT int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) { *f = 0; *a = 1; return 0; }
EXPORT int cuModuleLoadData(void **m, const void *image) { *m = (void *)0x88; return 0; }
EXPORT int cuModuleLoadDataEx(void **m, const void *i, unsigned n, void *o, void *v)
{
    *m = (void *)0x88;
    return 0;
}
EXPORT int cuModuleGetFunction(void **f, void *m, const char *name)
{
    static uintptr_t last = 0x900; /* each kernel its own */
    *f = (void *)__sync_add_and_fetch(&last, 16);
    return 0;
}
EXPORT int cuFuncGetAttribute(int *v, int attribute, void *f)
{
    *v = attribute == FUNCTION_THREADS ? 1024
         : attribute == FUNCTION_REGISTERS ? 64
                                        : 0;
    return 0;
}
EXPORT int cuGetErrorString(int e, const char **s) { *s = "error of the hollow GPU"; return 0; }
EXPORT int cuGetErrorName(int e, const char **s) { *s = "hollow"; return 0; }
EXPORT int cuPointerGetAttribute(void *to, int attribute, uint64_t p)
{
    if (attribute == DEVICE_POINTER) *(uint64_t *)to = p;
    else *(int *)to = TYPE_DEVICE;
    return 0;
}
EXPORT int cuGetExportTable(const void **t, const void *id) { *t = 0; return 500; }

static void *found(const char *name)
{
    char second[200];
    void *self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    snprintf(second, sizeof second, "%s_v2", name);
    void *function = dlsym(self, second);
    return function ? function : dlsym(self, name);
}
EXPORT int cuGetProcAddress_v2(const char *name, void **f, int v, uint64_t flags, int *status)
{
    *f = found(name);
    if (status) *status = *f ? 0 : 1;
    return *f ? 0 : 500;
}
EXPORT int cuGetProcAddress(const char *name, void **f, int v, uint64_t flags)
{
    *f = found(name);
    return *f ? 0 : 500;
}
