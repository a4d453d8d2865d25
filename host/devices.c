#include "devices.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>

#include <clattn/clattn.h>

#include "device.h"
#include "error.h"

/* ---- contexts */

clattn_status clattn__devices_open(clattn_context *c)
{
    const int n = c->options.n_devices - 1;
    if (n < 1) return CLATTN_STATUS_SUCCESS;
    c->further = calloc((size_t)n, sizeof(clattn_context *));
    RETURN_IF(!c->further, OUT_OF_HOST_MEMORY, "no room for %d contexts", n);
    clattn_context_options options = c->options;
    options.n_devices = 0;
    options.devices = NULL;
    options.tuning = c->tuning ? c->tuning : "";
    options.parallel_for = NULL; /* which an app may not expect to be called twice at once */
    options.n_threads = clattn__threads_count(c->threads) / (n + 1);
    if (options.n_threads < 1) options.n_threads = 1;
    for (; c->n_further < n; c->n_further++) {
        options.device_index = c->options.devices[1 + c->n_further];
        FORWARD(clattn_context_create(&options, &c->further[c->n_further]));
    }
    return CLATTN_STATUS_SUCCESS;
}

void clattn__devices_close(clattn_context *c)
{
    for (int i = 0; i < c->n_further; i++) clattn_context_release(c->further[i]);
    free(c->further);
}

/* ---- plans */

void clattn__devices_limit(const clattn_context *c, device_profile *profile)
{
    for (int i = 0; i < c->n_further; i++) {
        const device_profile *p = clattn__device_profile(c->further[i]->device);
        if (!profile->copy_bytes_most || (p->copy_bytes_most && p->copy_bytes_most < profile->copy_bytes_most))
            profile->copy_bytes_most = p->copy_bytes_most;
        if (p->max_alloc_bytes < profile->max_alloc_bytes) profile->max_alloc_bytes = p->max_alloc_bytes;
    }
}

/* Whether the plan's cut is one of the part's kernel too: rows are cut between its tiles, the rows of a GQA group are
 * parted only where it does not work on them as one, keys between its chunks, of which it leaves the same partials, and
 * its work space is no more than was counted. */
static bool suits(const clattn_plan *plan, const clattn_plan *part)
{
    const device_choice *mine = &plan->choice, *its = &part->choice;
    const bool same_partials = mine->kernel == its->kernel && mine->axes[AXIS_BLOCK_KV] == its->axes[AXIS_BLOCK_KV];
    return (mine->cut.rows == plan->problem.n_q || mine->cut.rows % its->axes[AXIS_BLOCK_Q] == 0) &&
           (mine->cut.keys == plan->problem.n_kv || same_partials) &&
           choice_splits_keys(mine) == choice_splits_keys(its) && its->workspace_bytes <= mine->workspace_bytes;
}

clattn_status clattn__devices_plan(clattn_plan *plan, const clattn_problem *text_of, const clattn_plan_options *given,
                                   text *why)
{
    const clattn_context *c = plan->context;
    const device_cut *cut = &plan->choice.cut;
    clattn_plan_options options = *given;
    options.path = CLATTN_PATH_DEVICE;
    plan->parts = calloc((size_t)c->n_further, sizeof(clattn_plan *));
    RETURN_IF(!plan->parts, OUT_OF_HOST_MEMORY, "no room for %d plans", c->n_further);
    for (int i = 0; i < c->n_further && plan->n_parts + 1 < cut->n_shares; i++) {
        const char *name = clattn__device_profile(c->further[i]->device)->name;
        clattn_plan *part;
        const clattn_status status = clattn__plan_make(c->further[i], &plan->problem, text_of, &options, true, &part);
        if (status == CLATTN_STATUS_OUT_OF_HOST_MEMORY) return status;
        if (status != CLATTN_STATUS_SUCCESS) {
            text_add(why, "left out: %s: %.300s\n", name, clattn_last_error()->message);
        } else if (!suits(plan, part)) {
            text_add(why, "left out: %s: %s, block_q %d, block_kv %d, does not suit shares made for %s\n", name,
                     clattn_kernel_name(part->choice.kernel), part->choice.axes[AXIS_BLOCK_Q],
                     part->choice.axes[AXIS_BLOCK_KV], clattn_kernel_name(plan->choice.kernel));
            clattn__plan_drop(part);
        } else {
            text_add(why, "device: %s, kernel %s, block_q %d, block_kv %d\n", name,
                     clattn_kernel_name(part->choice.kernel), part->choice.axes[AXIS_BLOCK_Q],
                     part->choice.axes[AXIS_BLOCK_KV]);
            plan->parts[plan->n_parts++] = part;
        }
    }
    text_add(why, "devices: %d share %" PRId64 " shares\n", 1 + plan->n_parts, cut->n_shares);
    return CLATTN_STATUS_SUCCESS;
}

