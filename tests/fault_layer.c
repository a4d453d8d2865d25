/* An OpenCL layer (OPENCL_LAYERS=libfault_layer.so, cl_layer.h) that makes calls fail, counts objects, guards buffers
 * and limits launches. Tests steer it through fault_layer.h; for any other program:
 *   CLATTN_FAULT_GUARD=1       guard buffers
 *   CLATTN_FAULT_MOST=N        limit work-items
 *   CLATTN_FAULT_CALL=K        let the K-th call fail
 *   CLATTN_FAULT_REPORT=1      report what lives and was misused on stderr at the end, and exit with 99 when anything */
#define _DEFAULT_SOURCE
#define CL_TARGET_OPENCL_VERSION 300
#include "fault_layer.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <CL/cl_layer.h>

static const cl_icd_dispatch *next;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all that follows */
static fault_counts counts = {.function = ""};
static long fail_at;
static bool sticky, guards;
static size_t most_items;

/* ---- objects, by address; those that died stay until their address is taken again */

typedef enum kind { NO_KIND, CONTEXT, QUEUE, MEM, PROGRAM, KERNEL, EVENT, SAMPLER } kind;
static const char *const kind_names[] = {"", "context", "queue", "mem", "program", "kernel", "event", "sampler"};

typedef struct object {
    const void *at;
    kind kind;
    long references;
    const char *creator;
    size_t bytes; /* of a buffer */
} object;

enum { OBJECTS = 1 << 18, HOST_BUFFERS = 256 };
static object objects[OBJECTS]; /* open addressing */

/* Live buffers over host memory, of which no two may overlap but those over the very same. */
static struct host_buffer {
    const void *mem;
    const char *begin, *end;
} host_buffers[HOST_BUFFERS];

#define KIND_OF(x)                                                                                                     \
    _Generic((x), cl_context                                                                                           \
             : CONTEXT, cl_command_queue                                                                               \
             : QUEUE, cl_mem                                                                                           \
             : MEM, cl_program                                                                                         \
             : PROGRAM, cl_kernel                                                                                      \
             : KERNEL, cl_event                                                                                        \
             : EVENT, cl_sampler                                                                                       \
             : SAMPLER, default                                                                                        \
             : NO_KIND)

/* Its place, or the free one where it would go. */
static object *object_find(const void *at)
{
    size_t i = (uintptr_t)at / 16 * 0x9e3779b97f4a7c15u >> 40;
    for (size_t tries = 0; tries < OBJECTS; tries++, i++) {
        object *o = &objects[i % OBJECTS];
        if (o->at == at || !o->at) return o;
    }
    fputs("fault layer: too many objects\n", stderr);
    abort();
}

static void object_made(kind k, const void *at, const char *creator)
{
    if (!at) return;
    pthread_mutex_lock(&lock);
    object *o = object_find(at);
    *o = (object){at, k, 1, creator, 0};
    counts.live++;
    pthread_mutex_unlock(&lock);
}

static void misused(const char *call, kind k, const void *at, const char *how)
{
    counts.misuses++;
    fprintf(stderr, "fault layer: %s: %s %p %s\n", call, kind_names[k], at, how);
}

/* False: it must not be handed on. */
static bool object_used(kind k, const void *at, const char *call)
{
    if (!at || k == NO_KIND) return true;
    pthread_mutex_lock(&lock);
    const object *o = object_find(at);
    const bool dead = o->at && o->references <= 0, mistaken = o->at && !dead && o->kind != k;
    if (dead) misused(call, k, at, "is used after its release");
    if (mistaken) misused(call, k, at, "is an object of another kind");
    pthread_mutex_unlock(&lock);
    return !dead && !mistaken;
}

