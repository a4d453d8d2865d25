/* Every public function, with every OpenCL call and every allocation that it makes failing, once and from then on: an error
 * status comes back, nothing leaks, what is refused has written nothing, and the next call is right. And the sweep itself,
 * on functions with planted mistakes. */
#define _GNU_SOURCE
#include "fault_alloc.h"
#include "fault_layer.h"
#include "harness.h"

#include <clattn/opencl.h>

#include <dlfcn.h>
#include <inttypes.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>

enum { MOST_OUTPUTS = 8, MOST_OWN = 16, MOST_INPUTS = 14 };

/* ---- what fails */

const fault_layer *fault_layer_find(void)
{
    const char *file = getenv("OPENCL_LAYERS");
    void *library = file ? dlopen(file, RTLD_NOLOAD | RTLD_NOW) : NULL;
    if (!library) return NULL;
    fault_layer_get_fn *get;
    *(void **)&get = dlsym(library, "fault_layer_get"); /* as POSIX has it */
    dlclose(library);
    return get ? get() : NULL;
}

static const fault_layer *layer(void)
{
    static const fault_layer *found;
    int ignored;
    if (found) return found;
    test_ok(clattn_device_count(&ignored)); /* loads OpenCL */
    found = fault_layer_find();
    ck_assert_msg(found, "the fault layer is not loaded: OPENCL_LAYERS must name it");
    return found;
}

typedef struct injector {
    const char *name;
    void (*arm)(long nth, int sticky);
    long (*injected)(void);
} injector;

static void arm_calls(long nth, int sticky) { layer()->arm(nth, sticky); }
static long injected_calls(void) { return layer()->counts().injected; }

enum { INJECTORS = 2, MODES = 2 };
static const injector injectors[INJECTORS] = {{"OpenCL call", arm_calls, injected_calls},
                                              {"allocation", fault_alloc_arm, fault_alloc_injected}};
static const char *const modes[MODES] = {"once", "from then on"};

/* ---- what it happens to */

/* Bytes that a call may write, between guards. */
typedef struct output {
    unsigned char *base, *expected;
    size_t bytes, first, end; /* of base; what may be written */
    cl_mem mem;               /* where a device writes it, or NULL */
} output;

struct subject;

typedef struct world {
    const struct subject *s;
    test_data *t;
    clattn_context *context, *made_context; /* to run on; what the call made */
    clattn_plan *plan, *made_plan;
    clattn_forward_args args;
    clattn_backward_args backward;
    cl_device_id device;
    cl_context cl;
    cl_command_queue queue;
    cl_event wait, event;
    cl_mem inputs[MOST_INPUTS], workspace;
    int n_inputs;
    output outputs[MOST_OUTPUTS];
    int n_outputs;
    void *own[MOST_OWN]; /* freed at the end */
    int n_own;
    char text[300];
} world;

typedef struct subject {
    const char *name, *text;
    clattn_kernel kernel;
    int copy;                        /* 1: copy_transfers; above: in shares, at most so many bytes at a time; -1: on two
                                          devices */
    void (*make)(world *w);          /* no failures */
    void (*before)(world *w);        /* no failures, before each call; or NULL */
    clattn_status (*call)(world *w); /* with failures */
    void (*undo)(world *w);          /* no failures; gives back what the call made; or NULL */
    bool (*fell_back)(const world *w); /* success although something failed is right; or NULL: never */
    unsigned injectors;                /* bits; what can fail in it */
} subject;

enum { CALLS = 1, ALLOCATIONS = 2, BOTH = 3 };

static void *own(world *w, size_t bytes)
{
    ck_assert_int_lt(w->n_own, MOST_OWN);
    void *at = malloc(bytes + 1);
    ck_assert_ptr_nonnull(at);
    memset(at, 0xff, bytes + 1);
    return w->own[w->n_own++] = at;
}

static output *add_output(world *w, void *base, size_t bytes, const void *first, size_t size)
{
    ck_assert_int_lt(w->n_outputs, MOST_OUTPUTS);
    output *o = &w->outputs[w->n_outputs++];
    o->base = base;
    o->bytes = bytes;
    o->first = (size_t)((const unsigned char *)first - o->base);
    o->end = o->first + size;
    o->expected = own(w, bytes);
    return o;
}

static void add_block(world *w, int block, const void *first)
{
    const test_block *b = &w->t->blocks[block];
    const size_t guard = (size_t)((const unsigned char *)first - b->base);
    add_output(w, b->base, b->bytes, first, b->bytes - guard - 512);
}

/* ---- making worlds */

static void open_context(world *w)
{
    clattn_context_options options;
    test_context_options(&options);
    static const int two[] = {0, 1};
    options.copy_transfers = w->s->copy != 0;
    options.copy_bytes_most = w->s->copy > 1 ? w->s->copy : 0;
    options.n_devices = w->s->copy < 0 ? 2 : 0;
    options.devices = two;
    options.n_threads = 2;
    test_ok(clattn_context_create(&options, &w->context));
}

static void open_host_context(world *w)
{
    clattn_context_options options;
    clattn_context_options_init(&options);
    options.device = CLATTN_DEVICE_NONE;
    options.n_threads = 2;
    test_ok(clattn_context_create(&options, &w->context));
}

static bool is_host(const world *w)
{
    return w->s->kernel == CLATTN_KERNEL_HOST_TILE || w->s->kernel == CLATTN_KERNEL_HOST_DECODE ||
           w->s->kernel == CLATTN_KERNEL_HOST_BACKWARD;
}

static void make_context(world *w)
{
    if (is_host(w))
        open_host_context(w);
    else
        open_context(w);
}

static void make_data(world *w)
{
    w->t = test_data_from_text(w->s->text, 3);
    for (int64_t b = 0; b < w->t->p.batch; b++) {
        if (w->t->kv_lengths) w->t->kv_lengths[b] = w->t->p.n_kv - 2 * b;
        if (w->t->query_offsets) w->t->query_offsets[b] = 3 * b - 1;
    }
    w->args = test_args(w->t);
    add_block(w, 3, w->t->o);
    add_block(w, 4, w->t->lse);
}

static clattn_plan_options plan_options(const world *w)
{
    clattn_plan_options options;
    clattn_plan_options_init(&options);
    options.kernel = w->s->kernel;
    options.pass = w->s->kernel == CLATTN_KERNEL_HOST_BACKWARD || w->s->kernel == CLATTN_KERNEL_ATTN_BWD_LANES ||
                           w->s->kernel == CLATTN_KERNEL_ATTN_BWD
                       ? CLATTN_PASS_BACKWARD
                       : CLATTN_PASS_FORWARD;
    return options;
}

static void make_plan(world *w)
{
    const clattn_plan_options options = plan_options(w);
    make_context(w);
    make_data(w);
    test_ok(clattn_plan_create(w->context, &w->t->p, &options, &w->plan));
    clattn_plan_info info;
    clattn_plan_info_init(&info);
    test_ok(clattn_plan_get_info(w->plan, &info));
    if (w->s->copy > 1) ck_assert_int_gt(info.n_shares, 1);
    if (w->s->copy < 0) ck_assert_int_eq(info.n_devices, 2);
}

static void make_nothing(world *w) { (void)w; }

static void unmake(world *w)
{
    for (int i = 0; i < w->n_inputs; i++)
        if (w->inputs[i]) clReleaseMemObject(w->inputs[i]);
    for (int i = 0; i < w->n_outputs; i++)
        if (w->outputs[i].mem) clReleaseMemObject(w->outputs[i].mem);
    if (w->workspace) clReleaseMemObject(w->workspace);
    if (w->wait) clReleaseEvent(w->wait);
    clattn_plan_release(w->plan);
    clattn_context_release(w->context);
    if (w->queue) clReleaseCommandQueue(w->queue);
    if (w->cl) clReleaseContext(w->cl);
    for (int i = 0; i < w->n_own; i++) free(w->own[i]);
    test_data_free(w->t);
}

static bool another_way(const world *w);

/* ---- the sweep */

