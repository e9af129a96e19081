/* The CUDA runtime and cuBLAS of a GPU that computes nothing: launches are counted, memory is host
   memory, and whatever would make the host wait is reported. build.py adds an empty function for
   every other symbol that torch asks for. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#define CUDARTAPI
#define cudaGetDeviceProperties cudaGetDeviceProperties
#include <cuda_runtime_api.h>
#define EXPORT __attribute__((visibility("default")))
#define ADD(counter) __sync_fetch_and_add(&(counter), 1)

enum { MEMORY = 150, MOST_PINNED = 4096 };
static long launches, waits, to_device, to_host, pageable, allocations, events, graphs;
static int capturing;
static __thread int device;
static void (*on_wait)(const char *);

int note(const char *name)
{
    if (getenv("HOLLOW_TRACE")) fprintf(stderr, "hollow: %s\n", name);
    return 0;
}

EXPORT void hollow_on_wait(void (*call)(const char *)) { on_wait = call; }

EXPORT void hollow_counts(long *out)
{
    long now[] = {launches, waits,       to_device, to_host,
                  pageable, allocations, events,    graphs};
    memcpy(out, now, sizeof now);
}

/* The host waits for the device: counted, and an error inside a capture, as on a GPU. */
static cudaError_t waited(const char *name)
{
    if (capturing) return cudaErrorStreamCaptureUnsupported;
    ADD(waits);
    if (on_wait) on_wait(name);
    return cudaSuccess;
}

/* Handles: any number that is not 0. */
static uintptr_t last_handle = 0x1000;
static void *handle(void) { return (void *)__sync_add_and_fetch(&last_handle, 16); }

/* Memory. Pages are taken when they are touched, so that a large allocation costs nothing. */
static size_t held;
static struct { const char *begin; size_t bytes; } pinned[MOST_PINNED];
static int pinned_count;
static pthread_mutex_t pinning = PTHREAD_MUTEX_INITIALIZER;

static void *pages(size_t bytes)
{
    void *found = mmap(0, bytes ? bytes : 1, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return found == MAP_FAILED ? 0 : found;
}

static void pin(const void *begin, size_t bytes)
{
    pthread_mutex_lock(&pinning);
    if (pinned_count < MOST_PINNED) {
        pinned[pinned_count].begin = begin;
        pinned[pinned_count++].bytes = bytes;
    }
    pthread_mutex_unlock(&pinning);
}

static int is_pinned(const char *address)
{
    int found = 0;
    pthread_mutex_lock(&pinning);
    for (int i = 0; i < pinned_count && !found; i++)
        found = address >= pinned[i].begin && address < pinned[i].begin + pinned[i].bytes;
    pthread_mutex_unlock(&pinning);
    return found;
}

EXPORT cudaError_t cudaMalloc(void **to, size_t bytes)
{
    ADD(allocations);
    held += bytes;
    *to = pages(bytes);
    return *to ? cudaSuccess : cudaErrorMemoryAllocation;
}
EXPORT cudaError_t cudaFree(void *p) { return waited("cudaFree"); }
EXPORT cudaError_t cudaHostAlloc(void **to, size_t bytes, unsigned flags)
{
    *to = pages(bytes);
    pin(*to, bytes);
    return *to ? cudaSuccess : cudaErrorMemoryAllocation;
}
EXPORT cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags)
{
    pin(p, bytes);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemGetInfo(size_t *left, size_t *all)
{
    *all = MEMORY * 1000000000ul;
    *left = *all - held;
    return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p)
{
    memset(a, 0, sizeof *a);
    a->type = is_pinned(p) ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    return cudaSuccess;
}

/* Copies. Those between host and device move bytes; on the device only small ones do. */
EXPORT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes,
                                   enum cudaMemcpyKind kind, cudaStream_t stream)
{
    if (kind == cudaMemcpyHostToDevice) {
        ADD(to_device);
        if (!is_pinned(from)) ADD(pageable); /* the driver copies it first, and the host waits */
    } else if (kind == cudaMemcpyDeviceToHost) {
        ADD(to_host);
    } else if (bytes >= 1 << 24) {
        return cudaSuccess;
    }
    memcpy(to, from, bytes);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    memcpy(to, from, bytes);
    return waited("cudaMemcpy");
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t bytes,
                                       cudaStream_t stream)
{
    memcpy(to, from, bytes);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    ADD(launches);
    if (bytes < 1 << 20) memset(to, value, bytes);
    return cudaSuccess;
}

/* Launches. */
EXPORT cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s)
{
    ADD(launches);
    return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s)
{
    ADD(launches);
    return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a)
{
    ADD(launches);
    return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 g, dim3 b, void **a, size_t m,
                                               cudaStream_t s)
{
    ADD(launches);
    return cudaSuccess;
}

/* Streams and events. */
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority)
{
    *s = handle();
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    *s = handle();
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = handle(); return cudaSuccess; }
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { *p = 0; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = handle(); return 0; }
EXPORT cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = handle(); return 0; }
EXPORT cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { ADD(events); return 0; }
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f)
{
    ADD(events);
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    *ms = 1.0f;
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e) { return waited("cudaEventSynchronize"); }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t s) { return waited("cudaStreamSynchronize"); }
EXPORT cudaError_t cudaDeviceSynchronize(void) { return waited("cudaDeviceSynchronize"); }

