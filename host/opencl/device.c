/* Finding, probing and opening devices. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <clattn/clattn.h>

#include "../engine.h"
#include "copy.h"

static const char *cl_error_name(cl_int code)
{
    switch (code) {
#define NAME(name)                                                                                                     \
    case name: return #name;
        NAME(CL_DEVICE_NOT_FOUND)
        NAME(CL_DEVICE_NOT_AVAILABLE)
        NAME(CL_COMPILER_NOT_AVAILABLE)
        NAME(CL_MEM_OBJECT_ALLOCATION_FAILURE)
        NAME(CL_OUT_OF_RESOURCES)
        NAME(CL_OUT_OF_HOST_MEMORY)
        NAME(CL_BUILD_PROGRAM_FAILURE)
        NAME(CL_MAP_FAILURE)
        NAME(CL_MISALIGNED_SUB_BUFFER_OFFSET)
        NAME(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST)
        NAME(CL_INVALID_VALUE)
        NAME(CL_INVALID_DEVICE_TYPE)
        NAME(CL_INVALID_PLATFORM)
        NAME(CL_INVALID_DEVICE)
        NAME(CL_INVALID_CONTEXT)
        NAME(CL_INVALID_QUEUE_PROPERTIES)
        NAME(CL_INVALID_COMMAND_QUEUE)
        NAME(CL_INVALID_HOST_PTR)
        NAME(CL_INVALID_MEM_OBJECT)
        NAME(CL_INVALID_BINARY)
        NAME(CL_INVALID_BUILD_OPTIONS)
        NAME(CL_INVALID_PROGRAM)
        NAME(CL_INVALID_PROGRAM_EXECUTABLE)
        NAME(CL_INVALID_KERNEL_NAME)
        NAME(CL_INVALID_KERNEL)
        NAME(CL_INVALID_ARG_INDEX)
        NAME(CL_INVALID_ARG_VALUE)
        NAME(CL_INVALID_ARG_SIZE)
        NAME(CL_INVALID_KERNEL_ARGS)
        NAME(CL_INVALID_WORK_DIMENSION)
        NAME(CL_INVALID_WORK_GROUP_SIZE)
        NAME(CL_INVALID_WORK_ITEM_SIZE)
        NAME(CL_INVALID_GLOBAL_OFFSET)
        NAME(CL_INVALID_EVENT_WAIT_LIST)
        NAME(CL_INVALID_EVENT)
        NAME(CL_INVALID_OPERATION)
        NAME(CL_INVALID_BUFFER_SIZE)
        NAME(CL_INVALID_GLOBAL_WORK_SIZE)
#undef NAME
    case -1001: return "CL_PLATFORM_NOT_FOUND_KHR";
    default: return "an error without a name";
    }
}

clattn_status clattn__cl_fail(const char *call, cl_int code)
{
    clattn_status status = CLATTN_STATUS_OPENCL_ERROR;
    if (code == CL_OUT_OF_HOST_MEMORY) status = CLATTN_STATUS_OUT_OF_HOST_MEMORY;
    if (code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_RESOURCES)
        status = CLATTN_STATUS_OUT_OF_DEVICE_MEMORY;
    return clattn__fail(status, code, "%s failed: %s (%d)", call, cl_error_name(code), (int)code);
}

/* ---- probing. What a device does not know of (CL_INVALID_VALUE) it does not have; any other failure is kept. */

typedef struct probe {
    cl_device_id id;
    cl_int failed; /* the first failure, or CL_SUCCESS */
} probe;

static bool probe_get(probe *d, cl_device_info what, size_t size, void *to)
{
    const cl_int code = clGetDeviceInfo(d->id, what, size, to, NULL);
    if (code != CL_SUCCESS && code != CL_INVALID_VALUE && d->failed == CL_SUCCESS) d->failed = code;
    return code == CL_SUCCESS;
}

static int64_t device_number(probe *d, cl_device_info what, size_t size)
{
    union {
        cl_uint u;
        cl_ulong ul;
        size_t s;
    } x = {.ul = 0};
    if (!probe_get(d, what, size, &x)) return 0;
    const uint64_t n = size == sizeof x.u ? x.u : x.ul;
    return n > INT64_MAX ? INT64_MAX : (int64_t)n;
}

