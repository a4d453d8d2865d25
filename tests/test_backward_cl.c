/* Gradients through OpenCL's own objects: queues, events, offsets, refusals, threads. */
#include "harness.h"

#include <clattn/opencl.h>

#include <pthread.h>

#define INVALID CLATTN_STATUS_INVALID_ARGUMENT

static const clattn_kernel kernels[] = {CLATTN_KERNEL_ATTN_BWD_LANES, CLATTN_KERNEL_ATTN_BWD};
enum { N_KERNELS = 2, PAD = 64 /* bytes before and after each tensor */, SENTINEL = 0xa5 };

/* ---- the app: its own context and queue on the device under test, and clattn's context on them */

typedef struct app {
    cl_device_id device;
    cl_context cl;
    cl_command_queue queue;
    clattn_context *context;
} app;

static void app_open(app *a, cl_command_queue_properties properties)
{
    cl_int code;
    test_ok(clattn_context_get_cl(test_context(), NULL, &a->device));
    a->cl = clCreateContext(NULL, 1, &a->device, NULL, NULL, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    a->queue = clCreateCommandQueue(a->cl, a->device, properties, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    test_ok(clattn_context_create_from_cl(a->cl, a->device, NULL, &a->context));
}

static void app_close(app *a)
{
    ck_assert_int_eq(clFinish(a->queue), CL_SUCCESS);
    clattn_context_release(a->context);
    clReleaseCommandQueue(a->queue);
    clReleaseContext(a->cl);
}

static cl_mem buffer_make(const app *a, cl_mem_flags flags, size_t bytes, const void *data)
{
    cl_int code;
    cl_mem mem =
        clCreateBuffer(a->cl, flags | (data ? CL_MEM_COPY_HOST_PTR : 0), bytes, (void *)(uintptr_t)data, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    return mem;
}

/* ---- a job: a dense f32 problem, its inputs, and what clattn_backward makes of them on the same device and kernel */

enum { MOST_TENSORS = 16 };

typedef struct tensor {
    const char *name;
    size_t bytes;
    void *data; /* input: what it is. Output: what is right */
    bool written;
    cl_mem mem; /* PAD bytes before it and after it */
    clattn_buffer *buffer;
} tensor;

typedef struct job {
    const app *a;
    test_data *t;
    clattn_plan *plan;
    clattn_backward_args args;
    tensor tensors[MOST_TENSORS];
    int n;
    cl_mem workspace;
} job;

#define PROBLEM "f32 b2 hq4 hkv2 q37 kv53 d16 dv12 causal offset=16 bias=1,h,q,kv alibi sinks"

static void add(job *j, const char *name, clattn_buffer *buffer, size_t bytes, const void *data, bool written)
{
    tensor *t = &j->tensors[j->n++];
    *t = (tensor){name, bytes, malloc(bytes), written, NULL, buffer};
    if (data) memcpy(t->data, data, bytes);
    if (!data) memset(t->data, 0, bytes);
    unsigned char *image = malloc(bytes + 2 * PAD);
    memset(image, SENTINEL, bytes + 2 * PAD);
    if (!written) memcpy(image + PAD, data, bytes);
    t->mem = buffer_make(j->a, written ? CL_MEM_WRITE_ONLY : CL_MEM_READ_ONLY, bytes + 2 * PAD, image);
    free(image);
}

static clattn_plan *plan_make(clattn_context *context, const clattn_problem *p, clattn_kernel kernel)
{
    clattn_plan_options o;
    clattn_plan *plan;
    clattn_plan_options_init(&o);
    o.pass = CLATTN_PASS_BACKWARD;
    o.path = CLATTN_PATH_DEVICE;
    o.kernel = kernel;
    test_ok(clattn_plan_create(context, p, &o, &plan));
    return plan;
}

/* Points the outputs' buffers to host memory and runs the plan on host pointers. */
static void job_expect(job *j)
{
    clattn_buffer given[MOST_TENSORS];
    for (int i = 0; i < j->n; i++) {
        given[i] = *j->tensors[i].buffer;
        *j->tensors[i].buffer = clattn_host_buffer(j->tensors[i].data);
    }
    test_ok(clattn_backward(j->plan, &j->args));
    for (int i = 0; i < j->n; i++) *j->tensors[i].buffer = given[i];
}

static void job_make(job *j, const app *a, clattn_kernel kernel)
{
    memset(j, 0, sizeof *j);
    j->a = a;
    j->t = test_data_from_text(PROBLEM, 3);
    test_data *t = j->t;
    const clattn_problem *p = &t->p;
    for (int h = 0; h < 4; h++) t->alibi_slopes[h] = 0.125f * (float)(h + 1), t->sinks[h] = 0.5f * (float)h - 1;
    clattn_plan *forward = test_plan(test_host_context(), p, &test_ways[0], 0, 0, 0);
    test_forward(t, forward);
    clattn_plan_release(forward);
    const size_t rows_q = (size_t)(p->batch * p->n_heads_q * p->n_q);
    const size_t rows_kv = (size_t)(p->batch * p->n_heads_kv * p->n_kv);
    const size_t q = rows_q * 16 * 4, k = rows_kv * 16 * 4, v = rows_kv * 12 * 4, o = rows_q * 12 * 4;
    const size_t bias = (size_t)(p->n_heads_q * p->n_q * p->n_kv) * 4;
    float *d_o = malloc(o), *d_lse = malloc(rows_q * 4);
    for (size_t i = 0; i < o / 4; i++) d_o[i] = sinf((float)i);
    for (size_t i = 0; i < rows_q; i++) d_lse[i] = cosf((float)i);
    clattn_backward_args *b = &j->args;
    clattn_backward_args_init(b);
    add(j, "q", &b->forward.q, q, t->q, false);
    add(j, "k", &b->forward.k, k, t->k, false);
    add(j, "v", &b->forward.v, v, t->v, false);
    add(j, "o", &b->forward.o, o, t->o, false);
    add(j, "lse", &b->forward.lse, rows_q * 4, t->lse, false);
    add(j, "bias", &b->forward.bias, bias, t->bias, false);
    add(j, "alibi_slopes", &b->forward.alibi_slopes, 16, t->alibi_slopes, false);
    add(j, "sinks", &b->forward.sinks, 16, t->sinks, false);
    add(j, "d_o", &b->d_o, o, d_o, false);
    add(j, "d_lse", &b->d_lse, rows_q * 4, d_lse, false);
    add(j, "dq", &b->dq, q, NULL, true);
    add(j, "dk", &b->dk, k, NULL, true);
    add(j, "dv", &b->dv, v, NULL, true);
    add(j, "dbias", &b->dbias, bias, NULL, true);
    add(j, "dalibi_slopes", &b->dalibi_slopes, 16, NULL, true);
    add(j, "dsinks", &b->dsinks, 16, NULL, true);
    free(d_o), free(d_lse);
    j->plan = plan_make(a->context, p, kernel);
    job_expect(j);
    for (int i = 0; i < j->n; i++) *j->tensors[i].buffer = clattn_cl_buffer(j->tensors[i].mem, PAD);
    const size_t bytes = clattn_plan_workspace_size(j->plan);
    ck_assert_uint_gt(bytes, 0);
    j->workspace = buffer_make(a, CL_MEM_READ_WRITE, bytes, NULL);
    b->workspace = clattn_cl_buffer(j->workspace, 0);
}

static void job_free(job *j)
{
    for (int i = 0; i < j->n; i++) {
        clReleaseMemObject(j->tensors[i].mem);
        free(j->tensors[i].data);
    }
    clReleaseMemObject(j->workspace);
    clattn_plan_release(j->plan);
    test_data_free(j->t);
}

static tensor *tensor_of(job *j, const char *name)
{
    for (int i = 0; i < j->n; i++)
        if (!strcmp(j->tensors[i].name, name)) return &j->tensors[i];
    ck_abort_msg("no %s", name);
}

/* Outputs hold what is right, or, when nothing may have run, what was there; nothing else has changed. */
static void expect_outputs(job *j, cl_command_queue queue, bool ran, const char *what)
{
    ck_assert_int_eq(clFinish(queue), CL_SUCCESS);
    for (int i = 0; i < j->n; i++) {
        const tensor *t = &j->tensors[i];
        unsigned char *now = malloc(t->bytes + 2 * PAD);
        ck_assert_int_eq(clEnqueueReadBuffer(queue, t->mem, CL_TRUE, 0, t->bytes + 2 * PAD, now, 0, NULL, NULL),
                         CL_SUCCESS);
        for (size_t n = 0; n < PAD; n++)
            ck_assert_msg(now[n] == SENTINEL && now[PAD + t->bytes + n] == SENTINEL, "%s: wrote beside %s", what,
                          t->name);
        for (size_t n = 0; t->written && !ran && n < t->bytes; n++)
            ck_assert_msg(now[PAD + n] == SENTINEL, "%s: wrote %s", what, t->name);
        if (!t->written || ran) ck_assert_msg(!memcmp(now + PAD, t->data, t->bytes), "%s: %s is wrong", what, t->name);
        free(now);
    }
}

static void enqueue(job *j, cl_command_queue queue, cl_uint n_wait, const cl_event *wait_list, cl_event *event)
{
    test_ok(clattn_enqueue_backward(j->plan, queue, &j->args, n_wait, wait_list, event));
}

static cl_int state_of(cl_event event)
{
    cl_int state = -999;
    ck_assert_int_eq(clGetEventInfo(event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof state, &state, NULL), CL_SUCCESS);
    return state;
}

/* ---- queues and events */

START_TEST(queues)
{
    app a;
    job j;
    app_open(&a, _i / N_KERNELS ? CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE : 0);
    job_make(&j, &a, kernels[_i % N_KERNELS]);
    enqueue(&j, a.queue, 0, NULL, NULL);
    expect_outputs(&j, a.queue, true, "without an event");
    cl_event done = NULL;
    enqueue(&j, a.queue, 0, NULL, &done);
    ck_assert_int_eq(clWaitForEvents(1, &done), CL_SUCCESS);
    ck_assert_int_eq(state_of(done), CL_COMPLETE);
    clReleaseEvent(done);
    expect_outputs(&j, a.queue, true, "with an event");
    job_free(&j);
    app_close(&a);
}
END_TEST

START_TEST(waits_for_a_user_event)
{
    app a;
    job j;
    cl_int code;
    app_open(&a, _i / N_KERNELS ? CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE : 0);
    job_make(&j, &a, kernels[_i % N_KERNELS]);
    cl_event gates[2], done = NULL;
    for (int i = 0; i < 2; i++) gates[i] = clCreateUserEvent(a.cl, &code);
    enqueue(&j, a.queue, 2, gates, &done);
    clFlush(a.queue);
    clSetUserEventStatus(gates[0], CL_COMPLETE);
    ck_assert_int_ne(state_of(done), CL_COMPLETE);
    clSetUserEventStatus(gates[1], CL_COMPLETE);
    ck_assert_int_eq(clWaitForEvents(1, &done), CL_SUCCESS);
    clReleaseEvent(done);
    clReleaseEvent(gates[0]), clReleaseEvent(gates[1]);
    expect_outputs(&j, a.queue, true, "after the gates");
    job_free(&j);
    app_close(&a);
}
END_TEST

/* Gradients that are not wanted cost nothing and are not there to be written. */
START_TEST(one_gradient_alone)
{
    static const char *const names[] = {"dq", "dk", "dv", "dbias", "dalibi_slopes", "dsinks"};
    app a;
    job j;
    app_open(&a, 0);
    job_make(&j, &a, kernels[_i % N_KERNELS]);
    for (int i = 0; i < 6; i++)
        if (i != _i / N_KERNELS) *tensor_of(&j, names[i])->buffer = clattn_cl_buffer(NULL, 0);
    enqueue(&j, a.queue, 0, NULL, NULL);
    for (int i = 0; i < j.n; i++) {
        tensor *t = &j.tensors[i];
        if (t->written && strcmp(t->name, names[_i / N_KERNELS])) memset(t->data, SENTINEL, t->bytes);
    }
    expect_outputs(&j, a.queue, true, names[_i / N_KERNELS]);
    job_free(&j);
    app_close(&a);
}
END_TEST

/* No query rows: dK and dV are 0, and so is what is summed over rows. */
START_TEST(no_rows)
{
    app a;
    cl_int code;
    clattn_problem p;
    app_open(&a, 0);
    test_ok(clattn_problem_from_text("f32 b2 hq4 hkv2 q0 kv5 d3 sinks", &p));
    clattn_plan *plan = plan_make(a.context, &p, kernels[_i]);
    enum { N_K = 2 * 2 * 5 * 3 };
    float poison[N_K], dk[N_K], dsinks[4];
    for (int i = 0; i < N_K; i++) poison[i] = NAN;
    cl_mem k = buffer_make(&a, 0, sizeof poison, poison), out = buffer_make(&a, 0, sizeof poison, poison);
    cl_mem out_v = buffer_make(&a, 0, sizeof poison, poison), sinks = buffer_make(&a, 0, 16, poison);
    cl_mem out_sinks = buffer_make(&a, 0, 16, poison);
    cl_mem workspace = buffer_make(&a, 0, clattn_plan_workspace_size(plan), NULL);
    clattn_backward_args args;
    clattn_backward_args_init(&args);
    args.forward.k = args.forward.v = clattn_cl_buffer(k, 0);
    args.forward.sinks = clattn_cl_buffer(sinks, 0);
    args.dk = clattn_cl_buffer(out, 0);
    args.dv = clattn_cl_buffer(out_v, 0);
    args.dsinks = clattn_cl_buffer(out_sinks, 0);
    args.workspace = clattn_cl_buffer(workspace, 0);
    test_ok(clattn_enqueue_backward(plan, a.queue, &args, 0, NULL, NULL));
    code = clEnqueueReadBuffer(a.queue, out, CL_TRUE, 0, sizeof dk, dk, 0, NULL, NULL);
    ck_assert_int_eq(code, CL_SUCCESS);
    for (int i = 0; i < N_K; i++) ck_assert(dk[i] == 0);
    clEnqueueReadBuffer(a.queue, out_v, CL_TRUE, 0, sizeof dk, dk, 0, NULL, NULL);
    for (int i = 0; i < N_K; i++) ck_assert(dk[i] == 0);
    clEnqueueReadBuffer(a.queue, out_sinks, CL_TRUE, 0, sizeof dsinks, dsinks, 0, NULL, NULL);
    for (int i = 0; i < 4; i++) ck_assert(dsinks[i] == 0);
    cl_mem const all[] = {k, out, out_v, sinks, out_sinks, workspace};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) clReleaseMemObject(all[i]);
    clattn_plan_release(plan);
    app_close(&a);
}
END_TEST

/* ---- threads */

enum { N_THREADS = 8, CALLS = 4 };

typedef struct thread_job {
    job *shared;
    tensor outputs[MOST_TENSORS];
    int failures;
} thread_job;

static void *enqueue_some(void *argument)
{
    thread_job *w = argument;
    job *j = w->shared;
    cl_int code;
    cl_command_queue queue = clCreateCommandQueue(j->a->cl, j->a->device, 0, &code);
    w->failures += code != CL_SUCCESS;
    cl_mem workspace = buffer_make(j->a, CL_MEM_READ_WRITE, clattn_plan_workspace_size(j->plan), NULL);
    for (int call = 0; call < CALLS; call++) {
        clattn_backward_args args = j->args;
        cl_mem mems[MOST_TENSORS] = {NULL};
        args.workspace = clattn_cl_buffer(workspace, 0);
        for (int i = 0; i < j->n; i++) {
            const tensor *t = &j->tensors[i];
            if (!t->written) continue;
            mems[i] = buffer_make(j->a, CL_MEM_READ_WRITE, t->bytes, NULL);
            clattn_buffer *b = (clattn_buffer *)((char *)&args + ((char *)t->buffer - (char *)&j->args));
            *b = clattn_cl_buffer(mems[i], 0);
        }
        w->failures += clattn_enqueue_backward(j->plan, queue, &args, 0, NULL, NULL) != CLATTN_STATUS_SUCCESS;
        for (int i = 0; i < j->n; i++) {
            if (!mems[i]) continue;
            void *now = malloc(j->tensors[i].bytes);
            clEnqueueReadBuffer(queue, mems[i], CL_TRUE, 0, j->tensors[i].bytes, now, 0, NULL, NULL);
            w->failures += memcmp(now, j->tensors[i].data, j->tensors[i].bytes) != 0;
            free(now);
            clReleaseMemObject(mems[i]);
        }
    }
    clReleaseMemObject(workspace);
    clReleaseCommandQueue(queue);
    return NULL;
}

START_TEST(eight_threads_on_one_plan)
{
    app a;
    job j;
    pthread_t threads[N_THREADS];
    thread_job work[N_THREADS] = {{0}};
    app_open(&a, 0);
    job_make(&j, &a, kernels[_i]);
    for (int i = 0; i < N_THREADS; i++) {
        work[i].shared = &j;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, enqueue_some, &work[i]), 0);
    }
    for (int i = 0; i < N_THREADS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < N_THREADS; i++) ck_assert_int_eq(work[i].failures, 0);
    job_free(&j);
    app_close(&a);
}
END_TEST

