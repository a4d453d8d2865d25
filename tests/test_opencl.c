/* The calls that take OpenCL's own objects: the app's context, queues, buffers and events. */
#define _DEFAULT_SOURCE
#include "harness.h"

#include <clattn/opencl.h>

#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static const float sentinel = 12345.5F;
static const clattn_kernel kernels[] = {CLATTN_KERNEL_ATTN_FWD_LANES, CLATTN_KERNEL_ATTN_FWD,
                                        CLATTN_KERNEL_ATTN_DECODE_LANES, CLATTN_KERNEL_ATTN_DECODE};
enum { N_KERNELS = 4, N_TENSORS = 5 };
static const char *const names[N_TENSORS] = {"args.q", "args.k", "args.v", "args.o", "args.lse"};

/* ---- the app: its own context and queue on the device under test, and clattn's context on them */

typedef struct app {
    cl_device_id device;
    cl_context cl;
    cl_command_queue queue;
    clattn_context *context;
} app;

static bool app_open(app *a, cl_command_queue_properties properties)
{
    cl_int code;
    memset(a, 0, sizeof *a);
    clattn_context *c = test_context();
    if (!c) {
        test_skip("test_opencl", "no OpenCL device");
        return false;
    }
    ck_assert_int_eq(clattn_context_get_cl(c, NULL, &a->device), CLATTN_STATUS_SUCCESS);
    a->cl = clCreateContext(NULL, 1, &a->device, NULL, NULL, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    a->queue = clCreateCommandQueue(a->cl, a->device, properties, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    ck_assert_msg(clattn_context_create_from_cl(a->cl, a->device, NULL, &a->context) == CLATTN_STATUS_SUCCESS, "%s",
                  clattn_last_error()->message);
    return true;
}

static void app_close(app *a)
{
    ck_assert_int_eq(clFinish(a->queue), CL_SUCCESS);
    clattn_context_release(a->context);
    clReleaseCommandQueue(a->queue);
    clReleaseContext(a->cl);
}

/* ---- a job: a problem, its data in host memory and in buffers, a plan, arguments */

typedef struct job {
    app *a;
    clattn_problem p;
    float *data[N_TENSORS];
    size_t count[N_TENSORS]; /* elements */
    int64_t lengths[4], offsets[4];
    double *ref_o, *ref_lse;
    cl_mem mem[N_TENSORS], workspace; /* workspace: NULL where the plan needs none */
    clattn_plan *plan;
    clattn_forward_args args;
} job;

static size_t bytes_of(const job *j, int t) { return j->count[t] * sizeof(float); }

static clattn_buffer *buffer_of(clattn_forward_args *a, int t)
{
    clattn_buffer *const all[N_TENSORS] = {&a->q, &a->k, &a->v, &a->o, &a->lse};
    return all[t];
}

static cl_mem buffer_make(app *a, cl_mem_flags flags, size_t bytes, const void *data)
{
    cl_int code;
    cl_mem mem =
        clCreateBuffer(a->cl, flags | (data ? CL_MEM_COPY_HOST_PTR : 0), bytes, (void *)(uintptr_t)data, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    return mem;
}

static void job_reference(job *j)
{
    ck_assert_msg(test_reference_forward(&j->p, j->data[0], j->data[1], j->data[2], j->lengths, j->offsets, j->ref_o,
                                         j->ref_lse) == CLATTN_STATUS_SUCCESS,
                  "%s", clattn_last_error()->message);
}

static void job_plan(job *j, clattn_path path, clattn_kernel kernel)
{
    clattn_plan_options o;
    clattn_plan_options_init(&o);
    o.path = path;
    o.kernel = kernel;
    ck_assert_msg(clattn_plan_create(j->a->context, &j->p, &o, &j->plan) == CLATTN_STATUS_SUCCESS, "%s",
                  clattn_last_error()->message);
    const size_t workspace = clattn_plan_workspace_size(j->plan);
    const bool splits_keys = kernel == CLATTN_KERNEL_ATTN_DECODE_LANES || kernel == CLATTN_KERNEL_ATTN_DECODE;
    ck_assert_int_eq(workspace > 0, splits_keys && j->p.n_q > 0);
    if (workspace && !j->workspace) j->workspace = buffer_make(j->a, CL_MEM_READ_WRITE, workspace, NULL);
    j->args.workspace = clattn_cl_buffer(j->workspace, 0);
}

static void job_make(job *j, app *a, const char *text, clattn_kernel kernel)
{
    memset(j, 0, sizeof *j);
    j->a = a;
    ck_assert_msg(clattn_problem_from_text(text, &j->p) == CLATTN_STATUS_SUCCESS, "%s", clattn_last_error()->message);
    const clattn_problem *p = &j->p;
    const size_t rows[N_TENSORS] = {
        (size_t)(p->batch * p->n_heads_q * p->n_q), (size_t)(p->batch * p->n_heads_kv * p->n_kv),
        (size_t)(p->batch * p->n_heads_kv * p->n_kv), (size_t)(p->batch * p->n_heads_q * p->n_q),
        (size_t)(p->batch * p->n_heads_q * p->n_q)};
    const int64_t dims[N_TENSORS] = {p->head_dim_qk, p->head_dim_qk, p->head_dim_v, p->head_dim_v, 1};
    uint32_t x = 7;
    for (int t = 0; t < N_TENSORS; t++) {
        j->count[t] = rows[t] * (size_t)dims[t];
        j->data[t] = malloc((j->count[t] + 1) * sizeof(float));
        ck_assert_ptr_nonnull(j->data[t]);
        for (size_t i = 0; i < j->count[t]; i++) {
            x = x * 1664525U + 1013904223U;
            j->data[t][i] = t < 3 ? (float)(x >> 8) * 0x1p-22F - 2 : sentinel;
        }
        if (j->count[t])
            j->mem[t] = buffer_make(a, t < 3 ? CL_MEM_READ_ONLY : CL_MEM_WRITE_ONLY, bytes_of(j, t), j->data[t]);
    }
    clattn_forward_args_init(&j->args);
    for (int t = 0; t < N_TENSORS; t++) *buffer_of(&j->args, t) = clattn_cl_buffer(j->mem[t], 0);
    j->ref_o = malloc((j->count[3] + 1) * sizeof(double));
    j->ref_lse = malloc((j->count[4] + 1) * sizeof(double));
    ck_assert(j->ref_o && j->ref_lse);
    job_reference(j);
    job_plan(j, CLATTN_PATH_DEVICE, kernel);
}

static void job_free(job *j)
{
    for (int t = 0; t < N_TENSORS; t++) {
        if (j->mem[t]) clReleaseMemObject(j->mem[t]);
        free(j->data[t]);
    }
    free(j->ref_o);
    free(j->ref_lse);
    if (j->workspace) clReleaseMemObject(j->workspace);
    clattn_plan_release(j->plan);
}

static void compare(const job *j, const float *o, const float *lse, const char *what)
{
    for (size_t i = 0; i < j->count[3]; i++)
        ck_assert_msg(fabs(o[i] - j->ref_o[i]) < 5e-6, "%s: O[%zu] is %g, not %g", what, i, (double)o[i], j->ref_o[i]);
    for (size_t i = 0; i < j->count[4]; i++)
        ck_assert_msg((double)lse[i] == j->ref_lse[i] || fabs(lse[i] - j->ref_lse[i]) < 1e-5,
                      "%s: LSE[%zu] is %g, not %g", what, i, (double)lse[i], j->ref_lse[i]);
}

static void read_outputs(job *j)
{
    for (int t = 3; t < N_TENSORS; t++)
        if (j->count[t])
            ck_assert_int_eq(
                clEnqueueReadBuffer(j->a->queue, j->mem[t], CL_TRUE, 0, bytes_of(j, t), j->data[t], 0, NULL, NULL),
                CL_SUCCESS);
}

static void expect_right(job *j, const char *what)
{
    ck_assert_int_eq(clFinish(j->a->queue), CL_SUCCESS);
    read_outputs(j);
    compare(j, j->data[3], j->data[4], what);
}

static void expect_untouched(job *j, const char *what)
{
    ck_assert_int_eq(clFinish(j->a->queue), CL_SUCCESS);
    read_outputs(j);
    for (int t = 3; t < N_TENSORS; t++)
        for (size_t i = 0; i < j->count[t]; i++)
            ck_assert_msg(j->data[t][i] == sentinel, "%s: wrote %s at %zu", what, names[t], i);
}

static void enqueue(job *j, cl_uint n_wait, const cl_event *wait_list, cl_event *event)
{
    ck_assert_msg(clattn_enqueue_forward(j->plan, j->a->queue, &j->args, n_wait, wait_list, event) ==
                      CLATTN_STATUS_SUCCESS,
                  "%s", clattn_last_error()->message);
}

static cl_int state_of(cl_event event)
{
    cl_int state = -999;
    ck_assert_int_eq(clGetEventInfo(event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof state, &state, NULL), CL_SUCCESS);
    return state;
}

/* Refused: this status, a sentence with this word, *event alone, nothing written, and then a good call works. */
static void expect_refused(job *j, const clattn_plan *plan, cl_command_queue queue, const clattn_forward_args *args,
                           cl_uint n_wait, const cl_event *wait_list, clattn_status want, const char *says)
{
    cl_event const marker = (cl_event)(void *)j;
    cl_event event = marker;
    const clattn_status got = clattn_enqueue_forward(plan, queue, args, n_wait, wait_list, &event);
    const char *message = clattn_last_error()->message;
    ck_assert_msg(got == want, "%s: %s: %s", says, clattn_status_name(got), message);
    ck_assert_msg(strstr(message, says) != NULL, "'%s' lacks '%s'", message, says);
    ck_assert_msg(event == marker, "%s: *event was set", says);
    expect_untouched(j, says);
}

static void expect_works(job *j, const char *what)
{
    enqueue(j, 0, NULL, NULL);
    expect_right(j, what);
}

#define SMALL "f32 b2 hq4 hkv2 q37 kv53 d16 dv12 causal offset=16"
#define INVALID CLATTN_STATUS_INVALID_ARGUMENT

/* ---- queues and events */

START_TEST(in_order_queue)
{
    app a;
    job j;
    if (!app_open(&a, 0)) return;
    job_make(&j, &a, SMALL, kernels[_i]);
    enqueue(&j, 0, NULL, NULL);
    expect_right(&j, "in order");
    job_free(&j);
    app_close(&a);
}
END_TEST

START_TEST(workspace_refused)
{
    app a;
    job j;
    if (!app_open(&a, 0)) return;
    job_make(&j, &a, SMALL, CLATTN_KERNEL_ATTN_DECODE_LANES);
    const size_t needed = clattn_plan_workspace_size(j.plan);
    clattn_forward_args args = j.args;
    args.workspace = clattn_cl_buffer(NULL, 0);
    expect_refused(&j, j.plan, a.queue, &args, 0, NULL, INVALID, "args.workspace is absent");
    args.workspace = clattn_cl_buffer(buffer_make(&a, CL_MEM_READ_WRITE, needed - 1, NULL), 0);
    expect_refused(&j, j.plan, a.queue, &args, 0, NULL, INVALID, "args.workspace has");
    clReleaseMemObject(args.workspace.mem);
    args.workspace = clattn_cl_buffer(j.workspace, 4);
    expect_refused(&j, j.plan, a.queue, &args, 0, NULL, INVALID, "args.workspace.offset is 4");
    expect_works(&j, "after refusals");
    job_free(&j);
    app_close(&a);
}
END_TEST

START_TEST(out_of_order_queue)
{
    app a;
    job j;
    if (!app_open(&a, CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE)) return;
    job_make(&j, &a, SMALL, kernels[_i]);
    cl_event written[3], done = NULL, read[2];
    for (int t = 0; t < 3; t++) { /* each input comes by a command of its own */
        clReleaseMemObject(j.mem[t]);
        j.mem[t] = buffer_make(&a, CL_MEM_READ_ONLY, bytes_of(&j, t), NULL);
        *buffer_of(&j.args, t) = clattn_cl_buffer(j.mem[t], 0);
        ck_assert_int_eq(
            clEnqueueWriteBuffer(a.queue, j.mem[t], CL_FALSE, 0, bytes_of(&j, t), j.data[t], 0, NULL, &written[t]),
            CL_SUCCESS);
    }
    enqueue(&j, 3, written, &done);
    ck_assert_ptr_nonnull(done);
    for (int t = 3; t < N_TENSORS; t++)
        ck_assert_int_eq(
            clEnqueueReadBuffer(a.queue, j.mem[t], CL_FALSE, 0, bytes_of(&j, t), j.data[t], 1, &done, &read[t - 3]),
            CL_SUCCESS);
    ck_assert_int_eq(clWaitForEvents(2, read), CL_SUCCESS);
    compare(&j, j.data[3], j.data[4], "out of order");
    ck_assert_int_eq(state_of(done), CL_COMPLETE);
    for (int t = 0; t < 3; t++) clReleaseEvent(written[t]);
    for (int t = 0; t < 2; t++) clReleaseEvent(read[t]);
    clReleaseEvent(done);
    job_free(&j);
    app_close(&a);
}
END_TEST

START_TEST(waits_for_a_user_event)
{
    app a;
    job j;
    cl_int code;
    cl_event done = NULL;
    if (!app_open(&a, _i / N_KERNELS ? CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE : 0)) return;
    job_make(&j, &a, SMALL, kernels[_i % N_KERNELS]);
    cl_event gate = clCreateUserEvent(a.cl, &code);
    enqueue(&j, 1, &gate, &done); /* would hang here, were it to wait */
    ck_assert_int_eq(clFlush(a.queue), CL_SUCCESS);
    usleep(50000);
    ck_assert_int_gt(state_of(done), CL_COMPLETE);
    ck_assert_int_eq(clSetUserEventStatus(gate, CL_COMPLETE), CL_SUCCESS);
    ck_assert_int_eq(clWaitForEvents(1, &done), CL_SUCCESS);
    ck_assert_int_eq(state_of(done), CL_COMPLETE);
    expect_right(&j, "user event");
    clReleaseEvent(gate);
    clReleaseEvent(done);
    job_free(&j);
    app_close(&a);
}
END_TEST

/* The app may let go of the plan, the context and the buffers while the kernel still waits. */
START_TEST(released_while_it_waits)
{
    app a;
    job j;
    cl_int code;
    cl_event done = NULL;
    if (!app_open(&a, 0)) return;
    job_make(&j, &a, SMALL, kernels[_i]);
    cl_event gate = clCreateUserEvent(a.cl, &code);
    enqueue(&j, 1, &gate, &done);
    clattn_plan_release(j.plan);
    j.plan = NULL;
    clattn_context_release(a.context);
    a.context = NULL;
    for (int t = 0; t < 3; t++) {
        clReleaseMemObject(j.mem[t]);
        j.mem[t] = NULL;
    }
    if (j.workspace) clReleaseMemObject(j.workspace);
    j.workspace = NULL;
    memset(&j.args, 0xff, sizeof j.args);
    ck_assert_int_eq(clSetUserEventStatus(gate, CL_COMPLETE), CL_SUCCESS);
    ck_assert_int_eq(clWaitForEvents(1, &done), CL_SUCCESS);
    expect_right(&j, "released");
    clReleaseEvent(gate);
    clReleaseEvent(done);
    job_free(&j);
    app_close(&a);
}
END_TEST

/* Two calls of one plan stand in the queue at once, each with its own arguments. */
START_TEST(two_calls_wait)
{
    app a;
    job j, other;
    cl_int code;
    cl_event done[2];
    if (!app_open(&a, CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE)) return;
    job_make(&j, &a, SMALL, kernels[_i]);
    job_make(&other, &a, SMALL, kernels[_i]);
    for (size_t i = 0; i < other.count[0]; i++) other.data[0][i] = -other.data[0][i];
    ck_assert_int_eq(
        clEnqueueWriteBuffer(a.queue, other.mem[0], CL_TRUE, 0, bytes_of(&other, 0), other.data[0], 0, NULL, NULL),
        CL_SUCCESS);
    job_reference(&other);
    cl_event gate = clCreateUserEvent(a.cl, &code);
    enqueue(&j, 1, &gate, &done[0]);
    ck_assert_int_eq(clattn_enqueue_forward(j.plan, a.queue, &other.args, 1, &gate, &done[1]), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clSetUserEventStatus(gate, CL_COMPLETE), CL_SUCCESS);
    ck_assert_int_eq(clWaitForEvents(2, done), CL_SUCCESS);
    expect_right(&j, "the first");
    expect_right(&other, "the second");
    clReleaseEvent(gate);
    clReleaseEvent(done[0]);
    clReleaseEvent(done[1]);
    job_free(&other);
    job_free(&j);
    app_close(&a);
}
END_TEST

START_TEST(event_that_failed)
{
    app a;
    job j;
    cl_int code;
    cl_event done = NULL;
    if (!app_open(&a, 0)) return;
    job_make(&j, &a, SMALL, kernels[_i]);
    cl_command_queue queue = clCreateCommandQueue(a.cl, a.device, 0, &code);
    cl_event gate = clCreateUserEvent(a.cl, &code);
    ck_assert_int_eq(clattn_enqueue_forward(j.plan, queue, &j.args, 1, &gate, &done), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clSetUserEventStatus(gate, -42), CL_SUCCESS);
    clWaitForEvents(1, &done);
    ck_assert_int_lt(state_of(done), 0);
    clReleaseEvent(gate);
    clReleaseEvent(done);
    expect_works(&j, "after an event that failed");
    clReleaseCommandQueue(queue);
    job_free(&j);
    app_close(&a);
}
END_TEST

START_TEST(wait_list_refused)
{
    app a, other;
    job j;
    cl_int code;
    if (!app_open(&a, 0) || !app_open(&other, 0)) return;
    job_make(&j, &a, SMALL, kernels[_i]);
    cl_event own = clCreateUserEvent(a.cl, &code), foreign = clCreateUserEvent(other.cl, &code);
    clSetUserEventStatus(own, CL_COMPLETE);
    expect_refused(&j, j.plan, a.queue, &j.args, 1, NULL, INVALID, "n_wait is 1 and wait_list is NULL");
    expect_refused(&j, j.plan, a.queue, &j.args, 0, &own, INVALID, "n_wait is 0 and wait_list is given");
    const cl_event with_null[] = {own, NULL}, with_foreign[] = {own, foreign};
    expect_refused(&j, j.plan, a.queue, &j.args, 2, with_null, INVALID, "wait_list[1] is NULL");
    expect_refused(&j, j.plan, a.queue, &j.args, 2, with_foreign, INVALID,
                   "wait_list[1] belongs to another cl_context");
    enqueue(&j, 1, &own, NULL);
    expect_right(&j, "after refusals");
    clSetUserEventStatus(foreign, CL_COMPLETE);
    clReleaseEvent(own);
    clReleaseEvent(foreign);
    job_free(&j);
    app_close(&other);
    app_close(&a);
}
END_TEST

START_TEST(nothing_to_do)
{
    app a;
    job j;
    cl_int code;
    cl_event done = NULL;
    if (!app_open(&a, _i / N_KERNELS ? CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE : 0)) return;
    job_make(&j, &a, "f32 b2 hq4 hkv2 q0 kv53 d16", kernels[_i % N_KERNELS]);
    cl_event gate = clCreateUserEvent(a.cl, &code);
    enqueue(&j, 1, &gate, &done);
    usleep(20000);
    ck_assert_int_gt(state_of(done), CL_COMPLETE);
    ck_assert_int_eq(clSetUserEventStatus(gate, CL_COMPLETE), CL_SUCCESS);
    ck_assert_int_eq(clWaitForEvents(1, &done), CL_SUCCESS);
    ck_assert_int_eq(state_of(done), CL_COMPLETE);
    clReleaseEvent(done);
    clReleaseEvent(gate);
    done = NULL;
    enqueue(&j, 0, NULL, NULL);
    enqueue(&j, 0, NULL, &done);
    ck_assert_int_eq(clWaitForEvents(1, &done), CL_SUCCESS);
    clReleaseEvent(done);
    job_free(&j);
    job_make(&j, &a, "f32 b2 hq4 hkv2 q7 kv0 d16", kernels[_i % N_KERNELS]);
    expect_works(&j, "no key"); /* the reference says O = 0, LSE = -inf */
    ck_assert(j.data[3][0] == 0 && isinf(j.data[4][0]) && j.data[4][0] < 0);
    job_free(&j);
    app_close(&a);
}
END_TEST

/* ---- buffers */

START_TEST(tensors_in_one_buffer)
{
    app a;
    job j;
    if (!app_open(&a, 0)) return;
    job_make(&j, &a, SMALL, kernels[_i]);
    size_t at[N_TENSORS], all = 20;
    const int order[N_TENSORS] = {3, 0, 4, 2, 1}; /* outputs between inputs; odd places, gaps of five elements */
    for (int i = 0; i < N_TENSORS; i++) {
        at[order[i]] = all;
        all += bytes_of(&j, order[i]) + 20;
    }
    float *whole = malloc(all);
    ck_assert_ptr_nonnull(whole);
    for (size_t i = 0; i < all / sizeof *whole; i++) whole[i] = sentinel;
    for (int t = 0; t < 3; t++) memcpy((char *)whole + at[t], j.data[t], bytes_of(&j, t));
    cl_mem mem = buffer_make(&a, CL_MEM_READ_WRITE, all, whole);
    for (int t = 0; t < N_TENSORS; t++) *buffer_of(&j.args, t) = clattn_cl_buffer(mem, at[t]);
    enqueue(&j, 0, NULL, NULL);
    ck_assert_int_eq(clEnqueueReadBuffer(a.queue, mem, CL_TRUE, 0, all, whole, 0, NULL, NULL), CL_SUCCESS);
    compare(&j, whole + at[3] / 4, whole + at[4] / 4, "one buffer");
    for (int t = 0; t < 3; t++) ck_assert(!memcmp((char *)whole + at[t], j.data[t], bytes_of(&j, t)));
    for (int t = 0; t < N_TENSORS; t++)
        for (size_t i = 1; i <= 5; i++) ck_assert_msg(whole[at[t] / 4 - i] == sentinel, "wrote before %s", names[t]);
    clReleaseMemObject(mem);
    free(whole);
    job_free(&j);
    app_close(&a);
}
END_TEST

START_TEST(sub_buffers)
{
    app a;
    job j;
    cl_int code;
    cl_uint align_bits = 0;
    if (!app_open(&a, 0)) return;
    job_make(&j, &a, SMALL, kernels[_i]);
    ck_assert_int_eq(clGetDeviceInfo(a.device, CL_DEVICE_MEM_BASE_ADDR_ALIGN, sizeof align_bits, &align_bits, NULL),
                     CL_SUCCESS);
    const size_t align = align_bits / 8;
    cl_buffer_region region[N_TENSORS];
    size_t all = align;
    for (int t = 0; t < N_TENSORS; t++) {
        region[t].origin = all;
        region[t].size = bytes_of(&j, t);
        all += (bytes_of(&j, t) / align + 2) * align;
    }
    cl_mem parent = buffer_make(&a, CL_MEM_READ_WRITE, all, NULL), sub[N_TENSORS];
    for (int t = 0; t < N_TENSORS; t++) {
        sub[t] = clCreateSubBuffer(parent, t < 3 ? CL_MEM_READ_ONLY : CL_MEM_WRITE_ONLY, CL_BUFFER_CREATE_TYPE_REGION,
                                   &region[t], &code);
        ck_assert_int_eq(code, CL_SUCCESS);
        ck_assert_int_eq(
            clEnqueueWriteBuffer(a.queue, parent, CL_TRUE, region[t].origin, region[t].size, j.data[t], 0, NULL, NULL),
            CL_SUCCESS);
        *buffer_of(&j.args, t) = clattn_cl_buffer(sub[t], 0);
    }
    enqueue(&j, 0, NULL, NULL);
    clFinish(a.queue);
    for (int t = 3; t < N_TENSORS; t++)
        clEnqueueReadBuffer(a.queue, parent, CL_TRUE, region[t].origin, region[t].size, j.data[t], 0, NULL, NULL);
    compare(&j, j.data[3], j.data[4], "sub-buffers");
    /* a sub-buffer ends where it ends, though its parent goes on */
    clattn_forward_args args = j.args;
    args.q.offset = 4;
    ck_assert_int_eq(clattn_enqueue_forward(j.plan, a.queue, &args, 0, NULL, NULL), INVALID);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "args.q"));
    for (int t = 0; t < N_TENSORS; t++) clReleaseMemObject(sub[t]);
    clReleaseMemObject(parent);
    job_free(&j);
    app_close(&a);
}
END_TEST

typedef struct lengths_case {
    int64_t lengths[2], means[2], offsets[2];
} lengths_case;
static const lengths_case lengths_cases[] = {
    {{53, 53}, {53, 53}, {0, 0}},
    {{7, 0}, {7, 0}, {16, -20}},
    {{-5, 1000}, {0, 53}, {0, 16}},
    {{INT64_MIN, INT64_MAX}, {0, 53}, {16, 16}},
    {{54, -1}, {53, 0}, {40, 40}},
    {{INT64_C(1) << 32, -(INT64_C(1) << 32)}, {53, 0}, {0, 0}},
    {{53, 20}, {53, 20}, {INT64_MAX, INT64_MIN}},
};
enum { N_LENGTHS = sizeof lengths_cases / sizeof *lengths_cases };

/* A buffer in memory that ends where no page follows: a read beyond it is seen. */
static cl_mem guarded_make(app *a, const void *data, size_t bytes, void **map, size_t *map_bytes)
{
    cl_int code;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), data_pages = (bytes + page - 1) / page * page;
    *map_bytes = data_pages + page;
    char *base = mmap(NULL, *map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(base != MAP_FAILED);
    ck_assert_int_eq(mprotect(base + data_pages, page, PROT_NONE), 0);
    char *begin = base + data_pages - bytes;
    memcpy(begin, data, bytes);
    *map = base;
    cl_mem mem = clCreateBuffer(a->cl, CL_MEM_READ_ONLY | CL_MEM_USE_HOST_PTR, bytes, begin, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    return mem;
}

/* Numbers in a cl_mem cannot be checked beforehand: they are cut to 0..n_kv. */
START_TEST(numbers_in_buffers)
{
    const lengths_case *k = &lengths_cases[_i % N_LENGTHS];
    app a;
    job j;
    void *map[2];
    size_t map_bytes[2];
    if (!app_open(&a, 0)) return;
    job_make(&j, &a, SMALL, kernels[_i / N_LENGTHS]);
    clattn_plan_release(j.plan);
    j.p.kv_length_per_batch = j.p.query_offset_per_batch = 1;
    job_plan(&j, CLATTN_PATH_DEVICE, kernels[_i / N_LENGTHS]);
    memcpy(j.lengths, k->means, sizeof k->means);
    memcpy(j.offsets, k->offsets, sizeof k->offsets);
    job_reference(&j);
    const int64_t numbers[5] = {-77, k->lengths[0], k->lengths[1], k->offsets[0], k->offsets[1]};
    cl_mem mem = buffer_make(&a, CL_MEM_READ_ONLY, sizeof numbers, numbers);
    j.args.kv_lengths = clattn_cl_buffer(mem, sizeof(int64_t));
    j.args.query_offsets = clattn_cl_buffer(mem, 3 * sizeof(int64_t));
    for (int t = 1; t < 3; t++) {
        clReleaseMemObject(j.mem[t]);
        j.mem[t] = guarded_make(&a, j.data[t], bytes_of(&j, t), &map[t - 1], &map_bytes[t - 1]);
        *buffer_of(&j.args, t) = clattn_cl_buffer(j.mem[t], 0);
    }
    expect_works(&j, "numbers in buffers");
    clReleaseMemObject(mem);
    job_free(&j);
    app_close(&a);
    for (int t = 0; t < 2; t++) munmap(map[t], map_bytes[t]);
}
END_TEST

START_TEST(numbers_refused)
{
    app a;
    job j;
    if (!app_open(&a, 0)) return;
    job_make(&j, &a, SMALL, CLATTN_KERNEL_AUTO);
    clattn_plan_release(j.plan);
    j.p.kv_length_per_batch = j.p.query_offset_per_batch = 1;
    job_plan(&j, CLATTN_PATH_DEVICE, CLATTN_KERNEL_AUTO);
    const int64_t numbers[4] = {53, 20, 16, -3};
    memcpy(j.lengths, numbers, 2 * sizeof *numbers);
    memcpy(j.offsets, numbers + 2, 2 * sizeof *numbers);
    job_reference(&j);
    cl_mem mem = buffer_make(&a, CL_MEM_READ_ONLY, sizeof numbers, numbers);
    cl_mem write_only = buffer_make(&a, CL_MEM_WRITE_ONLY, sizeof numbers, NULL);
    j.args.kv_lengths = clattn_cl_buffer(mem, 0);
    j.args.query_offsets = clattn_cl_buffer(mem, 16);
    clattn_forward_args bad = j.args;
    bad.kv_lengths.mem = NULL;
    expect_refused(&j, j.plan, a.queue, &bad, 0, NULL, INVALID, "args.kv_lengths is absent");
    bad = j.args;
    bad.query_offsets.mem = NULL;
    expect_refused(&j, j.plan, a.queue, &bad, 0, NULL, INVALID, "args.query_offsets is absent");
    bad = j.args;
    bad.kv_lengths.offset = 24;
    expect_refused(&j, j.plan, a.queue, &bad, 0, NULL, INVALID, "args.kv_lengths has 32 bytes, 24");
    bad = j.args;
    bad.query_offsets.offset = 40;
    expect_refused(&j, j.plan, a.queue, &bad, 0, NULL, INVALID, "args.query_offsets has 32 bytes, 40");
    bad = j.args;
    bad.query_offsets.offset = 12;
    expect_refused(&j, j.plan, a.queue, &bad, 0, NULL, INVALID, "args.query_offsets.offset is 12");
    bad = j.args;
    bad.kv_lengths = clattn_cl_buffer(write_only, 0);
    expect_refused(&j, j.plan, a.queue, &bad, 0, NULL, INVALID, "args.kv_lengths is a CL_MEM_WRITE_ONLY");
    bad = j.args;
    bad.kv_lengths = clattn_host_buffer(j.lengths);
    expect_refused(&j, j.plan, a.queue, &bad, 0, NULL, INVALID, "args.kv_lengths is a host pointer");
    bad = j.args;
    bad.query_offsets = clattn_host_buffer(j.offsets);
    expect_refused(&j, j.plan, a.queue, &bad, 0, NULL, INVALID, "args.query_offsets is a host pointer");
    expect_works(&j, "after refusals");
    clReleaseMemObject(mem);
    clReleaseMemObject(write_only);
    job_free(&j);
    app_close(&a);
}
END_TEST

/* What can be wrong with each of the five tensors. */
enum {
    TOO_SMALL,
    OFFSET_TOO_FAR,
    OFFSET_HUGE,
    ODD_OFFSET,
    OTHER_CONTEXT,
    WRONG_ACCESS,
    HOST_POINTER,
    BOTH,
    IMAGE,
    N_WRONGS
};
static const char *const wrongs[N_WRONGS] = {"the shape needs", "before the offset",  "before the offset",
                                             "multiple of 4",   "another cl_context", "buffer; the kernel must",
                                             "host pointer",    "has both",           "not a buffer object"};

START_TEST(tensor_refused)
{
    const int t = _i % N_TENSORS, wrong = _i / N_TENSORS;
    app a, other;
    job j;
    cl_int code;
    cl_mem mem = NULL;
    if (!app_open(&a, 0) || !app_open(&other, 0)) return;
    job_make(&j, &a, SMALL, CLATTN_KERNEL_AUTO);
    clattn_forward_args bad = j.args;
    clattn_buffer *b = buffer_of(&bad, t);
    switch (wrong) {
    case TOO_SMALL: mem = buffer_make(&a, CL_MEM_READ_WRITE, bytes_of(&j, t) - 1, NULL); break;
    case OFFSET_TOO_FAR: b->offset = 4; break;
    case OFFSET_HUGE: b->offset = SIZE_MAX - 3; break;
    case ODD_OFFSET:
        mem = buffer_make(&a, CL_MEM_READ_WRITE, bytes_of(&j, t) + 8, NULL);
        b->offset = 2;
        break;
    case OTHER_CONTEXT: mem = buffer_make(&other, CL_MEM_READ_WRITE, bytes_of(&j, t), NULL); break;
    case WRONG_ACCESS:
        mem = buffer_make(&a, t < 3 ? CL_MEM_WRITE_ONLY : CL_MEM_READ_ONLY, bytes_of(&j, t), NULL);
        break;
    case HOST_POINTER: *b = clattn_host_buffer(j.data[t]); break;
    case BOTH: b->host = j.data[t]; break;
    case IMAGE: {
        cl_bool has = CL_FALSE;
        const cl_image_format format = {CL_RGBA, CL_FLOAT};
        const cl_image_desc desc = {.image_type = CL_MEM_OBJECT_IMAGE2D, .image_width = 64, .image_height = 64};
        clGetDeviceInfo(a.device, CL_DEVICE_IMAGE_SUPPORT, sizeof has, &has, NULL);
        mem = has ? clCreateImage(a.cl, CL_MEM_READ_WRITE, &format, &desc, NULL, &code) : NULL;
        if (!mem) {
            test_skip("tensor_refused", "no images on this device");
            return;
        }
        break;
    }
    }
    if (mem) b->mem = mem;
    expect_refused(&j, j.plan, a.queue, &bad, 0, NULL, INVALID, wrongs[wrong]);
    ck_assert_msg(strstr(clattn_last_error()->message, names[t]) != NULL, "'%s' lacks '%s'",
                  clattn_last_error()->message, names[t]);
    expect_works(&j, "after a refusal");
    if (mem) clReleaseMemObject(mem);
    job_free(&j);
    app_close(&other);
    app_close(&a);
}
END_TEST

START_TEST(tensor_absent)
{
    app a;
    job j;
    if (!app_open(&a, 0)) return;
    job_make(&j, &a, SMALL, CLATTN_KERNEL_AUTO);
    clattn_forward_args bad = j.args;
    buffer_of(&bad, _i)->mem = NULL;
    char says[32];
    snprintf(says, sizeof says, "%s is absent", names[_i]);
    expect_refused(&j, j.plan, a.queue, &bad, 0, NULL, INVALID, says);
    expect_works(&j, "after a refusal");
    job_free(&j);
    app_close(&a);
}
END_TEST

START_TEST(lse_may_be_absent)
{
    app a;
    job j;
    if (!app_open(&a, 0)) return;
    job_make(&j, &a, SMALL, kernels[_i]);
    j.args.lse = clattn_cl_buffer(NULL, 0);
    enqueue(&j, 0, NULL, NULL);
    clFinish(a.queue);
    read_outputs(&j);
    for (size_t i = 0; i < j.count[3]; i++) ck_assert(fabs(j.data[3][i] - j.ref_o[i]) < 5e-6);
    for (size_t i = 0; i < j.count[4]; i++) ck_assert(j.data[4][i] == sentinel);
    job_free(&j);
    app_close(&a);
}
END_TEST

START_TEST(outputs_overlap)
{
    app a;
    job j;
    if (!app_open(&a, 0)) return;
    job_make(&j, &a, SMALL, CLATTN_KERNEL_AUTO);
    const size_t q = bytes_of(&j, 0), o = bytes_of(&j, 3);
    cl_mem mem = buffer_make(&a, CL_MEM_READ_WRITE, q + o, NULL);
    clattn_forward_args bad = j.args;
    bad.q = clattn_cl_buffer(mem, 0);
    bad.o = clattn_cl_buffer(mem, q - 4);
    expect_refused(&j, j.plan, a.queue, &bad, 0, NULL, INVALID, "args.o, 14208 bytes, overlaps args.q, 18944 bytes");
    bad = j.args;
    bad.o = clattn_cl_buffer(mem, 8);
    bad.lse = clattn_cl_buffer(mem, 4);
    expect_refused(&j, j.plan, a.queue, &bad, 0, NULL, INVALID, "overlaps args.lse");
    ck_assert_int_eq(clEnqueueWriteBuffer(a.queue, mem, CL_TRUE, 0, q, j.data[0], 0, NULL, NULL), CL_SUCCESS);
    clattn_forward_args good = j.args;
    good.q = clattn_cl_buffer(mem, 0);
    good.o = clattn_cl_buffer(mem, q);
    ck_assert_int_eq(clattn_enqueue_forward(j.plan, a.queue, &good, 0, NULL, NULL), CLATTN_STATUS_SUCCESS);
    clFinish(a.queue);
    read_outputs(&j);
    clEnqueueReadBuffer(a.queue, mem, CL_TRUE, q, o, j.data[3], 0, NULL, NULL);
    compare(&j, j.data[3], j.data[4], "beside each other");
    clReleaseMemObject(mem);
    job_free(&j);
    app_close(&a);
}
END_TEST

/* ---- handles */

START_TEST(handles_refused)
{
    app a, other;
    job j;
    if (!app_open(&a, 0) || !app_open(&other, 0)) return;
    job_make(&j, &a, SMALL, CLATTN_KERNEL_AUTO);
    expect_refused(&j, NULL, a.queue, &j.args, 0, NULL, INVALID, "plan is NULL");
    expect_refused(&j, j.plan, NULL, &j.args, 0, NULL, INVALID, "queue is NULL");
    expect_refused(&j, j.plan, a.queue, NULL, 0, NULL, INVALID, "args is NULL");
    expect_refused(&j, j.plan, other.queue, &j.args, 0, NULL, INVALID, "queue belongs to another cl_context");
    clattn_forward_args bad = j.args;
    bad.struct_size++;
    expect_refused(&j, j.plan, a.queue, &bad, 0, NULL, INVALID, "args.struct_size");
    expect_works(&j, "after refusals");
    job_free(&j);
    app_close(&other);
    app_close(&a);
}
END_TEST

START_TEST(plan_of_the_host)
{
    app a;
    job j;
    if (!app_open(&a, 0)) return;
    job_make(&j, &a, SMALL, CLATTN_KERNEL_AUTO);
    clattn_plan *device_plan = j.plan;
    job_plan(&j, CLATTN_PATH_HOST, CLATTN_KERNEL_AUTO);
    expect_refused(&j, j.plan, a.queue, &j.args, 0, NULL, INVALID, "no device kernel");
    clattn_plan_release(j.plan);
    j.plan = device_plan;
    expect_works(&j, "after a refusal");
    job_free(&j);
    app_close(&a);
}
END_TEST

/* AUTO takes the host for a small problem; cl_mem stay on the device, if the context is the app's. */
START_TEST(auto_plan_of_the_app)
{
    app a;
    job j;
    clattn_plan_info info;
    if (!app_open(&a, 0)) return;
    job_make(&j, &a, SMALL, CLATTN_KERNEL_AUTO);
    clattn_plan_release(j.plan);
    job_plan(&j, CLATTN_PATH_AUTO, CLATTN_KERNEL_AUTO);
    clattn_plan_info_init(&info);
    ck_assert_int_eq(clattn_plan_get_info(j.plan, &info), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(info.path, CLATTN_PATH_HOST);
    ck_assert_int_eq(info.kernel, CLATTN_KERNEL_HOST_TILE);
    ck_assert(info.cl_kernel == CLATTN_KERNEL_ATTN_FWD || info.cl_kernel == CLATTN_KERNEL_ATTN_FWD_LANES);
    ck_assert_ptr_nonnull(strstr(clattn_plan_explain(j.plan), "cl_mem"));
    expect_works(&j, "AUTO, enqueued");
    clattn_forward_args args;
    clattn_forward_args_init(&args);
    for (int t = 0; t < N_TENSORS; t++) *buffer_of(&args, t) = clattn_host_buffer(j.data[t]);
    for (int t = 3; t < N_TENSORS; t++)
        for (size_t i = 0; i < j.count[t]; i++) j.data[t][i] = sentinel;
    ck_assert_int_eq(clattn_forward(j.plan, &args), CLATTN_STATUS_SUCCESS);
    compare(&j, j.data[3], j.data[4], "AUTO, on the host");
    args.o = clattn_cl_buffer(j.mem[3], 0);
    ck_assert_int_eq(clattn_forward(j.plan, &args), INVALID);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "args.o is a cl_mem"));
    job_free(&j);
    app_close(&a);
}
END_TEST

/* A context of clattn's own gives its cl_context away; its AUTO plan of a small problem has no device kernel. */
START_TEST(context_of_clattn)
{
    app a;
    job j;
    cl_int code;
    if (!app_open(&a, 0)) return;
    app mine = a;
    mine.context = test_context();
    ck_assert_int_eq(clattn_context_get_cl(mine.context, &mine.cl, &mine.device), CLATTN_STATUS_SUCCESS);
    ck_assert_ptr_nonnull(mine.cl);
    ck_assert_ptr_eq(mine.device, a.device);
    mine.queue = clCreateCommandQueue(mine.cl, mine.device, 0, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    job_make(&j, &mine, SMALL, CLATTN_KERNEL_AUTO);
    clattn_plan *device_plan = j.plan;
    job_plan(&j, CLATTN_PATH_AUTO, CLATTN_KERNEL_AUTO);
    expect_refused(&j, j.plan, mine.queue, &j.args, 0, NULL, INVALID, "no device kernel");
    clattn_plan_release(j.plan);
    j.plan = device_plan;
    expect_works(&j, "clattn's own context");
    job_free(&j);
    clReleaseCommandQueue(mine.queue);
    app_close(&a);
}
END_TEST

START_TEST(get_cl)
{
    app a;
    cl_context cl = NULL;
    cl_device_id id = NULL;
    clattn_context *host = NULL;
    clattn_context_options o;
    if (!app_open(&a, 0)) return;
    ck_assert_int_eq(clattn_context_get_cl(a.context, &cl, &id), CLATTN_STATUS_SUCCESS);
    ck_assert(cl == a.cl && id == a.device);
    ck_assert_int_eq(clattn_context_get_cl(a.context, NULL, NULL), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_context_get_cl(NULL, &cl, &id), CLATTN_STATUS_SUCCESS);
    ck_assert(cl && cl != a.cl && id);
    clattn_context_options_init(&o);
    o.device = CLATTN_DEVICE_NONE;
    ck_assert_int_eq(clattn_context_create(&o, &host), CLATTN_STATUS_SUCCESS);
    cl = a.cl;
    ck_assert_int_eq(clattn_context_get_cl(host, &cl, NULL), CLATTN_STATUS_NO_DEVICE);
    ck_assert_ptr_eq(cl, a.cl);
    clattn_context_release(host);
    app_close(&a);
}
END_TEST

START_TEST(create_from_cl_refused)
{
    app a;
    clattn_context *const marker = (clattn_context *)(void *)&a, *c = marker;
    clattn_context_options o;
    if (!app_open(&a, 0)) return;
    ck_assert_int_eq(clattn_context_create_from_cl(a.cl, a.device, NULL, NULL), INVALID);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "context is NULL"));
    ck_assert_int_eq(clattn_context_create_from_cl(NULL, a.device, NULL, &c), INVALID);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "cl_context is NULL"));
    ck_assert_int_eq(clattn_context_create_from_cl(a.cl, NULL, NULL, &c), INVALID);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "cl_device_id is NULL"));
    clattn_context_options_init(&o);
    o.struct_size = 3;
    ck_assert_int_eq(clattn_context_create_from_cl(a.cl, a.device, &o, &c), INVALID);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "options.struct_size is 3"));
    clattn_context_options_init(&o);
    o.n_threads = -1;
    ck_assert_int_eq(clattn_context_create_from_cl(a.cl, a.device, &o, &c), INVALID);
    ck_assert_ptr_eq(c, marker);
    app_close(&a);
}
END_TEST