/* Before the driver acts: what it frees may come again at once in another thread. False: it must not be handed on. */
static bool object_counted(kind k, const void *at, int change, const char *call)
{
    bool good = true;
    if (k == NO_KIND) return true;
    pthread_mutex_lock(&lock);
    object *o = object_find(at);
    if (o->at && o->references <= 0) {
        misused(call, k, at, change > 0 ? "is retained after its release" : "is released once too often");
        good = false;
    } else if (o->at) {
        o->references += change;
        counts.live += change;
        if (!o->references) counts.bytes -= o->bytes;
        for (int i = 0; i < HOST_BUFFERS && !o->references; i++)
            if (host_buffers[i].mem == at) host_buffers[i].mem = NULL;
    }
    pthread_mutex_unlock(&lock);
    return good;
}

/* ---- calls */

/* The code to fail with, or 0. */
static cl_int call_begin(const char *function, cl_int code)
{
    cl_int injected = CL_SUCCESS;
    pthread_mutex_lock(&lock);
    counts.calls++;
    if (fail_at && (sticky ? counts.calls >= fail_at : counts.calls == fail_at)) {
        if (!counts.injected++) counts.function = function, counts.code = code;
        injected = code;
    }
    pthread_mutex_unlock(&lock);
    return injected;
}

#define USE(x) dead_ |= !object_used(KIND_OF(x), (const void *)(uintptr_t)(x), call_)
#define USE_ALL(n, list)                                                                                               \
    for (cl_uint i_ = 0; (list) && i_ < (n); i_++) USE((list)[i_])

#define FAILS(name, code, parameters, arguments, uses)                                                                 \
    static cl_int CL_API_CALL name##_layer parameters                                                                  \
    {                                                                                                                  \
        static const char call_[] = #name;                                                                             \
        bool dead_ = false;                                                                                            \
        uses const cl_int injected = dead_ ? CL_INVALID_VALUE : call_begin(call_, code);                               \
        return injected ? injected : next->name arguments;                                                             \
    }
#define FAILS_AFTER(name, code, parameters, arguments, uses)                                                           \
    static cl_int CL_API_CALL name##_layer parameters                                                                  \
    {                                                                                                                  \
        static const char call_[] = #name;                                                                             \
        bool dead_ = false;                                                                                            \
        uses const cl_int injected = dead_ ? CL_INVALID_VALUE : call_begin(call_, code),                               \
                          done = dead_ ? injected : next->name arguments;                                              \
        return injected ? injected : done;                                                                             \
    }
#define CREATES(type, name, code, parameters, arguments, uses)                                                         \
    static type CL_API_CALL name##_layer parameters                                                                    \
    {                                                                                                                  \
        static const char call_[] = #name;                                                                             \
        bool dead_ = false;                                                                                            \
        uses const cl_int injected = dead_ ? CL_INVALID_VALUE : call_begin(call_, code);                               \
        cl_int *const error = last_of arguments;                                                                       \
        if (injected && error) *error = injected;                                                                      \
        type made = injected ? NULL : next->name arguments;                                                            \
        object_made(KIND_OF(made), (const void *)made, call_);                                                         \
        return made;                                                                                                   \
    }
#define ENQUEUES(name, code, parameters, arguments, uses)                                                              \
    static cl_int CL_API_CALL name##_layer parameters                                                                  \
    {                                                                                                                  \
        static const char call_[] = #name;                                                                             \
        bool dead_ = false;                                                                                            \
        uses const cl_int injected = dead_ ? CL_INVALID_VALUE : call_begin(call_, code);                               \
        if (injected) return injected;                                                                                 \
        cl_event *const event = last_of arguments;                                                                     \
        const cl_int done = next->name arguments;                                                                      \
        if (done == CL_SUCCESS && event) object_made(EVENT, (const void *)*event, call_);                              \
        return done;                                                                                                   \
    }
#define MAPS(name, code, parameters, arguments, uses)                                                                  \
    static void *CL_API_CALL name##_layer parameters                                                                   \
    {                                                                                                                  \
        static const char call_[] = #name;                                                                             \
        bool dead_ = false;                                                                                            \
        uses const cl_int injected = dead_ ? CL_INVALID_VALUE : call_begin(call_, code);                               \
        cl_int *const error = last_of arguments;                                                                       \
        cl_event *const event = last_but_one_of arguments;                                                             \
        if (injected && error) *error = injected;                                                                      \
        void *at = injected ? NULL : next->name arguments;                                                             \
        if (at && event) object_made(EVENT, (const void *)*event, call_);                                              \
        return at;                                                                                                     \
    }
