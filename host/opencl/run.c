#include "run.h"

#include <stdlib.h>
#include <string.h>

#include "../../cl/args.clh"

enum { GROUPS_MAX = 1 << 30 }; /* of one launch */

/* ---- launch */

static attn_args args_make(const problem *p, const launch_buffers *b, int block_q)
{
    const tensor_shape *t = p->tensor;
    const attn_args a = {
        .q_batch = t[TENSOR_Q].strides.batch,
        .q_head = t[TENSOR_Q].strides.head,
        .q_row = t[TENSOR_Q].strides.seq,
        .k_batch = t[TENSOR_K].strides.batch,
        .k_head = t[TENSOR_K].strides.head,
        .k_row = t[TENSOR_K].strides.seq,
        .v_batch = t[TENSOR_V].strides.batch,
        .v_head = t[TENSOR_V].strides.head,
        .v_row = t[TENSOR_V].strides.seq,
        .o_batch = t[TENSOR_O].strides.batch,
        .o_head = t[TENSOR_O].strides.head,
        .o_row = t[TENSOR_O].strides.seq,
        .lse_batch = t[TENSOR_LSE].strides.batch,
        .lse_head = t[TENSOR_LSE].strides.head,
        .lse_row = t[TENSOR_LSE].strides.seq,
        .q_at = b->at[TENSOR_Q],
        .k_at = b->at[TENSOR_K],
        .v_at = b->at[TENSOR_V],
        .o_at = b->at[TENSOR_O],
        .lse_at = b->at[TENSOR_LSE],
        .kv_lengths_at = b->kv_lengths_at,
        .query_offsets_at = b->query_offsets_at,
        .window_left = p->window_left,
        .window_right = p->window_right,
        .n_q = (int)p->n_q,
        .n_kv = (int)p->n_kv,
        .n_heads_q = (int)p->n_heads_q,
        .gqa_group = (int)p->gqa_group,
        .n_tiles = p->n_q ? (int)((p->n_q + block_q - 1) / block_q) : 1,
        .has_lse = b->tensor[TENSOR_LSE] != NULL,
    };
    return a;
}