/* Graphs. */
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status)
{
    *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode)
{
    capturing = 1;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph)
{
    capturing = 0;
    *graph = handle();
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g,
                                                 unsigned long long flags)
{
    *e = handle();
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *count)
{
    *count = 7;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) { ADD(graphs); return 0; }
EXPORT cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *g,
    cudaGraphNode_t const **nodes, const cudaGraphEdgeData **edges, size_t *count)
{
    if (status) cudaStreamIsCapturing(s, status);
    if (id) *id = capturing;
    if (g) *g = (void *)0x55;
    if (count) *count = 0;
    return cudaSuccess;
}

/* The device: an H200 by its numbers. */
EXPORT cudaError_t cudaGetDeviceCount(int *n)
{
    const char *gpus = getenv("HOLLOW_GPUS");
    *n = gpus ? atoi(gpus) : 1;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int *d) { *d = device; return cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int d) { device = d; return cudaSuccess; }
EXPORT cudaError_t cudaDriverGetVersion(int *v) { *v = 13000; return cudaSuccess; }
EXPORT cudaError_t cudaRuntimeGetVersion(int *v) { *v = 13000; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d)
{
    snprintf(s, n, "0000:%02x:00.0", d + 1);
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 1; return 0; }
EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d)
{
    memset(p, 0, sizeof *p);
    strcpy(p->name, "a GPU that computes nothing");
    p->uuid.bytes[0] = d + 1;
    p->totalGlobalMem = MEMORY * 1000000000ul;
    p->major = 9;
    p->warpSize = 32;
    p->multiProcessorCount = 132;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = 232448;
    p->sharedMemPerMultiprocessor = 233472;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->l2CacheSize = 62914560;
    p->memoryBusWidth = 6144;
    p->concurrentKernels = p->unifiedAddressing = p->managedMemory = 1;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d)
{
    switch (a) {
    case cudaDevAttrMultiProcessorCount: *v = 132; break;
    case cudaDevAttrComputeCapabilityMajor: *v = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *v = 0; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = 233472; break;
    case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor:
        *v = 65536; break;
    case cudaDevAttrWarpSize: case cudaDevAttrMaxBlocksPerMultiprocessor: *v = 32; break;
    case cudaDevAttrL2CacheSize: *v = 62914560; break;
    default: *v = 1;
    }
    return cudaSuccess;
}
EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f)
{
    memset(a, 0, sizeof *a);
    a->binaryVersion = a->ptxVersion = 90;
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int b,
                                                                 size_t m)
{
    *n = 2;
    return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f,
                                                                          int b, size_t m,
                                                                          unsigned flags)
{
    *n = 2;
    return cudaSuccess;
}
EXPORT const char *cudaGetErrorString(cudaError_t e) { return "error of the hollow GPU"; }
EXPORT const char *cudaGetErrorName(cudaError_t e) { return "hollow"; }
EXPORT cudaError_t cudaGetSymbolAddress(void **p, const void *s) { *p = pages(4096); return 0; }
EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *p, int d) { *p = handle(); return 0; }
static int driver_function() { return 0; }
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned v,
                                                    unsigned long long flags,
                                                    enum cudaDriverEntryPointQueryResult *r)
{
    *f = (void *)driver_function;
    if (r) *r = 0;
    return cudaSuccess;
}

/* What nvcc's stubs call to register kernels and to launch them. */
EXPORT void **__cudaRegisterFatBinary(void *p) { static void *h[4]; return h; }
EXPORT char __cudaInitModule(void **h) { return 1; }
EXPORT unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t m, void *s) { return 0; }
EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *m, void *s)
{
    g->x = g->y = g->z = b->x = b->y = b->z = 1;
    *m = 0;
    *(void **)s = 0;
    return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(void **k, const void *f) { *k = (void *)f; return cudaSuccess; }

/* cuBLAS. */
EXPORT int cublasCreate_v2(void **h) { *h = handle(); return 0; }
EXPORT int cublasLtCreate(void **h) { *h = handle(); return 0; }
EXPORT int cublasGetMathMode(void *h, int *mode) { *mode = 0; return 0; }
EXPORT int cublasGetPointerMode_v2(void *h, int *mode) { *mode = 0; return 0; }
EXPORT int cublasLtMatmulDescCreate(void **d, int c, int s) { *d = handle(); return 0; }
EXPORT int cublasLtMatrixLayoutCreate(void **d, int t, uint64_t r, uint64_t c, int64_t l)
{
    *d = handle();
    return 0;
}
EXPORT int cublasLtMatmulPreferenceCreate(void **d) { *d = handle(); return 0; }
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *e,
                                          void *p, int n, void *result, int *got)
{
    memset(result, 0, 88);
    *got = 1;
    return 0;
}
EXPORT int cublasLtMatmul() { ADD(launches); return 0; }
EXPORT int cublasGemmEx() { ADD(launches); return 0; }
EXPORT int cublasSgemm_v2() { ADD(launches); return 0; }
