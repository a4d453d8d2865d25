#include "run.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../cl/args.clh"

enum { GROUPS_MAX = 1 << 30 }; /* of one launch */

/* ---- launch */

static attn_args args_make(const problem *p, const launch_buffers *b, const device_choice *choice)
{
    const int block_q = choice->axes[AXIS_BLOCK_Q];
    const tensor_shape *t = p->tensor;
    const attn_args a = {
        .q_batch = t[TENSOR_Q].stride[0],
        .q_head = t[TENSOR_Q].stride[1],
        .q_row = t[TENSOR_Q].stride[2],
        .k_batch = t[TENSOR_K].stride[0],
        .k_head = t[TENSOR_K].stride[1],
        .k_row = t[TENSOR_K].stride[2],
        .v_batch = t[TENSOR_V].stride[0],
        .v_head = t[TENSOR_V].stride[1],
        .v_row = t[TENSOR_V].stride[2],
        .o_batch = t[TENSOR_O].stride[0],
        .o_head = t[TENSOR_O].stride[1],
        .o_row = t[TENSOR_O].stride[2],
        .lse_batch = t[TENSOR_LSE].stride[0],
        .lse_head = t[TENSOR_LSE].stride[1],
        .lse_row = t[TENSOR_LSE].stride[2],
        .q_at = b->at[TENSOR_Q],
        .k_at = b->at[TENSOR_K],
        .v_at = b->at[TENSOR_V],
        .o_at = b->at[TENSOR_O],
        .lse_at = b->at[TENSOR_LSE],
        .bias_batch = t[TENSOR_BIAS].stride[0],
        .bias_head = t[TENSOR_BIAS].stride[1],
        .bias_q = t[TENSOR_BIAS].stride[2],
        .bias_kv = t[TENSOR_BIAS].stride[3],
        .mask_batch = t[TENSOR_MASK].stride[0],
        .mask_head = t[TENSOR_MASK].stride[1],
        .mask_q = t[TENSOR_MASK].stride[2],
        .mask_kv = t[TENSOR_MASK].stride[3],
        .bias_at = b->at[TENSOR_BIAS],
        .mask_at = b->at[TENSOR_MASK],
        .alibi_at = b->at[TENSOR_ALIBI],
        .sinks_at = b->at[TENSOR_SINKS],
        .score_data_at = b->at[TENSOR_SCORE_DATA],
        .kv_lengths_at = b->at[TENSOR_KV_LENGTHS],
        .query_offsets_at = b->at[TENSOR_QUERY_OFFSETS],
        .cu_seqlens_q_at = b->at[TENSOR_CU_Q],
        .cu_seqlens_kv_at = b->at[TENSOR_CU_KV],
        .total_q = p->total_q,
        .total_kv = p->total_kv,
        .window_left = p->window_left,
        .window_right = p->window_right,
        .n_q = (int)p->n_q,
        .n_kv = (int)p->n_kv,
        .n_heads_q = (int)p->n_heads_q,
        .gqa_group = (int)p->gqa_group,
        .n_tiles = choice->chunks ? choice->chunks
                   : p->n_q       ? (int)((p->n_q + block_q - 1) / block_q)
                                  : 1,
        .partial_chunk = choice->partial_chunk,
        .has_lse = b->tensor[TENSOR_LSE] != NULL,
        .alibi_per_batch = p->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD,
        .dropout_threshold = (u32)(p->dropout * 4294967296.0),
        .dropout_key0 = b->dropout_key[0],
        .dropout_key1 = b->dropout_key[1],
    };
    return a;
}

