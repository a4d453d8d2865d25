/* Choice -> plan: opens the device if the choice needs one, builds, falls back, and explains. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <clattn/clattn.h>

#include "context.h"
#include "device.h"
#include "devices.h"
#include "engine.h"
#include "error.h"
#include "tuning.h"

enum { USUAL_LOCAL_BYTES = 48 << 10 };

static const char *last_sentence(void) { return clattn_last_error()->message; }

static void add_products(clattn_dtype dtype, text *why)
{
    text_add(why, "%s products: P is rounded to %s, scores and sums are f32\n", clattn_dtype_name(dtype),
             clattn_dtype_name(dtype));
}

/* clattn chose the matrix engine, which must have passed its trial. */
static bool is_engines(const device_choice *c, const clattn_plan_options *options)
{
    const bool is_asked = c->kernel == CLATTN_KERNEL_ATTN_FWD_MMA && options->kernel != CLATTN_KERNEL_AUTO;
    return c->axes[AXIS_MMA] && !is_asked;
}

/* On with a lesser engine, from its first variant. */
static void leave_engine(device_profile *usable, clattn_kernel kernel, text *why, int *nth)
{
    text_add(why, "refused: %s by %s: %.450s\n", clattn_kernel_name(kernel), clattn__engine_names[usable->engine],
             last_sentence());
    usable->engine = clattn__engine_below(usable->engine);
    *nth = -1;
}

/* The device as the app wants it. */
static device_profile wanted_profile(const clattn_context *context, const struct device *d)
{
    const clattn_context_options *wishes = &context->options;
    device_profile profile = *clattn__device_profile(d);
    if (wishes->copy_transfers) profile.shares_host_memory = false;
    if (wishes->copy_bytes_most) profile.copy_bytes_most = wishes->copy_bytes_most;
    return profile;
}

/* Tries the device's variants, best first, until one builds, fits and runs. When none does, the answer is what
 * became of the last that was tried, or why none could be. */
