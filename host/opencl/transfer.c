/* Calls with host pointers: the kernels work in the caller's memory, or in copies. */
#include <inttypes.h>
#include <string.h>

#include "copy.h"
#include "run.h"

/* The caller's memory while a call's kernels work in it; calls are counted as they come. */
typedef struct host_range {
    struct host_range *next;
    const char *begin, *end;
    uint64_t call;
} host_range;

/* A stretch of the caller's memory that the kernels work in, one for each operand. */
typedef struct stretch {
    tensor_shape shape; /* as the caller has it */
    bool written;
    char *begin, *end; /* NULL: absent */
    int cluster;       /* the first stretch of those that it overlaps */
    cl_mem mem;        /* the cluster's */
    int64_t at;        /* bytes from the start of mem */
    host_range range;  /* of the cluster that it is the first of; else no begin */
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

/* ---- in place: one cl_mem over each cluster of stretches that overlap */

/* The clusters. Must the call copy? One is beyond one allocation, or holds a tensor at a place that its elements do not
 * divide, or an output has gaps, which are others' to write meanwhile. */
static bool clusters_find(const device_plan *plan, stretch s[OPERANDS])
{
    bool must_copy = false, is_placed[OPERANDS] = {false};
    for (int i = 0; i < OPERANDS; i++) {
        must_copy |= s[i].begin && s[i].written && !s[i].shape.gapless;
        if (!s[i].begin || is_placed[i]) continue;
        char *begin = s[i].begin, *end = s[i].end;
        for (bool grown = true; grown;) {
            grown = false;
            for (int j = i + 1; j < OPERANDS; j++) {
                if (!s[j].begin || is_placed[j] || s[j].begin >= end || begin >= s[j].end) continue;
                if (s[j].begin < begin) begin = s[j].begin, grown = true;
                if (s[j].end > end) end = s[j].end, grown = true;
            }
        }
        must_copy |= end - begin > plan->device->profile.max_alloc_bytes;
        s[i].range = (host_range){.begin = begin, .end = end};
        for (int j = i; j < OPERANDS; j++) {
            if (!s[j].begin || is_placed[j] || s[j].begin >= end || begin >= s[j].end) continue;
            is_placed[j] = true;
            s[j].cluster = i;
            s[j].at = s[j].begin - begin;
            must_copy |= s[j].at % (int64_t)s[j].shape.size != 0;
        }
    }
    return must_copy;
}

/* Clusters of the calls that run now, or wait for one that came before, on any device. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t fewer;
    host_range *first;
    uint64_t calls;
} in_use = {.lock = PTHREAD_MUTEX_INITIALIZER, .fewer = PTHREAD_COND_INITIALIZER};

/* Several cl_mem over one place at a time end some drivers, unless they are over the very same range. */
static bool overlaps_earlier(const stretch s[OPERANDS], uint64_t call)
{
    for (const host_range *r = in_use.first; r; r = r->next)
        for (int i = 0; r->call < call && i < OPERANDS; i++) {
            const host_range *own = &s[i].range;
            if (own->begin < r->end && r->begin < own->end && (own->begin != r->begin || own->end != r->end))
                return true;
        }
    return false;
}

/* Waits for the calls that came before and whose clusters overlap this one's. */
static void clusters_take(stretch s[OPERANDS])
{
    pthread_mutex_lock(&in_use.lock);
    const uint64_t call = in_use.calls++;
    for (int i = 0; i < OPERANDS; i++) {
        if (!s[i].range.begin) continue;
        s[i].range.call = call;
        s[i].range.next = in_use.first;
        in_use.first = &s[i].range;
    }
    while (overlaps_earlier(s, call)) pthread_cond_wait(&in_use.fewer, &in_use.lock);
    pthread_mutex_unlock(&in_use.lock);
}

static clattn_status clusters_open(const device_plan *plan, stretch s[OPERANDS])
{
    for (int i = 0; i < OPERANDS; i++) {
        const host_range *r = &s[i].range;
        bool written = false;
        if (!r->begin) continue;
        for (int j = i; j < OPERANDS; j++) written |= s[j].begin && s[j].cluster == i && s[j].written;
        cl_int code;
        /* Without HOST_READ_ONLY Intel's GPUs refuse memory that the process may only read. */
        const cl_mem_flags access = written ? CL_MEM_READ_WRITE : CL_MEM_READ_ONLY | CL_MEM_HOST_READ_ONLY;
        cl_mem mem = clCreateBuffer(plan->device->cl, CL_MEM_USE_HOST_PTR | access, (size_t)(r->end - r->begin),
                                    (void *)r->begin, &code);
        RETURN_IF_CL("clCreateBuffer", code);
        for (int j = i; j < OPERANDS; j++)
            if (s[j].begin && s[j].cluster == i) s[j].mem = mem;
    }
    return CLATTN_STATUS_SUCCESS;
}

static void clusters_close(stretch s[OPERANDS])
{
    for (int i = 0; i < OPERANDS; i++)
        if (s[i].mem && s[i].range.begin) clReleaseMemObject(s[i].mem);
    pthread_mutex_lock(&in_use.lock);
    for (int i = 0; i < OPERANDS; i++) {
        host_range **r = &in_use.first;
        if (!s[i].range.begin) continue;
        while (*r != &s[i].range) r = &(*r)->next;
        *r = (*r)->next;
    }
    pthread_cond_broadcast(&in_use.fewer);
    pthread_mutex_unlock(&in_use.lock);
}

/* The driver's word that what it wrote is in the caller's memory, enqueued behind the kernel. *done: for the last of
 * them; what it held before is released. */
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

static clattn_status workspace_make(const device_plan *plan, cl_mem *workspace)
{
    cl_int code = CL_SUCCESS;
    if (plan->choice.workspace_bytes)
        *workspace =
            clCreateBuffer(plan->device->cl, CL_MEM_READ_WRITE, (size_t)plan->choice.workspace_bytes, NULL, &code);
    RETURN_IF_CL("clCreateBuffer", code);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status run_in_place(device_plan *plan, const problem *p, const clattn_forward_args *args,
                                  const stretch s[OPERANDS])
{
    cl_event done; /* of the last command: one wait for all */
    launch_buffers b = {0};
    for (int i = 0; i < OPERANDS; i++) {
        b.operand[i] = s[i].mem;
        b.at[i] = s[i].mem ? s[i].at / (int64_t)s[i].shape.size : 0;
    }
    clattn__launch_numbers(&b, plan, p, args);
    FORWARD(workspace_make(plan, &b.workspace));
    clattn_status status = clattn__launch(plan, p, plan->device->queue, &b, NULL, 0, NULL, &done);
    if (b.workspace) clReleaseMemObject(b.workspace); /* enqueued commands keep it alive */
    FORWARD(status);
    for (int i = 0; i < OPERANDS && status == CLATTN_STATUS_SUCCESS; i++)
        if (s[i].written) status = clattn__late(enqueue_map_back(plan, &s[i], &done));
    const clattn_status waited = clattn__late(wait_and_release(plan, done));
    return status == CLATTN_STATUS_SUCCESS ? waited : status;
}

/* ---- copied: without gaps on the device, whatever the caller's strides; in shares, as the plan's cut has it
 *
 *   one queue    in 0        in 1  out 0  in 2  out 1  in 3  ...    copies, which this thread makes one by one
 *   another            kernels 0  kernels 1     kernels 2  ...      the device's own
 *
 * Share i has the set of buffers i % n_sets, which share i - n_sets has been copied out of. */

typedef struct transfer {
    device_plan *plan;
    const problem *given;
    const clattn_forward_args *args;
    const stretch *caller;
    const device_cut *cut;
    int64_t first, end; /* shares, counted in the whole call's */
    int n_sets;
    char *partials; /* as device_shares has them */
    bool merges;
    cl_command_queue queue; /* for copies: the device's own when there is one share */
    staging *staging;       /* NULL: through the driver's mapping */
    cl_mem mem[2][OPERANDS], workspace;
    tensor_part held[2][OPERANDS]; /* what lies there */
    bool is_common[OPERANDS];      /* the same for all shares: in set 0 alone */
    cl_event copied[2], computed[2];
    bool is_launched;
} transfer;

static share share_of(const transfer *x, int64_t nth)
{
    share s = clattn__share_of(x->given, x->cut, nth);
    s.skips_chunks = x->merges;
    if (x->partials && !x->merges) s.skips_merge = true;
    return s;
}

/* A merge has no use for what the scores are made of. */
static bool is_used(const transfer *x, int operand)
{
    const bool is_read = operand == TENSOR_O || operand == TENSOR_LSE || operand == TENSOR_SINKS ||
                         operand == TENSOR_KV_LENGTHS || operand == TENSOR_QUERY_OFFSETS;
    return x->caller[operand].begin && (is_read || !x->merges);
}

/* The partials of a share's chunks, which lie together, from the work space to the host, *done when they are there; or its
 * group's back, at once. */
static clattn_status copy_partials(const transfer *x, const share *s, cl_event *done)
{
    const device_choice *c = &x->plan->choice;
    const int64_t chunks = c->stages[0].n_tiles, real_size = x->given->dtype == CLATTN_DTYPE_F64 ? 8 : 4;
    const int64_t chunk_bytes = c->partial_chunk * real_size, block_kv = c->axes[AXIS_BLOCK_KV];
    const int64_t group = s->entry * x->given->n_heads_kv + s->head / x->given->gqa_group;
    const int64_t first = x->merges ? 0 : s->key / block_kv, end = (s->key_end + block_kv - 1) / block_kv;
    const size_t at = (size_t)((group * chunks + first) * chunk_bytes), bytes = (size_t)((end - first) * chunk_bytes);
    const cl_command_queue queue = x->plan->device->queue; /* the kernels' own: the work space is theirs */
    if (x->merges)
        RETURN_IF_CL("clEnqueueWriteBuffer",
                     clEnqueueWriteBuffer(queue, x->workspace, CL_TRUE, at, bytes, x->partials + at, 0, NULL, NULL));
    else
        RETURN_IF_CL("clEnqueueReadBuffer",
                     clEnqueueReadBuffer(queue, x->workspace, CL_FALSE, at, bytes, x->partials + at, 0, NULL, done));
    return CLATTN_STATUS_SUCCESS;
}

static tensor_part part_of(const transfer *x, int operand, const share *s)
{
    if (operand < TENSOR_COUNT) return clattn__share_part(x->given, s, (tensor_name)operand);
    return (tensor_part){.shape = x->caller[operand].shape}; /* gradients are not cut */
}

static clattn_status copy_part(const transfer *x, int operand, const tensor_part *part, cl_mem mem,
                               copy_direction direction, cl_event *done)
{
    const tensor_shape *t = &part->shape;
    const int64_t at = tensor_at(t, part->first[0], part->first[1], part->first[2]);
    return clattn__copy(x->queue, x->staging, x->plan->threads, t, x->caller[operand].begin + at * (int64_t)t->size,
                        mem, direction, done);
}

static clattn_status wait_for(cl_event *event)
{
    const cl_int code = *event ? clWaitForEvents(1, event) : CL_SUCCESS;
    if (*event) clReleaseEvent(*event);
    *event = NULL;
    RETURN_IF_CL("clWaitForEvents", code);
    return CLATTN_STATUS_SUCCESS;
}

/* Copies a share in, as far as its set does not hold it, and enqueues its kernels behind. */
static clattn_status share_begin(transfer *x, int64_t nth)
{
    const device_plan *plan = x->plan;
    const share s = share_of(x, nth);
    const int set = (int)(nth % x->n_sets);
    const bool is_whole = x->cut->n_shares == 1;
    problem p = *x->given;
    launch_buffers b = {.workspace = x->workspace};
    for (int i = 0; i < OPERANDS; i++) {
        const int at = x->is_common[i] ? 0 : set;
        const tensor_part part = part_of(x, i, &s);
        int64_t dense[4];
        clattn__tensor_copy_strides(&part.shape, dense);
        if (i < TENSOR_COUNT) memcpy(p.tensor[i].stride, dense, sizeof dense); /* the gradients' too */
        b.operand[i] = x->mem[at][i];
        b.at[i] = -(part.first[0] * dense[0] + part.first[1] * dense[1] + part.first[2] * dense[2]);
        if (!b.operand[i] || part_is(&x->held[at][i], &part)) continue;
        x->held[at][i] = part;
        if (!x->caller[i].written) FORWARD(copy_part(x, i, &part, b.operand[i], COPY_IN, &x->copied[set]));
    }
    clattn__launch_numbers(&b, plan, &p, x->args);
    if (!is_whole) RETURN_IF_CL("clFlush", clFlush(x->queue)); /* another queue's kernels wait for it */
    if (x->merges) FORWARD(copy_partials(x, &s, NULL));
    const bool waits = x->copied[set] != NULL;
    FORWARD(clattn__launch(x->plan, &p, plan->device->queue, &b, is_whole ? NULL : &s, waits,
                           waits ? &x->copied[set] : NULL, &x->computed[set]));
    x->is_launched = true;
    if (x->partials && !x->merges) {
        cl_event read = NULL;
        FORWARD(copy_partials(x, &s, &read));
        clReleaseEvent(x->computed[set]);
        x->computed[set] = read;
    }
    if (!is_whole) RETURN_IF_CL("clFlush", clFlush(plan->device->queue)); /* they run while this thread copies */
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status share_end(transfer *x, int64_t nth)
{
    const share s = share_of(x, nth);
    const int set = (int)(nth % x->n_sets);
    FORWARD(wait_for(&x->computed[set]));
    if (s.skips_merge) return CLATTN_STATUS_SUCCESS;
    for (int i = 0; i < OPERANDS; i++) {
        if (!x->caller[i].begin || !x->caller[i].written) continue;
        const tensor_part part = part_of(x, i, &s);
        FORWARD(copy_part(x, i, &part, x->mem[x->is_common[i] ? 0 : set][i], COPY_OUT, &x->copied[set]));
    }
    return CLATTN_STATUS_SUCCESS;
}

/* All buffers that the call takes, before anything is copied. */
static clattn_status buffers_make(transfer *x)
{
    const device_cut *cut = x->cut;
    const share first = clattn__share_of(x->given, cut, 0), last = clattn__share_of(x->given, cut, cut->n_shares - 1);
    int64_t bytes[OPERANDS], all = x->plan->choice.workspace_bytes;
    cl_int code;
    for (int i = 0; i < OPERANDS; i++) {
        const tensor_part a = part_of(x, i, &first), b = part_of(x, i, &last);
        bytes[i] = is_used(x, i) ? clattn__tensor_copy_bytes(&a.shape) : 0;
        x->is_common[i] = part_is(&a, &b);
        for (int set = 0; set < (x->is_common[i] ? 1 : x->n_sets); set++)
            if (__builtin_add_overflow(all, bytes[i], &all)) all = INT64_MAX;
    }
    RETURN_IF(all > cut->bytes_most, OUT_OF_DEVICE_MEMORY,
              "the call takes %" PRId64 " bytes of copies and work space; %s may hold %" PRId64 " at a time", all,
              x->plan->device->profile.name, cut->bytes_most);
    FORWARD(workspace_make(x->plan, &x->workspace));
    for (int i = 0; i < OPERANDS; i++)
        for (int set = 0; bytes[i] && set < (x->is_common[i] ? 1 : x->n_sets); set++) {
            x->mem[set][i] = clCreateBuffer(x->plan->device->cl, CL_MEM_READ_WRITE, (size_t)bytes[i], NULL, &code);
            RETURN_IF_CL("clCreateBuffer", code);
        }
    return CLATTN_STATUS_SUCCESS;
}

/* A group's last share stands for it in a merge. */
static bool has_work(const transfer *x, int64_t nth) { return !x->merges || !share_of(x, nth).skips_merge; }

static clattn_status shares_run(transfer *x)
{
    const struct device *d = x->plan->device;
    const device_cut *cut = x->cut;
    const int lag = cut->n_sets - 1;
    cl_int code;
    if (!cut->n_shares) return clattn__plan_cut_refuse(cut, &d->profile, CLATTN_STATUS_OUT_OF_DEVICE_MEMORY);
    FORWARD(buffers_make(x));
    if (cut->n_shares > 1) {
        x->queue = clCreateCommandQueue(d->cl, d->id, 0, &code);
        RETURN_IF_CL("clCreateCommandQueue", code);
    }
    for (int64_t i = x->first; i < x->end + lag; i++) {
        if (i < x->end && has_work(x, i)) FORWARD(share_begin(x, i));
        if (i >= x->first + lag && has_work(x, i - lag)) FORWARD(share_end(x, i - lag));
    }
    for (int set = 0; set < x->n_sets; set++) FORWARD(wait_for(&x->copied[set]));
    return x->staging ? clattn__staging_wait(x->staging) : CLATTN_STATUS_SUCCESS;
}

static clattn_status run_copied(device_plan *plan, const problem *p, const clattn_forward_args *args,
                                const stretch caller[OPERANDS], bool through_staging, const device_shares *given)
{
    const cl_command_queue own = plan->device->queue;
    const device_cut *cut = given ? given->cut : &plan->choice.cut;
    transfer x = {.plan = plan,
                  .given = p,
                  .args = args,
                  .caller = caller,
                  .cut = cut,
                  .first = given ? given->first : 0,
                  .end = given ? given->end : cut->n_shares,
                  .partials = given ? given->partials : NULL,
                  .merges = given && given->merges,
                  .n_sets = cut->n_sets,
                  .queue = own};
    if (through_staging) x.staging = clattn__staging_take(plan->device);
    clattn_status status = shares_run(&x);
    if (x.is_launched) status = clattn__late(status);
    if (status != CLATTN_STATUS_SUCCESS) { /* first the copies, which wait for no kernel */
        if (x.queue) clFinish(x.queue);
        clFinish(own);
    }
    clattn__staging_give(plan->device, x.staging);
    for (int set = 0; set < 2; set++) {
        if (x.copied[set]) clReleaseEvent(x.copied[set]);
        if (x.computed[set]) clReleaseEvent(x.computed[set]);
        for (int i = 0; i < OPERANDS; i++)
            if (x.mem[set][i]) clReleaseMemObject(x.mem[set][i]);
    }
    if (x.workspace) clReleaseMemObject(x.workspace);
    if (x.queue && x.queue != own) clReleaseCommandQueue(x.queue);
    return status;
}

clattn_status clattn__device_run(device_plan *plan, const problem *p, const clattn_forward_args *args,
                                 const clattn_backward_args *backward, bool copy, const device_shares *shares)
{
    if (!backward && p->tensor[TENSOR_O].bytes == 0) return CLATTN_STATUS_SUCCESS;
    FORWARD(clattn__device_check_process(plan->device));
    stretch caller[OPERANDS], s[OPERANDS];
    stretches_find(p, args, backward, caller);
    if (copy || !plan->device->profile.shares_host_memory) return run_copied(plan, p, args, caller, true, shares);
    memcpy(s, caller, sizeof s);
    if (clusters_find(plan, s)) return run_copied(plan, p, args, caller, false, NULL);
    clusters_take(s);
    clattn_status status = clusters_open(plan, s);
    if (status == CLATTN_STATUS_SUCCESS) status = run_in_place(plan, p, args, s);
    if (status != CLATTN_STATUS_SUCCESS)
        clFinish(plan->device->queue); /* what was enqueued still reads the caller's memory */
    clusters_close(s);
    return status;
}