START_TEST(device_of_another_context)
{
    app a;
    cl_device_id parts[2];
    cl_uint units = 0, n = 0;
    clattn_context *c = NULL;
    if (!app_open(&a, 0)) return;
    clGetDeviceInfo(a.device, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof units, &units, NULL);
    const cl_device_partition_property by[] = {CL_DEVICE_PARTITION_BY_COUNTS, 1, CL_DEVICE_PARTITION_BY_COUNTS_LIST_END,
                                               0};
    if (units < 2 || clCreateSubDevices(a.device, by, 2, parts, &n) != CL_SUCCESS || n == 0) {
        test_skip("device_of_another_context", "the device cannot be divided");
        app_close(&a);
        return;
    }
    ck_assert_int_eq(clattn_context_create_from_cl(a.cl, parts[0], NULL, &c), INVALID);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "not one of the cl_context's 1"));
    ck_assert_ptr_null(c);
    clReleaseDevice(parts[0]);
    app_close(&a);
}
END_TEST

static cl_uint references(app *a, const job *j, int what)
{
    cl_uint n = 0;
    cl_int code = -1;
    if (what == 0) code = clGetContextInfo(a->cl, CL_CONTEXT_REFERENCE_COUNT, sizeof n, &n, NULL);
    if (what == 1) code = clGetDeviceInfo(a->device, CL_DEVICE_REFERENCE_COUNT, sizeof n, &n, NULL);
    if (what == 2) code = clGetCommandQueueInfo(a->queue, CL_QUEUE_REFERENCE_COUNT, sizeof n, &n, NULL);
    if (what >= 3) code = clGetMemObjectInfo(j->mem[what - 3], CL_MEM_REFERENCE_COUNT, sizeof n, &n, NULL);
    ck_assert_int_eq(code, CL_SUCCESS);
    return n;
}