typedef struct findings {
    long injections;
    long unreported; /* success, or no sentence, although something failed */
    long leaks, misuses;
    long touched; /* outputs of a refused call, guards of any, handles of a failed one */
    long wrong;   /* next calls */
    char first[400];
} findings;

static void found(findings *f, long *which, const world *w, const char *what, const char *mode, long nth)
{
    (*which)++;
    if (f->first[0]) return;
    const clattn_error *e = clattn_last_error();
    snprintf(f->first, sizeof f->first, "%s %s: %s; number %ld failed %s (%s); last error: %s: %s", w->s->name,
             w->s->text ? w->s->text : "", what, nth, mode, layer()->counts().function, clattn_status_name(e->status),
             e->message);
}

static long live(void) { return layer()->counts().live + fault_alloc_live(); }

/* Objects that callbacks release go in their own time. */
static bool live_settles(long wanted)
{
    for (int i = 0; i < 2000; i++) {
        if (live() == wanted) return true;
        const struct timespec pause = {0, 1000000};
        nanosleep(&pause, NULL);
    }
    return false;
}

static void poison(world *w)
{
    for (int i = 0; i < w->n_outputs; i++) {
        output *o = &w->outputs[i];
        memset(o->base, 0xff, o->bytes);
        if (o->mem)
            ck_assert_int_eq(clEnqueueWriteBuffer(w->queue, o->mem, CL_TRUE, 0, o->end - o->first, o->base + o->first,
                                                  0, NULL, NULL),
                             CL_SUCCESS);
    }
}

static void fetch(world *w)
{
    if (w->queue) clFinish(w->queue);
    for (int i = 0; i < w->n_outputs; i++) {
        output *o = &w->outputs[i];
        if (o->mem)
            ck_assert_int_eq(
                clEnqueueReadBuffer(w->queue, o->mem, CL_TRUE, 0, o->end - o->first, o->base + o->first, 0, NULL, NULL),
                CL_SUCCESS);
    }
}

static bool is_untouched(const unsigned char *at, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (at[i] != 0xff) return false;
    return true;
}

static bool outputs_untouched(const world *w, bool refused)
{
    for (int i = 0; i < w->n_outputs; i++) {
        const output *o = &w->outputs[i];
        if (!is_untouched(o->base, refused ? o->bytes : o->first) ||
            (!refused && !is_untouched(o->base + o->end, o->bytes - o->end)))
            return false;
    }
    return true;
}

static bool outputs_right(const world *w)
{
    for (int i = 0; i < w->n_outputs; i++)
        if (memcmp(w->outputs[i].base, w->outputs[i].expected, w->outputs[i].bytes)) return false;
    return true;
}

static char handle; /* what handles are before a call */

static bool handles_alone(const world *w)
{
    const void *mark = &handle;
    return w->made_context == mark && w->made_plan == mark && (const void *)w->event == mark;
}

static void handles_mark(world *w)
{
    w->made_context = (clattn_context *)(void *)&handle;
    w->made_plan = (clattn_plan *)(void *)&handle;
    w->event = (cl_event)(void *)&handle;
}

static clattn_status call_once(world *w)
{
    handles_mark(w);
    if (w->s->before) w->s->before(w);
    poison(w);
    return w->s->call(w);
}

static void give_back(world *w)
{
    if (w->made_context && w->made_context != (void *)&handle) clattn_context_release(w->made_context);
    if (w->made_plan && w->made_plan != (void *)&handle) clattn_plan_release(w->made_plan);
    if (w->event && w->event != (void *)&handle) clReleaseEvent(w->event);
    if (w->s->undo) w->s->undo(w);
}

static bool call_is_right(world *w)
{
    const bool good = call_once(w) == CLATTN_STATUS_SUCCESS;
    fetch(w);
    const bool right = good && outputs_right(w);
    give_back(w);
    return right;
}

/* One failure; false when there was none left to make. */
static bool inject(world *w, findings *f, const injector *j, int mode, long nth, long settled)
{
    handles_mark(w);
    if (w->s->before) w->s->before(w);
    poison(w);
    const long misuses = layer()->counts().misuses;
    j->arm(nth, mode);
    const clattn_status status = w->s->call(w);
    const long injected = j->injected();
    j->arm(0, 0);
    if (injected == 0) {
        if (status != CLATTN_STATUS_SUCCESS) found(f, &f->wrong, w, "fails with nothing injected", modes[mode], nth);
        fetch(w);
        give_back(w);
        return false;
    }
    f->injections++;
    fetch(w);
    if (status == CLATTN_STATUS_SUCCESS) {
        if (!w->s->fell_back || !w->s->fell_back(w)) found(f, &f->unreported, w, "says success", modes[mode], nth);
        if (w->s->fell_back == another_way) /* and its bits */
            test_compare(w->t, w->s->name);
        else if (!outputs_right(w))
            found(f, &f->wrong, w, "success with a wrong result", modes[mode], nth);
    } else {
        const clattn_error *e = clattn_last_error();
        const bool refused = status != CLATTN_STATUS_OPENCL_ERROR && status != CLATTN_STATUS_INTERNAL;
        if (e->status != status || !e->message[0])
            found(f, &f->unreported, w, "has another last error", modes[mode], nth);
        if (!outputs_untouched(w, refused)) found(f, &f->touched, w, "touched an output", modes[mode], nth);
        if (!handles_alone(w)) found(f, &f->touched, w, "set a handle", modes[mode], nth);
    }
    give_back(w);
    if (!live_settles(settled)) found(f, &f->leaks, w, "leaks", modes[mode], nth);
    if (!call_is_right(w)) found(f, &f->wrong, w, "the next call is wrong", modes[mode], nth);
    if (!live_settles(settled)) found(f, &f->leaks, w, "leaks with the next call", modes[mode], nth);
    if (layer()->counts().misuses != misuses) found(f, &f->misuses, w, "misuses an object", modes[mode], nth);
    return true;
}

static findings sweep(const subject *s, const injector *j, int mode)
{
    findings f = {0};
    layer()->guard_buffers(1);
    const long before = live();
    world w = {.s = s};
    handles_mark(&w);
    s->make(&w);
    for (int i = 0; i < 2; i++) { /* the second time nothing is made for the first time */
        const clattn_status status = call_once(&w);
        ck_assert_msg(status == CLATTN_STATUS_SUCCESS, "%s: %s", s->name, clattn_last_error()->message);
        fetch(&w);
        for (int n = 0; n < w.n_outputs; n++) memcpy(w.outputs[n].expected, w.outputs[n].base, w.outputs[n].bytes);
        give_back(&w);
    }
    const fault_counts at_first = layer()->counts();
    long settled = live();
    for (int i = 0; i < 50 && !live_settles(settled); i++) settled = live();
    for (long nth = 1; inject(&w, &f, j, mode, nth, settled); nth++)
        if (f.leaks) settled = live();
    unmake(&w);
    if (!f.leaks && !live_settles(before)) found(&f, &f.leaks, &w, "leaks in the end", modes[mode], 0);
    if (layer()->counts().overruns != at_first.overruns) found(&f, &f.touched, &w, "overran a buffer", modes[mode], 0);
    layer()->guard_buffers(0);
    return f;
}

/* ---- subjects: finding and opening */

static clattn_status call_count(world *w)
{
    int n;
    (void)w;
    return clattn_device_count(&n);
}

static clattn_status call_get_info(world *w)
{
    clattn_device_info info;
    (void)w;
    clattn_device_info_init(&info);
    return clattn_device_get_info(0, &info);
}

static clattn_status call_context_index(world *w)
{
    clattn_context_options options;
    clattn_context_options_init(&options);
    options.device = CLATTN_DEVICE_INDEX;
    return clattn_context_create(&options, &w->made_context);
}

static clattn_status call_context_devices(world *w)
{
    static const int two[] = {1, 0};
    clattn_context_options options;
    clattn_context_options_init(&options);
    options.n_devices = 2;
    options.devices = two;
    return clattn_context_create(&options, &w->made_context);
}

