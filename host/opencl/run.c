#include "run.h"

#include <stdlib.h>
#include <unistd.h>

#include "../../cl/args.clh"

/* ---- launch */

static attn_args args_make(const problem *p, const launch_buffers *b, const device_choice *choice)
{
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
        .partial_chunk = choice->partial_chunk,
        .has_lse = b->operand[TENSOR_LSE] != NULL,
        .alibi_per_batch = p->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD,
        .dropout_threshold = (u32)(p->dropout * 4294967296.0),
        .dropout_key0 = b->dropout_key[0],
        .dropout_key1 = b->dropout_key[1],
    };
    return a;
}

static bool has_gradient(const launch_buffers *b, gradient_name g) { return b->operand[TENSOR_COUNT + g] != NULL; }

static backward_args backward_make(const problem *p, const launch_buffers *b, const device_choice *choice)
{
    const tensor_shape bias = clattn__gradient_shape(p, GRADIENT_DBIAS);
    const int64_t *at = b->at + TENSOR_COUNT;
    return (backward_args){
        .d_o_at = at[GRADIENT_D_O],
        .d_lse_at = at[GRADIENT_D_LSE],
        .dq_at = at[GRADIENT_DQ],
        .dk_at = at[GRADIENT_DK],
        .dv_at = at[GRADIENT_DV],
        .dbias_at = at[GRADIENT_DBIAS],
        .dalibi_at = at[GRADIENT_DALIBI],
        .dsinks_at = at[GRADIENT_DSINKS],
        .delta_at = choice->delta_at,
        .slopes_at = choice->slopes_at,
        .partials_at = choice->partials_at,
        .bias_count0 = bias.count[0],
        .bias_count1 = bias.count[1],
        .bias_count2 = bias.count[2],
        .bias_count3 = bias.count[3],
        .batch = (int)p->batch,
        .n_splits = choice->n_splits,
        .n_slope_parts = choice->n_slope_parts,
        .has_d_lse = has_gradient(b, GRADIENT_D_LSE),
        .wants_dq = has_gradient(b, GRADIENT_DQ),
        .wants_dk = has_gradient(b, GRADIENT_DK),
        .wants_dv = has_gradient(b, GRADIENT_DV),
        .wants_dbias = has_gradient(b, GRADIENT_DBIAS),
        .wants_dalibi = has_gradient(b, GRADIENT_DALIBI),
        .wants_dsinks = has_gradient(b, GRADIENT_DSINKS),
    };
}

/* What the stages of one call share. */
typedef struct call {
    const device_plan *plan;
    const problem *p;
    const launch_buffers *b;
    const share *part; /* NULL: all */
    cl_command_queue queue;
    attn_args args;
    backward_args back;
    cl_uint n_wait;
    const cl_event *wait_list;
    cl_event before; /* of the launch before; NULL: the first one waits for wait_list */
    cl_event *event; /* for the last launch's */
} call;

static clattn_status set_arg(cl_kernel kernel, cl_uint *n, size_t size, const void *value)
{
    RETURN_IF_CL("clSetKernelArg", clSetKernelArg(kernel, (*n)++, size, value));
    return CLATTN_STATUS_SUCCESS;
}

