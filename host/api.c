/* The public functions that are no more than a check and a call. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <clattn/clattn.h>

#include "context.h"
#include "device.h"
#include "devices.h"
#include "error.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

const char *clattn_version(void)
{
    return TEXT(CLATTN_VERSION_MAJOR) "." TEXT(CLATTN_VERSION_MINOR) "." TEXT(CLATTN_VERSION_PATCH);
}

/* ---- devices */

clattn_status clattn_device_count(int *count)
{
    RETURN_IF(!count, INVALID_ARGUMENT, "count is NULL");
    return clattn__device_count(count);
}

void clattn_device_info_init(clattn_device_info *info)
{
    if (!info) return;
    memset(info, 0, sizeof *info);
    info->struct_size = sizeof *info;
}

clattn_status clattn_device_get_info(int index, clattn_device_info *info)
{
    RETURN_IF(!info, INVALID_ARGUMENT, "info is NULL");
    RETURN_IF(info->struct_size != sizeof *info, INVALID_ARGUMENT,
              "info.struct_size is %zu; this library knows %zu: call clattn_device_info_init", info->struct_size,
              sizeof *info);
    return clattn__device_describe(index, info);
}

/* ---- plan */

clattn_status clattn_plan_create(clattn_context *context, const clattn_problem *given,
                                 const clattn_plan_options *options, clattn_plan **plan)
{
    problem p;
    RETURN_IF(!plan, INVALID_ARGUMENT, "plan is NULL");
    FORWARD(clattn__problem_make(given, &p));
    if (!context) FORWARD(clattn__context_default(&context));
    return clattn__plan_make(context, &p, given, options, true, plan);
}