static clattn_status prepare_on(clattn_plan *plan, const clattn_problem *text_of, const clattn_plan_options *options,
                                bool several, text *why)
{
    struct device *d;
    FORWARD(clattn__context_device(plan->context, &d));
    device_profile usable = wanted_profile(plan->context, d); /* and without an engine that fails */
    if (several) {
        usable.n_devices = 1 + plan->context->n_further;
        clattn__devices_limit(plan->context, &usable);
    }
    const device_profile *profile = &usable;
    bool is_last = false, tried = false;
    error_state failure;
    usable.tuning = plan->context->tuning;
    FORWARD(clattn__device_check_process(d));
    for (int nth = 0;; nth++) {
        clattn_status status = clattn__plan_device(&plan->problem, profile, options, nth, &plan->choice, &is_last);
        if (status == CLATTN_STATUS_SUCCESS && is_engines(&plan->choice, options)) {
            status = clattn__engine_check(plan->context, d, usable.engine, plan->problem.dtype);
            if (status == CLATTN_STATUS_OUT_OF_HOST_MEMORY) return status;
            if (status != CLATTN_STATUS_SUCCESS) {
                leave_engine(&usable, plan->choice.kernel, why, &nth);
                continue;
            }
        }
        if (status == CLATTN_STATUS_SUCCESS) {
            status = clattn__device_plan_create(d, plan->context, &plan->problem, &plan->choice, &plan->device_plan);
            if (status == CLATTN_STATUS_SUCCESS) break;
            tried = true;
            clattn__error_save(&failure);
        }
        const bool is_refused_pairs = status == CLATTN_STATUS_BUILD_FAILED && plan->choice.axes[AXIS_MMA] &&
                                      engine_is_lanes(usable.engine) && !plan->choice.score_source;
        const bool is_refused_mma = is_last && options->kernel == CLATTN_KERNEL_ATTN_FWD_MMA &&
                                    usable.engine > ENGINE_EMULATED && !engine_is_lanes(usable.engine);
        if (is_refused_pairs || is_refused_mma) {
            leave_engine(&usable, plan->choice.kernel, why, &nth);
            continue;
        }
        /* What an app's function does to a build it does to all, unless the kernel is one that a driver may refuse.
         * With a table's sizes neither is the last word: the shipped ones come next. */
        const bool is_usual = plan->choice.local_bytes <= USUAL_LOCAL_BYTES &&
                              plan->choice.axes[AXIS_MMA] != ENGINE_WGMMA && plan->choice.axes[AXIS_AHEAD] != 2;
        const bool is_over = (status == CLATTN_STATUS_BUILD_FAILED && plan->choice.score_source && is_usual) ||
                             status == CLATTN_STATUS_OUT_OF_HOST_MEMORY;
        if (is_last && tried) {
            clattn__error_restore(&failure);
            return failure.status;
        }
        if (is_last || (is_over && !plan->choice.is_tuned)) return status;
        text_add(why, "refused: %.300s\n", last_sentence());
    }
    const int *axes = plan->choice.axes;
    snprintf(plan->device_name, sizeof plan->device_name, "%s", clattn__device_profile(d)->name);
    text_add(why,
             "kernel %s on %s: block_q %d, block_kv %d, %" PRId64 " work-items, %" PRId64 " bytes of local memory\n",
             clattn_kernel_name(plan->choice.kernel), profile->name, axes[AXIS_BLOCK_Q], axes[AXIS_BLOCK_KV],
             plan->choice.work_group_size, plan->choice.local_bytes);
    if (axes[AXIS_AHEAD])
        text_add(why, "slices of K and V are copied one ahead%s\n", axes[AXIS_AHEAD] == 2 ? ", by cp.async" : "");
    if (plan->choice.is_tuned) text_add(why, "tuned: block_q and block_kv are the tuning table's\n");
    if (axes[AXIS_MMA]) {
        const bool is_tried = is_engines(&plan->choice, options);
        text_add(why, "matrix engine: %s%s%s%s\n", clattn__engine_names[axes[AXIS_MMA]],
                 is_tried ? "; its products agree with " : "",
                 is_tried ? clattn_kernel_name(clattn__engine_judge(usable.engine)) : "", is_tried ? "'s" : "");
        if (choice_rounds_probs(&plan->choice))
            add_products(plan->problem.dtype, why);
        else
            text_add(why, "Q and K are multiplied in pairs; P, scores and sums are f32\n");
    }
    const device_cut *cut = &plan->choice.cut;
    if (cut->n_shares > 1 && !clattn__plan_in_place(&plan->problem, profile))
        text_add(why,
                 "transfers: %" PRId64 " shares of at most %" PRId64 " batch entries, %" PRId64 " query heads, %" PRId64
                 " rows and %" PRId64 " keys, in %d x %" PRId64 " bytes of buffers and %" PRId64
                 " bytes for all of them, at most %" PRId64 "\n",
                 cut->n_shares, cut->entries, cut->heads, cut->rows, cut->keys, cut->n_sets, cut->share_bytes,
                 cut->common_bytes, cut->bytes_most);
    if (several) FORWARD(clattn__devices_plan(plan, text_of, options, why));
    if (options->pass == CLATTN_PASS_BACKWARD) {
        text_add(why, "gradients in this order:");
        for (int i = 0; i < plan->choice.n_stages; i++)
            text_add(why, "%s %s", i ? "," : "", plan->choice.stages[i].name);
        text_add(why, "; the keys of a head in %d shares; %" PRId64 " bytes of work space\n", plan->choice.n_splits,
                 plan->choice.workspace_bytes);
    }
    return CLATTN_STATUS_SUCCESS;
}

/* On all of the context's devices; where their limits leave no way, on the first alone. */
static clattn_status prepare_device(clattn_plan *plan, const clattn_problem *text_of,
                                    const clattn_plan_options *options, text *why)
{
    if (plan->context->n_further && options->pass == CLATTN_PASS_FORWARD) {
        const clattn_status status = prepare_on(plan, text_of, options, true, why);
        if (status == CLATTN_STATUS_SUCCESS || status == CLATTN_STATUS_OUT_OF_HOST_MEMORY) return status;
        text_add(why, "left out: all devices but the first: %.300s\n", last_sentence());
    }
    return prepare_on(plan, text_of, options, false, why);
}