/* Sets every argument and enqueues; the kernel's lock is held. */
static clattn_status enqueue_locked(device_plan *plan, const problem *p, cl_command_queue queue,
                                    const launch_buffers *b, const attn_args *a, size_t groups, cl_uint n_wait,
                                    const cl_event *wait_list, cl_event *event)
{
    cl_kernel kernel = plan->kernel->kernel;
    const double scale_log2 = p->scale * 1.44269504088896340736;
    const float scale_log2_f32 = (float)scale_log2;
    const bool is_f64 = p->dtype == CLATTN_DTYPE_F64;
    cl_uint n = 0;
    for (int i = 0; i < TENSOR_COUNT; i++)
        RETURN_IF_CL("clSetKernelArg", clSetKernelArg(kernel, n++, sizeof(cl_mem), &b->tensor[i]));
    RETURN_IF_CL("clSetKernelArg", clSetKernelArg(kernel, n++, sizeof(cl_mem), &b->kv_lengths));
    RETURN_IF_CL("clSetKernelArg", clSetKernelArg(kernel, n++, sizeof(cl_mem), &b->query_offsets));
    RETURN_IF_CL("clSetKernelArg", clSetKernelArg(kernel, n++, is_f64 ? sizeof scale_log2 : sizeof scale_log2_f32,
                                                  is_f64 ? (const void *)&scale_log2 : (const void *)&scale_log2_f32));
    RETURN_IF_CL("clSetKernelArg", clSetKernelArg(kernel, n++, sizeof *a, a));
    const size_t local = (size_t)plan->choice.work_group_size, global = groups * local;
    RETURN_IF_CL("clEnqueueNDRangeKernel",
                 clEnqueueNDRangeKernel(queue, kernel, 1, NULL, &global, &local, n_wait, wait_list, event));
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__launch(device_plan *plan, const problem *p, cl_command_queue queue, const launch_buffers *b,
                             cl_uint n_wait, const cl_event *wait_list, cl_event *event)
{
    attn_args a = args_make(p, b, plan->choice.axes[AXIS_BLOCK_Q]);
    const int64_t groups = p->n_q ? (int64_t)a.n_tiles * p->batch * p->n_heads_q : 1;
    cl_event last = NULL; /* a launch that needs several parts chains them */
    for (a.first_group = 0; a.first_group < groups; a.first_group += GROUPS_MAX) {
        const int64_t left = groups - a.first_group;
        const bool is_last = left <= GROUPS_MAX;
        cl_event done = NULL;
        pthread_mutex_lock(&plan->kernel->lock);
        const clattn_status status =
            enqueue_locked(plan, p, queue, b, &a, (size_t)(is_last ? left : GROUPS_MAX), last ? 1 : n_wait,
                           last ? &last : wait_list, is_last ? event : &done);
        pthread_mutex_unlock(&plan->kernel->lock);
        if (last) clReleaseEvent(last);
        last = done;
        FORWARD(status);
    }
    return CLATTN_STATUS_SUCCESS;
}

/* ---- plan */

/* Some drivers compile at the first enqueue: have that behind us, and know that the kernel runs. n_q = 0 touches no
 * memory. */
static clattn_status trial_launch(device_plan *plan, const problem *p)
{
    problem nothing = *p;
    const launch_buffers none = {0};
    cl_event done;
    nothing.n_q = 0;
    FORWARD(clattn__launch(plan, &nothing, plan->device->queue, &none, 0, NULL, &done));
    const cl_int code = clWaitForEvents(1, &done);
    clReleaseEvent(done);
    RETURN_IF_CL("clWaitForEvents", code);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status fixed_make(device_plan *plan, const problem *p)
{
    const size_t n = (size_t)p->batch, bytes = 2 * n * sizeof(int64_t);
    int64_t *values = malloc(bytes);
    RETURN_IF(!values, OUT_OF_HOST_MEMORY, "no room for the lengths of %zu batch entries", n);
    for (size_t i = 0; i < n; i++) {
        values[i] = p->kv_length;
        values[n + i] = p->query_offset;
    }
    cl_int code;
    plan->fixed = clCreateBuffer(plan->device->cl, CL_MEM_READ_ONLY | CL_MEM_COPY_HOST_PTR, bytes, values, &code);
    free(values);
    RETURN_IF_CL("clCreateBuffer", code);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__device_plan_create(struct device *d, clattn_context *context, const problem *p,
                                         const device_choice *choice, device_plan **out)
{
    device_plan *plan = calloc(1, sizeof *plan);
    RETURN_IF(!plan, OUT_OF_HOST_MEMORY, "no room for a plan");
    plan->device = d;
    plan->choice = *choice;
    clattn_status status = clattn__device_kernel(d, context, choice, &plan->kernel);
    if (status == CLATTN_STATUS_SUCCESS) status = trial_launch(plan, p);
    if (status == CLATTN_STATUS_SUCCESS) status = fixed_make(plan, p);
    if (status != CLATTN_STATUS_SUCCESS) {
        clattn__device_plan_free(plan);
        return status;
    }
    *out = plan;
    return CLATTN_STATUS_SUCCESS;
}

void clattn__device_plan_free(device_plan *plan)
{
    if (!plan) return;
    if (plan->fixed) clReleaseMemObject(plan->fixed);
    free(plan);
}

/* ---- host pointers */

enum { PART_KV_LENGTHS = TENSOR_COUNT, PART_QUERY_OFFSETS, PART_COUNT };

/* A stretch of the caller's memory that the kernel works in. Stretches that overlap share one cl_mem. */
typedef struct stretch {
    char *begin, *end; /* NULL: absent */
    cl_mem mem;
    bool owns_mem;
    int64_t at; /* bytes from the start of mem */
} stretch;

static void stretches_find(const problem *p, const clattn_forward_args *args, stretch s[PART_COUNT])
{
    memset(s, 0, sizeof(stretch) * PART_COUNT);
    for (tensor_name i = 0; i < TENSOR_COUNT; i++) {
        const clattn_buffer *b = clattn__args_buffer(args, i);
        if (!b->host || !p->tensor[i].bytes) continue;
        s[i].begin = (char *)b->host + b->offset;
        s[i].end = s[i].begin + p->tensor[i].bytes;
    }
    const clattn_buffer *const numbers[] = {&args->kv_lengths, &args->query_offsets};
    const int given[] = {p->kv_length_per_batch, p->query_offset_per_batch};
    for (int i = 0; i < 2; i++) {
        if (!given[i]) continue;
        s[TENSOR_COUNT + i].begin = (char *)numbers[i]->host + numbers[i]->offset;
        s[TENSOR_COUNT + i].end = s[TENSOR_COUNT + i].begin + p->batch * (int64_t)sizeof(int64_t);
    }
}

static void stretches_free(stretch s[PART_COUNT])
{
    for (int i = 0; i < PART_COUNT; i++)
        if (s[i].mem && s[i].owns_mem) clReleaseMemObject(s[i].mem);
}

/* One cl_mem over each cluster of overlapping stretches. *too_large: a cluster is beyond one allocation. */
static clattn_status stretches_share(const device_plan *plan, stretch s[PART_COUNT], bool *too_large)
{
    *too_large = false;
    for (int i = 0; i < PART_COUNT; i++) {
        if (!s[i].begin || s[i].mem) continue;
        char *begin = s[i].begin, *end = s[i].end;
        bool written = false;
        for (bool grown = true; grown;) {
            grown = false;
            for (int j = i + 1; j < PART_COUNT; j++) {
                if (!s[j].begin || s[j].mem || s[j].begin >= end || begin >= s[j].end) continue;
                if (s[j].begin < begin) begin = s[j].begin, grown = true;
                if (s[j].end > end) end = s[j].end, grown = true;
            }
        }
        *too_large = end - begin > plan->device->profile.max_alloc_bytes;
        if (*too_large) return CLATTN_STATUS_SUCCESS;
        for (int j = i; j < PART_COUNT; j++)
            written |= (j == TENSOR_O || j == TENSOR_LSE) && s[j].begin && s[j].begin < end && begin < s[j].end;
        cl_int code;
        const cl_mem_flags flags = CL_MEM_USE_HOST_PTR | (written ? CL_MEM_READ_WRITE : CL_MEM_READ_ONLY);
        cl_mem mem = clCreateBuffer(plan->device->cl, flags, (size_t)(end - begin), begin, &code);
        RETURN_IF_CL("clCreateBuffer", code);
        s[i].owns_mem = true;
        for (int j = i; j < PART_COUNT; j++) {
            if (!s[j].begin || s[j].mem || s[j].begin >= end || begin >= s[j].end) continue;
            s[j].mem = mem;
            s[j].at = s[j].begin - begin;
        }
    }
    return CLATTN_STATUS_SUCCESS;
}

/* The driver's word that what it wrote is in the caller's memory. */
static clattn_status map_back(const device_plan *plan, const stretch *s)
{
    cl_int code;
    cl_event done;
    const size_t bytes = (size_t)(s->end - s->begin);
    void *at = clEnqueueMapBuffer(plan->device->queue, s->mem, CL_TRUE, CL_MAP_READ, (size_t)s->at, bytes, 0, NULL,
                                  NULL, &code);
    RETURN_IF_CL("clEnqueueMapBuffer", code);
    RETURN_IF_CL("clEnqueueUnmapMemObject", clEnqueueUnmapMemObject(plan->device->queue, s->mem, at, 0, NULL, &done));
    code = clWaitForEvents(1, &done);
    clReleaseEvent(done);
    RETURN_IF_CL("clWaitForEvents", code);
    return CLATTN_STATUS_SUCCESS;
}

static launch_buffers buffers_of(const device_plan *plan, const problem *p, const stretch s[PART_COUNT])
{
    launch_buffers b = {0};
    for (int i = 0; i < TENSOR_COUNT; i++) {
        b.tensor[i] = s[i].mem;
        b.at[i] = s[i].at / (int64_t)p->tensor[i].size;
    }
    const stretch *lengths = &s[PART_KV_LENGTHS], *offsets = &s[PART_QUERY_OFFSETS];
    b.kv_lengths = lengths->mem ? lengths->mem : plan->fixed;
    b.kv_lengths_at = lengths->at / (int64_t)sizeof(int64_t);
    b.query_offsets = offsets->mem ? offsets->mem : plan->fixed;
    b.query_offsets_at = offsets->mem ? offsets->at / (int64_t)sizeof(int64_t) : p->batch;
    return b;
}

static clattn_status launch_and_wait(device_plan *plan, const problem *p, const stretch s[PART_COUNT])
{
    const launch_buffers b = buffers_of(plan, p, s);
    cl_event done;
    FORWARD(clattn__launch(plan, p, plan->device->queue, &b, 0, NULL, &done));
    const cl_int code = clWaitForEvents(1, &done);
    clReleaseEvent(done);
    RETURN_IF_CL("clWaitForEvents", code);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status forward_in_place(device_plan *plan, const problem *p, const stretch s[PART_COUNT])
{
    FORWARD(launch_and_wait(plan, p, s));
    FORWARD(map_back(plan, &s[TENSOR_O]));
    return s[TENSOR_LSE].mem ? map_back(plan, &s[TENSOR_LSE]) : CLATTN_STATUS_SUCCESS;
}

/* ---- host pointers, copied: dense [batch, heads, seq, dim] on the device, whatever the caller's strides */

static clattn_strides dense_strides(const tensor_shape *t) { return clattn_strides_bhsd(t->heads, t->seq, t->dim); }

typedef enum copy_direction { COPY_IN, COPY_OUT } copy_direction;

/* Row by row between the caller's strides and the mapped dense copy. */
static void copy_rows(const tensor_shape *t, char *caller, char *dense, copy_direction direction)
{
    const size_t row = (size_t)t->dim * t->size;
    for (int64_t b = 0; b < t->batch; b++)
        for (int64_t h = 0; h < t->heads; h++)
            for (int64_t i = 0; i < t->seq; i++, dense += row) {
                const int64_t at = b * t->strides.batch + h * t->strides.head + i * t->strides.seq;
                char *theirs = caller + at * (int64_t)t->size;
                memcpy(direction == COPY_IN ? dense : theirs, direction == COPY_IN ? theirs : dense, row);
            }
}

static clattn_status copy_tensor(const device_plan *plan, const tensor_shape *t, char *caller, cl_mem mem,
                                 copy_direction direction)
{
    cl_int code;
    cl_event done;
    const size_t bytes = (size_t)(t->batch * t->heads * t->seq * t->dim) * t->size;
    char *dense = clEnqueueMapBuffer(plan->device->queue, mem, CL_TRUE,
                                     direction == COPY_IN ? CL_MAP_WRITE : CL_MAP_READ, 0, bytes, 0, NULL, NULL, &code);
    RETURN_IF_CL("clEnqueueMapBuffer", code);
    copy_rows(t, caller, dense, direction);
    RETURN_IF_CL("clEnqueueUnmapMemObject", clEnqueueUnmapMemObject(plan->device->queue, mem, dense, 0, NULL, &done));
    code = clWaitForEvents(1, &done);
    clReleaseEvent(done);
    RETURN_IF_CL("clWaitForEvents", code);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status forward_copied(device_plan *plan, const problem *given, const stretch caller[PART_COUNT],
                                    stretch s[PART_COUNT])
{
    problem p = *given;
    cl_int code;
    for (int i = 0; i < PART_COUNT; i++) {
        if (!caller[i].begin) continue;
        size_t bytes = (size_t)(caller[i].end - caller[i].begin);
        if (i < TENSOR_COUNT) {
            tensor_shape *t = &p.tensor[i];
            t->strides = dense_strides(t);
            bytes = (size_t)(t->batch * t->heads * t->seq * t->dim) * t->size;
        }
        s[i].mem = clCreateBuffer(plan->device->cl, CL_MEM_READ_WRITE, bytes, NULL, &code);
        RETURN_IF_CL("clCreateBuffer", code);
        s[i].owns_mem = true;
        if (i < TENSOR_O) FORWARD(copy_tensor(plan, &given->tensor[i], caller[i].begin, s[i].mem, COPY_IN));
        if (i >= TENSOR_COUNT)
            RETURN_IF_CL("clEnqueueWriteBuffer", clEnqueueWriteBuffer(plan->device->queue, s[i].mem, CL_TRUE, 0, bytes,
                                                                      caller[i].begin, 0, NULL, NULL));
    }
    FORWARD(launch_and_wait(plan, &p, s));
    FORWARD(copy_tensor(plan, &given->tensor[TENSOR_O], caller[TENSOR_O].begin, s[TENSOR_O].mem, COPY_OUT));
    if (!s[TENSOR_LSE].mem) return CLATTN_STATUS_SUCCESS;
    return copy_tensor(plan, &given->tensor[TENSOR_LSE], caller[TENSOR_LSE].begin, s[TENSOR_LSE].mem, COPY_OUT);
}

clattn_status clattn__device_forward(device_plan *plan, const problem *p, const clattn_forward_args *args, bool copy)
{
    if (p->n_q == 0) return CLATTN_STATUS_SUCCESS;
    stretch caller[PART_COUNT], s[PART_COUNT] = {{0}};
    stretches_find(p, args, caller);
    bool too_large = false;
    clattn_status status = CLATTN_STATUS_SUCCESS;
    copy = copy || !plan->device->profile.shares_host_memory;
    if (!copy) {
        memcpy(s, caller, sizeof s);
        status = stretches_share(plan, s, &too_large);
        if (status == CLATTN_STATUS_SUCCESS && !too_large) status = forward_in_place(plan, p, s);
        if (too_large) {
            stretches_free(s);
            memset(s, 0, sizeof s);
        }
    }
    if (copy || too_large) status = forward_copied(plan, p, caller, s);
    stretches_free(s);
    return status;
}