static cl_uint event_references(cl_event event)
{
    cl_uint n = 0;
    ck_assert_int_eq(clGetEventInfo(event, CL_EVENT_REFERENCE_COUNT, sizeof n, &n, NULL), CL_SUCCESS);
    return n;
}

/* Nothing of the app's is held once clattn's objects are released. Drivers keep the last command of a queue for a while
 * (PoCL until the next), so the counts after a first round are the ones to come back to. */
START_TEST(reference_counts)
{
    app a;
    job j;
    cl_int code;
    cl_uint before[3 + N_TENSORS];
    if (!app_open(&a, 0)) return;
    clattn_context_release(a.context);
    a.context = NULL;
    job_make(&j, &(app){a.device, a.cl, a.queue, test_context()}, SMALL, CLATTN_KERNEL_AUTO); /* for its buffers */
    clattn_plan_release(j.plan);
    j.a = &a;
    cl_event gate = clCreateUserEvent(a.cl, &code), done = NULL;
    clFinish(a.queue);
    before[0] = references(&a, &j, 0);
    const cl_uint gate_before = event_references(gate);
    for (int round = 0; round < 4; round++) {
        ck_assert_int_eq(clattn_context_create_from_cl(a.cl, a.device, NULL, &a.context), CLATTN_STATUS_SUCCESS);
        ck_assert_uint_gt(references(&a, &j, 0), before[0]);
        job_plan(&j, CLATTN_PATH_DEVICE, kernels[_i]);
        if (round == 0) {
            enqueue(&j, 1, &gate, &done);
            clSetUserEventStatus(gate, CL_COMPLETE);
        } else {
            enqueue(&j, 0, NULL, &done);
        }
        ck_assert_int_eq(clWaitForEvents(1, &done), CL_SUCCESS);
        expect_right(&j, "counted");
        clattn_forward_args bad = j.args;
        bad.lse.offset = 4;
        ck_assert_int_eq(clattn_enqueue_forward(j.plan, a.queue, &bad, 0, NULL, NULL), INVALID);
        clattn_plan_release(j.plan);
        clattn_context_release(a.context);
        clReleaseEvent(done);
        clFinish(a.queue);
        for (int i = 0; i < 3 + N_TENSORS; i++) {
            if (round == 0) before[i] = references(&a, &j, i);
            ck_assert_msg(references(&a, &j, i) == before[i], "object %d has %u references, not %u", i,
                          references(&a, &j, i), before[i]);
            if (i >= 3) ck_assert_uint_eq(before[i], 1);
        }
    }
    ck_assert_uint_eq(event_references(gate), gate_before);
    clReleaseEvent(gate);
    a.context = NULL;
    j.plan = NULL;
    job_free(&j);
    app_close(&a);
}
END_TEST

