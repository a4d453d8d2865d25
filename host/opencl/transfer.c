/* Calls with host pointers: the kernels work in the caller's memory, or in copies. */
#include <string.h>

#include "run.h"

/* A stretch of the caller's memory that the kernels work in, one for each operand. Stretches that overlap share one
 * cl_mem. */
typedef struct stretch {
    tensor_shape shape; /* as the caller has it */
    bool written;
    char *begin, *end; /* NULL: absent */
    cl_mem mem;
    bool owns_mem;
    int64_t at; /* bytes from the start of mem */
} stretch;

static stretch stretch_of(const tensor_shape *shape, char *begin, bool written)
{
    stretch s = {.shape = *shape, .written = written};
    if (!shape->bytes || !begin) return s;
    s.begin = begin;
    s.end = begin + shape->bytes;
    return s;
}

static void stretches_find(const problem *p, const clattn_forward_args *args, const clattn_backward_args *backward,
                           stretch s[OPERANDS])
{
    memset(s, 0, sizeof(stretch) * OPERANDS);
    for (tensor_name i = 0; i < TENSOR_COUNT; i++)
        s[i] = stretch_of(&p->tensor[i], clattn__args_host(args, i), !backward && (i == TENSOR_O || i == TENSOR_LSE));
    for (gradient_name g = 0; backward && g < GRADIENT_COUNT; g++) {
        const tensor_shape shape = clattn__gradient_shape(p, g);
        s[TENSOR_COUNT + g] = stretch_of(&shape, clattn__gradient_host(backward, g), g >= GRADIENT_FIRST_OUTPUT);
    }
}

static void stretches_free(stretch s[OPERANDS])
{
    for (int i = 0; i < OPERANDS; i++)
        if (s[i].mem && s[i].owns_mem) clReleaseMemObject(s[i].mem);
}

/* One cl_mem over each cluster of overlapping stretches. *must_copy: a cluster is beyond one allocation, or holds a
 * tensor at a place that its elements do not divide, or an output has gaps, which are others' to write meanwhile. */
static clattn_status stretches_share(const device_plan *plan, stretch s[OPERANDS], bool *must_copy)
{
    *must_copy = false;
    for (int i = 0; i < OPERANDS; i++) *must_copy |= s[i].begin && s[i].written && !s[i].shape.gapless;
    for (int i = 0; i < OPERANDS && !*must_copy; i++) {
        if (!s[i].begin || s[i].mem) continue;
        char *begin = s[i].begin, *end = s[i].end;
        bool written = false;
        for (bool grown = true; grown;) {
            grown = false;
            for (int j = i + 1; j < OPERANDS; j++) {
                if (!s[j].begin || s[j].mem || s[j].begin >= end || begin >= s[j].end) continue;
                if (s[j].begin < begin) begin = s[j].begin, grown = true;
                if (s[j].end > end) end = s[j].end, grown = true;
            }
        }
        *must_copy = end - begin > plan->device->profile.max_alloc_bytes;
        for (int j = i; j < OPERANDS; j++) {
            if (!s[j].begin || s[j].begin >= end || begin >= s[j].end) continue;
            *must_copy |= (s[j].begin - begin) % (int64_t)s[j].shape.size != 0;
            written |= s[j].written;
        }
        if (*must_copy) return CLATTN_STATUS_SUCCESS;
        cl_int code;
        const cl_mem_flags flags = CL_MEM_USE_HOST_PTR | (written ? CL_MEM_READ_WRITE : CL_MEM_READ_ONLY);
        cl_mem mem = clCreateBuffer(plan->device->cl, flags, (size_t)(end - begin), begin, &code);
        RETURN_IF_CL("clCreateBuffer", code);
        s[i].owns_mem = true;
        for (int j = i; j < OPERANDS; j++) {
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

/* Enqueued commands keep the workspace alive after its release here. */
static clattn_status launch(device_plan *plan, const problem *p, const clattn_forward_args *args,
                            const stretch s[OPERANDS], cl_event *done)
{
    launch_buffers b = {0};
    cl_int code = CL_SUCCESS;
    for (int i = 0; i < OPERANDS; i++) {
        b.operand[i] = s[i].mem;
        b.at[i] = s[i].mem ? s[i].at / (int64_t)s[i].shape.size : 0;
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

static clattn_status run_in_place(device_plan *plan, const problem *p, const clattn_forward_args *args,
                                  const stretch s[OPERANDS])
{
    cl_event done; /* of the last command: one wait for all */
    FORWARD(launch(plan, p, args, s, &done));
    clattn_status status = CLATTN_STATUS_SUCCESS;
    for (int i = 0; i < OPERANDS && status == CLATTN_STATUS_SUCCESS; i++)
        if (s[i].written) status = clattn__late(enqueue_map_back(plan, &s[i], &done));
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

static clattn_status run_copied(device_plan *plan, const problem *given, const clattn_forward_args *args,
                                const stretch caller[OPERANDS], stretch s[OPERANDS])
{
    problem p = *given;
    cl_int code;
    for (int i = 0; i < TENSOR_COUNT; i++)
        clattn__tensor_copy_strides(&given->tensor[i], p.tensor[i].stride); /* the gradients' too */
    for (int i = 0; i < OPERANDS; i++) {
        if (!caller[i].begin) continue;
        s[i].shape = caller[i].shape;
        s[i].mem = clCreateBuffer(plan->device->cl, CL_MEM_READ_WRITE,
                                  (size_t)clattn__tensor_copy_bytes(&caller[i].shape), NULL, &code);
        RETURN_IF_CL("clCreateBuffer", code);
        s[i].owns_mem = true;
        if (!caller[i].written) FORWARD(copy_tensor(plan, &caller[i].shape, caller[i].begin, s[i].mem, COPY_IN));
    }
    cl_event done;
    FORWARD(launch(plan, &p, args, s, &done));
    FORWARD(wait_and_release(plan, done));
    for (int i = 0; i < OPERANDS; i++)
        if (caller[i].begin && caller[i].written)
            FORWARD(clattn__late(copy_tensor(plan, &caller[i].shape, caller[i].begin, s[i].mem, COPY_OUT)));
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__device_run(device_plan *plan, const problem *p, const clattn_forward_args *args,
                                 const clattn_backward_args *backward, bool copy)
{
    if (!backward && p->tensor[TENSOR_O].bytes == 0) return CLATTN_STATUS_SUCCESS;
    FORWARD(clattn__device_check_process(plan->device));
    stretch caller[OPERANDS], s[OPERANDS];
    stretches_find(p, args, backward, caller);
    memset(s, 0, sizeof s);
    bool must_copy = false;
    clattn_status status = CLATTN_STATUS_SUCCESS;
    copy = copy || !plan->device->profile.shares_host_memory;
    if (!copy) {
        memcpy(s, caller, sizeof s);
        status = stretches_share(plan, s, &must_copy);
        if (status == CLATTN_STATUS_SUCCESS && !must_copy) status = run_in_place(plan, p, args, s);
        if (must_copy) {
            stretches_free(s);
            memset(s, 0, sizeof s);
        }
    }
    if (copy || must_copy) status = run_copied(plan, p, args, caller, s);
    if (status != CLATTN_STATUS_SUCCESS)
        clFinish(plan->device->queue); /* what was enqueued still reads the caller's memory */
    stretches_free(s);
    return status;
}