/* Sets every argument and enqueues; the kernel's lock is held. */
static clattn_status enqueue_locked(const device_plan *plan, const device_kernel *k, const problem *p,
                                    cl_command_queue queue, const launch_buffers *b, const attn_args *a, size_t groups,
                                    cl_uint n_wait, const cl_event *wait_list, cl_event *event)
{
    cl_kernel kernel = k->kernel;
    const double scale = problem_is_scored(p) ? p->scale : p->scale * 1.44269504088896340736;
    const double numbers[3] = {scale, p->softcap, 1 / (1 - p->dropout)};
    cl_uint n = 0;
    for (int i = 0; i < TENSOR_COUNT; i++)
        RETURN_IF_CL("clSetKernelArg", clSetKernelArg(kernel, n++, sizeof(cl_mem), &b->tensor[i]));
    for (int i = 0; i < 3; i++) {
        const float number_f32 = (float)numbers[i];
        const bool is_f64 = p->dtype == CLATTN_DTYPE_F64;
        RETURN_IF_CL("clSetKernelArg", clSetKernelArg(kernel, n++, is_f64 ? sizeof numbers[i] : sizeof number_f32,
                                                      is_f64 ? (const void *)&numbers[i] : (const void *)&number_f32));
    }
    RETURN_IF_CL("clSetKernelArg", clSetKernelArg(kernel, n++, sizeof *a, a));
    if (plan->merge) RETURN_IF_CL("clSetKernelArg", clSetKernelArg(kernel, n++, sizeof(cl_mem), &b->workspace));
    const size_t local = (size_t)plan->choice.work_group_size, global = groups * local;
    RETURN_IF_CL("clEnqueueNDRangeKernel",
                 clEnqueueNDRangeKernel(queue, kernel, 1, NULL, &global, &local, n_wait, wait_list, event));
    return CLATTN_STATUS_SUCCESS;
}

/* One kernel over all its work-groups, in as many launches as that takes, one after the other. */
static clattn_status launch_kernel(const device_plan *plan, device_kernel *k, const problem *p, cl_command_queue queue,
                                   const launch_buffers *b, attn_args *a, int64_t groups, cl_uint n_wait,
                                   const cl_event *wait_list, cl_event *event)
{
    cl_event last = NULL;
    for (a->first_group = 0; a->first_group < groups; a->first_group += GROUPS_MAX) {
        const int64_t left = groups - a->first_group;
        const bool is_last = left <= GROUPS_MAX;
        cl_event done = NULL;
        pthread_mutex_lock(&k->lock);
        const clattn_status status =
            enqueue_locked(plan, k, p, queue, b, a, (size_t)(is_last ? left : GROUPS_MAX), last ? 1 : n_wait,
                           last ? &last : wait_list, is_last ? event : &done);
        pthread_mutex_unlock(&k->lock);
        if (last) clReleaseEvent(last);
        last = done;
        FORWARD(status);
    }
    return CLATTN_STATUS_SUCCESS;
}

static void CL_CALLBACK release_event(cl_event event, cl_int status, void *user)
{
    (void)status, (void)user;
    clReleaseEvent(event);
}

clattn_status clattn__launch(device_plan *plan, const problem *p, cl_command_queue queue, const launch_buffers *b,
                             cl_uint n_wait, const cl_event *wait_list, cl_event *event)
{
    attn_args a = args_make(p, b, &plan->choice);
    const int64_t rows = p->batch * p->n_heads_q * p->n_q;
    const int64_t heads = p->batch * (plan->choice.chunks ? p->n_heads_kv : p->n_heads_q);
    const int64_t groups = p->n_q ? a.n_tiles * heads : 1;
    if (!plan->merge) return launch_kernel(plan, plan->kernel, p, queue, b, &a, groups, n_wait, wait_list, event);
    cl_event partials = NULL;
    FORWARD(launch_kernel(plan, plan->kernel, p, queue, b, &a, groups, n_wait, wait_list, &partials));
    const clattn_status status =
        launch_kernel(plan, plan->merge, p, queue, b, &a, p->n_q ? rows : 1, 1, &partials, event);
    /* PoCL 3.1 aborts when what an event waits for fails and nobody holds it: hold it until then. */
    if (clSetEventCallback(partials, CL_COMPLETE, release_event, NULL) != CL_SUCCESS) clReleaseEvent(partials);
    return status;
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
    FORWARD(clattn__device_check_process(d));
    device_plan *plan = calloc(1, sizeof *plan);
    RETURN_IF(!plan, OUT_OF_HOST_MEMORY, "no room for a plan");
    plan->device = d;
    plan->choice = *choice;
    const char *merge = clattn__plan_merge_kernel(choice->kernel);
    clattn_status status = clattn__device_kernel(d, context, clattn_kernel_name(choice->kernel), choice, &plan->kernel);
    if (status == CLATTN_STATUS_SUCCESS && merge)
        status = clattn__device_kernel(d, context, merge, choice, &plan->merge);
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
    if (plan->fixed && plan->device->owner == getpid()) clReleaseMemObject(plan->fixed);
    free(plan);
}