/* ---- refusals */

/* This status, a sentence with these words, *event alone, nothing written. */
static void expect_refused(job *j, const clattn_plan *plan, cl_command_queue queue, const clattn_backward_args *args,
                           clattn_status want, const char *says)
{
    cl_event const marker = (cl_event)(void *)j;
    cl_event event = marker;
    const clattn_status got = clattn_enqueue_backward(plan, queue, args, 0, NULL, &event);
    const char *message = clattn_last_error()->message;
    ck_assert_msg(got == want, "%s: %s: %s", says, clattn_status_name(got), message);
    ck_assert_msg(strstr(message, says) != NULL, "'%s' lacks '%s'", message, says);
    ck_assert_msg(event == marker, "%s: *event was set", says);
    expect_outputs(j, j->a->queue, false, says);
}

/* Each tensor too small by a byte, too far in, of the wrong flags, a host pointer, of another context, misplaced. */
START_TEST(each_buffer_is_checked)
{
    app a, other;
    job j;
    app_open(&a, 0);
    app_open(&other, 0);
    job_make(&j, &a, kernels[_i]);
    for (int i = 0; i < j.n; i++) {
        tensor *t = &j.tensors[i];
        char says[64];
        const clattn_buffer good = *t->buffer;
        cl_mem small = buffer_make(&a, CL_MEM_READ_WRITE, t->bytes - 1, NULL);
        cl_mem foreign = buffer_make(&other, CL_MEM_READ_WRITE, t->bytes, NULL);
        cl_mem flags = buffer_make(&a, t->written ? CL_MEM_READ_ONLY : CL_MEM_WRITE_ONLY, t->bytes, NULL);
        const struct {
            clattn_buffer buffer;
            const char *says;
        } bad[] = {{clattn_cl_buffer(small, 0), "%s has"},
                   {clattn_cl_buffer(t->mem, 2 * PAD + 4), "%s has"},
                   {clattn_cl_buffer(foreign, 0), "%s belongs to another cl_context"},
                   {clattn_cl_buffer(flags, 0), "%s is a CL_MEM_"},
                   {clattn_host_buffer(t->data), "%s is a host pointer; clattn_enqueue_backward takes cl_mem"},
                   {clattn_cl_buffer(t->mem, PAD + 2), "%s.offset is 66 bytes"}};
        for (size_t n = 0; n < sizeof bad / sizeof *bad; n++) {
            char format[80];
            snprintf(format, sizeof format, "args.%s", bad[n].says);
            snprintf(says, sizeof says, format, t->name);
            *t->buffer = bad[n].buffer;
            expect_refused(&j, j.plan, a.queue, &j.args, INVALID, says);
        }
        *t->buffer = good;
        clReleaseMemObject(small), clReleaseMemObject(foreign), clReleaseMemObject(flags);
    }
    enqueue(&j, a.queue, 0, NULL, NULL);
    expect_outputs(&j, a.queue, true, "after the refusals");
    job_free(&j);
    app_close(&other);
    app_close(&a);
}
END_TEST