/* ---- devices */

START_TEST(devices_by_index_and_name)
{
    int count = 0;
    if (!test_context()) {
        test_skip("devices_by_index_and_name", "no OpenCL device");
        return;
    }
    ck_assert_int_eq(clattn_device_count(&count), CLATTN_STATUS_SUCCESS);
    ck_assert_int_ge(count, 1);
    for (int i = 0; i < count; i++) {
        clattn_device_info info;
        clattn_context_options o;
        clattn_context *c = NULL;
        cl_device_id by_index = NULL, by_name = NULL;
        char name[200];
        clattn_device_info_init(&info);
        ck_assert_int_eq(clattn_device_get_info(i, &info), CLATTN_STATUS_SUCCESS);
        ck_assert_int_eq(info.index, i);
        ck_assert(*info.name && *info.platform && *info.driver && !strncmp(info.version, "OpenCL ", 7) && *info.why);
        ck_assert(!strcmp(info.type, "cpu") || !strcmp(info.type, "gpu") || !strcmp(info.type, "accelerator") ||
                  !strcmp(info.type, "other"));
        ck_assert(info.compute_units > 0 && info.max_work_group_size > 0 && info.global_bytes > 0);
        ck_assert(info.max_alloc_bytes > 0 && info.max_alloc_bytes <= info.global_bytes);
        if (!info.usable) continue;
        ck_assert_int_eq(info.kernel, strcmp(info.type, "cpu") ? CLATTN_KERNEL_ATTN_FWD : CLATTN_KERNEL_ATTN_FWD_LANES);
        clattn_context_options_init(&o);
        o.device = CLATTN_DEVICE_INDEX;
        o.device_index = i;
        ck_assert_int_eq(clattn_context_create(&o, &c), CLATTN_STATUS_SUCCESS);
        ck_assert_int_eq(clattn_context_get_cl(c, NULL, &by_index), CLATTN_STATUS_SUCCESS);
        clattn_context_release(c);
        for (int form = 0; form < 4; form++) { /* name, its end in capitals, platform, a part of it in small letters */
            const char *source = form < 2 ? info.name : info.platform;
            snprintf(name, sizeof name, "%s", source + (form % 2 ? strlen(source) / 2 : 0));
            for (char *s = name; *s; s++)
                if (form == 1 && *s >= 'a' && *s <= 'z')
                    *s = (char)(*s - 32);
                else if (form == 3 && *s >= 'A' && *s <= 'Z')
                    *s = (char)(*s + 32);
            clattn_context_options_init(&o);
            o.device = CLATTN_DEVICE_NAME;
            o.device_name = name;
            ck_assert_msg(clattn_context_create(&o, &c) == CLATTN_STATUS_SUCCESS, "%s", clattn_last_error()->message);
            memset(name, '?', sizeof name - 1); /* it was copied */
            ck_assert_int_eq(clattn_context_get_cl(c, NULL, &by_name), CLATTN_STATUS_SUCCESS);
            if (count == 1) ck_assert_ptr_eq(by_name, by_index);
            clattn_context_release(c);
        }
    }
}
END_TEST