static clattn_status call_context_name(world *w)
{
    clattn_context_options options;
    clattn_context_options_init(&options);
    options.device = CLATTN_DEVICE_NAME;
    options.device_name = "p"; /* each name has one: pthread, Portable, processor */
    return clattn_context_create(&options, &w->made_context);
}

static clattn_status call_context_lazy(world *w)
{
    clattn_context *c;
    const clattn_status status = clattn_context_create(NULL, &c);
    if (status != CLATTN_STATUS_SUCCESS) return status;
    const clattn_status opened = clattn_context_get_cl(c, NULL, NULL);
    if (opened == CLATTN_STATUS_SUCCESS)
        w->made_context = c;
    else
        clattn_context_release(c);
    return opened;
}

static void make_cl(world *w)
{
    clattn_context *c;
    cl_int code;
    clattn_context_options options;
    test_context_options(&options);
    test_ok(clattn_context_create(&options, &c));
    test_ok(clattn_context_get_cl(c, NULL, &w->device));
    clattn_context_release(c);
    w->cl = clCreateContext(NULL, 1, &w->device, NULL, NULL, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    w->queue = clCreateCommandQueue(w->cl, w->device, 0, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
}

static clattn_status call_context_from_cl(world *w)
{
    return clattn_context_create_from_cl(w->cl, w->device, NULL, &w->made_context);
}

static clattn_status call_context_tuning(world *w)
{
    clattn_context_options options;
    clattn_context_options_init(&options);
    options.device = CLATTN_DEVICE_INDEX;
    options.tuning = "clattn tuning 1\n";
    return clattn_context_create(&options, &w->made_context);
}

/* ---- subjects: plans, each on a context that has built nothing */

static void make_for_plan(world *w) { w->t = test_data_from_text(w->s->text, 3); }

static void before_plan(world *w) { make_context(w); }

static clattn_status call_plan(world *w)
{
    const clattn_plan_options options = plan_options(w);
    return clattn_plan_create(w->context, &w->t->p, &options, &w->made_plan);
}

/* The table's sizes first. */
static void before_tuned_plan(world *w)
{
    clattn_context_options options;
    test_context_options(&options);
    options.tuning = "clattn tuning 1\ntile 16 16 | attn_fwd_lanes f32 d16 full q140 kv140 | class cpu";
    test_ok(clattn_context_create(&options, &w->context));
}

/* Of a host plan on a context that has not opened its device. */
static void make_for_tuning(world *w)
{
    make_for_plan(w);
    void *line = own(w, 512);
    add_output(w, line, 512, line, 512);
}

static clattn_status call_get_tuning(world *w)
{
    clattn_context *c = NULL;
    clattn_plan *plan = NULL;
    const clattn_plan_options options = plan_options(w);
    clattn_status status = clattn_context_create(NULL, &c);
    if (status == CLATTN_STATUS_SUCCESS) status = clattn_plan_create(c, &w->t->p, &options, &plan);
    if (status == CLATTN_STATUS_SUCCESS)
        status = clattn_plan_get_tuning(plan, (char *)w->outputs[0].base, w->outputs[0].bytes);
    clattn_plan_release(plan);
    clattn_context_release(c);
    return status;
}

static void undo_context(world *w)
{
    clattn_context_release(w->context);
    w->context = NULL;
}

/* The plan says what it could not do. */
static bool plan_says(const world *w)
{
    const char *why = clattn_plan_explain(w->made_plan);
    return strstr(why, "refused: ") || strstr(why, "path host: ") || strstr(why, "none: ") || strstr(why, "left out: ");
}

/* An AUTO plan of an app's context: the host path, and a device kernel beside it. */
static void before_plan_from_cl(world *w)
{
    test_ok(clattn_context_create_from_cl(w->cl, w->device, NULL, &w->context));
}

static void make_cl_for_plan(world *w)
{
    make_cl(w);
    make_for_plan(w);
}

/* ---- subjects: programs on disk and in the app's hands */

static char cache_folder[64];

static void cache_remove(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", cache_folder);
    if (*cache_folder) ck_assert_int_eq(system(command), 0);
    *cache_folder = 0;
}

static void cache_make(void)
{
    strcpy(cache_folder, "/tmp/clattn-faults-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(cache_folder));
    setenv("CLATTN_CACHE_DIR", cache_folder, 1);
}

static void make_for_cache(world *w)
{
    cache_make();
    make_for_plan(w);
}

/* A context that has built nothing and reads what the last one left on disk. */
static void before_cached_plan(world *w)
{
    setenv("CLATTN_CACHE", "1", 1);
    make_context(w);
    setenv("CLATTN_CACHE", "0", 1);
}

static void before_uncached_plan(world *w)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'/*", cache_folder);
    ck_assert_int_eq(system(command), 0);
    before_cached_plan(w);
}

/* What the cache cannot do is no failure. */
static bool without_cache(const world *w)
{
    (void)w;
    return true;
}

static void make_binaries(world *w)
{
    size_t bytes = 0;
    make_plan(w);
    test_ok(clattn_plan_get_binaries(w->plan, NULL, 0, &bytes));
    void *base = own(w, bytes);
    w->n_outputs = 0;
    add_output(w, base, bytes, base, bytes);
}

static clattn_status call_get_binaries(world *w)
{
    size_t needed;
    return clattn_plan_get_binaries(w->plan, w->outputs[0].base, w->outputs[0].bytes, &needed);
}

static void make_given_binaries(world *w)
{
    size_t needed;
    make_binaries(w);
    test_ok(clattn_plan_get_binaries(w->plan, w->outputs[0].base, w->outputs[0].bytes, &needed));
    w->n_outputs = 0; /* an input here */
}

static clattn_status call_add_binaries(world *w)
{
    return clattn_context_add_binaries(w->context, w->outputs[0].base, w->outputs[0].bytes);
}

/* ---- subjects: forward, backward, and what else computes */

static clattn_status call_forward(world *w) { return clattn_forward(w->plan, &w->args); }

/* The first copying call of a context makes the page-locked memory; its plan is from disk, for speed. */
static void make_for_first_copy(world *w)
{
    cache_make();
    make_data(w);
}

static void before_first_copy(world *w)
{
    const clattn_plan_options options = plan_options(w);
    before_cached_plan(w);
    test_ok(clattn_plan_create(w->context, &w->t->p, &options, &w->plan));
}

static void undo_first_copy(world *w)
{
    clattn_plan_release(w->plan);
    w->plan = NULL;
    undo_context(w);
}

/* Without page-locked memory copies are mapped. */
static bool mapped_instead(const world *w)
{
    const char *failed = layer()->counts().function;
    (void)w;
    return !strcmp(failed, "clCreateBuffer") || !strcmp(failed, "clEnqueueMapBuffer");
}

/* O of two heads stands between gaps that are not to be touched. */
static void make_plan_with_gaps(world *w)
{
    const clattn_plan_options options = plan_options(w);
    clattn_problem p;
    make_context(w);
    test_ok(clattn_problem_from_text(w->s->text, &p));
    p.o = clattn_strides_bhsd(p.n_heads_q, p.n_q + 3, p.head_dim_v + 5);
    p.o.seq = p.head_dim_v + 5;
    w->t = test_data_make(&p, 3);
    w->args = test_args(w->t);
    add_block(w, 3, w->t->o);
    add_block(w, 4, w->t->lse);
    test_ok(clattn_plan_create(w->context, &p, &options, &w->plan));
}

static void make_for_attention(world *w)
{
    make_context(w);
    make_data(w);
}

static void make_with_reference(world *w)
{
    make_data(w);
    test_reference(w->t);
}

static clattn_status attend(world *w)
{
    const test_data *t = w->t;
    return clattn_attention(w->context, &t->p, t->q, t->k, t->v, t->o, t->lse);
}

/* The first call of a context: it opens the device, or starts the threads. */
static void before_attention(world *w) { make_context(w); }

/* On the AUTO path what the device cannot do the host does, and without threads the caller. */
static bool another_way(const world *w)
{
    (void)w;
    return true;
}

/* Whom the event callback would have released, nobody holds then. */
static bool without_callback(const world *w)
{
    (void)w;
    return !strcmp(layer()->counts().function, "clSetEventCallback");
}

static bool says_or_without_callback(const world *w) { return plan_says(w) || without_callback(w); }

static void make_scores(world *w)
{
    w->t = test_data_from_text(w->s->text, 3);
    w->args = test_args(w->t);
    const size_t bytes = (size_t)(w->t->p.n_q * w->t->p.n_kv) * sizeof(double);
    void *scores = own(w, bytes);
    add_output(w, scores, bytes, scores, bytes);
}

static clattn_status call_scores(world *w)
{
    return clattn_scores(&w->t->p, &w->args, CLATTN_SCORE_PROBS, 0, 1, (float *)(void *)w->outputs[0].base);
}

static clattn_status call_reference_scores(world *w)
{
    return clattn_reference_scores(&w->t->p, &w->args, CLATTN_SCORE_PROBS, 0, 1, (double *)(void *)w->outputs[0].base);
}

static clattn_status call_dropout_mask(world *w) { return clattn_dropout_mask(&w->t->p, 1, 2, w->outputs[0].base); }

static void make_for_reference(world *w)
{
    make_scores(w);
    const clattn_problem *p = &w->t->p;
    const size_t rows = (size_t)(p->batch * p->n_heads_q * p->n_q);
    const size_t o_bytes = rows * (size_t)p->head_dim_v * sizeof(double);
    add_output(w, w->t->ref_o, o_bytes, w->t->ref_o, o_bytes);
    add_output(w, w->t->ref_lse, rows * sizeof(double), w->t->ref_lse, rows * sizeof(double));
}

static clattn_status call_reference(world *w)
{
    return clattn_reference_forward(&w->t->p, &w->args, w->t->ref_o, w->t->ref_lse);
}

static size_t elements_of(const clattn_problem *p, char which)
{
    const int64_t rows_q = p->batch * p->n_heads_q * p->n_q, rows_kv = p->batch * p->n_heads_kv * p->n_kv;
    switch (which) {
    case 'q': return (size_t)(rows_q * p->head_dim_qk);
    case 'k': return (size_t)(rows_kv * p->head_dim_qk);
    case 'v': return (size_t)(rows_kv * p->head_dim_v);
    case 'b': return (size_t)(rows_q * p->n_kv);
    default: return (size_t)p->n_heads_q;
    }
}

/* Outputs [0..5]: dq dk dv dbias dalibi_slopes dsinks, as far as the problem has them. */
static void make_gradients(world *w, size_t size)
{
    const clattn_problem *p = &w->t->p;
    static const char which[] = "qkvbhh";
    const bool has[] = {true, true, true, p->bias.dtype != 0, p->alibi != 0, p->sinks != 0};
    clattn_buffer *const to[] = {
        &w->backward.dq,    &w->backward.dk, &w->backward.dv, &w->backward.dbias, &w->backward.dalibi_slopes,
        &w->backward.dsinks};
    w->n_outputs = 0;
    for (int i = 0; i < 6; i++) {
        enum { GUARD = 64 };
        const size_t bytes = has[i] ? elements_of(p, which[i]) * (i < 4 || size == 8 ? size : 4) : 0;
        unsigned char *base = own(w, bytes + 2 * GUARD);
        add_output(w, base, bytes + 2 * GUARD, base + GUARD, bytes);
        if (has[i]) *to[i] = clattn_host_buffer(base + GUARD);
    }
}

static void make_backward(world *w)
{
    make_context(w);
    make_data(w);
    clattn_plan *forward;
    test_ok(clattn_plan_create(w->context, &w->t->p, NULL, &forward));
    test_ok(clattn_forward(forward, &w->args));
    clattn_plan_release(forward);
    const clattn_plan_options options = plan_options(w);
    test_ok(clattn_plan_create(w->context, &w->t->p, &options, &w->plan));
    clattn_backward_args_init(&w->backward);
    w->backward.forward = w->args;
    w->backward.d_o = clattn_host_buffer(w->t->q); /* any numbers; head_dim_v is head_dim_qk */
    w->n_outputs = 0;
    make_gradients(w, clattn_dtype_size(w->t->p.dtype));
}

static clattn_status call_backward(world *w) { return clattn_backward(w->plan, &w->backward); }

static clattn_status call_reference_backward(world *w)
{
    const clattn_backward_args *b = &w->backward;
    const clattn_reference_gradients g = {b->dq.host,    b->dk.host, b->dv.host, b->dbias.host, b->dalibi_slopes.host,
                                          b->dsinks.host};
    clattn_backward_args args = *b;
    args.dq = args.dk = args.dv = args.dbias = args.dalibi_slopes = args.dsinks = clattn_host_buffer(NULL);
    return clattn_reference_backward(&w->t->p, &args, &g);
}

static void make_reference_backward(world *w)
{
    w->t = test_data_from_text(w->s->text, 3);
    clattn_backward_args_init(&w->backward);
    w->backward.forward = test_args(w->t);
    w->backward.d_o = clattn_host_buffer(w->t->q);
    make_gradients(w, sizeof(double));
}

static clattn_status call_text(world *w)
{
    clattn_problem p;
    uint64_t seed;
    int64_t cu[8];
    const clattn_status status = clattn_problem_from_text(w->s->text, &p);
    if (status == CLATTN_STATUS_SUCCESS) clattn_problem_to_text(&p, w->text, sizeof w->text);
    return status == CLATTN_STATUS_SUCCESS ? clattn_problem_text_args(w->s->text, &seed, cu, cu) : status;
}

/* ---- subjects: enqueue, on buffers of the app's */

static cl_mem buffer_of(world *w, size_t bytes, void *data)
{
    cl_int code;
    cl_mem mem = clCreateBuffer(w->cl, CL_MEM_READ_WRITE | (data ? CL_MEM_COPY_HOST_PTR : 0), bytes, data, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    return mem;
}

static size_t bytes_beside(const clattn_problem *p, clattn_score_strides s, size_t size)
{
    return size * (size_t)(test_beside(s, p->batch - 1, p->n_heads_q - 1, p->n_q - 1, p->n_kv - 1) + 1);
}

/* A host buffer of the args becomes a cl_mem. */
static void input_to_cl(world *w, clattn_buffer *buffer, size_t bytes)
{
    if (!bytes) return;
    w->inputs[w->n_inputs] = buffer_of(w, bytes, buffer->host);
    *buffer = clattn_cl_buffer(w->inputs[w->n_inputs++], 0);
}

static void inputs_to_cl(world *w, clattn_forward_args *a)
{
    const clattn_problem *p = &w->t->p;
    const size_t size = clattn_dtype_size(p->dtype);
    input_to_cl(w, &a->q, elements_of(p, 'q') * size);
    input_to_cl(w, &a->k, elements_of(p, 'k') * size);
    input_to_cl(w, &a->v, elements_of(p, 'v') * size);
    input_to_cl(w, &a->bias, p->bias.dtype ? bytes_beside(p, p->bias.strides, clattn_dtype_size(p->bias.dtype)) : 0);
    input_to_cl(w, &a->mask, p->mask.boolean ? bytes_beside(p, p->mask.strides, 1) : 0);
    input_to_cl(w, &a->alibi_slopes, p->alibi ? (size_t)p->n_heads_q * sizeof(float) : 0);
    input_to_cl(w, &a->sinks, p->sinks ? (size_t)p->n_heads_q * sizeof(float) : 0);
    input_to_cl(w, &a->kv_lengths, p->kv_length_per_batch ? (size_t)p->batch * sizeof(int64_t) : 0);
    input_to_cl(w, &a->query_offsets, p->query_offset_per_batch ? (size_t)p->batch * sizeof(int64_t) : 0);
}

static void make_on_cl(world *w)
{
    const clattn_plan_options options = plan_options(w);
    make_cl(w);
    test_ok(clattn_context_create_from_cl(w->cl, w->device, NULL, &w->context));
    make_data(w);
    test_ok(clattn_plan_create(w->context, &w->t->p, &options, &w->plan));
}

static void make_workspace_and_wait(world *w, clattn_buffer *workspace)
{
    cl_int code;
    const size_t bytes = clattn_plan_workspace_size(w->plan);
    if (bytes) *workspace = clattn_cl_buffer(w->workspace = buffer_of(w, bytes, NULL), 0);
    w->wait = clCreateUserEvent(w->cl, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    ck_assert_int_eq(clSetUserEventStatus(w->wait, CL_COMPLETE), CL_SUCCESS);
}

static void make_enqueue(world *w)
{
    make_on_cl(w);
    const clattn_problem *p = &w->t->p;
    const size_t rows = elements_of(p, 'q') / (size_t)p->head_dim_qk, size = clattn_dtype_size(p->dtype);
    inputs_to_cl(w, &w->args);
    w->outputs[0].end = w->outputs[0].first + rows * (size_t)p->head_dim_v * size;
    w->outputs[1].end = w->outputs[1].first + rows * sizeof(float);
    for (int i = 0; i < 2; i++) w->outputs[i].mem = buffer_of(w, w->outputs[i].end - w->outputs[i].first, NULL);
    w->args.o = clattn_cl_buffer(w->outputs[0].mem, 0);
    w->args.lse = clattn_cl_buffer(w->outputs[1].mem, 0);
    make_workspace_and_wait(w, &w->args.workspace);
}

static void make_enqueue_backward(world *w)
{
    make_on_cl(w);
    const clattn_problem *p = &w->t->p;
    const size_t rows = elements_of(p, 'q') / (size_t)p->head_dim_qk, size = clattn_dtype_size(p->dtype);
    clattn_plan *forward;
    test_ok(clattn_plan_create(w->context, p, NULL, &forward));
    test_ok(clattn_forward(forward, &w->args));
    clattn_plan_release(forward);
    clattn_backward_args *b = &w->backward;
    clattn_backward_args_init(b);
    b->forward = w->args;
    b->d_o = clattn_host_buffer(w->t->q); /* any numbers; head_dim_v is head_dim_qk */
    make_gradients(w, size);
    inputs_to_cl(w, &b->forward);
    input_to_cl(w, &b->forward.o, rows * (size_t)p->head_dim_v * size);
    input_to_cl(w, &b->forward.lse, rows * sizeof(float));
    input_to_cl(w, &b->d_o, rows * (size_t)p->head_dim_v * size);
    clattn_buffer *const to[] = {&b->dq, &b->dk, &b->dv, &b->dbias, &b->dalibi_slopes, &b->dsinks};
    for (int i = 0; i < 6; i++) {
        const size_t bytes = w->outputs[i].end - w->outputs[i].first;
        if (bytes) *to[i] = clattn_cl_buffer(w->outputs[i].mem = buffer_of(w, bytes, NULL), 0);
    }
    make_workspace_and_wait(w, &b->workspace);
}

static clattn_status call_enqueue(world *w)
{
    return clattn_enqueue_forward(w->plan, w->queue, &w->args, 1, &w->wait, &w->event);
}

static clattn_status call_enqueue_backward(world *w)
{
    return clattn_enqueue_backward(w->plan, w->queue, &w->backward, 1, &w->wait, &w->event);
}

/* ---- subjects with a planted mistake */

static clattn_status failed(const char *what)
{
    (void)what;
    int ignored;
    clattn_device_info info;
    (void)ignored;
    memset(&info, 0, sizeof info);
    clattn_device_get_info(0, &info); /* leaves a sentence */
    return CLATTN_STATUS_INVALID_ARGUMENT;
}

static clattn_status planted(world *w, bool leak, bool double_release, bool unchecked)
{
    cl_int code;
    const float x = 1;
    cl_mem mem = clCreateBuffer(w->cl, CL_MEM_READ_WRITE, sizeof x, NULL, &code);
    if (code != CL_SUCCESS) return failed("clCreateBuffer");
    code = clEnqueueWriteBuffer(w->queue, mem, CL_TRUE, 0, sizeof x, &x, 0, NULL, NULL);
    if (code != CL_SUCCESS && !unchecked) {
        if (!leak) clReleaseMemObject(mem);
        if (double_release) clReleaseMemObject(mem);
        return failed("clEnqueueWriteBuffer");
    }
    clReleaseMemObject(mem);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status call_planted_nothing(world *w) { return planted(w, false, false, false); }
static clattn_status call_planted_leak(world *w) { return planted(w, true, false, false); }
static clattn_status call_planted_release(world *w) { return planted(w, false, true, false); }
static clattn_status call_planted_unchecked(world *w) { return planted(w, false, false, true); }

static clattn_status call_planted_use(world *w)
{
    cl_int code;
    size_t bytes;
    cl_mem mem = clCreateBuffer(w->cl, CL_MEM_READ_WRITE, 4, NULL, &code);
    if (code != CL_SUCCESS) return failed("clCreateBuffer");
    clRetainMemObject(mem); /* the driver's object lives on, the app's is gone */
    clReleaseMemObject(mem);
    clReleaseMemObject(mem);
    clGetMemObjectInfo(mem, CL_MEM_SIZE, sizeof bytes, &bytes, NULL);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status call_planted_allocation(world *w)
{
    (void)w;
    void *a = malloc(8), *b = malloc(8);
    if (!b) return failed("malloc"); /* a */
    free(a);
    free(b);
    return a ? CLATTN_STATUS_SUCCESS : failed("malloc");
}

/* ---- the table */

#define EVERYTHING                                                                                                     \
    "f32 b2 hq4 hkv2 q19 kv37 d20 window=9,3 softcap=7 alibi bias=1,h,q,kv:f16 mask=b,1,q,kv sinks dropout=0.2"
#define PER_BATCH "f16 b2 hq2 hkv1 q9 kv33 d16 causal offset=per-batch kvlen=per-batch"
#define FEW "f32 b1 hq4 hkv2 q1 kv600 d16"
#define FEW_KEYS_CUT "f32 b1 hq2 hkv1 q1 kv600 d16"
#define PACKED "f32 hq4 hkv2 d20 varlen=30,3,20:40,9,23 causal"
#define LONG "f32 b1 hq2 hkv2 q140 kv140 d16"

#define LANES CLATTN_KERNEL_ATTN_FWD_LANES
#define LOCAL CLATTN_KERNEL_ATTN_FWD
#define DECODE CLATTN_KERNEL_ATTN_DECODE_LANES
#define AUTO CLATTN_KERNEL_AUTO
#define HOST CLATTN_KERNEL_HOST_TILE
#define HOST_FEW CLATTN_KERNEL_HOST_DECODE
#define BACKWARD CLATTN_KERNEL_HOST_BACKWARD
#define BWD_LANES CLATTN_KERNEL_ATTN_BWD_LANES
#define BWD_LOCAL CLATTN_KERNEL_ATTN_BWD

/* clang-format off */
static const subject subjects[] = {
    /* name                      text        kernel    copy  make                 before               call                     undo          fell_back  injectors */
    {"device_count",             NULL,       AUTO,     0,    make_nothing,        NULL,                call_count,              NULL,         NULL,      BOTH},
    {"device_get_info",          NULL,       AUTO,     0,    make_nothing,        NULL,                call_get_info,           NULL,         NULL,      BOTH},
    {"context_create by index",  NULL,       AUTO,     0,    make_nothing,        NULL,                call_context_index,      NULL,         NULL,      BOTH},
    {"context_create by name",   NULL,       AUTO,     0,    make_nothing,        NULL,                call_context_name,       NULL,         NULL,      BOTH},
    {"context_get_cl",           NULL,       AUTO,     0,    make_nothing,        NULL,                call_context_lazy,       NULL,         NULL,      BOTH},
    {"context_create_from_cl",   NULL,       AUTO,     0,    make_cl,             NULL,                call_context_from_cl,    NULL,         NULL,      BOTH},
    {"context_create, a table",  NULL,       AUTO,     0,    make_nothing,        NULL,                call_context_tuning,     NULL,         NULL,      BOTH},
    {"plan_create, tuned",       LONG,       LANES,    0,    make_for_plan,       before_tuned_plan,   call_plan,               undo_context, plan_says, BOTH},
    {"plan_get_tuning",          LONG,       HOST,     0,    make_for_tuning,     NULL,                call_get_tuning,         NULL,         NULL,      BOTH},
    {"plan_create",              FEW,        DECODE,   0,    make_for_plan,       before_plan,         call_plan,               undo_context, without_callback, BOTH},
    {"plan_create",              EVERYTHING, LANES,    0,    make_for_plan,       before_plan,         call_plan,               undo_context, NULL,      BOTH},
    {"plan_create",              EVERYTHING, LOCAL,    0,    make_for_plan,       before_plan,         call_plan,               undo_context, plan_says, BOTH},
    {"plan_create",              LONG,       AUTO,     0,    make_for_plan,       before_plan,         call_plan,               undo_context, plan_says, BOTH},
    {"plan_create from_cl",      PER_BATCH,  AUTO,     0,    make_cl_for_plan,    before_plan_from_cl, call_plan,               undo_context, plan_says, BOTH},
    {"plan_create on the host",  LONG,       HOST,     0,    make_for_plan,       before_plan,         call_plan,               undo_context, NULL,      BOTH},
    {"plan_create on the host",  LONG,       BACKWARD, 0,    make_for_plan,       before_plan,         call_plan,               undo_context, NULL,      BOTH},
    {"plan_create, kept on disk", EVERYTHING, LANES,   0,    make_for_cache,      before_uncached_plan, call_plan,              undo_context, without_cache, BOTH},
    {"plan_create, from disk",   EVERYTHING, LANES,    0,    make_for_cache,      before_cached_plan,  call_plan,               undo_context, without_cache, BOTH},
    {"plan_get_binaries",        FEW,        DECODE,   0,    make_binaries,       NULL,                call_get_binaries,       NULL,         NULL,      BOTH},
    {"context_add_binaries",     FEW,        DECODE,   0,    make_given_binaries, NULL,                call_add_binaries,       NULL,         NULL,      BOTH},
    {"forward in place",         EVERYTHING, LANES,    0,    make_plan,           NULL,                call_forward,            NULL,         NULL,      BOTH},
    {"forward copied",           EVERYTHING, LANES,    1,    make_plan,           NULL,                call_forward,            NULL,         NULL,      BOTH},
    {"forward in place",         EVERYTHING, LOCAL,    0,    make_plan,           NULL,                call_forward,            NULL,         NULL,      BOTH},
    {"forward copied",           PER_BATCH,  LOCAL,    1,    make_plan,           NULL,                call_forward,            NULL,         NULL,      BOTH},
    {"forward in place",         FEW,        DECODE,   0,    make_plan,           NULL,                call_forward,            NULL,         without_callback, BOTH},
    {"forward copied",           FEW,        DECODE,   1,    make_plan,           NULL,                call_forward,            NULL,         without_callback, BOTH},
    {"forward copied, the first", EVERYTHING, LANES,   1,    make_for_first_copy, before_first_copy,   call_forward,            undo_first_copy, mapped_instead, CALLS},
    {"forward with gaps",        LONG,       LANES,    0,    make_plan_with_gaps, NULL,                call_forward,            NULL,         NULL,      BOTH},
    {"forward in shares",        EVERYTHING, LANES,    40000, make_plan,          NULL,                call_forward,            NULL,         without_callback, BOTH},
    {"forward in shares",        EVERYTHING, LANES,    13000, make_plan,          NULL,                call_forward,            NULL,         without_callback, BOTH},
    {"forward in shares",        PER_BATCH,  LOCAL,    5000, make_plan,           NULL,                call_forward,            NULL,         without_callback, BOTH},
    {"forward in shares",        FEW,        DECODE,   90000, make_plan,          NULL,                call_forward,            NULL,         without_callback, BOTH},
    {"forward in shares",        FEW,        DECODE,   50000, make_plan,          NULL,                call_forward,            NULL,         without_callback, BOTH},
    {"forward in shares",        PACKED,     LANES,    40000, make_plan,          NULL,                call_forward,            NULL,         without_callback, BOTH},
    {"enqueue_forward",          EVERYTHING, LANES,    0,    make_enqueue,        NULL,                call_enqueue,            NULL,         NULL,      BOTH},
    {"enqueue_forward",          PER_BATCH,  LANES,    0,    make_enqueue,        NULL,                call_enqueue,            NULL,         NULL,      BOTH},
    {"enqueue_forward",          EVERYTHING, LOCAL,    0,    make_enqueue,        NULL,                call_enqueue,            NULL,         NULL,      BOTH},
    {"enqueue_forward",          FEW,        DECODE,   0,    make_enqueue,        NULL,                call_enqueue,            NULL,         without_callback, BOTH},
    {"plan_create, gradients",   EVERYTHING, BWD_LANES, 0,   make_for_plan,       before_plan,         call_plan,               undo_context, without_callback, BOTH},
    {"plan_create, gradients",   LONG,       BWD_LOCAL, 0,   make_for_plan,       before_plan,         call_plan,               undo_context, says_or_without_callback, BOTH},
    {"backward in place",        EVERYTHING, BWD_LANES, 0,   make_backward,       NULL,                call_backward,           NULL,         without_callback, BOTH},
    {"backward copied",          EVERYTHING, BWD_LANES, 1,   make_backward,       NULL,                call_backward,           NULL,         without_callback, BOTH},
    {"backward in place",        EVERYTHING, BWD_LOCAL, 0,   make_backward,       NULL,                call_backward,           NULL,         without_callback, BOTH},
    {"enqueue_backward",         EVERYTHING, BWD_LANES, 0,   make_enqueue_backward, NULL,              call_enqueue_backward,   NULL,         without_callback, BOTH},
    {"attention",                LONG,       AUTO,     0,    make_for_attention,  NULL,                attend,                  NULL,         NULL,      BOTH},
    {"attention, the first",     LONG,       AUTO,     0,    make_with_reference, before_attention,    attend,                  undo_context, another_way,   BOTH},
    {"attention on the host",    LONG,       HOST,     0,    make_with_reference, before_attention,    attend,                  undo_context, another_way,   BOTH},
    {"forward on the host",      EVERYTHING, HOST,     0,    make_plan,           NULL,                call_forward,            NULL,         NULL,      ALLOCATIONS},
    {"forward on the host",      FEW,        HOST_FEW, 0,    make_plan,           NULL,                call_forward,            NULL,         NULL,      ALLOCATIONS},
    {"forward on the host",      "f32 b1 hq1 hkv1 q40 kv3000 d64", HOST, 0, make_plan, NULL,           call_forward,            NULL,         NULL,      ALLOCATIONS},
    {"forward on the host",      "f64 b1 hq1 hkv1 q5 kv70 d300", HOST, 0, make_plan, NULL,             call_forward,            NULL,         NULL,      ALLOCATIONS},
    {"backward on the host",     EVERYTHING, BACKWARD, 0,    make_backward,       NULL,                call_backward,           NULL,         NULL,      ALLOCATIONS},
    {"backward on the host",     "f32 b1 hq2 hkv1 q70 kv300 d8", BACKWARD, 0, make_backward, NULL,     call_backward,           NULL,         NULL,      ALLOCATIONS},
    {"reference_backward",       EVERYTHING, AUTO,     0,    make_reference_backward, NULL,            call_reference_backward, NULL,         NULL,      ALLOCATIONS},
    {"reference_forward",        EVERYTHING, AUTO,     0,    make_for_reference,  NULL,                call_reference,          NULL,         NULL,      ALLOCATIONS},
    {"reference_scores",         EVERYTHING, AUTO,     0,    make_scores,         NULL,                call_reference_scores,   NULL,         NULL,      ALLOCATIONS},
    {"scores",                   EVERYTHING, AUTO,     0,    make_scores,         NULL,                call_scores,             NULL,         NULL,      ALLOCATIONS},
    {"dropout_mask",             EVERYTHING, AUTO,     0,    make_for_reference,  NULL,                call_dropout_mask,       NULL,         NULL,      ALLOCATIONS},
    {"problem_from_text",        EVERYTHING, AUTO,     0,    make_nothing,        NULL,                call_text,               NULL,         NULL,      ALLOCATIONS},
};
/* clang-format on */
enum { N_SUBJECTS = sizeof subjects / sizeof subjects[0] };

/* With more than one device there: in a process of their own, for whoever asks for a device by name, or for any, may get the
 * second when the first does not answer. */
/* clang-format off */
static const subject subjects_of_two[] = {
    {"context_create, two devices", NULL,    AUTO,     0,    make_nothing,        NULL,                call_context_devices,    NULL,         NULL,      BOTH},
    {"plan_create, two devices", EVERYTHING, LANES,    -1,   make_for_plan,       before_plan,         call_plan,               undo_context, plan_says, BOTH},
    {"forward on two devices",   EVERYTHING, LANES,    -1,   make_plan,           NULL,                call_forward,            NULL,         NULL,      BOTH},
    {"forward on two devices",   FEW_KEYS_CUT, DECODE, -1,   make_plan,           NULL,                call_forward,            NULL,         without_callback, BOTH},
};
/* clang-format on */
enum { N_SUBJECTS_OF_TWO = sizeof subjects_of_two / sizeof subjects_of_two[0] };
static bool has_two_devices;

START_TEST(failures)
{
    static long total[INJECTORS];
    const subject *s = &(has_two_devices ? subjects_of_two : subjects)[_i / INJECTORS];
    const int which = _i % INJECTORS;
    for (int mode = 0; mode < MODES && s->injectors >> which & 1; mode++) {
        const findings f = sweep(s, &injectors[which], mode);
        total[which] += f.injections;
        ck_assert_msg(f.unreported + f.leaks + f.misuses + f.touched + f.wrong == 0,
                      "%s of %ld %s failures: %ld not reported, %ld leaks, %ld misuses, %ld outputs touched, %ld wrong "
                      "next calls; first: %s",
                      s->name, f.injections, injectors[which].name, f.unreported, f.leaks, f.misuses, f.touched,
                      f.wrong, f.first);
        printf("%s, %s, %s: %ld failures\n", s->name, injectors[which].name, modes[mode], f.injections);
        fflush(stdout);
    }
    if (_i >= INJECTORS * ((has_two_devices ? N_SUBJECTS_OF_TWO : N_SUBJECTS) - 1))
        printf("injected: %ld %s failures\n", total[which], injectors[which].name);
}
END_TEST

/* The sweep is worth nothing if it does not see these. */
START_TEST(planted_mistakes)
{
    /* clang-format off */
    static const struct {
        const char *name;
        clattn_status (*call)(world *w);
        int injector;
        bool leaks, misuses, unreported;
    } mistakes[] = {{"none", call_planted_nothing, 0, false, false, false},
                    {"leak", call_planted_leak, 0, true, false, false},
                    {"double release", call_planted_release, 0, false, true, false},
                    {"unchecked error", call_planted_unchecked, 0, false, false, true},
                    {"use after release", call_planted_use, 0, false, true, false},
                    {"leaked allocation", call_planted_allocation, 1, true, false, false}};
    /* clang-format on */
    const subject s = {.name = mistakes[_i].name, .make = make_cl, .call = mistakes[_i].call};
    for (int mode = 0; mode < MODES; mode++) {
        const findings f = sweep(&s, &injectors[mistakes[_i].injector], mode);
        ck_assert_int_gt(f.injections, 0);
        ck_assert_msg((f.leaks > 0) == mistakes[_i].leaks && (f.misuses > 0) == mistakes[_i].misuses &&
                          (f.unreported > 0) == mistakes[_i].unreported && f.wrong == 0,
                      "%s: %ld leaks, %ld misuses, %ld unreported, %ld wrong: %s", s.name, f.leaks, f.misuses,
                      f.unreported, f.wrong, f.first);
    }
}
END_TEST

/* A write past a buffer's end is seen, by page or by poison. */
START_TEST(planted_overrun)
{
    world w = {0};
    cl_int code;
    const float x[2] = {1, 2};
    const long overruns = layer()->counts().overruns;
    layer()->guard_buffers(1);
    make_cl(&w);
    static const char *source = "__kernel void over(__global float *x) { x[1] = 2; }";
    cl_mem mem =
        clCreateBuffer(w.cl, CL_MEM_READ_WRITE | CL_MEM_COPY_HOST_PTR, sizeof x[0], (void *)(uintptr_t)x, &code);
    cl_program program = clCreateProgramWithSource(w.cl, 1, &source, NULL, &code);
    ck_assert_int_eq(clBuildProgram(program, 1, &w.device, NULL, NULL, NULL), CL_SUCCESS);
    cl_kernel kernel = clCreateKernel(program, "over", &code);
    const size_t one = 1;
    ck_assert_int_eq(clSetKernelArg(kernel, 0, sizeof mem, &mem), CL_SUCCESS);
    ck_assert_int_eq(clEnqueueNDRangeKernel(w.queue, kernel, 1, NULL, &one, NULL, 0, NULL, NULL), CL_SUCCESS);
    ck_assert_int_eq(clFinish(w.queue), CL_SUCCESS);
    clReleaseKernel(kernel);
    clReleaseProgram(program);
    clReleaseMemObject(mem);
    layer()->guard_buffers(0);
    unmake(&w);
    ck_assert_int_eq(layer()->counts().overruns, overruns + 1);
}
END_TEST

/* Launches that a watchdog would end come back as an error, and the context answers the next call. */
START_TEST(watchdog)
{
    static const clattn_kernel kernels[] = {LANES, LOCAL, DECODE};
    const subject s = {
        .name = "watchdog", .text = LONG, .kernel = kernels[_i], .make = make_plan, .call = call_forward};
    layer();
    world w = {.s = &s};
    make_plan(&w);
    layer()->limit_work_items(1);
    const clattn_status status = call_once(&w);
    layer()->limit_work_items(0);
    ck_assert_int_eq(status, CLATTN_STATUS_OUT_OF_DEVICE_MEMORY);
    ck_assert(outputs_untouched(&w, true));
    test_reference(w.t);
    test_forward(w.t, w.plan);
    test_compare(w.t, "after a launch too long");
    unmake(&w);
}
END_TEST

/* Of what CLATTN_LAUNCH_WORK does not allow at once there are several launches, and the same bits. */
START_TEST(launches_are_cut)
{
    static const clattn_kernel kernels[] = {LANES, LOCAL, DECODE, BWD_LANES, BWD_LOCAL};
    const bool backward = _i > 2;
    const subject s = {.name = "launches",
                       .text = backward ? "f32 b2 hq4 hkv2 q70 kv90 d16" : "f32 b2 hq4 hkv2 q140 kv140 d16",
                       .kernel = kernels[_i],
                       .make = backward ? make_backward : make_plan,
                       .call = backward ? call_backward : call_forward};
    layer();
    long calls[2];
    unsigned char *kept[MOST_OUTPUTS] = {NULL};
    for (int is_cut = 0; is_cut < 2; is_cut++) {
        if (is_cut) setenv("CLATTN_LAUNCH_WORK", "100000", 1);
        world w = {.s = &s};
        s.make(&w);
        unsetenv("CLATTN_LAUNCH_WORK");
        layer()->arm(0, 0);
        test_ok(call_once(&w));
        calls[is_cut] = layer()->counts().calls;
        for (int i = 0; i < w.n_outputs; i++) {
            const output *o = &w.outputs[i];
            if (!is_cut) {
                kept[i] = malloc(o->bytes);
                ck_assert_ptr_nonnull(kept[i]);
                memcpy(kept[i], o->base, o->bytes);
            }
            ck_assert_msg(!memcmp(kept[i], o->base, o->bytes), "output %d has other bits", i);
            if (is_cut) free(kept[i]);
        }
        unmake(&w);
    }
    ck_assert_msg(calls[1] > calls[0] + 2, "%ld calls, in many launches %ld", calls[0], calls[1]);
}
END_TEST

/* Arrays of calls in several threads that overlap, as a cache of keys does: never under two buffers at a time. */
typedef struct overlapping {
    const clattn_plan *plan;
    const test_data *t;
    clattn_forward_args args;
    unsigned char *o;
    int failures;
} overlapping;

static void *call_overlapping(void *argument)
{
    overlapping *x = argument;
    const size_t bytes = elements_of(&x->t->p, 'q') * sizeof(float);
    for (int i = 0; i < 50; i++) {
        memset(x->o, 0xff, bytes);
        x->failures += clattn_forward(x->plan, &x->args) != CLATTN_STATUS_SUCCESS || memcmp(x->o, x->t->o, bytes);
    }
    return NULL;
}

START_TEST(overlapping_arrays)
{
    enum { THREADS = 4 };
    static const char *const texts[2] = {"f32 b1 hq1 hkv1 q8 kv4096 d64", "f32 b1 hq1 hkv1 q8 kv2048 d64"};
    pthread_t threads[THREADS];
    overlapping all[THREADS];
    test_data *t[2];
    clattn_plan *plans[2];
    const long misuses = layer()->counts().misuses;
    const subject s = {.kernel = LANES};
    world w = {.s = &s};
    make_context(&w);
    const clattn_plan_options options = plan_options(&w);
    for (int i = 0; i < 2; i++) {
        t[i] = test_data_from_text(texts[i], 3);
        test_ok(clattn_plan_create(w.context, &t[i]->p, &options, &plans[i]));
    }
    clattn_forward_args args[2] = {test_args(t[0]), test_args(t[1])};
    args[1].k = args[0].k;
    args[1].v = args[0].v;
    for (int i = 0; i < 2; i++) test_ok(clattn_forward(plans[i], &args[i]));
    for (int i = 0; i < THREADS; i++) {
        all[i] = (overlapping){plans[i % 2], t[i % 2], args[i % 2],
                               own(&w, elements_of(&t[i % 2]->p, 'q') * sizeof(float)), 0};
        all[i].args.o = clattn_host_buffer(all[i].o);
        all[i].args.lse = clattn_host_buffer(NULL);
        ck_assert_int_eq(pthread_create(&threads[i], NULL, call_overlapping, &all[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        ck_assert_int_eq(all[i].failures, 0);
    }
    for (int i = 0; i < 2; i++) {
        clattn_plan_release(plans[i]);
        test_data_free(t[i]);
    }
    unmake(&w);
    ck_assert_int_eq(layer()->counts().misuses, misuses);
}
END_TEST

/* A call that fails after its first kernel was enqueued waits for it: the caller may free K and V at once. */
START_TEST(failed_call_lets_go)
{
    const subject s = {.name = "lets go",
                       .text = "f32 b1 hq8 hkv8 q1 kv40000 d64",
                       .kernel = DECODE,
                       .make = make_plan,
                       .call = call_forward};
    layer();
    world w = {.s = &s};
    make_plan(&w);
    const size_t bytes = elements_of(&w.t->p, 'k') * sizeof(float);
    void *k = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(k != MAP_FAILED);
    memset(k, 0, bytes);
    w.args.k = clattn_host_buffer(k);
    int launches = 0;
    for (long nth = 1; launches < 2; nth++) { /* the second launch is the merge */
        layer()->arm(nth, 0);
        ck_assert_int_ne(clattn_forward(w.plan, &w.args), CLATTN_STATUS_SUCCESS);
        layer()->arm(0, 0);
        launches += !strcmp(layer()->counts().function, "clEnqueueNDRangeKernel");
    }
    ck_assert_int_eq(munmap(k, bytes), 0);
    const struct timespec pause = {0, 100000000};
    nanosleep(&pause, NULL); /* a kernel that still reads them ends the process */
    unmake(&w);
}
END_TEST

/* A call in shares has no more bytes of buffers at a time than it may, and more than half: one head's keys are few. */
START_TEST(bytes_at_a_time)
{
    static const struct {
        const char *text;
        clattn_kernel kernel;
        int most;
    } cases[] = {{"f32 b4 hq4 hkv2 q60 kv37 d20 alibi bias=1,h,q,kv mask=b,1,q,kv", LANES, 60000},
                 {"f32 b1 hq4 hkv2 q100 kv37 d20", LANES, 30000},
                 {"f16 b3 hq4 hkv4 q50 kv50 d16 causal", LOCAL, 20000},
                 {"f32 b2 hq8 hkv1 q300 kv20 d16 sinks", LOCAL, 30000},
                 {"f32 b4 hq4 hkv4 q1 kv600 d16", DECODE, 350000},
                 {"f32 hq4 hkv4 d20 varlen=30,3,20:40,9,23", LANES, 60000}};
    const subject s = {.text = cases[_i].text,
                       .kernel = cases[_i].kernel,
                       .copy = cases[_i].most,
                       .make = make_plan,
                       .call = call_forward};
    layer();
    world w = {.s = &s};
    make_plan(&w);
    for (int i = 0; i < 2; i++) {
        layer()->arm(0, 0);
        const size_t before = layer()->counts().bytes;
        test_ok(call_once(&w));
        const fault_counts after = layer()->counts();
        ck_assert_uint_eq(after.bytes, before);
        ck_assert_msg(after.most_bytes - before <= (size_t)s.copy && after.most_bytes - before > (size_t)s.copy / 2,
                      "%s: %zu bytes at a time; it may take %d", s.text, after.most_bytes - before, s.copy);
    }
    test_reference(w.t);
    test_compare(w.t, "in shares");
    unmake(&w);
}
END_TEST

/* Of two shares each of two devices runs one: together they ask about twice as much of OpenCL as one device that runs
 * all at once, not three times. */
START_TEST(each_share_once)
{
    subject s = {.text = "f32 b1 hq2 hkv2 q64 kv64 d32", .kernel = LANES, .make = make_plan, .call = call_forward};
    long calls[2];
    layer();
    for (int i = 0; i < 2; i++) {
        s.copy = i ? -1 : 1;
        world w = {.s = &s};
        make_plan(&w);
        for (int n = 0; n < 2; n++) { /* the second call finds all that is made once */
            layer()->arm(0, 0);
            test_ok(call_once(&w));
            calls[i] = layer()->counts().calls;
        }
        unmake(&w);
    }
    ck_assert_int_gt(calls[0], 0);
    ck_assert_int_lt(calls[1], 3 * calls[0]);
}
END_TEST

Suite *test_suite(void)
{
    Suite *suite = suite_create("faults");
    has_two_devices = getenv("CLATTN_TEST_TWO_DEVICES") != NULL;
    if (has_two_devices) {
        setenv("POCL_DEVICES", "pthread pthread", 0);
        tcase_add_loop_test(test_case(suite, "two devices"), failures, 0, N_SUBJECTS_OF_TWO * INJECTORS);
        tcase_add_test(test_case(suite, "shares"), each_share_once);
        return suite;
    }
    TCase *rig = test_case(suite, "the rig itself");
    tcase_add_loop_test(rig, planted_mistakes, 0, 6);
    tcase_add_test(rig, planted_overrun);
    TCase *all = test_case(suite, "failures");
    tcase_add_checked_fixture(all, NULL, cache_remove);
    tcase_add_loop_test(all, failures, 0, N_SUBJECTS * INJECTORS);
    TCase *device = test_case(suite, "a device that fails");
    tcase_add_loop_test(device, watchdog, 0, 3);
    tcase_add_loop_test(device, launches_are_cut, 0, 5);
    tcase_add_test(device, overlapping_arrays);
    tcase_add_test(device, failed_call_lets_go);
    tcase_add_loop_test(device, bytes_at_a_time, 0, 6);
    return suite;
}