static void device_text(probe *d, cl_device_info what, char *to, size_t size)
{
    char all[8192] = "";
    if (!probe_get(d, what, sizeof all - 1, all)) all[0] = 0;
    snprintf(to, size, "%.*s", (int)size - 1, all);
}

/* Of cl_nv_device_attribute_query. */
enum { COMPUTE_CAPABILITY_MAJOR_NV = 0x4000, COMPUTE_CAPABILITY_MINOR_NV = 0x4001 };

/* Of cl_amd_device_attribute_query and cl_intel_required_subgroup_size. */
enum { WAVEFRONT_WIDTH_AMD = 0x4043, SUB_GROUP_SIZES_INTEL = 0x4108 };

/* The second: what the driver adds to a work-group's local memory, and what a tile's alignment may. */
enum { KIB = 1024, BLOCK_RESERVE = KIB + 16 };

/* Local memory that one work-group may have (CUDA C++ Programming Guide, "Technical Specifications per Compute
 * Capability"): kernels that declare more than the 48 KiB which OpenCL reports are built all the same. */
static int64_t nvidia_local_bytes(int64_t capability)
{
    switch (capability) {
    case 80:
    case 87: return 163 * KIB - BLOCK_RESERVE;
    case 86:
    case 89: return 99 * KIB - BLOCK_RESERVE;
    case 90:
    case 100:
    case 101:
    case 103: return 227 * KIB - BLOCK_RESERVE;
    default: return capability >= 110 ? 99 * KIB - BLOCK_RESERVE : 0;
    }
}

static void probe_nvidia(probe *d, device_profile *p)
{
    const int64_t capability = 10 * device_number(d, COMPUTE_CAPABILITY_MAJOR_NV, sizeof(cl_uint)) +
                               device_number(d, COMPUTE_CAPABILITY_MINOR_NV, sizeof(cl_uint));
    p->engine = capability == 90 ? ENGINE_WGMMA : capability >= 80 ? ENGINE_MMA_SYNC : ENGINE_NONE;
    const int64_t local_bytes = nvidia_local_bytes(capability);
    if (local_bytes > p->local_bytes) p->local_bytes = local_bytes;
}

/* By the names that AMD's drivers give: gfx90a:sramecc+:xnack-. */
static matrix_engine amd_engine(probe *d, const device_profile *p)
{
    static const struct {
        const char *name; /* begins with it */
        matrix_engine engine;
        int64_t wave;
    } known[] = {{"gfx90a", ENGINE_MFMA, 64},       {"gfx940", ENGINE_MFMA, 64},
                 {"gfx942", ENGINE_MFMA, 64},       {"gfx110", ENGINE_WMMA_GFX11, 32},
                 {"gfx115", ENGINE_WMMA_GFX11, 32}, {"gfx120", ENGINE_WMMA_GFX12, 32}};
    const int64_t wave = device_number(d, WAVEFRONT_WIDTH_AMD, sizeof(cl_uint));
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strncmp(p->name, known[i].name, 6) && wave == known[i].wave) return known[i].engine;
    return ENGINE_NONE;
}

/* 16 where that is the smallest: on Xe-HPC and Xe2, whose engine wants it, and whose compiler takes 32 if it is let and
 * spills. */
static int intel_sub_group(probe *d)
{
    size_t sizes[16] = {0}, least = 0;
    if (!probe_get(d, SUB_GROUP_SIZES_INTEL, sizeof sizes, sizes)) return 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] && (!least || sizes[i] < least)) least = sizes[i];
    return least == 16 ? 16 : 0;
}

static void platform_name(probe *d, char *to, size_t size)
{
    cl_platform_id platform = NULL;
    to[0] = 0;
    if (!probe_get(d, CL_DEVICE_PLATFORM, sizeof platform, &platform)) return;
    const cl_int code = clGetPlatformInfo(platform, CL_PLATFORM_NAME, size, to, NULL);
    if (code == CL_SUCCESS) return;
    to[0] = 0;
    if (code != CL_INVALID_VALUE && d->failed == CL_SUCCESS) d->failed = code; /* INVALID_VALUE: a name too long */
}