START_TEST(device_unknown)
{
    clattn_context_options o;
    clattn_context *c = NULL;
    char number[16];
    int count = 0;
    ck_assert_int_eq(clattn_device_count(&count), CLATTN_STATUS_SUCCESS);
    snprintf(number, sizeof number, "%d", count);
    clattn_context_options_init(&o);
    o.device = CLATTN_DEVICE_NAME;
    o.device_name = "Difference Engine";
    ck_assert_int_eq(clattn_context_create(&o, &c), CLATTN_STATUS_NO_DEVICE);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "Difference Engine"));
    o.device = CLATTN_DEVICE_INDEX;
    o.device_index = count;
    ck_assert_int_eq(clattn_context_create(&o, &c), CLATTN_STATUS_NO_DEVICE);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, number));
    ck_assert_ptr_null(c);
}
END_TEST

/* ---- host pointers on the device */

START_TEST(copied_transfers)
{
    app a;
    job j;
    clattn_context_options o;
    clattn_plan_info info;
    if (!app_open(&a, 0)) return;
    clattn_context_release(a.context);
    clattn_context_options_init(&o);
    o.copy_transfers = 1;
    ck_assert_int_eq(clattn_context_create_from_cl(a.cl, a.device, &o, &a.context), CLATTN_STATUS_SUCCESS);
    job_make(&j, &a, _i / N_KERNELS ? SMALL " bshd" : SMALL, kernels[_i % N_KERNELS]);
    clattn_plan_info_init(&info);
    ck_assert_int_eq(clattn_plan_get_info(j.plan, &info), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(info.zero_copy, 0);
    clattn_forward_args args;
    clattn_forward_args_init(&args);
    for (int t = 0; t < N_TENSORS; t++) *buffer_of(&args, t) = clattn_host_buffer(j.data[t]);
    ck_assert_int_eq(clattn_forward(j.plan, &args), CLATTN_STATUS_SUCCESS);
    const clattn_strides s = clattn_strides_bshd(4, 37, 12);
    float *dense = malloc(bytes_of(&j, 3));
    ck_assert_ptr_nonnull(dense);
    for (int64_t i = 0; i < (int64_t)j.count[3]; i++) {
        const int64_t d = i % 12, row = i / 12 % 37, h = i / 12 / 37 % 4, b = i / 12 / 37 / 4;
        dense[i] = j.data[3][_i / N_KERNELS ? b * s.batch + h * s.head + row * s.seq + d : i];
    }
    compare(&j, dense, j.data[4], "copied");
    free(dense);
    job_free(&j);
    app_close(&a);
}
END_TEST

/* ---- memory: grows with the sequence, not with its square */

static long peak_kib(void)
{
    char line[128];
    long kib = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %ld", &kib) == 1) break;
    if (f) fclose(f);
    return kib;
}

static bool peak_reset(void)
{
    const int fd = open("/proc/self/clear_refs", O_WRONLY);
    const bool ok = fd >= 0 && write(fd, "5", 1) == 1;
    if (fd >= 0) close(fd);
    return ok;
}

START_TEST(peak_memory)
{
    enum { ROWS = 16384, DIM = 64, COUNT = ROWS * DIM };
    clattn_context *c = NULL;
    clattn_context_options co;
    clattn_plan_options o;
    clattn_plan *plan = NULL;
    clattn_problem p;
    clattn_forward_args args;
    const clattn_status status = (clattn_context_options_init(&co), clattn_context_create(&co, &c));
    ck_assert_int_eq(status, CLATTN_STATUS_SUCCESS);
    clattn_plan_options_init(&o);
    o.path = _i ? CLATTN_PATH_DEVICE : CLATTN_PATH_HOST;
    o.kernel = _i ? CLATTN_KERNEL_ATTN_FWD_LANES : CLATTN_KERNEL_AUTO;
    if (!peak_reset()) {
        test_skip("peak_memory", "no /proc/self/clear_refs");
        return;
    }
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 1, 1, ROWS, ROWS, DIM);
    const clattn_status planned = clattn_plan_create(c, &p, &o, &plan);
    if (planned == CLATTN_STATUS_NO_DEVICE) {
        test_skip("peak_memory", "no OpenCL device");
        return;
    }
    ck_assert_int_eq(planned, CLATTN_STATUS_SUCCESS);
    float *data[4];
    for (int t = 0; t < 4; t++) {
        data[t] = malloc(COUNT * sizeof *data[t]);
        ck_assert_ptr_nonnull(data[t]);
        for (int i = 0; i < COUNT; i++) data[t][i] = (float)(i * 37 % 101) / 101;
    }
    clattn_forward_args_init(&args);
    args.q = clattn_host_buffer(data[0]);
    args.k = clattn_host_buffer(data[1]);
    args.v = clattn_host_buffer(data[2]);
    args.o = clattn_host_buffer(data[3]);
    ck_assert_int_eq(clattn_forward(plan, &args), CLATTN_STATUS_SUCCESS);
    ck_assert(peak_reset());
    const long before = peak_kib();
    ck_assert_int_eq(clattn_forward(plan, &args), CLATTN_STATUS_SUCCESS);
    const long after = peak_kib();
    ck_assert_int_gt(before, 4 * COUNT * 4 / 1024 - 1);
    ck_assert_msg(after - before <= 4096, "one call took %ld KiB", after - before);
    for (int t = 0; t < 4; t++) free(data[t]);
    clattn_plan_release(plan);
    clattn_context_release(c);
}
END_TEST