START_TEST(what_is_refused)
{
    app a, other;
    job j;
    app_open(&a, 0);
    app_open(&other, 0);
    job_make(&j, &a, kernels[_i]);
    clattn_plan *forward;
    clattn_plan_options o;
    clattn_plan_options_init(&o);
    o.path = CLATTN_PATH_DEVICE;
    test_ok(clattn_plan_create(a.context, &j.t->p, &o, &forward));
    clattn_plan_options_init(&o);
    o.path = CLATTN_PATH_HOST;
    o.pass = CLATTN_PASS_BACKWARD;
    clattn_plan *host;
    test_ok(clattn_plan_create(a.context, &j.t->p, &o, &host));

    clattn_backward_args args = j.args;
    expect_refused(&j, NULL, a.queue, &args, INVALID, "plan is NULL");
    expect_refused(&j, forward, a.queue, &args, INVALID, "the plan was made for forward");
    expect_refused(&j, host, a.queue, &args, INVALID, "the plan has no device kernel");
    expect_refused(&j, j.plan, NULL, &args, INVALID, "queue is NULL");
    expect_refused(&j, j.plan, other.queue, &args, INVALID, "the queue belongs to another cl_context");
    expect_refused(&j, j.plan, a.queue, NULL, INVALID, "args is NULL");
    ck_assert_int_eq(clattn_enqueue_forward(j.plan, a.queue, &args.forward, 0, NULL, NULL), INVALID);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "the plan was made for backward"));
    args.struct_size = 1;
    expect_refused(&j, j.plan, a.queue, &args, INVALID, "args.struct_size is 1");
    args = j.args;
    args.d_o = clattn_cl_buffer(NULL, 0);
    expect_refused(&j, j.plan, a.queue, &args, INVALID, "args.d_o is absent");
    args = j.args;
    args.forward.lse = clattn_cl_buffer(NULL, 0);
    expect_refused(&j, j.plan, a.queue, &args, INVALID, "args.forward.lse is absent");
    args = j.args;
    args.dq = args.forward.q;
    expect_refused(&j, j.plan, a.queue, &args, INVALID, "args.dq");
    args = j.args;
    args.dk = args.dq;
    expect_refused(&j, j.plan, a.queue, &args, INVALID, "overlaps args.dq");
    args = j.args;
    args.workspace = clattn_cl_buffer(NULL, 0);
    expect_refused(&j, j.plan, a.queue, &args, INVALID, "args.workspace is absent");
    args.workspace = clattn_cl_buffer(j.workspace, 4);
    expect_refused(&j, j.plan, a.queue, &args, INVALID, "args.workspace.offset is 4");
    cl_mem small = buffer_make(&a, 0, clattn_plan_workspace_size(j.plan) - 1, NULL);
    args.workspace = clattn_cl_buffer(small, 0);
    expect_refused(&j, j.plan, a.queue, &args, INVALID, "args.workspace has");
    clReleaseMemObject(small);
    cl_event event = (cl_event)(void *)&a;
    ck_assert_int_eq(clattn_enqueue_backward(j.plan, a.queue, &j.args, 1, NULL, &event), INVALID);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "n_wait is 1 and wait_list is NULL"));
    enqueue(&j, a.queue, 0, NULL, NULL);
    expect_outputs(&j, a.queue, true, "after the refusals");
    clattn_plan_release(forward);
    clattn_plan_release(host);
    job_free(&j);
    app_close(&other);
    app_close(&a);
}
END_TEST

