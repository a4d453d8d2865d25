/* Copies of tensors in cl_mem, one queue, one work space. */
#include "resident.h"

#include "cli.h"

#if !CLATTN_HAVE_OPENCL
#pragma GCC diagnostic ignored "-Wunused-parameter"

int resident_open(clattn_context *context, resident **r)
{
    *r = NULL;
    return cli_fail(CLI_USAGE,
                    "this clattn is built without OpenCL: there is no device whose memory tensors could be in");
}

void resident_close(resident *r) {}
int resident_forward_args(resident *r, const inputs *in, clattn_forward_args *args) { return CLI_USAGE; }
int resident_backward_args(resident *r, const inputs *in, clattn_backward_args *args) { return CLI_USAGE; }
int resident_enqueue_forward(resident *r, const clattn_plan *plan, const clattn_forward_args *args)
{
    return CLI_USAGE;
}
int resident_enqueue_backward(resident *r, const clattn_plan *plan, const clattn_backward_args *args)
{
    return CLI_USAGE;
}
int resident_finish(resident *r) { return CLI_USAGE; }
#else

#include <stdlib.h>

#include <clattn/opencl.h>

#include "arrays.h"

enum { MOST_TENSORS = 64 }; /* 15 of a backward call, and a dozen copies of K and V */

typedef struct tensor {
    const void *host;
    cl_mem mem;
} tensor;

struct resident {
    cl_context cl;
    cl_command_queue queue;
    tensor tensors[MOST_TENSORS];
    int n_tensors;
    cl_mem workspace;
    size_t workspace_bytes;
};

int resident_open(clattn_context *context, resident **r)
{
    cl_device_id id;
    cl_int code;
    *r = calloc(1, sizeof **r);
    if (!*r) return cli_fail(CLI_FAILED, "there is no memory for a queue");
    if (clattn_context_get_cl(context, &(*r)->cl, &id)) {
        code = cli_fail_library(NULL, NULL);
    } else {
        (*r)->queue = clCreateCommandQueue((*r)->cl, id, 0, &code);
        if (!code) return CLI_OK;
        code = cli_fail(CLI_FAILED, "clCreateCommandQueue failed: %d", code);
    }
    free(*r);
    *r = NULL;
    return code;
}

void resident_close(resident *r)
{
    if (!r) return;
    for (int i = 0; i < r->n_tensors; i++) clReleaseMemObject(r->tensors[i].mem);
    if (r->workspace) clReleaseMemObject(r->workspace);
    clReleaseCommandQueue(r->queue);
    free(r);
}

/* ---- placing */

/* data NULL: left as it comes. */
static int buffer_make(const resident *r, size_t bytes, void *data, cl_mem *mem)
{
    cl_int code;
    *mem = clCreateBuffer(r->cl, CL_MEM_READ_WRITE | (data ? CL_MEM_COPY_HOST_PTR : 0), bytes, data, &code);
    return code ? cli_fail(CLI_FAILED, "the device has no memory for %zu bytes: clCreateBuffer: %d", bytes, code)
                : CLI_OK;
}

/* A tensor of no element takes a byte: it must be there. */
static int place(resident *r, clattn_buffer *b, int64_t bytes)
{
    int i = 0;
    if (!b->host) return CLI_OK;
    while (i < r->n_tensors && r->tensors[i].host != b->host) i++;
    if (i == MOST_TENSORS) return cli_fail(CLI_FAILED, "there are %d tensors on the device already", i);
    if (i == r->n_tensors) {
        tensor *t = &r->tensors[i];
        if (buffer_make(r, bytes ? (size_t)bytes : 1, bytes ? b->host : NULL, &t->mem)) return CLI_FAILED;
        t->host = b->host;
        r->n_tensors++;
    }
    *b = clattn_cl_buffer(r->tensors[i].mem, 0);
    return CLI_OK;
}

static int place_array(resident *r, clattn_buffer *b, array_shape shape) { return place(r, b, array_bytes(&shape)); }