/* ---- host pointers */

/* A stretch of the caller's memory that the kernel works in. Stretches that overlap share one cl_mem. */
typedef struct stretch {
    char *begin, *end; /* NULL: absent */
    cl_mem mem;
    bool owns_mem;
    int64_t at; /* bytes from the start of mem */
} stretch;

static void stretches_find(const problem *p, const clattn_forward_args *args, stretch s[TENSOR_COUNT])
{
    memset(s, 0, sizeof(stretch) * TENSOR_COUNT);
    for (tensor_name i = 0; i < TENSOR_COUNT; i++) {
        s[i].begin = p->tensor[i].bytes ? clattn__args_host(args, i) : NULL;
        s[i].end = s[i].begin ? s[i].begin + p->tensor[i].bytes : NULL;
    }
}

static void stretches_free(stretch s[TENSOR_COUNT])
{
    for (int i = 0; i < TENSOR_COUNT; i++)
        if (s[i].mem && s[i].owns_mem) clReleaseMemObject(s[i].mem);
}

/* One cl_mem over each cluster of overlapping stretches. *must_copy: a cluster is beyond one allocation, or holds a
 * tensor at a place that its elements do not divide, or an output has gaps, which are others' to write meanwhile. */
static clattn_status stretches_share(const device_plan *plan, const problem *p, stretch s[TENSOR_COUNT],
                                     bool *must_copy)
{
    *must_copy = !p->tensor[TENSOR_O].gapless || !p->tensor[TENSOR_LSE].gapless;
    for (int i = 0; i < TENSOR_COUNT && !*must_copy; i++) {
        if (!s[i].begin || s[i].mem) continue;
        char *begin = s[i].begin, *end = s[i].end;
        bool written = false;
        for (bool grown = true; grown;) {
            grown = false;
            for (int j = i + 1; j < TENSOR_COUNT; j++) {
                if (!s[j].begin || s[j].mem || s[j].begin >= end || begin >= s[j].end) continue;
                if (s[j].begin < begin) begin = s[j].begin, grown = true;
                if (s[j].end > end) end = s[j].end, grown = true;
            }
        }
        *must_copy = end - begin > plan->device->profile.max_alloc_bytes;
        for (int j = i; j < TENSOR_COUNT; j++)
            if (s[j].begin && s[j].begin < end && begin < s[j].end)
                *must_copy |= (s[j].begin - begin) % (int64_t)p->tensor[j].size != 0;
        if (*must_copy) return CLATTN_STATUS_SUCCESS;
        for (int j = i; j < TENSOR_COUNT; j++)
            written |= (j == TENSOR_O || j == TENSOR_LSE) && s[j].begin && s[j].begin < end && begin < s[j].end;
        cl_int code;
        const cl_mem_flags flags = CL_MEM_USE_HOST_PTR | (written ? CL_MEM_READ_WRITE : CL_MEM_READ_ONLY);
        cl_mem mem = clCreateBuffer(plan->device->cl, flags, (size_t)(end - begin), begin, &code);
        RETURN_IF_CL("clCreateBuffer", code);
        s[i].owns_mem = true;
        for (int j = i; j < TENSOR_COUNT; j++) {
            if (!s[j].begin || s[j].mem || s[j].begin >= end || begin >= s[j].end) continue;
            s[j].mem = mem;
            s[j].at = s[j].begin - begin;
        }
    }
    return CLATTN_STATUS_SUCCESS;
}

/* The driver's word that what it wrote is in the caller's memory, enqueued behind the kernel. *done: for the last of them;
 * what it held before is released. */