/* In the order of FORWARD_PARAMETERS, to which decoding adds its partials, or BACKWARD_PARAMETERS. */
static clattn_status set_args(const call *c, cl_kernel kernel)
{
    const problem *p = c->p;
    const bool backward = c->plan->choice.pass == CLATTN_PASS_BACKWARD, is_f64 = p->dtype == CLATTN_DTYPE_F64;
    const double score_scale = problem_is_scored(p) ? p->scale : p->scale * 1.44269504088896340736;
    const double numbers[] = {p->scale, score_scale, p->softcap,
                              1 / (1 - p->dropout)}; /* forward: from the second on */
    cl_uint n = 0;
    for (int i = 0; i < (backward ? (int)OPERANDS : (int)TENSOR_COUNT); i++)
        FORWARD(set_arg(kernel, &n, sizeof(cl_mem), &c->b->operand[i]));
    if (backward) FORWARD(set_arg(kernel, &n, sizeof(cl_mem), &c->b->workspace));
    for (int i = backward ? 0 : 1; i < 4; i++) {
        const float number_f32 = (float)numbers[i];
        FORWARD(set_arg(kernel, &n, is_f64 ? sizeof numbers[i] : sizeof number_f32,
                        is_f64 ? (const void *)&numbers[i] : (const void *)&number_f32));
    }
    FORWARD(set_arg(kernel, &n, sizeof c->args, &c->args));
    if (backward) return set_arg(kernel, &n, sizeof c->back, &c->back);
    if (!choice_splits_keys(&c->plan->choice)) return CLATTN_STATUS_SUCCESS;
    return set_arg(kernel, &n, sizeof(cl_mem), &c->b->workspace);
}

static void CL_CALLBACK release_event(cl_event event, cl_int status, void *user)
{
    (void)status, (void)user;
    clReleaseEvent(event);
}

/* PoCL 3.1 aborts when what an event waits for fails and nobody holds it: hold it until then. */
static void release_when_done(cl_event event)
{
    if (event && clSetEventCallback(event, CL_COMPLETE, release_event, NULL) != CL_SUCCESS) clReleaseEvent(event);
}

clattn_status clattn__late(clattn_status status)
{
    if (status != CLATTN_STATUS_OUT_OF_HOST_MEMORY && status != CLATTN_STATUS_OUT_OF_DEVICE_MEMORY) return status;
    error_state error;
    clattn__error_save(&error);
    return clattn__fail(CLATTN_STATUS_OPENCL_ERROR, error.cl_error, "after a kernel was enqueued: %.900s",
                        error.message);
}

/* One stage over work-groups [first, end), in as many launches as that takes, each after the one before. is_last: of
 * the call. */
static clattn_status launch_stage(call *c, int stage, int64_t first, int64_t end, bool is_last)
{
    device_kernel *k = c->plan->kernels[stage];
    const device_stage *s = &c->plan->choice.stages[stage];
    const size_t local = (size_t)s->work_group_size;
    const int64_t step = s->launch_groups;
    c->args.n_tiles = s->n_tiles ? s->n_tiles : 1;
    for (c->args.first_group = first; c->args.first_group < end; c->args.first_group += step) {
        const int64_t left = end - c->args.first_group;
        const size_t global = (size_t)(left <= step ? left : step) * local;
        cl_event done = NULL;
        pthread_mutex_lock(&k->lock);
        clattn_status status = set_args(c, k->kernel);
        if (status == CLATTN_STATUS_SUCCESS) {
            const cl_int code = clEnqueueNDRangeKernel(c->queue, k->kernel, 1, NULL, &global, &local,
                                                       c->before ? 1 : c->n_wait, c->before ? &c->before : c->wait_list,
                                                       is_last && left <= step ? c->event : &done);
            if (code != CL_SUCCESS) status = clattn__cl_fail("clEnqueueNDRangeKernel", code);
        }
        if (status == CLATTN_STATUS_SUCCESS && left > step) { /* or else drivers may make one of several */
            const cl_int code = clFlush(c->queue);
            if (code != CL_SUCCESS) status = clattn__late(clattn__cl_fail("clFlush", code));
        }
        if (c->before) status = clattn__late(status);
        pthread_mutex_unlock(&k->lock);
        release_when_done(c->before);
        c->before = done;
        FORWARD(status);
    }
    return CLATTN_STATUS_SUCCESS;
}