/* ---- plans */

START_TEST(auto_plans)
{
    app a;
    clattn_problem p;
    clattn_plan *plan;
    clattn_plan_info info;
    clattn_plan_options o;
    app_open(&a, 0);
    clattn_plan_options_init(&o);
    o.pass = CLATTN_PASS_BACKWARD;
    clattn_plan_info_init(&info);
    test_ok(clattn_problem_from_text("f32 b1 hq1 hkv1 q20 kv20 d16", &p));
    test_ok(clattn_plan_create(a.context, &p, &o, &plan)); /* small: the host, and a kernel for cl_mem beside */
    test_ok(clattn_plan_get_info(plan, &info));
    ck_assert_int_eq(info.path, CLATTN_PATH_HOST);
    ck_assert_int_eq(info.kernel, CLATTN_KERNEL_HOST_BACKWARD);
    ck_assert_int_ne(info.cl_kernel, CLATTN_KERNEL_AUTO);
    ck_assert_uint_gt(clattn_plan_workspace_size(plan), 0);
    ck_assert_ptr_nonnull(strstr(clattn_plan_explain(plan), "for cl_mem, which stay on the device: kernel attn_bwd"));
    clattn_plan_release(plan);
    test_ok(clattn_problem_from_text("f32 b1 hq1 hkv1 q200 kv20 d16", &p));
    test_ok(clattn_plan_create(a.context, &p, &o, &plan));
    test_ok(clattn_plan_get_info(plan, &info));
    ck_assert_int_eq(info.path, CLATTN_PATH_DEVICE);
    ck_assert_ptr_nonnull(strstr(clattn_plan_explain(plan), "gradients in this order: attn_bwd_delta, attn_bwd"));
    clattn_plan_release(plan);
    app_close(&a);
}
END_TEST