static clattn_status prepare_host(clattn_plan *plan, const clattn_plan_options *options, text *why)
{
    plan->path = CLATTN_PATH_HOST;
    FORWARD(clattn__plan_host(&plan->problem, options, clattn__threads_count(plan->context->threads), &plan->host));
    const host_plan *h = &plan->host;
    text_add(why, "kernel %s, %s: block_q %d, block_kv %d, at most %d threads\n", clattn_kernel_name(h->kernel),
             h->instructions, h->block_q, h->block_kv, h->n_threads);
    if (h->products == CLATTN_DTYPE_BF16) add_products(h->products, why);
    if (h->kernel == CLATTN_KERNEL_HOST_BACKWARD) return CLATTN_STATUS_SUCCESS;
    if (h->kernel == CLATTN_KERNEL_HOST_DECODE) {
        text_add(why,
                 "few query rows: K and V are read once for the %" PRId64
                 " heads that share them, in chunks of %d keys whose partials are merged\n",
                 plan->problem.gqa_group, h->chunk);
        return CLATTN_STATUS_SUCCESS;
    }
    if (h->chunk)
        text_add(why, "few query tiles: the keys are split into chunks of %d, whose partials are merged\n", h->chunk);
    return CLATTN_STATUS_SUCCESS;
}

static void report_blocks(const clattn_plan_options *o, int64_t block_q, int64_t block_kv, text *why)
{
    if (o->block_q && o->block_q != block_q)
        text_add(why, "block_q %" PRId64 " was asked for and became %" PRId64 "\n", o->block_q, block_q);
    if (o->block_kv && o->block_kv != block_kv)
        text_add(why, "block_kv %" PRId64 " was asked for and became %" PRId64 "\n", o->block_kv, block_kv);
}

/* Up to how many rows AUTO takes the host. The device is opened only where tables leave it open; they speak of
 * forward calls. */
static int64_t host_rows(const clattn_plan *plan, const clattn_plan_options *options, text *why)
{
    const problem *p = &plan->problem;
    const char *table = options->pass == CLATTN_PASS_FORWARD ? plan->context->tuning : NULL;
    const bool is_open = options->path == CLATTN_PATH_AUTO && options->kernel == CLATTN_KERNEL_AUTO;
    const int64_t rows = p->n_q > p->n_kv ? p->n_q : p->n_kv;
    int64_t least, most;
    struct device *d;
    clattn__tuning_host_range(table, &least, &most);
    if (rows <= least || rows > most || !is_open) return least;
    if (clattn__context_device(plan->context, &d) != CLATTN_STATUS_SUCCESS) return most;
    device_profile profile = *clattn__device_profile(d);
    profile.tuning = table;
    least = clattn__tuning_host_rows(&profile);
    text_add(why, "tuning tables: the host path takes up to %" PRId64 " queries and keys\n", least);
    return least;
}