/* PoCL, whose CPU devices are the processor that runs this (but for those of a PoCL server, which nothing tells apart),
 * and whose compiler takes its instructions in asm. */
static bool runs_in_process(probe *d)
{
    char name[128];
    platform_name(d, name, sizeof name);
    return !strcmp(name, "Portable Computing Language");
}

/* What OpenCL's core does not tell. CLATTN_MMA names the engine, one of clattn__engine_names, whatever the device
 * has. */
static void probe_engine(probe *d, device_profile *p)
{
    char extensions[8192];
    const char *forced = getenv("CLATTN_MMA");
    device_text(d, CL_DEVICE_EXTENSIONS, extensions, sizeof extensions);
    if (strstr(extensions, "cl_nv_device_attribute_query")) probe_nvidia(d, p);
    if (strstr(extensions, "cl_amd_device_attribute_query")) p->engine = amd_engine(d, p);
    if (strstr(extensions, "cl_intel_required_subgroup_size")) p->sub_group = intel_sub_group(d);
    if (p->sub_group && strstr(extensions, "cl_intel_subgroup_matrix_multiply_accumulate")) p->engine = ENGINE_DPAS;
    const bool has_pairs = p->is_cpu && clattn__cpu_has_pairs() && runs_in_process(d);
    if (has_pairs && clattn__cpu_pairs_pay()) p->engine = ENGINE_VDPBF16PS;
    for (int i = 0; forced && i < ENGINE_COUNT; i++)
        if (!strcmp(forced, clattn__engine_names[i])) p->engine = (matrix_engine)i;
    if (p->engine == ENGINE_VDPBF16PS && !has_pairs) p->engine = ENGINE_NONE; /* it would end the process */
}

/* 20 ms where a compute unit does 1e11 multiply-adds a second, a second or two on the slowest. CLATTN_LAUNCH_WORK says
 * how many a launch has on any device. */
static void probe_launches(probe *d, device_profile *p)
{
    const int64_t units = device_number(d, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof(cl_uint));
    const char *given = getenv("CLATTN_LAUNCH_WORK");
    char *end = NULL;
    p->launch_work = p->is_cpu ? 0 : units << 31;
    p->launch_groups = 4 * units;
    if (!given || *given < '0' || *given > '9') return;
    const long long work = strtoll(given, &end, 10);
    if (*end) return;
    p->launch_work = work;
    p->launch_groups = 1;
}

/* Fills p; *refused: "" or why clattn cannot use it. */
static clattn_status probe_profile(probe *d, device_profile *p, const char **refused)
{
    memset(p, 0, sizeof *p);
    device_text(d, CL_DEVICE_NAME, p->name, sizeof p->name);
    device_text(d, CL_DEVICE_VENDOR, p->vendor, sizeof p->vendor);
    device_text(d, CL_DRIVER_VERSION, p->driver, sizeof p->driver);
    p->is_cpu = device_number(d, CL_DEVICE_TYPE, sizeof(cl_ulong)) & CL_DEVICE_TYPE_CPU;
    p->has_fp64 = device_number(d, CL_DEVICE_DOUBLE_FP_CONFIG, sizeof(cl_ulong)) != 0;
    p->shares_host_memory = device_number(d, CL_DEVICE_HOST_UNIFIED_MEMORY, sizeof(cl_uint)) != 0;
    p->local_bytes = device_number(d, CL_DEVICE_LOCAL_MEM_SIZE, sizeof(cl_ulong));
    p->max_alloc_bytes = device_number(d, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof(cl_ulong));
    p->copy_bytes_most = device_number(d, CL_DEVICE_GLOBAL_MEM_SIZE, sizeof(cl_ulong)) / 4 * 3;
    p->max_work_group_size = device_number(d, CL_DEVICE_MAX_WORK_GROUP_SIZE, sizeof(size_t));
    probe_launches(d, p);
    probe_engine(d, p);
    char version[64];
    device_text(d, CL_DEVICE_OPENCL_C_VERSION, version, sizeof version);
    const bool is_old = !strncmp(version, "OpenCL C 1.0", 12) || !strncmp(version, "OpenCL C 1.1", 12);
    *refused = !device_number(d, CL_DEVICE_AVAILABLE, sizeof(cl_bool))            ? "it is not available"
               : !device_number(d, CL_DEVICE_COMPILER_AVAILABLE, sizeof(cl_bool)) ? "it has no compiler"
               : !device_number(d, CL_DEVICE_ENDIAN_LITTLE, sizeof(cl_bool))      ? "it is big-endian"
               : is_old                                                           ? "it is older than OpenCL 1.2"
                                                                                  : "";
    RETURN_IF_CL("clGetDeviceInfo", d->failed);
    return CLATTN_STATUS_SUCCESS;
}