static double twice(double s, int64_t b, int64_t h, int64_t i, int64_t j, const void *data)
{
    (void)b, (void)h, (void)i, (void)j, (void)data;
    return 2 * s;
}

static double two(double s, int64_t b, int64_t h, int64_t i, int64_t j, const void *data)
{
    (void)s, (void)b, (void)h, (void)i, (void)j, (void)data;
    return 2;
}

START_TEST(derivatives_of_score_functions)
{
    clattn_problem p;
    clattn_plan *plan;
    clattn_plan_info info;
    clattn_plan_options o;
    clattn_plan_options_init(&o);
    clattn_plan_info_init(&info);
    o.pass = CLATTN_PASS_BACKWARD;
    o.path = CLATTN_PATH_DEVICE;
    o.kernel = kernels[_i];
    test_ok(clattn_problem_from_text("f32 b1 hq1 hkv1 q20 kv20 d16", &p));
    p.score_function.host = twice;
    p.score_function.source = "2 * score";
    p.score_function.host_derivative = two;
    ck_assert_int_eq(clattn_plan_create(test_context(), &p, &o, &plan), CLATTN_STATUS_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "score_function.source_derivative is NULL"));
    p.score_function.source_derivative = "\n\nno such name";
    ck_assert_int_eq(clattn_plan_create(test_context(), &p, &o, &plan), CLATTN_STATUS_BUILD_FAILED);
    const char *message = clattn_last_error()->message;
    ck_assert_msg(strstr(message, "did not build") != NULL, "%s", message);
    p.score_function.source_derivative = "2";
    test_ok(clattn_plan_create(test_context(), &p, &o, &plan));
    clattn_plan_release(plan);
    o.path = CLATTN_PATH_AUTO; /* small, but the host's derivative is missing: the device */
    o.kernel = CLATTN_KERNEL_AUTO;
    p.score_function.host_derivative = NULL;
    test_ok(clattn_plan_create(test_context(), &p, &o, &plan));
    test_ok(clattn_plan_get_info(plan, &info));
    ck_assert_int_eq(info.path, CLATTN_PATH_DEVICE);
    clattn_plan_release(plan);
    o.path = CLATTN_PATH_HOST;
    ck_assert_int_eq(clattn_plan_create(test_context(), &p, &o, &plan), CLATTN_STATUS_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "score_function.host_derivative is NULL"));
}
END_TEST

Suite *test_suite(void)
{
    Suite *s = suite_create("backward, OpenCL");
    TCase *t = test_case(s, "queues");
    tcase_add_loop_test(t, queues, 0, 2 * N_KERNELS);
    tcase_add_loop_test(t, waits_for_a_user_event, 0, 2 * N_KERNELS);
    tcase_add_loop_test(t, one_gradient_alone, 0, 6 * N_KERNELS);
    tcase_add_loop_test(t, no_rows, 0, N_KERNELS);
    tcase_add_loop_test(t, eight_threads_on_one_plan, 0, N_KERNELS);
    t = test_case(s, "refusals");
    tcase_add_loop_test(t, each_buffer_is_checked, 0, N_KERNELS);
    tcase_add_loop_test(t, what_is_refused, 0, N_KERNELS);
    t = test_case(s, "plans");
    tcase_add_test(t, auto_plans);
    tcase_add_loop_test(t, derivatives_of_score_functions, 0, N_KERNELS);
    return s;
}