#define COUNTED(name, change, type)                                                                                    \
    static cl_int CL_API_CALL name##_layer(type a)                                                                     \
    {                                                                                                                  \
        if (!object_counted(KIND_OF(a), (const void *)a, change, #name)) return CL_INVALID_VALUE;                      \
        return next->name(a);                                                                                          \
    }

/* The last of up to 14 arguments, and the one before. */
#define PICK_(a, b, c, d, e, f, g, h, i, j, k, l, m, n, pick, ...) pick
#define last_of(...) LAST_FROM_(__VA_ARGS__)
#define LAST_FROM_(...)                                                                                                \
    PICK_(__VA_ARGS__, LAST14_, LAST13_, LAST12_, LAST11_, LAST10_, LAST9_, LAST8_, LAST7_, LAST6_, LAST5_, LAST4_,    \
          LAST3_, LAST2_, LAST1_, )                                                                                    \
    (__VA_ARGS__)
#define LAST1_(a) a
#define LAST2_(a, b) b
#define LAST3_(a, b, c) c
#define LAST4_(a, b, c, d) d
#define LAST5_(a, b, c, d, e) e
#define LAST6_(a, b, c, d, e, f) f
#define LAST7_(a, b, c, d, e, f, g) g
#define LAST8_(a, b, c, d, e, f, g, h) h
#define LAST9_(a, b, c, d, e, f, g, h, i) i
#define LAST10_(a, b, c, d, e, f, g, h, i, j) j
#define LAST11_(a, b, c, d, e, f, g, h, i, j, k) k
#define LAST12_(a, b, c, d, e, f, g, h, i, j, k, l) l
#define LAST13_(a, b, c, d, e, f, g, h, i, j, k, l, m) m
#define LAST14_(a, b, c, d, e, f, g, h, i, j, k, l, m, n) n
#define last_but_one_of(...) BEFORE_FROM_(__VA_ARGS__)
#define BEFORE_FROM_(a, b, c, d, e, f, g, h, ...) PICK2_(__VA_ARGS__, BEFORE12_, , BEFORE10_, )(__VA_ARGS__)
#define PICK2_(a, b, c, d, pick, ...) pick
#define BEFORE10_(i, j) i
#define BEFORE12_(i, j, k, l) k

#include "fault_calls.def"

static void host_buffer_made(const void *mem, const char *begin, size_t size)
{
    const char *end = begin + size;
    struct host_buffer *place = NULL;
    for (struct host_buffer *b = host_buffers; b < host_buffers + HOST_BUFFERS; b++) {
        if (!b->mem) place = b;
        if (b->mem && b->begin < end && begin < b->end && (b->begin != begin || b->end != end))
            misused("clCreateBuffer", MEM, mem, "overlaps another buffer's host memory");
    }
    if (place) *place = (struct host_buffer){mem, begin, end};
}

/* Page-locked host memory does not count among a device's bytes. */
static cl_mem CL_API_CALL create_counted(cl_context cl, cl_mem_flags flags, size_t size, void *host, cl_int *error)
{
    cl_mem mem = clCreateBuffer_layer(cl, flags, size, host, error);
    if (!mem) return NULL;
    pthread_mutex_lock(&lock);
    const size_t bytes = flags & CL_MEM_ALLOC_HOST_PTR ? 0 : size;
    object_find(mem)->bytes = bytes;
    counts.bytes += bytes;
    if (counts.bytes > counts.most_bytes) counts.most_bytes = counts.bytes;
    if (flags & CL_MEM_USE_HOST_PTR) host_buffer_made(mem, host, size);
    pthread_mutex_unlock(&lock);
    return mem;
}

/* ---- guarded buffers: memory of the layer's, of which the device makes its own on CPU devices */

enum { ALIGNMENT = 128, POISON = 0xff /* all ones are a NaN of every storage type */ };

typedef struct fence {
    unsigned char *base, *end; /* end: of the buffer; from there to the page nothing may change */
    size_t bytes, page;
} fence;

static void CL_CALLBACK fence_remove(cl_mem mem, void *user)
{
    fence *f = user;
    (void)mem;
    const unsigned char *wall = f->base + f->bytes - f->page;
    for (const unsigned char *at = f->end; at < wall; at++)
        if (*at != POISON) {
            pthread_mutex_lock(&lock);
            counts.overruns++;
            pthread_mutex_unlock(&lock);
            fprintf(stderr, "fault layer: byte %zu past the end of a buffer was written\n", (size_t)(at - f->end));
            break;
        }
    munmap(f->base, f->bytes);
    free(f);
}

static cl_mem CL_API_CALL create_guarded(cl_context cl, cl_mem_flags flags, size_t size, void *host, cl_int *error)
{
    const cl_mem_flags theirs = CL_MEM_USE_HOST_PTR | CL_MEM_ALLOC_HOST_PTR;
    if (!guards || (flags & theirs) || !size) return create_counted(cl, flags, size, host, error);
    fence *f = malloc(sizeof *f);
    if (!f) abort();
    f->page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t aligned = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const size_t body = (aligned + f->page - 1) / f->page * f->page;
    f->bytes = body + 2 * f->page;
    f->base = mmap(NULL, f->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f->base == MAP_FAILED || mprotect(f->base + f->page, body, PROT_READ | PROT_WRITE)) abort();
    unsigned char *at = f->base + f->page + body - aligned;
    f->end = at + size;
    memset(f->base + f->page, POISON, body);
    if (flags & CL_MEM_COPY_HOST_PTR) memcpy(at, host, size);
    const cl_mem_flags own = (flags & ~(cl_mem_flags)CL_MEM_COPY_HOST_PTR) | CL_MEM_USE_HOST_PTR;
    cl_mem mem = create_counted(cl, own, size, at, error);
    if (!mem) {
        munmap(f->base, f->bytes);
        free(f);
        return NULL;
    }
    next->clSetMemObjectDestructorCallback(mem, fence_remove, f);
    return mem;
}

/* ---- what else is not a plain wrapper */

static cl_int CL_API_CALL launch_limited(cl_command_queue queue, cl_kernel kernel, cl_uint dimensions,
                                         const size_t *offset, const size_t *global, const size_t *local,
                                         cl_uint n_wait, const cl_event *wait_list, cl_event *event)
{
    size_t items = 1;
    for (cl_uint i = 0; i < dimensions; i++) items *= global[i];
    if (most_items && items > most_items) {
        pthread_mutex_lock(&lock);
        counts.injected++;
        pthread_mutex_unlock(&lock);
        return CL_OUT_OF_RESOURCES;
    }
    return clEnqueueNDRangeKernel_layer(queue, kernel, dimensions, offset, global, local, n_wait, wait_list, event);
}

/* A dead cl_mem as an argument is a use too. */
static cl_int CL_API_CALL set_arg(cl_kernel kernel, cl_uint index, size_t size, const void *value)
{
    const void *mem;
    bool dead = false;
    if (value && size == sizeof mem) {
        memcpy(&mem, value, sizeof mem);
        pthread_mutex_lock(&lock);
        const object *o = mem ? object_find(mem) : NULL;
        dead = o && o->at && o->kind == MEM && o->references <= 0;
        if (dead) misused("clSetKernelArg", MEM, mem, "is used after its release");
        pthread_mutex_unlock(&lock);
    }
    return dead ? CL_INVALID_MEM_OBJECT : clSetKernelArg_layer(kernel, index, size, value);
}

/* ---- what tests ask */

static void arm(long nth, int is_sticky)
{
    pthread_mutex_lock(&lock);
    fail_at = nth;
    sticky = is_sticky;
    if (nth) counts.code = 0, counts.function = "";
    counts.calls = counts.injected = 0;
    counts.most_bytes = counts.bytes;
    pthread_mutex_unlock(&lock);
}

static fault_counts counts_now(void)
{
    pthread_mutex_lock(&lock);
    const fault_counts now = counts;
    pthread_mutex_unlock(&lock);
    return now;
}

static void report(void)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < OBJECTS; i++)
        if (objects[i].references > 0)
            fprintf(stderr, "fault layer: %s %p from %s has %ld references\n", kind_names[objects[i].kind],
                    objects[i].at, objects[i].creator, objects[i].references);
    fprintf(stderr, "fault layer: %ld references live, %ld misuses, %ld overruns, %ld injected\n", counts.live,
            counts.misuses, counts.overruns, counts.injected);
    pthread_mutex_unlock(&lock);
}