/* ---- enumeration: devices of all platforms, in the loader's order */

/* OpenCL may wait for ever in a child of a process that has used it. is_used: it is from here on. */
static clattn_status check_first_user(bool is_used)
{
    static atomic_int user;
    const int self = (int)getpid();
    int first = atomic_load(&user);
    if (!first && is_used && atomic_compare_exchange_strong(&user, &first, self)) first = self;
    RETURN_IF(first && first != self, OPENCL_ERROR,
              "OpenCL was used by process %d, which forked: it does not work in the child", first);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status all_devices(cl_device_id **devices, int *count)
{
    cl_uint n_platforms = 0;
    *devices = NULL;
    *count = 0;
    FORWARD(check_first_user(false));
    const cl_int code = clGetPlatformIDs(0, NULL, &n_platforms);
    if (code == -1001 || (code == CL_SUCCESS && n_platforms == 0)) return CLATTN_STATUS_SUCCESS;
    RETURN_IF_CL("clGetPlatformIDs", code);
    FORWARD(check_first_user(true));
    cl_platform_id *platforms = calloc(n_platforms, sizeof *platforms);
    RETURN_IF(!platforms, OUT_OF_HOST_MEMORY, "no room for %u platforms", n_platforms);
    clattn_status status = CLATTN_STATUS_SUCCESS;
    const cl_int listed = clGetPlatformIDs(n_platforms, platforms, NULL);
    if (listed != CL_SUCCESS) status = clattn__cl_fail("clGetPlatformIDs", listed);
    cl_int broken =
        CL_SUCCESS; /* a platform that fails hides no other; when there is no other, its failure is the answer */
    for (cl_uint i = 0; i < n_platforms && status == CLATTN_STATUS_SUCCESS; i++) {
        cl_uint n = 0;
        const cl_int asked = clGetDeviceIDs(platforms[i], CL_DEVICE_TYPE_ALL, 0, NULL, &n);
        if (asked != CL_SUCCESS && asked != CL_DEVICE_NOT_FOUND) broken = asked;
        if (asked != CL_SUCCESS || n == 0) continue;
        cl_device_id *more = realloc(*devices, sizeof *more * ((size_t)*count + n));
        if (!more) {
            status = clattn__fail(CLATTN_STATUS_OUT_OF_HOST_MEMORY, 0, "no room for %u devices", n);
            break;
        }
        *devices = more;
        const cl_int got = clGetDeviceIDs(platforms[i], CL_DEVICE_TYPE_ALL, n, more + *count, NULL);
        if (got == CL_SUCCESS)
            *count += (int)n;
        else
            broken = got;
    }
    free(platforms);
    if (status == CLATTN_STATUS_SUCCESS && *count == 0 && broken != CL_SUCCESS)
        status = clattn__cl_fail("clGetDeviceIDs", broken);
    if (status != CLATTN_STATUS_SUCCESS) {
        free(*devices);
        *devices = NULL;
    }
    return status;
}

clattn_status clattn__device_count(int *count)
{
    cl_device_id *devices;
    int n;
    FORWARD(all_devices(&devices, &n));
    free(devices);
    *count = n;
    return CLATTN_STATUS_SUCCESS;
}

static const char *kernel_reason(const device_profile *p)
{
    if (p->is_cpu && p->engine == ENGINE_VDPBF16PS)
        return "a CPU device: vectors of query rows, no barrier; bf16 in pairs by vdpbf16ps, if its trial goes well";
    if (p->is_cpu) return "a CPU device: vectors of query rows, no barrier";
    if (p->engine == ENGINE_NONE || clattn__engine_is_emulated(p->engine)) return "K and V blocks in local memory";
    return "K and V blocks in local memory; f16 and bf16 in its matrix engine: attn_fwd_mma";
}

static clattn_status describe(cl_device_id id, int index, clattn_device_info *answer)
{
    clattn_device_info described, *const info = &described;
    device_profile p;
    const char *refused;
    probe d = {id, CL_SUCCESS};
    FORWARD(probe_profile(&d, &p, &refused));
    const int64_t type = device_number(&d, CL_DEVICE_TYPE, sizeof(cl_ulong));
    clattn_device_info_init(info);
    info->index = index;
    snprintf(info->name, sizeof info->name, "%s", p.name);
    platform_name(&d, info->platform, sizeof info->platform);
    snprintf(info->driver, sizeof info->driver, "%s", p.driver);
    device_text(&d, CL_DEVICE_VERSION, info->version, sizeof info->version);
    snprintf(info->type, sizeof info->type, "%s",
             type & CL_DEVICE_TYPE_GPU           ? "gpu"
             : type & CL_DEVICE_TYPE_CPU         ? "cpu"
             : type & CL_DEVICE_TYPE_ACCELERATOR ? "accelerator"
                                                 : "other");
    info->compute_units = (int)device_number(&d, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof(cl_uint));
    info->max_work_group_size = p.max_work_group_size;
    info->local_bytes = p.local_bytes;
    info->global_bytes = device_number(&d, CL_DEVICE_GLOBAL_MEM_SIZE, sizeof(cl_ulong));
    info->max_alloc_bytes = p.max_alloc_bytes;
    info->has_fp64 = p.has_fp64;
    info->shares_host_memory = p.shares_host_memory;
    info->matrix_engine = p.engine != ENGINE_NONE && !engine_is_lanes(p.engine);
    info->usable = !*refused;
    info->kernel = *refused ? CLATTN_KERNEL_AUTO : clattn__plan_device_kernel(&p, CLATTN_PASS_FORWARD);
    snprintf(info->why, sizeof info->why, "%s", *refused ? refused : kernel_reason(&p));
    RETURN_IF_CL("clGetDeviceInfo", d.failed);
    *answer = described;
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__device_describe(int index, clattn_device_info *info)
{
    cl_device_id *devices;
    int count;
    FORWARD(all_devices(&devices, &count));
    if (index < 0 || index >= count) {
        free(devices);
        return clattn__fail(CLATTN_STATUS_NO_DEVICE, 0, "device index is %d; there are %d OpenCL devices", index,
                            count);
    }
    const clattn_status status = describe(devices[index], index, info);
    free(devices);
    return status;
}

/* ---- selection */

/* In no locale: in a Turkish one tolower('I') is not 'i'. */
static int lower(char c) { return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c; }

static bool contains(const char *whole, const char *part)
{
    for (; *whole; whole++) {
        size_t i = 0;
        while (part[i] && lower(whole[i]) == lower(part[i])) i++;
        if (!part[i]) return true;
    }
    return !*part;
}

/* The index of the selected device among `count`, or -1. A device that does not answer hides no other; when there is no
 * other, its failure is the answer. */
static clattn_status select_index(const clattn_context_options *o, cl_device_id *devices, int count, int *index)
{
    clattn_device_info info = {0};
    clattn_status failed = CLATTN_STATUS_SUCCESS;
    error_state before;
    clattn__error_save(&before);
    *index = o->device == CLATTN_DEVICE_INDEX && o->device_index < count ? o->device_index : -1;
    for (int i = 0; i < count && o->device != CLATTN_DEVICE_INDEX; i++) {
        const clattn_status status = describe(devices[i], i, &info);
        if (status != CLATTN_STATUS_SUCCESS) {
            failed = status;
            continue;
        }
        const bool is_named = o->device == CLATTN_DEVICE_NAME &&
                              (contains(info.name, o->device_name) || contains(info.platform, o->device_name) ||
                               contains(info.version, o->device_name)); /* PoCL names itself there alone */
        const bool is_default = o->device == CLATTN_DEVICE_DEFAULT && info.usable;
        if (is_named || (is_default && (*index < 0 || !strcmp(info.type, "gpu")))) *index = i;
        if (is_named || (is_default && !strcmp(info.type, "gpu"))) break;
    }
    if (*index < 0) return failed;
    clattn__error_restore(&before);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__device_open(const clattn_context_options *o, struct device **d)
{
    RETURN_IF(o->device == CLATTN_DEVICE_NONE, NO_DEVICE, "the context is host-only");
    cl_device_id *devices, id = NULL;
    int count;
    FORWARD(all_devices(&devices, &count));
    int index;
    const clattn_status selected = select_index(o, devices, count, &index);
    if (index >= 0) id = devices[index];
    free(devices);
    FORWARD(selected);
    RETURN_IF(!id && o->device == CLATTN_DEVICE_INDEX, NO_DEVICE, "device index is %d; there are %d OpenCL devices",
              o->device_index, count);
    RETURN_IF(!id && o->device == CLATTN_DEVICE_NAME, NO_DEVICE, "no name among %d OpenCL devices contains '%s'", count,
              o->device_name);
    RETURN_IF(!id, NO_DEVICE, "no OpenCL platform has a usable device");
    cl_int code;
    cl_platform_id platform;
    RETURN_IF_CL("clGetDeviceInfo", clGetDeviceInfo(id, CL_DEVICE_PLATFORM, sizeof platform, &platform, NULL));
    const cl_context_properties properties[] = {CL_CONTEXT_PLATFORM, (cl_context_properties)platform, 0};
    cl_context cl = clCreateContext(properties, 1, &id, NULL, NULL, &code);
    RETURN_IF_CL("clCreateContext", code);
    const clattn_status status = clattn__device_adopt(cl, id, d);
    clReleaseContext(cl);
    return status;
}

clattn_status clattn__device_adopt(cl_context cl, cl_device_id id, struct device **out)
{
    FORWARD(check_first_user(true));
    cl_int code;
    struct device *d = calloc(1, sizeof *d);
    RETURN_IF(!d, OUT_OF_HOST_MEMORY, "no room for a device");
    const char *refused;
    probe asked = {id, CL_SUCCESS};
    clattn_status status = probe_profile(&asked, &d->profile, &refused);
    if (status == CLATTN_STATUS_SUCCESS && *refused) {
        status = clattn__fail(CLATTN_STATUS_NO_DEVICE, 0, "%s cannot be used: %s", d->profile.name, refused);
    }
    if (status == CLATTN_STATUS_SUCCESS) status = clattn__cache_open(&d->cache, id);
    if (status == CLATTN_STATUS_SUCCESS) {
        d->queue = clCreateCommandQueue(cl, id, 0, &code);
        if (code != CL_SUCCESS) status = clattn__cl_fail("clCreateCommandQueue", code);
    }
    if (status != CLATTN_STATUS_SUCCESS) {
        free(d);
        return status;
    }
    clRetainContext(cl);
    clRetainDevice(id);
    d->cl = cl;
    d->id = id;
    d->owner = getpid();
    pthread_mutex_init(&d->lock, NULL);
    pthread_mutex_init(&d->stagings_lock, NULL);
    *out = d;
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__device_check_process(const struct device *d)
{
    RETURN_IF(d->owner != getpid(), OPENCL_ERROR,
              "the context's device was opened by process %ld, which forked: OpenCL does not work in the child",
              (long)d->owner);
    return CLATTN_STATUS_SUCCESS;
}

void clattn__device_close(struct device *d)
{
    if (!d || d->owner != getpid()) return;
    for (device_kernel *k = d->kernels, *next; k; k = next) {
        next = k->next;
        clattn__device_kernel_free(k);
    }
    for (device_kernel *k = d->retired, *next; k; k = next) {
        next = k->next;
        clattn__device_kernel_free(k);
    }
    clattn__cache_close(&d->cache);
    clattn__staging_free(d);
    clReleaseCommandQueue(d->queue);
    clReleaseContext(d->cl);
    clReleaseDevice(d->id);
    pthread_mutex_destroy(&d->lock);
    pthread_mutex_destroy(&d->stagings_lock);
    free(d);
}

const device_profile *clattn__device_profile(const struct device *d) { return &d->profile; }