static clattn_status enqueue_map_back(const device_plan *plan, const stretch *s, cl_event *done)
{
    cl_int code;
    cl_event mapped, unmapped;
    if (!s->mem) return CLATTN_STATUS_SUCCESS;
    void *at = clEnqueueMapBuffer(plan->device->queue, s->mem, CL_FALSE, CL_MAP_READ, (size_t)s->at,
                                  (size_t)(s->end - s->begin), 1, done, &mapped, &code);
    RETURN_IF_CL("clEnqueueMapBuffer", code);
    clReleaseEvent(*done);
    *done = mapped;
    RETURN_IF_CL("clEnqueueUnmapMemObject",
                 clEnqueueUnmapMemObject(plan->device->queue, s->mem, at, 1, &mapped, &unmapped));
    clReleaseEvent(mapped);
    *done = unmapped;
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status wait_and_release(const device_plan *plan, cl_event done)
{
    const cl_int code = clWaitForEvents(1, &done);
    clReleaseEvent(done);
    if (code != CL_SUCCESS) clFinish(plan->device->queue); /* nothing may still write the caller's memory */
    RETURN_IF_CL("clWaitForEvents", code);
    return CLATTN_STATUS_SUCCESS;
}

void clattn__launch_numbers(launch_buffers *b, const device_plan *plan, const problem *p,
                            const clattn_forward_args *args)
{
    const uint64_t seed = args->dropout_seed, offset = args->dropout_offset;
    const philox_block key = philox((u32)offset, (u32)(offset >> 32), 0, 0, (u32)seed, (u32)(seed >> 32));
    b->dropout_key[0] = key.x[0];
    b->dropout_key[1] = key.x[1];
    if (!p->kv_length_per_batch) {
        b->tensor[TENSOR_KV_LENGTHS] = plan->fixed;
        b->at[TENSOR_KV_LENGTHS] = 0;
    }
    if (!p->query_offset_per_batch) {
        b->tensor[TENSOR_QUERY_OFFSETS] = plan->fixed;
        b->at[TENSOR_QUERY_OFFSETS] = p->batch;
    }
}

/* Enqueued commands keep the workspace alive after its release here. */
static clattn_status launch(device_plan *plan, const problem *p, const clattn_forward_args *args,
                            const stretch s[TENSOR_COUNT], cl_event *done)
{
    launch_buffers b = {0};
    cl_int code = CL_SUCCESS;
    for (int i = 0; i < TENSOR_COUNT; i++) {
        b.tensor[i] = s[i].mem;
        b.at[i] = s[i].mem ? s[i].at / (int64_t)p->tensor[i].size : 0;
    }
    clattn__launch_numbers(&b, plan, p, args);
    if (plan->choice.workspace_bytes)
        b.workspace =
            clCreateBuffer(plan->device->cl, CL_MEM_READ_WRITE, (size_t)plan->choice.workspace_bytes, NULL, &code);
    RETURN_IF_CL("clCreateBuffer", code);
    const clattn_status status = clattn__launch(plan, p, plan->device->queue, &b, 0, NULL, done);
    if (b.workspace) clReleaseMemObject(b.workspace);
    return status;
}

/* A failure after outputs were written is no want of memory, which promises that nothing was. */
static clattn_status late(clattn_status status)
{
    if (status != CLATTN_STATUS_OUT_OF_HOST_MEMORY && status != CLATTN_STATUS_OUT_OF_DEVICE_MEMORY) return status;
    error_state error;
    clattn__error_save(&error);
    return clattn__fail(CLATTN_STATUS_OPENCL_ERROR, error.cl_error, "after the kernel ran: %.900s", error.message);
}

static clattn_status forward_in_place(device_plan *plan, const problem *p, const clattn_forward_args *args,
                                      const stretch s[TENSOR_COUNT])
{
    cl_event done; /* of the last command: one wait for all */
    FORWARD(launch(plan, p, args, s, &done));
    clattn_status status = late(enqueue_map_back(plan, &s[TENSOR_O], &done));
    if (status == CLATTN_STATUS_SUCCESS) status = late(enqueue_map_back(plan, &s[TENSOR_LSE], &done));
    const clattn_status waited = wait_and_release(plan, done);
    return status == CLATTN_STATUS_SUCCESS ? waited : status;
}

/* ---- host pointers, copied: without gaps on the device, whatever the caller's strides */

typedef enum copy_direction { COPY_IN, COPY_OUT } copy_direction;

/* Row by row between the caller's strides and the mapped copy, whose strides are `dense`. */
static void copy_rows(const tensor_shape *t, const int64_t dense[4], char *caller, char *copy, copy_direction direction)
{
    int64_t n[4]; /* a dimension that is broadcast has one copy */
    for (int i = 0; i < 4; i++) n[i] = t->stride[i] ? t->count[i] : 1;
    const bool whole_rows = t->stride[3] == 1 || n[3] == 1;
    const size_t size = t->size, row = whole_rows ? size * (size_t)n[3] : size;
    for (int64_t a = 0; a < n[0]; a++)
        for (int64_t b = 0; b < n[1]; b++)
            for (int64_t c = 0; c < n[2]; c++)
                for (int64_t d = 0; d < (whole_rows ? 1 : n[3]); d++) {
                    const int64_t from = tensor_at(t, a, b, c) + d * t->stride[3];
                    const int64_t to = a * dense[0] + b * dense[1] + c * dense[2] + d * dense[3];
                    char *x = caller + from * (int64_t)size, *y = copy + to * (int64_t)size;
                    memcpy(direction == COPY_IN ? y : x, direction == COPY_IN ? x : y, row);
                }
}

static clattn_status copy_tensor(const device_plan *plan, const tensor_shape *t, char *caller, cl_mem mem,
                                 copy_direction direction)
{
    cl_int code;
    cl_event done;
    int64_t dense[4];
    const size_t bytes = (size_t)clattn__tensor_copy_bytes(t);
    clattn__tensor_copy_strides(t, dense);
    char *copy = clEnqueueMapBuffer(plan->device->queue, mem, CL_TRUE,
                                    direction == COPY_IN ? CL_MAP_WRITE_INVALIDATE_REGION : CL_MAP_READ, 0, bytes, 0,
                                    NULL, NULL, &code);
    RETURN_IF_CL("clEnqueueMapBuffer", code);
    copy_rows(t, dense, caller, copy, direction);
    RETURN_IF_CL("clEnqueueUnmapMemObject", clEnqueueUnmapMemObject(plan->device->queue, mem, copy, 0, NULL, &done));
    code = clWaitForEvents(1, &done);
    clReleaseEvent(done);
    RETURN_IF_CL("clWaitForEvents", code);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status forward_copied(device_plan *plan, const problem *given, const clattn_forward_args *args,
                                    const stretch caller[TENSOR_COUNT], stretch s[TENSOR_COUNT])
{
    problem p = *given;
    cl_int code;
    for (int i = 0; i < TENSOR_COUNT; i++) {
        if (!caller[i].begin) continue;
        clattn__tensor_copy_strides(&given->tensor[i], p.tensor[i].stride);
        s[i].mem = clCreateBuffer(plan->device->cl, CL_MEM_READ_WRITE,
                                  (size_t)clattn__tensor_copy_bytes(&given->tensor[i]), NULL, &code);
        RETURN_IF_CL("clCreateBuffer", code);
        s[i].owns_mem = true;
        if (i != TENSOR_O && i != TENSOR_LSE)
            FORWARD(copy_tensor(plan, &given->tensor[i], caller[i].begin, s[i].mem, COPY_IN));
    }
    cl_event done;
    FORWARD(launch(plan, &p, args, s, &done));
    FORWARD(wait_and_release(plan, done));
    FORWARD(late(copy_tensor(plan, &given->tensor[TENSOR_O], caller[TENSOR_O].begin, s[TENSOR_O].mem, COPY_OUT)));
    if (!s[TENSOR_LSE].mem) return CLATTN_STATUS_SUCCESS;
    return late(copy_tensor(plan, &given->tensor[TENSOR_LSE], caller[TENSOR_LSE].begin, s[TENSOR_LSE].mem, COPY_OUT));
}

clattn_status clattn__device_forward(device_plan *plan, const problem *p, const clattn_forward_args *args, bool copy)
{
    if (p->tensor[TENSOR_O].bytes == 0) return CLATTN_STATUS_SUCCESS;
    FORWARD(clattn__device_check_process(plan->device));
    stretch caller[TENSOR_COUNT], s[TENSOR_COUNT] = {{0}};
    stretches_find(p, args, caller);
    bool must_copy = false;
    clattn_status status = CLATTN_STATUS_SUCCESS;
    copy = copy || !plan->device->profile.shares_host_memory;
    if (!copy) {
        memcpy(s, caller, sizeof s);
        status = stretches_share(plan, p, s, &must_copy);
        if (status == CLATTN_STATUS_SUCCESS && !must_copy) status = forward_in_place(plan, p, args, s);
        if (must_copy) {
            stretches_free(s);
            memset(s, 0, sizeof s);
        }
    }
    if (copy || must_copy) status = forward_copied(plan, p, args, caller, s);
    if (status != CLATTN_STATUS_SUCCESS)
        clFinish(plan->device->queue); /* what was enqueued still reads the caller's memory */
    stretches_free(s);
    return status;
}