/* The share's part of a stage's work-groups: a range for each batch entry, or one for all that are whole. */
static clattn_status launch_part(call *c, int stage, int64_t groups, bool is_last)
{
    const problem *p = c->p;
    const share *s = c->part;
    if (!groups) return CLATTN_STATUS_SUCCESS;
    if (!s) return launch_stage(c, stage, 0, groups, is_last);
    const int64_t entry = groups / p->batch, kv_head = entry / p->n_heads_kv, head = kv_head / p->gqa_group;
    const int64_t block_q = c->plan->choice.axes[AXIS_BLOCK_Q];
    const int64_t block_kv = c->plan->choice.axes[AXIS_BLOCK_KV];
    /* Of a head's tiles, whose last comes first, or of a group's chunks. A merge has all. */
    int64_t before = (p->n_q - s->row_end + block_q - 1) / block_q, behind = s->row / block_q;
    if (choice_splits_keys(&c->plan->choice)) {
        const bool has_last = stage == STAGE_MERGE || s->key_end == p->n_kv;
        before = stage == STAGE_MERGE ? 0 : s->key / block_kv;
        behind = has_last ? 0 : kv_head - s->key_end / block_kv;
    }
    const int64_t first = s->head / p->gqa_group * kv_head + s->head % p->gqa_group * head + before;
    const int64_t end = s->head_end / p->gqa_group * kv_head + s->head_end % p->gqa_group * head - behind;
    const int64_t step = first == 0 && end == entry ? s->entry_end - s->entry : 1;
    for (int64_t b = s->entry; b < s->entry_end; b += step)
        FORWARD(launch_stage(c, stage, b * entry + first, (b + step - 1) * entry + end,
                             is_last && b + step == s->entry_end));
    return CLATTN_STATUS_SUCCESS;
}

/* Stages [first, end), whose partials the workspace has for a few batch entries: those, then the next ones. */
static clattn_status launch_in_turns(call *c, int first, int end, const int64_t groups[STAGES_MOST], int last)
{
    const int64_t batch = c->p->batch, partials_at = c->back.partials_at;
    for (int64_t b = 0, next; b < batch; b = next) {
        next = batch - b > c->plan->choice.entries_in_turn ? b + c->plan->choice.entries_in_turn : batch;
        c->back.partials_at = partials_at - b * c->plan->choice.partials_of_entry; /* kernels count from entry 0 */
        for (int i = first; i < end; i++)
            FORWARD(launch_stage(c, i, groups[i] / batch * b, groups[i] / batch * next, i == last && next == batch));
    }
    return CLATTN_STATUS_SUCCESS;
}

static unsigned gradients_wanted(const launch_buffers *b)
{
    unsigned wanted = 0;
    for (gradient_name g = GRADIENT_FIRST_OUTPUT; g < GRADIENT_COUNT; g++)
        if (has_gradient(b, g)) wanted |= 1u << g;
    return wanted;
}

/* groups[i] of stage i; 0: not launched. */
static clattn_status launch_stages(const device_plan *plan, const problem *p, cl_command_queue queue,
                                   const launch_buffers *b, const share *part, const int64_t groups[STAGES_MOST],
                                   cl_uint n_wait, const cl_event *wait_list, cl_event *event)
{
    call c = {.plan = plan,
              .p = p,
              .b = b,
              .part = part,
              .queue = queue,
              .args = args_make(p, b, &plan->choice),
              .n_wait = n_wait,
              .wait_list = wait_list,
              .event = event};
    const device_stage *stages = plan->choice.stages;
    const int n = plan->choice.n_stages;
    int last = -1;
    if (plan->choice.pass == CLATTN_PASS_BACKWARD) c.back = backward_make(p, b, &plan->choice);
    for (int i = 0; i < n; i++)
        if (groups[i]) last = i;
    if (last < 0) {
        RETURN_IF_CL("clEnqueueMarkerWithWaitList", clEnqueueMarkerWithWaitList(queue, n_wait, wait_list, event));
        return CLATTN_STATUS_SUCCESS;
    }
    clattn_status status = CLATTN_STATUS_SUCCESS;
    for (int i = 0, next; i < n && status == CLATTN_STATUS_SUCCESS; i = next) {
        const bool in_turns = stages[i].in_turns && p->n_q; /* a trial launch needs none */
        for (next = i + 1; in_turns && next < n && stages[next].in_turns;) next++;
        status = in_turns ? launch_in_turns(&c, i, next, groups, last) : launch_part(&c, i, groups[i], i == last);
    }
    release_when_done(c.before);
    return status;
}