/* ---- without any platform: a process of its own, whose OpenCL loader finds an empty folder */

#define CHILD "CLATTN_TEST_CHILD"
#define NEED(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            printf("line %d: %s: %s\n", __LINE__, #condition, clattn_last_error()->message);                           \
            fflush(stdout);                                                                                            \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

static void child_without_devices(void)
{
    int count = -1;
    clattn_device_info info;
    clattn_context *c = NULL;
    clattn_context_options co;
    clattn_plan_options o;
    clattn_plan *plan = NULL;
    clattn_problem p;
    cl_context cl;
    NEED(clattn_device_count(&count) == CLATTN_STATUS_SUCCESS && count == 0);
    clattn_device_info_init(&info);
    NEED(clattn_device_get_info(0, &info) == CLATTN_STATUS_NO_DEVICE);
    clattn_context_options_init(&co);
    co.device = CLATTN_DEVICE_INDEX;
    NEED(clattn_context_create(&co, &c) == CLATTN_STATUS_NO_DEVICE && !c);
    co.device = CLATTN_DEVICE_NAME;
    co.device_name = "";
    NEED(clattn_context_create(&co, &c) == CLATTN_STATUS_NO_DEVICE && !c);
    NEED(clattn_context_create(NULL, &c) == CLATTN_STATUS_SUCCESS);
    NEED(clattn_context_get_cl(c, &cl, NULL) == CLATTN_STATUS_NO_DEVICE);
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 1, 1, 1000, 1000, 16);
    clattn_plan_options_init(&o);
    o.path = CLATTN_PATH_DEVICE;
    NEED(clattn_plan_create(c, &p, &o, &plan) == CLATTN_STATUS_NO_DEVICE && !plan);
    NEED(strstr(clattn_last_error()->message, "no OpenCL platform") != NULL);
    o.path = CLATTN_PATH_AUTO;
    o.kernel = CLATTN_KERNEL_ATTN_FWD_LANES;
    NEED(clattn_plan_create(c, &p, &o, &plan) == CLATTN_STATUS_NO_DEVICE && !plan);
    NEED(clattn_plan_create(c, &p, NULL, &plan) == CLATTN_STATUS_SUCCESS);
    NEED(strstr(clattn_plan_explain(plan), "path host: no OpenCL platform has a usable device") != NULL);
    static float x[16000], y[16000];
    static double ref[16000];
    for (int i = 0; i < 16000; i++) x[i] = (float)(i * 37 % 101) / 101;
    NEED(clattn_attention(c, &p, x, x, x, y, NULL) == CLATTN_STATUS_SUCCESS);
    NEED(test_reference_forward(&p, x, x, x, NULL, NULL, ref, NULL) == CLATTN_STATUS_SUCCESS);
    for (int i = 0; i < 16000; i++) NEED(fabs(y[i] - ref[i]) < 5e-6);
    clattn_plan_release(plan);
    clattn_context_release(c);
    NEED(clattn_attention(NULL, &p, x, x, x, y, NULL) == CLATTN_STATUS_SUCCESS);
    _exit(0);
}