/* Elements of a bias or mask of a text: the dimensions that are not broadcast. */
static int64_t beside_scores(const clattn_problem *p, const clattn_score_strides *s)
{
    return (s->batch ? p->batch : 1) * (s->head ? p->n_heads_q : 1) * (s->q ? p->n_q : 1) * (s->kv ? p->n_kv : 1);
}

int resident_forward_args(resident *r, const inputs *in, clattn_forward_args *args)
{
    const clattn_problem *p = &in->problem;
    const int64_t per_entry = p->batch * (int64_t)sizeof(int64_t);
    int code = place_array(r, &args->q, array_of_gradient(in, GRADIENT_DQ));
    if (!code) code = place_array(r, &args->k, array_of_gradient(in, GRADIENT_DK));
    if (!code) code = place_array(r, &args->v, array_of_gradient(in, GRADIENT_DV));
    if (!code) code = place_array(r, &args->o, array_of_o(in));
    if (!code) code = place_array(r, &args->lse, array_of_lse(in));
    if (!code)
        code = place(r, &args->bias, beside_scores(p, &p->bias.strides) * (int64_t)clattn_dtype_size(p->bias.dtype));
    if (!code) code = place(r, &args->mask, beside_scores(p, &p->mask.strides));
    if (!code) code = place_array(r, &args->alibi_slopes, array_of_gradient(in, GRADIENT_DALIBI));
    if (!code) code = place_array(r, &args->sinks, array_of_gradient(in, GRADIENT_DSINKS));
    if (!code) code = place(r, &args->kv_lengths, per_entry);
    if (!code) code = place(r, &args->query_offsets, per_entry);
    if (!code) code = place(r, &args->cu_seqlens_q, per_entry + (int64_t)sizeof(int64_t));
    if (!code) code = place(r, &args->cu_seqlens_kv, per_entry + (int64_t)sizeof(int64_t));
    return code;
}

int resident_backward_args(resident *r, const inputs *in, clattn_backward_args *args)
{
    int code = resident_forward_args(r, in, &args->forward);
    if (!code) code = place_array(r, &args->d_o, array_of_o(in));
    if (!code) code = place_array(r, &args->dq, array_of_gradient(in, GRADIENT_DQ));
    if (!code) code = place_array(r, &args->dk, array_of_gradient(in, GRADIENT_DK));
    if (!code) code = place_array(r, &args->dv, array_of_gradient(in, GRADIENT_DV));
    return code;
}

/* ---- calls */

/* Absent for a plan that needs none. A smaller one goes once its calls are done. */
static int workspace_for(resident *r, const clattn_plan *plan, clattn_buffer *b)
{
    const size_t bytes = clattn_plan_workspace_size(plan);
    if (bytes > r->workspace_bytes) {
        if (r->workspace) clReleaseMemObject(r->workspace);
        r->workspace_bytes = 0;
        if (buffer_make(r, bytes, NULL, &r->workspace)) return CLI_FAILED;
        r->workspace_bytes = bytes;
    }
    if (bytes) *b = clattn_cl_buffer(r->workspace, 0);
    return CLI_OK;
}

int resident_enqueue_forward(resident *r, const clattn_plan *plan, const clattn_forward_args *args)
{
    clattn_forward_args all = *args;
    if (workspace_for(r, plan, &all.workspace)) return CLI_FAILED;
    return clattn_enqueue_forward(plan, r->queue, &all, 0, NULL, NULL) ? cli_fail_library(NULL, NULL) : CLI_OK;
}

int resident_enqueue_backward(resident *r, const clattn_plan *plan, const clattn_backward_args *args)
{
    clattn_backward_args all = *args;
    if (workspace_for(r, plan, &all.workspace)) return CLI_FAILED;
    return clattn_enqueue_backward(plan, r->queue, &all, 0, NULL, NULL) ? cli_fail_library(NULL, NULL) : CLI_OK;
}

int resident_finish(resident *r)
{
    const cl_int code = clFinish(r->queue);
    return code ? cli_fail(CLI_FAILED, "clFinish failed: %d", code) : CLI_OK;
}
#endif