clattn_status clattn_plan_retain(clattn_plan *plan)
{
    if (plan) atomic_fetch_add(&plan->references, 1);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn_plan_release(clattn_plan *plan)
{
    clattn__plan_drop(plan);
    return CLATTN_STATUS_SUCCESS;
}

const char *clattn_plan_explain(const clattn_plan *plan) { return plan ? plan->explain : ""; }

size_t clattn_plan_workspace_size(const clattn_plan *plan)
{
    return plan && plan->device_plan ? (size_t)plan->choice.workspace_bytes : 0;
}

clattn_status clattn_plan_get_info(const clattn_plan *plan, clattn_plan_info *info)
{
    RETURN_IF(!plan, INVALID_ARGUMENT, "plan is NULL");
    RETURN_IF(!info, INVALID_ARGUMENT, "info is NULL");
    RETURN_IF(info->struct_size != sizeof *info, INVALID_ARGUMENT,
              "info.struct_size is %zu; this library knows %zu: call clattn_plan_info_init", info->struct_size,
              sizeof *info);
    clattn_plan_info_init(info);
    info->path = plan->path;
    info->instructions = info->device = "";
    info->products = plan->problem.dtype == CLATTN_DTYPE_F64 ? CLATTN_DTYPE_F64 : CLATTN_DTYPE_F32;
    if (plan->device_plan) info->cl_kernel = plan->choice.kernel;
    if (plan->path == CLATTN_PATH_HOST) {
        info->kernel = plan->host.kernel;
        info->instructions = plan->host.instructions;
        info->products = plan->host.products;
        info->block_q = plan->host.block_q;
        info->block_kv = plan->host.block_kv;
        info->n_threads = plan->host.n_threads;
        info->zero_copy = 1;
    } else {
        info->kernel = plan->choice.kernel;
        info->tuned = plan->choice.is_tuned;
        if (choice_rounds_probs(&plan->choice)) info->products = plan->problem.dtype;
        info->device = plan->device_name;
        info->block_q = plan->choice.axes[AXIS_BLOCK_Q];
        info->block_kv = plan->choice.axes[AXIS_BLOCK_KV];
        info->work_group_size = plan->choice.work_group_size;
        info->local_bytes = plan->choice.local_bytes;
        info->zero_copy = clattn__plan_in_place(&plan->problem, clattn__device_profile(plan->context->device)) &&
                          !plan->context->options.copy_transfers;
        info->n_shares = info->zero_copy ? 1 : plan->choice.cut.n_shares;
        info->n_devices = 1 + plan->n_parts;
    }
    return CLATTN_STATUS_SUCCESS;
}

/* ---- built programs */

/* Of all devices, one after the other, into data unless that is NULL. */
static clattn_status binaries(const clattn_plan *plan, char *data, size_t size, size_t *all)
{
    *all = 0;
    for (int i = 0; i <= plan->n_parts && plan->device_plan; i++) {
        const clattn_plan *part = i ? plan->parts[i - 1] : plan;
        size_t bytes;
        FORWARD(
            clattn__device_plan_binaries(part->device_plan, data ? data + *all : NULL, data ? size - *all : 0, &bytes));
        *all += bytes;
    }
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn_plan_get_binaries(const clattn_plan *plan, void *data, size_t size, size_t *needed)
{
    RETURN_IF(!plan, INVALID_ARGUMENT, "plan is NULL");
    RETURN_IF(!needed, INVALID_ARGUMENT, "needed is NULL");
    size_t all;
    const bool is_whole = data && !plan->n_parts; /* one device's come all or not at all */
    FORWARD(binaries(plan, is_whole ? data : NULL, size, &all));
    if (data && !is_whole) {
        RETURN_IF(size < all, INVALID_ARGUMENT, "size is %zu; the binaries take %zu bytes", size, all);
        char *whole = malloc(all + 1);
        RETURN_IF(!whole, OUT_OF_HOST_MEMORY, "no room for %zu bytes of binaries", all);
        const clattn_status status = binaries(plan, whole, all, &all);
        if (status == CLATTN_STATUS_SUCCESS) memcpy(data, whole, all);
        free(whole);
        FORWARD(status);
    }
    *needed = all;
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn_context_add_binaries(clattn_context *context, const void *data, size_t size)
{
    struct device *d;
    RETURN_IF(!data && size, INVALID_ARGUMENT, "data is NULL; size is %zu", size);
    if (!context) FORWARD(clattn__context_default(&context));
    FORWARD(clattn__context_device(context, &d));
    FORWARD(clattn__device_add_binaries(d, data, size));
    for (int i = 0; i < context->n_further; i++)
        FORWARD(clattn__device_add_binaries(context->further[i]->device, data, size));
    return CLATTN_STATUS_SUCCESS;
}

/* ---- forward and backward */

/* backward: NULL, or of a backward plan, whose forward args are `args`. */
static clattn_status run(const clattn_plan *plan, const clattn_forward_args *args, const clattn_backward_args *backward)
{
    host_threads *threads = plan->context->threads;
    if (plan->n_parts) return clattn__devices_run(plan, args);
    if (plan->path == CLATTN_PATH_DEVICE)
        return clattn__device_run(plan->device_plan, &plan->problem, args, backward,
                                  plan->context->options.copy_transfers, NULL);
    return backward ? clattn__host_backward(&plan->host, &plan->problem, threads, backward)
                    : clattn__host_forward(&plan->host, &plan->problem, threads, args);
}

static clattn_status run_logged(const clattn_plan *plan, const clattn_forward_args *args,
                                const clattn_backward_args *backward)
{
    struct timespec begin, end;
    if (!clattn__log_wants(plan->context, LOG_RUN)) return run(plan, args, backward);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    FORWARD(run(plan, args, backward));
    clock_gettime(CLOCK_MONOTONIC, &end);
    const double seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
    clattn__log(plan->context, LOG_RUN, "%s: %s on the %s, %.6f s", plan->text,
                clattn_kernel_name(plan->path == CLATTN_PATH_HOST ? plan->host.kernel : plan->choice.kernel),
                clattn_path_name(plan->path), seconds);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status forward(const clattn_plan *plan, const clattn_forward_args *args)
{
    FORWARD(clattn__problem_check_host_args(&plan->problem, args));
    return run_logged(plan, args, NULL);
}

clattn_status clattn_forward(const clattn_plan *plan, const clattn_forward_args *args)
{
    RETURN_IF(!plan, INVALID_ARGUMENT, "plan is NULL");
    FORWARD(clattn__plan_check_pass(plan, CLATTN_PASS_FORWARD));
    return forward(plan, args);
}

clattn_status clattn_backward(const clattn_plan *plan, const clattn_backward_args *args)
{
    RETURN_IF(!plan, INVALID_ARGUMENT, "plan is NULL");
    FORWARD(clattn__plan_check_pass(plan, CLATTN_PASS_BACKWARD));
    FORWARD(clattn__problem_check_backward_args(&plan->problem, args));
    FORWARD(clattn__problem_check_host_args(&plan->problem, &args->forward));
    for (gradient_name g = 0; g < GRADIENT_COUNT; g++)
        RETURN_IF(clattn__gradient_buffer(args, g)->mem, INVALID_ARGUMENT,
                  "args.%s is a cl_mem; this call takes host pointers", clattn__gradient_names[g]);
    return run_logged(plan, &args->forward, args);
}

clattn_status clattn_attention(clattn_context *context, const clattn_problem *given, const void *q, const void *k,
                               const void *v, void *o, float *lse)
{
    problem p;
    FORWARD(clattn__problem_make(given, &p));
    for (tensor_name i = TENSOR_BIAS; i < TENSOR_COUNT; i++)
        RETURN_IF(p.tensor[i].size, INVALID_ARGUMENT,
                  "the problem needs args.%s; clattn_attention takes none: make a plan", clattn__tensor_names[i]);
    RETURN_IF(p.score_function.source || p.score_function.host || p.dropout > 0, INVALID_ARGUMENT,
              "the problem has %s; clattn_attention takes none: make a plan",
              p.dropout > 0 ? "dropout" : "a score function");
    clattn_forward_args args;
    clattn_forward_args_init(&args);
    args.q = clattn_host_buffer(q);
    args.k = clattn_host_buffer(k);
    args.v = clattn_host_buffer(v);
    args.o = clattn_host_buffer(o);
    args.lse = clattn_host_buffer(lse);
    FORWARD(clattn__problem_check_args(&p, &args));
    if (!context) FORWARD(clattn__context_default(&context));
    clattn_plan *plan;
    FORWARD(clattn__plan_find(context, &p, given, &plan));
    const clattn_status status = forward(plan, &args);
    clattn__plan_drop(plan);
    return status;
}

/* ---- looking at what happens inside */

clattn_status clattn_scores(const clattn_problem *given, const clattn_forward_args *args, clattn_score_step step,
                            int64_t batch, int64_t head, float *scores)
{
    problem p;
    clattn_forward_args inputs;
    FORWARD(clattn__args_check_size(args));
    RETURN_IF(!scores, INVALID_ARGUMENT, "scores is NULL");
    FORWARD(clattn__problem_make(given, &p));
    inputs = *args;
    inputs.o = inputs.lse = clattn_host_buffer(NULL);
    p.tensor[TENSOR_O].bytes = 0; /* nothing is written there */
    FORWARD(clattn__problem_check_host_args(&p, &inputs));
    RETURN_IF(step < CLATTN_SCORE_SCALED || step > CLATTN_SCORE_PROBS, INVALID_ARGUMENT,
              "step is %d; it must be one of clattn_score_step", (int)step);
    RETURN_IF(batch < 0 || batch >= p.batch, INVALID_ARGUMENT, "batch is %lld; the problem has %lld", (long long)batch,
              (long long)p.batch);
    RETURN_IF(head < 0 || head >= p.n_heads_q, INVALID_ARGUMENT, "head is %lld; the problem has %lld", (long long)head,
              (long long)p.n_heads_q);
    return clattn__host_scores(&p, &inputs, step, batch, head, scores);
}

clattn_status clattn_dropout_mask(const clattn_problem *given, uint64_t seed, uint64_t offset, uint8_t *keep)
{
    problem p;
    FORWARD(clattn__problem_make(given, &p));
    RETURN_IF(!keep && p.n_q && p.n_kv, INVALID_ARGUMENT, "keep is NULL");
    clattn__host_dropout_mask(&p, seed, offset, keep);
    return CLATTN_STATUS_SUCCESS;
}