static void guard_buffers(int on) { guards = on != 0; }
static void limit_work_items(size_t most) { most_items = most; }

static void report_at_exit(void)
{
    report();
    if (counts.live || counts.misuses || counts.overruns) _exit(99);
}

static void say_injected(void) { fprintf(stderr, "fault layer: %ld injected\n", counts_now().injected); }

CL_API_ENTRY const fault_layer *CL_API_CALL fault_layer_get(void);
const fault_layer *fault_layer_get(void)
{
    static const fault_layer layer = {arm, counts_now, report, guard_buffers, limit_work_items};
    return &layer;
}

/* ---- the layer's own entry points */

cl_int CL_API_CALL clGetLayerInfo(cl_layer_info name, size_t size, void *value, size_t *size_ret)
{
    static const char layer_name[] = "fault";
    const cl_layer_api_version version = CL_LAYER_API_VERSION_100;
    const void *what = name == CL_LAYER_API_VERSION ? (const void *)&version : layer_name;
    const size_t bytes = name == CL_LAYER_API_VERSION ? sizeof version : sizeof layer_name;
    if ((name != CL_LAYER_API_VERSION && name != CL_LAYER_NAME) || (value && size < bytes)) return CL_INVALID_VALUE;
    if (value) memcpy(value, what, bytes);
    if (size_ret) *size_ret = bytes;
    return CL_SUCCESS;
}