static int run_child(const char *what, const char *variable, const char *value)
{
    char *const arguments[] = {"test_opencl", NULL};
    pid_t pid;
    int status = -1;
    setenv(CHILD, what, 1);
    setenv(variable, value, 1);
    const int code = posix_spawn(&pid, "/proc/self/exe", NULL, NULL, arguments, environ);
    unsetenv(CHILD);
    unsetenv(variable);
    ck_assert_int_eq(code, 0);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

START_TEST(without_devices)
{
    char folder[] = "/tmp/clattn-no-icd-XXXXXX";
    ck_assert_ptr_nonnull(mkdtemp(folder));
    const int code = run_child("devices", "OCL_ICD_VENDORS", folder);
    rmdir(folder);
    ck_assert_msg(code == 0, "the process without devices ended with %d", code);
}
END_TEST

/* ---- tuning tables */

static const char *const tuned_line = "f32 b1 hq2 hkv2 q200 kv200 d16";
static char tuning_log[4096];

static void keep_log(const char *kind, const char *text, void *user)
{
    (void)user;
    const size_t n = strlen(tuning_log);
    if (!strcmp(kind, "plan")) snprintf(tuning_log + n, sizeof tuning_log - n, "%s\n", text);
}

/* The plan that a context with this option (NULL: by the environment) makes. */
static clattn_plan *tuned_plan(const char *table, clattn_path path, int64_t block_q, int64_t block_kv)
{
    clattn_context *c;
    clattn_context_options co;
    clattn_plan_options o;
    clattn_plan *plan;
    clattn_problem p;
    test_context_options(&co);
    co.tuning = table;
    co.log = keep_log;
    tuning_log[0] = 0;
    clattn_plan_options_init(&o);
    o.path = path;
    o.block_q = block_q;
    o.block_kv = block_kv;
    test_ok(clattn_problem_from_text(tuned_line, &p));
    test_ok(clattn_context_create(&co, &c));
    test_ok(clattn_plan_create(c, &p, &o, &plan));
    clattn_context_release(c);
    return plan;
}

/* What it has; block_q 0: no table's. */
static void ck_tuned(const char *what, const char *table, int64_t block_q, int64_t block_kv)
{
    clattn_plan_info info;
    clattn_plan *plan = tuned_plan(table, CLATTN_PATH_DEVICE, 0, 0);
    clattn_plan_info_init(&info);
    test_ok(clattn_plan_get_info(plan, &info));
    ck_assert_msg(info.tuned == (block_q > 0) && !info.tuned == !strstr(clattn_plan_explain(plan), "tuned: "),
                  "%s: tuned is %d: %s", what, info.tuned, clattn_plan_explain(plan));
    if (block_q)
        ck_assert_msg(info.block_q == block_q && info.block_kv == block_kv, "%s: %d x %d", what, (int)info.block_q,
                      (int)info.block_kv);
    clattn_plan_release(plan);
}

static void table_of(char table[600], clattn_path path, int64_t block_q, int64_t block_kv)
{
    clattn_plan *plan = tuned_plan("", path, block_q, block_kv);
    strcpy(table, "clattn tuning 1\n");
    test_ok(clattn_plan_get_tuning(plan, table + strlen(table), 512));
    clattn_plan_release(plan);
}

static void table_put(const char *path, const char *text, size_t n)
{
    FILE *file = fopen(path, "wb");
    ck_assert_msg(file && fwrite(text, 1, n, file) == n && fclose(file) == 0, "%s cannot be written", path);
}

/* The option before CLATTN_TUNING before the user's file before what is shipped. */
START_TEST(tuning_order)
{
    char folder[] = "/tmp/clattn-tuning-XXXXXX", named[64], own[64], a[600], b[600], c[600], path[64] = "";
    if (!test_context()) return;
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(named, sizeof named, "%s/named", folder);
    snprintf(own, sizeof own, "%s/tuning.txt", folder);
    table_of(a, CLATTN_PATH_DEVICE, 16, 16);
    table_of(b, CLATTN_PATH_DEVICE, 16, 32);
    table_of(c, CLATTN_PATH_DEVICE, 32, 16);
    ck_tuned("shipped", NULL, 0, 0);
    ck_assert_uint_eq(clattn_tuning_file(path, sizeof path), 0);
    ck_tuned("option", c, 32, 16);
    table_put(own, a, strlen(a));
    table_put(named, b, strlen(b));
    setenv("CLATTN_CACHE_DIR", folder, 1);
    unsetenv("CLATTN_TUNING");
    ck_assert_uint_eq(clattn_tuning_file(path, 8), strlen(own));
    ck_assert_str_eq(path, "/tmp/cl");
    ck_assert_uint_eq(clattn_tuning_file(NULL, 0), strlen(own));
    ck_tuned("file", NULL, 16, 16);
    setenv("CLATTN_TUNING", named, 1);
    ck_assert_uint_eq(clattn_tuning_file(path, sizeof path), strlen(named));
    ck_assert_str_eq(path, named);
    ck_tuned("CLATTN_TUNING", NULL, 16, 32);
    ck_tuned("option before CLATTN_TUNING", c, 32, 16);
    ck_tuned("none", "", 0, 0);
    setenv("CLATTN_TUNING", "0", 1);
    ck_tuned("off", NULL, 0, 0);
    remove(own), remove(named), rmdir(folder);
}
END_TEST

/* Nothing that is wrong with a file is an error. */
START_TEST(tuning_broken)
{
    static char text[70000];
    char folder[] = "/tmp/clattn-tuning-XXXXXX", path[64], a[600];
    if (!test_context()) return;
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/t", folder);
    table_of(a, CLATTN_PATH_DEVICE, 16, 16);
    setenv("CLATTN_TUNING", path, 1);
    ck_tuned("no file", NULL, 0, 0);
    ck_assert(mkfifo(path, 0600) == 0);
    ck_tuned("a fifo", NULL, 0, 0);
    ck_assert_ptr_nonnull(strstr(tuning_log, "no file that can be read"));
    remove(path);
    table_put(path, a + 1, strlen(a) - 1);
    ck_tuned("no version", NULL, 0, 0);
    ck_assert_ptr_nonnull(strstr(tuning_log, "is no table: its first line is not 'clattn tuning 1'"));
    table_put(path, "", 0);
    ck_tuned("empty", NULL, 0, 0);
    memset(text, 0xff, sizeof text);
    table_put(path, text, 3000);
    ck_tuned("bytes", NULL, 0, 0);
    memset(text, 'x', sizeof text);
    for (size_t i = 1; i < sizeof text; i += 2) text[i] = '\n';
    memcpy(text, a, strlen(a));
    text[strlen(a)] = '\n';
    table_put(path, text, 65537);
    ck_tuned("too long", NULL, 0, 0);
    ck_assert_ptr_nonnull(strstr(tuning_log, "is 65537 bytes long; it may have 65536"));
    table_put(path, text, 65536);
    ck_tuned("many lines that are none", NULL, 16, 16);
    ck_assert_ptr_nonnull(strstr(tuning_log, "is ignored: neither a tile nor host rows"));
    ck_assert_ptr_nonnull(strstr(tuning_log, " lines of "));
    snprintf(text, sizeof text, "%s\ntile -1 7%s", a, strchr(a + 20, '|') - 1);
    table_put(path, text, strlen(text));
    ck_tuned("impossible sizes", NULL, 16, 16);
    ck_assert_ptr_nonnull(strstr(tuning_log, "is ignored: impossible sizes"));
    remove(path), rmdir(folder);
}
END_TEST

/* A line of the host's moves AUTO's rule there, and does not on a device that it does not name. */
START_TEST(tuning_of_the_host)
{
    char table[600], other[610], line[512];
    clattn_plan_info info;
    if (!test_context()) return;
    table_of(table, CLATTN_PATH_HOST, 0, 0);
    snprintf(other, sizeof other, "%s x", table);
    for (int i = 0; i < 4; i++) {
        static const char *const says[] = {"at most 200\n", "above the host path's 128", "above the host path's 128",
                                           ""};
        clattn_plan *plan = tuned_plan(i == 0   ? table
                                       : i == 1 ? other
                                       : i == 2 ? ""
                                                : "clattn tuning 1\nhost 7 | class cpu",
                                       CLATTN_PATH_AUTO, 0, 0);
        clattn_plan_info_init(&info);
        test_ok(clattn_plan_get_info(plan, &info));
        ck_assert_int_eq(info.path, i ? CLATTN_PATH_DEVICE : CLATTN_PATH_HOST);
        ck_assert_msg(strstr(clattn_plan_explain(plan), says[i]) != NULL, "%s", clattn_plan_explain(plan));
        clattn_plan_release(plan);
    }
    /* What has no line. */
    clattn_plan_options o;
    clattn_problem p;
    clattn_plan *plan;
    clattn_plan_options_init(&o);
    o.pass = CLATTN_PASS_BACKWARD;
    o.path = CLATTN_PATH_DEVICE;
    test_ok(clattn_problem_from_text(tuned_line, &p));
    test_ok(clattn_plan_create(test_context(), &p, &o, &plan));
    memset(line, 'x', sizeof line);
    ck_assert_int_eq(clattn_plan_get_tuning(plan, line, sizeof line), CLATTN_STATUS_UNSUPPORTED);
    clattn_plan_release(plan);
    test_ok(clattn_plan_create(test_host_context(), &p, NULL, &plan));
    ck_assert_int_eq(clattn_plan_get_tuning(plan, line, sizeof line), CLATTN_STATUS_NO_DEVICE);
    clattn_plan_release(plan);
    plan = tuned_plan("", CLATTN_PATH_DEVICE, 0, 0);
    ck_assert_int_eq(clattn_plan_get_tuning(plan, line, 20), CLATTN_STATUS_INVALID_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "size is 20; the line takes "));
    ck_assert_int_eq(clattn_plan_get_tuning(NULL, line, sizeof line), CLATTN_STATUS_INVALID_ARGUMENT);
    ck_assert_int_eq(clattn_plan_get_tuning(plan, NULL, sizeof line), CLATTN_STATUS_INVALID_ARGUMENT);
    ck_assert(line[0] == 'x' && line[19] == 'x');
    clattn_plan_release(plan);
}
END_TEST