void clattn__launch_numbers(launch_buffers *b, const device_plan *plan, const problem *p,
                            const clattn_forward_args *args)
{
    const uint64_t seed = args->dropout_seed, offset = args->dropout_offset;
    const philox_block key = philox((u32)offset, (u32)(offset >> 32), 0, 0, (u32)seed, (u32)(seed >> 32));
    b->dropout_key[0] = key.x[0];
    b->dropout_key[1] = key.x[1];
    if (!p->kv_length_per_batch) {
        b->operand[TENSOR_KV_LENGTHS] = plan->fixed;
        b->at[TENSOR_KV_LENGTHS] = 0;
    }
    if (!p->query_offset_per_batch) {
        b->operand[TENSOR_QUERY_OFFSETS] = plan->fixed;
        b->at[TENSOR_QUERY_OFFSETS] = p->batch;
    }
}

clattn_status clattn__launch(device_plan *plan, const problem *p, cl_command_queue queue, const launch_buffers *b,
                             const share *part, cl_uint n_wait, const cl_event *wait_list, cl_event *event)
{
    const bool backward = plan->choice.pass == CLATTN_PASS_BACKWARD;
    const unsigned wanted = gradients_wanted(b);
    int64_t groups[STAGES_MOST] = {0};
    for (int i = 0; i < plan->choice.n_stages; i++)
        if (!backward || plan->choice.stages[i].wanted & wanted) groups[i] = plan->choice.stages[i].groups;
    if (part && part->skips_chunks) groups[0] = 0;
    if (part && part->skips_merge) groups[STAGE_MERGE] = 0;
    return launch_stages(plan, p, queue, b, part, groups, n_wait, wait_list, event);
}

/* ---- plan */

/* Some drivers compile at the first enqueue: have that behind us, and know that the kernel runs. n_q = 0 touches no
 * memory; but Intel's compiler for CPUs moves loads to before the return, so that forward has some to read. */
static clattn_status trial_launch(device_plan *plan, const problem *p)
{
    problem nothing = *p;
    launch_buffers none = {0};
    const int64_t one_each[STAGES_MOST] = {1, 1, 1, 1, 1};
    cl_event done;
    nothing.n_q = 0;
    if (plan->choice.pass == CLATTN_PASS_FORWARD) {
        none.workspace = plan->fixed;
        for (tensor_name i = 0; i < TENSOR_COUNT; i++) none.operand[i] = plan->fixed;
    }
    FORWARD(launch_stages(plan, &nothing, plan->device->queue, &none, NULL, one_each, 0, NULL, &done));
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
    plan->threads = context->threads;
    plan->choice = *choice;
    plan->choice.score_source = plan->choice.score_derivative = NULL;
    clattn_status status = fixed_make(plan, p);
    bool again = status == CLATTN_STATUS_SUCCESS;
    while (again) {
        for (int i = 0; i < plan->choice.n_stages && status == CLATTN_STATUS_SUCCESS; i++)
            status = clattn__device_kernel(d, context, &choice->stages[i], choice, &plan->kernels[i]);
        again = false;
        if (status == CLATTN_STATUS_SUCCESS) {
            status = trial_launch(plan, p);
            again =
                status != CLATTN_STATUS_SUCCESS && clattn__device_kernels_retire(d, plan->kernels, choice->n_stages);
            if (again) status = CLATTN_STATUS_SUCCESS; /* from source, this time */
        }
    }
    for (int i = 0; i < choice->n_stages && status == CLATTN_STATUS_SUCCESS; i++)
        clattn__device_kernel_keep(d, context, &choice->stages[i], plan->kernels[i]);
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