cl_int CL_API_CALL clInitLayer(cl_uint n, const cl_icd_dispatch *below, cl_uint *n_ret,
                               const cl_icd_dispatch **mine_ret)
{
    static cl_icd_dispatch mine;
    next = below;
    memcpy(&mine, below, n < sizeof mine / sizeof(void *) ? n * sizeof(void *) : sizeof mine);
#undef FAILS
#undef FAILS_AFTER
#undef CREATES
#undef ENQUEUES
#undef MAPS
#undef COUNTED
#define FAILS(name, code, parameters, arguments, uses) mine.name = name##_layer;
#define FAILS_AFTER(name, code, parameters, arguments, uses) mine.name = name##_layer;
#define CREATES(type, name, code, parameters, arguments, uses) mine.name = name##_layer;
#define ENQUEUES(name, code, parameters, arguments, uses) mine.name = name##_layer;
#define MAPS(name, code, parameters, arguments, uses) mine.name = name##_layer;
#define COUNTED(name, change, type) mine.name = name##_layer;
#include "fault_calls.def"
    mine.clCreateBuffer = create_guarded;
    mine.clEnqueueNDRangeKernel = launch_limited;
    mine.clSetKernelArg = set_arg;
    const char *most = getenv("CLATTN_FAULT_MOST"), *nth = getenv("CLATTN_FAULT_CALL");
    if (nth) {
        arm(strtol(nth, NULL, 10), 0);
        atexit(say_injected);
    }
    guards = getenv("CLATTN_FAULT_GUARD") != NULL;
    most_items = most ? strtoull(most, NULL, 10) : 0;
    if (getenv("CLATTN_FAULT_REPORT")) atexit(report_at_exit);
    *n_ret = sizeof mine / sizeof(void *);
    *mine_ret = &mine;
    return CL_SUCCESS;
}