static clattn_status prepare(clattn_plan *plan, const clattn_problem *text_of, const clattn_plan_options *options,
                             text *why)
{
    plan->pass = options->pass;
    const int64_t rows = host_rows(plan, options, why);
    const clattn_path wanted = clattn__plan_wanted_path(&plan->problem, options, rows, why);
    if (wanted == CLATTN_PATH_HOST) {
        FORWARD(prepare_host(plan, options, why));
        /* The app's own cl_mem stay where they are: a kernel for clattn_enqueue_*, beside the host path. */
        if (options->path == CLATTN_PATH_AUTO && options->kernel == CLATTN_KERNEL_AUTO && plan->context->from_app) {
            text_add(why, "for cl_mem, which stay on the device: ");
            if (prepare_device(plan, text_of, options, why) != CLATTN_STATUS_SUCCESS)
                text_add(why, "none: %s\n", last_sentence());
        }
    } else {
        clattn_status status = prepare_device(plan, text_of, options, why);
        plan->path = CLATTN_PATH_DEVICE;
        if (status == CLATTN_STATUS_SUCCESS && wanted == CLATTN_PATH_AUTO) {
            const device_profile profile = wanted_profile(plan->context, plan->context->device);
            status = clattn__plan_check_copies(&plan->problem, &profile, &plan->choice);
        }
        if (status != CLATTN_STATUS_SUCCESS) {
            const bool is_the_apps = status == CLATTN_STATUS_BUILD_FAILED && plan->problem.score_function.source;
            if (wanted == CLATTN_PATH_DEVICE || is_the_apps || status == CLATTN_STATUS_OUT_OF_HOST_MEMORY)
                return status;
            text_add(why, "path host: %s\n", last_sentence());
            FORWARD(prepare_host(plan, options, why));
        } else if (wanted == CLATTN_PATH_AUTO) {
            text_add(why, "path device: n_q %" PRId64 " or n_kv %" PRId64 " is above the host path's %" PRId64 "\n",
                     plan->problem.n_q, plan->problem.n_kv, rows);
        }
    }
    if (plan->path == CLATTN_PATH_HOST)
        report_blocks(options, plan->host.block_q, plan->host.block_kv, why);
    else
        report_blocks(options, plan->choice.axes[AXIS_BLOCK_Q], plan->choice.axes[AXIS_BLOCK_KV], why);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__plan_make(clattn_context *context, const problem *p, const clattn_problem *text_of,
                                const clattn_plan_options *given, bool hold, clattn_plan **out)
{
    clattn_plan_options defaults;
    clattn_plan_options_init(&defaults);
    const clattn_plan_options *options = given ? given : &defaults;
    FORWARD(clattn__plan_check_options(options));
    clattn_plan *plan = calloc(1, sizeof *plan);
    RETURN_IF(!plan, OUT_OF_HOST_MEMORY, "no room for a plan");
    atomic_init(&plan->references, 1);
    plan->problem = *p;
    plan->context = context;
    plan->holds_context = hold;
    if (hold) clattn_context_retain(context);
    clattn_problem_to_text(text_of, plan->text, sizeof plan->text);
    text why = {plan->explain, sizeof plan->explain, 0};
    text_add(&why, "%s\n", plan->text);
    error_state before;
    clattn__error_save(&before);
    const clattn_status status = prepare(plan, text_of, options, &why);
    if (status != CLATTN_STATUS_SUCCESS) {
        clattn__plan_drop(plan);
        return status;
    }
    clattn__error_restore(&before); /* what was tried on the way is in the explanation */
    if (clattn__log_wants(context, LOG_PLAN)) {
        char *rest = NULL, lines[sizeof plan->explain];
        memcpy(lines, plan->explain, sizeof lines);
        for (char *line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
            clattn__log(context, LOG_PLAN, "%s", line);
    }
    *out = plan;
    return CLATTN_STATUS_SUCCESS;
}

void clattn__plan_drop(clattn_plan *plan)
{
    if (!plan || atomic_fetch_sub(&plan->references, 1) != 1) return;
    clattn__devices_drop(plan);
    clattn__device_plan_free(plan->device_plan);
    if (plan->holds_context) clattn_context_release(plan->context);
    free(plan);
}

clattn_status clattn__plan_check_pass(const clattn_plan *plan, clattn_pass pass)
{
    RETURN_IF(plan->pass != pass, INVALID_ARGUMENT, "the plan was made for %s",
              pass == CLATTN_PASS_FORWARD ? "backward" : "forward; options.pass must be CLATTN_PASS_BACKWARD");
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__plan_find(clattn_context *context, const problem *p, const clattn_problem *text_of,
                                clattn_plan **out)
{
    clattn_plan **cached = context->cached, *found = NULL;
    clattn__context_lock(context);
    for (int i = 0; i < CACHED_PLANS && cached[i] && !found; i++) {
        if (memcmp(&cached[i]->problem, p, sizeof *p)) continue;
        found = cached[i];
        memmove(cached + 1, cached, sizeof *cached * (size_t)i);
        cached[0] = found;
        atomic_fetch_add(&found->references, 1);
    }
    pthread_mutex_unlock(&context->lock);
    if (!found) {
        FORWARD(clattn__plan_make(context, p, text_of, NULL, false, &found));
        atomic_fetch_add(&found->references, 1);
        clattn__context_lock(context);
        clattn_plan *last = cached[CACHED_PLANS - 1];
        memmove(cached + 1, cached, sizeof *cached * (CACHED_PLANS - 1));
        cached[0] = found;
        pthread_mutex_unlock(&context->lock);
        clattn__plan_drop(last);
    }
    *out = found;
    return CLATTN_STATUS_SUCCESS;
}