void clattn__devices_drop(clattn_plan *plan)
{
    for (int i = 0; i < plan->n_parts; i++) clattn__plan_drop(plan->parts[i]);
    free(plan->parts);
}

/* ---- calls */

/* One device's shares of a call, on a thread of its own. */
typedef struct part_run {
    const clattn_plan *plan; /* the device's */
    const problem *p;
    const clattn_forward_args *args;
    device_shares shares;
    pthread_t thread;
    bool has_thread;
    clattn_status status;
    error_state error;
} part_run;

static void *part_run_all(void *user)
{
    part_run *r = user;
    r->status = clattn__device_run(r->plan->device_plan, r->p, r->args, NULL, true, &r->shares);
    if (r->status != CLATTN_STATUS_SUCCESS) clattn__error_save(&r->error);
    return NULL;
}

static bool lacks_memory(const part_run *r)
{
    return r->status == CLATTN_STATUS_OUT_OF_HOST_MEMORY || r->status == CLATTN_STATUS_OUT_OF_DEVICE_MEMORY;
}

/* Of all parts, and its sentence. Want of memory says that nothing is written: only where every part that was run says
 * so. */
static clattn_status status_of(const part_run *runs, int n, bool writes)
{
    const part_run *failed = NULL;
    bool has_written = false;
    for (int i = 0; i < n; i++) {
        has_written |= writes && runs[i].status == CLATTN_STATUS_SUCCESS;
        if (runs[i].status != CLATTN_STATUS_SUCCESS && (!failed || lacks_memory(failed))) failed = &runs[i];
    }
    if (!failed) return CLATTN_STATUS_SUCCESS;
    if (lacks_memory(failed) && has_written)
        return clattn__fail(CLATTN_STATUS_OPENCL_ERROR, failed->error.cl_error, "after other devices had begun: %.900s",
                            failed->error.message);
    clattn__error_restore(&failed->error);
    return failed->status;
}

/* Keys that are cut leave partials, which the first device merges. */
static clattn_status merge_partials(const clattn_plan *plan, const clattn_forward_args *args, char *partials)
{
    const device_cut *cut = &plan->choice.cut;
    const device_shares all = {.cut = cut, .end = cut->n_shares, .partials = partials, .merges = true};
    return clattn__device_run(plan->device_plan, &plan->problem, args, NULL, true, &all);
}

clattn_status clattn__devices_run(const clattn_plan *plan, const clattn_forward_args *args)
{
    const int n = 1 + plan->n_parts;
    const device_cut *cut = &plan->choice.cut;
    const bool cuts_keys = cut->keys < plan->problem.n_kv;
    part_run *runs = calloc((size_t)n, sizeof *runs);
    char *partials = cuts_keys ? malloc((size_t)plan->choice.workspace_bytes) : NULL;
    if (!runs || (cuts_keys && !partials)) {
        free(runs);
        free(partials);
        return clattn__fail(CLATTN_STATUS_OUT_OF_HOST_MEMORY, 0, "no room for %d devices' parts of a call", n);
    }
    for (int i = 0; i < n; i++) {
        runs[i].plan = i ? plan->parts[i - 1] : plan;
        runs[i].p = &plan->problem;
        runs[i].args = args;
        runs[i].shares = (device_shares){
            .cut = cut, .first = cut->n_shares * i / n, .end = cut->n_shares * (i + 1) / n, .partials = partials};
    }
    sigset_t all, before; /* those of the app take its signals */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int i = 1; i < n; i++) runs[i].has_thread = pthread_create(&runs[i].thread, NULL, part_run_all, &runs[i]) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    for (int i = 0; i < n; i++)
        if (!runs[i].has_thread) part_run_all(&runs[i]);
    for (int i = 0; i < n; i++)
        if (runs[i].has_thread) pthread_join(runs[i].thread, NULL);
    clattn_status status = status_of(runs, n, !cuts_keys);
    if (status == CLATTN_STATUS_SUCCESS && cuts_keys) status = merge_partials(plan, args, partials);
    free(partials);
    free(runs);
    return status;
}