static TCase *add_case(Suite *s, const char *name)
{
    TCase *t = tcase_create(name);
    tcase_set_timeout(t, 300);
    suite_add_tcase(s, t);
    return t;
}

Suite *test_suite(void)
{
    const char *child = getenv(CHILD);
    if (child && !strcmp(child, "devices")) child_without_devices();
    Suite *s = suite_create("opencl");
    TCase *t = add_case(s, "queues and events");
    tcase_add_loop_test(t, in_order_queue, 0, N_KERNELS);
    tcase_add_test(t, workspace_refused);
    tcase_add_loop_test(t, out_of_order_queue, 0, N_KERNELS);
    tcase_add_loop_test(t, waits_for_a_user_event, 0, 2 * N_KERNELS);
    tcase_add_loop_test(t, released_while_it_waits, 0, N_KERNELS);
    tcase_add_loop_test(t, two_calls_wait, 0, N_KERNELS);
    tcase_add_loop_test(t, event_that_failed, 0, N_KERNELS);
    tcase_add_loop_test(t, wait_list_refused, 0, N_KERNELS);
    tcase_add_loop_test(t, nothing_to_do, 0, 2 * N_KERNELS);

    t = add_case(s, "buffers");
    tcase_add_loop_test(t, tensors_in_one_buffer, 0, N_KERNELS);
    tcase_add_loop_test(t, sub_buffers, 0, N_KERNELS);
    tcase_add_loop_test(t, numbers_in_buffers, 0, N_KERNELS * N_LENGTHS);
    tcase_add_test(t, numbers_refused);
    tcase_add_loop_test(t, tensor_refused, 0, N_TENSORS * N_WRONGS);
    tcase_add_loop_test(t, tensor_absent, 0, 4);
    tcase_add_loop_test(t, lse_may_be_absent, 0, N_KERNELS);
    tcase_add_test(t, outputs_overlap);

    t = add_case(s, "handles");
    tcase_add_test(t, handles_refused);
    tcase_add_test(t, plan_of_the_host);
    tcase_add_test(t, auto_plan_of_the_app);
    tcase_add_test(t, context_of_clattn);
    tcase_add_test(t, get_cl);
    tcase_add_test(t, create_from_cl_refused);
    tcase_add_test(t, device_of_another_context);
    tcase_add_loop_test(t, reference_counts, 0, N_KERNELS);

    t = add_case(s, "devices");
    tcase_add_test(t, devices_by_index_and_name);
    tcase_add_test(t, device_unknown);
    tcase_add_loop_test(t, copied_transfers, 0, 2 * N_KERNELS);
    tcase_add_loop_test(t, peak_memory, 0, 2);
    tcase_add_test(t, without_devices);

    t = add_case(s, "tuning");
    tcase_add_test(t, tuning_order);
    tcase_add_test(t, tuning_broken);
    tcase_add_test(t, tuning_of_the_host);
    return s;
}
