/* One backward call on the host: delta of every row, the kv tiles, what their splits add to dQ, and dbias. */
#include "backward.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "../../cl/dropout.clh"
#include "../error.h"
#include "../half.h"
#include "../plan.h"

/* The kv tiles of a kv head are dealt to n_splits items, so that few heads keep many threads busy. Each split sums a dQ
 * of its own; their order is fixed. */
typedef struct backward_call {
    const host_plan *plan;
    const problem *p;
    const clattn_backward_args *args;
    const backward_ops *ops;
    int n_splits;
    int64_t n_items;    /* batch x n_heads_kv x n_splits */
    int64_t n_entries;  /* batch entries in turn: those whose items have partials at a time */
    int64_t first_item; /* of this turn */
    int64_t dq_bytes;   /* of one item: real [gqa_group][n_q up to a block][pitch] */
    double *delta;      /* [batch, n_heads_q, n_q]; varlen: n_q of the longest */
    double *sink_sums;  /* [batch, n_heads_q] */
    double *slope_sums; /* [n_items][gqa_group] */
    char *partials;     /* n_splits > 1: dq of every item */
    char *work;         /* of each worker: heads, kv tile's state, and dq when n_splits is 1 */
    size_t work_bytes, heads_bytes, state_bytes;
    philox_block dropout_key;
    int64_t bias_count[4]; /* dbias's own dimensions, in blocks where rows and keys are not broadcast */
    int64_t n_stage;
    void (*stage)(const struct backward_call *, int64_t item, char *work);
    _Atomic int64_t next;
} backward_call;

static int64_t round_up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }

static char *place(const backward_call *c, tensor_name name, int64_t a, int64_t b, int64_t row, const clattn_buffer *of)
{
    const tensor_shape *t = &c->p->tensor[name];
    char *data = of->host ? (char *)of->host + of->offset : NULL;
    return data ? data + tensor_at(t, a, b, row) * (int64_t)t->size : NULL;
}

static char *forward_place(const backward_call *c, tensor_name name, int64_t a, int64_t b, int64_t row)
{
    return place(c, name, a, b, row, clattn__args_buffer(&c->args->forward, name));
}

static char *gradient_place(const backward_call *c, gradient_name name, int64_t a, int64_t b, int64_t row)
{
    return place(c, clattn__gradient_of[name], a, b, row, clattn__gradient_buffer(c->args, name));
}

static double *delta_of(const backward_call *c, int64_t batch, int64_t head)
{
    return c->delta + (batch * c->p->n_heads_q + head) * c->p->n_q;
}

/* ---- stage 1: delta and dsinks of one head */

static void delta_stage(const backward_call *c, int64_t item, char *work)
{
    const problem *p = c->p;
    const int64_t batch = item / p->n_heads_q, head = item % p->n_heads_q;
    const problem_entry e = clattn__problem_entry(p, &c->args->forward, batch);
    const int64_t entry = p->varlen ? 0 : batch;
    const float *lse = (const float *)forward_place(c, TENSOR_LSE, entry, head, e.row_q);
    const int64_t lse_row = p->tensor[TENSOR_LSE].stride[2];
    double *delta = delta_of(c, batch, head), sum = 0;
    (void)work;
    c->ops->delta(forward_place(c, TENSOR_O, entry, head, e.row_q),
                  gradient_place(c, GRADIENT_D_O, entry, head, e.row_q), lse,
                  (const float *)gradient_place(c, GRADIENT_D_LSE, entry, head, e.row_q), p->dtype,
                  p->tensor[TENSOR_O].stride[2], lse_row, (int)e.n_q, (int)p->head_dim_v, delta);
    if (!p->has_sinks) return;
    const double sink = (double)((const float *)clattn__args_host(&c->args->forward, TENSOR_SINKS))[head];
    for (int64_t i = 0; i < e.n_q; i++)
        if (lse[i * lse_row] != -INFINITY) sum -= exp(sink - (double)lse[i * lse_row]) * delta[i];
    c->sink_sums[item] = sum;
}

/* ---- stage 2: the kv tiles of one split of one kv head */

static backward_job job_of(const backward_call *c, int64_t batch, int64_t kv_head, const problem_entry *e,
                           backward_head *heads)
{
    const problem *p = c->p;
    const tensor_shape *t = p->tensor;
    const int64_t entry = p->varlen ? 0 : batch;
    const float *slopes = clattn__args_host(&c->args->forward, TENSOR_ALIBI);
    for (int n = 0; n < (int)p->gqa_group; n++) {
        const int64_t head = kv_head * p->gqa_group + n;
        const int64_t slope_row = p->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD ? batch * p->n_heads_q : 0;
        heads[n] = (backward_head){
            .q = forward_place(c, TENSOR_Q, entry, head, e->row_q),
            .d_o = gradient_place(c, GRADIENT_D_O, entry, head, e->row_q),
            .lse = (const float *)forward_place(c, TENSOR_LSE, entry, head, e->row_q),
            .delta = delta_of(c, batch, head),
            .bias = p->bias_dtype ? forward_place(c, TENSOR_BIAS, batch, head, 0) : NULL,
            .mask = p->has_mask ? (const uint8_t *)forward_place(c, TENSOR_MASK, batch, head, 0) : NULL,
            .slope = p->alibi ? (double)slopes[slope_row + head] : 0,
            .head = head,
        };
    }
    return (backward_job){
        .k = forward_place(c, TENSOR_K, entry, kv_head, e->row_kv),
        .v = forward_place(c, TENSOR_V, entry, kv_head, e->row_kv),
        .dk = gradient_place(c, GRADIENT_DK, entry, kv_head, e->row_kv),
        .dv = gradient_place(c, GRADIENT_DV, entry, kv_head, e->row_kv),
        .q_row = t[TENSOR_Q].stride[2],
        .k_row = t[TENSOR_K].stride[2],
        .v_row = t[TENSOR_V].stride[2],
        .o_row = t[TENSOR_O].stride[2],
        .lse_row = t[TENSOR_LSE].stride[2],
        .dtype = p->dtype,
        .head_dim_qk = (int)p->head_dim_qk,
        .head_dim_v = (int)p->head_dim_v,
        .n_q = (int)e->n_q,
        .n_kv = (int)e->n_kv,
        .band = mask_band_init(e->query_offset, e->kv_length, (int)e->n_kv, p->window_left, p->window_right),
        .scale = p->scale,
        .heads = heads,
        .n_heads = (int)p->gqa_group,
        .has_score = p->softcap > 0 || p->alibi || p->bias_dtype || p->score_function.host,
        .softcap = p->softcap,
        .query_offset = e->query_offset,
        .bias_dtype = p->bias_dtype,
        .bias_q = t[TENSOR_BIAS].stride[2],
        .bias_kv = t[TENSOR_BIAS].stride[3],
        .mask_q = t[TENSOR_MASK].stride[2],
        .mask_kv = t[TENSOR_MASK].stride[3],
        .score_function = p->score_function.host,
        .score_derivative = p->score_function.host_derivative,
        .score_data = t[TENSOR_SCORE_DATA].size ? clattn__args_host(&c->args->forward, TENSOR_SCORE_DATA) : NULL,
        .dropout = p->dropout,
        .dropout_key0 = c->dropout_key.x[0],
        .dropout_key1 = c->dropout_key.x[1],
        .batch = batch,
        .n_heads_q = p->n_heads_q,
    };
}

static void store_dq(const backward_call *c, int64_t batch, int64_t kv_head, int n, const problem_entry *e,
                     const char *dq)
{
    const problem *p = c->p;
    const int64_t head = kv_head * p->gqa_group + n, entry = p->varlen ? 0 : batch;
    c->ops->store(gradient_place(c, GRADIENT_DQ, entry, head, e->row_q), p->dtype, p->tensor[TENSOR_Q].stride[2],
                  dq + n * (c->dq_bytes / p->gqa_group), (int)e->n_q, (int)p->head_dim_qk, p->scale);
}

static void tiles_stage(const backward_call *c, int64_t nth, char *work)
{
    const problem *p = c->p;
    const int64_t item = c->first_item + nth;
    const int split = (int)(item % c->n_splits);
    const int64_t batch = item / c->n_splits / p->n_heads_kv, kv_head = item / c->n_splits % p->n_heads_kv;
    const problem_entry e = clattn__problem_entry(p, &c->args->forward, batch);
    backward_head *heads = (backward_head *)work;
    char *dq = c->partials ? c->partials + nth * c->dq_bytes : work + c->heads_bytes + c->state_bytes;
    const backward_job job = job_of(c, batch, kv_head, &e, heads);
    const bool wants_dq = c->args->dq.host != NULL;
    if (wants_dq) memset(dq, 0, (size_t)c->dq_bytes);
    for (int n = 0; n < job.n_heads; n++) {
        if (wants_dq) heads[n].dq = dq + n * (c->dq_bytes / p->gqa_group);
        if (c->args->dalibi_slopes.host) heads[n].dslope = &c->slope_sums[item * p->gqa_group + n];
    }
    c->ops->tiles(&job, split, c->n_splits, work + c->heads_bytes);
    for (int n = 0; wants_dq && !c->partials && n < job.n_heads; n++) store_dq(c, batch, kv_head, n, &e, dq);
}

/* ---- stage 3: dQ = the sum of the splits, of one head; the first split's partial takes it */

static void add(void *to, const void *from, int64_t bytes, size_t real_size)
{
    for (int64_t i = 0; real_size == 4 && i < bytes / 4; i++) ((float *)to)[i] += ((const float *)from)[i];
    for (int64_t i = 0; real_size == 8 && i < bytes / 8; i++) ((double *)to)[i] += ((const double *)from)[i];
}

static void splits_stage(const backward_call *c, int64_t nth, char *work)
{
    const problem *p = c->p;
    const int n = (int)(nth % p->gqa_group);
    const int64_t kv_nth = nth / p->gqa_group, kv_item = c->first_item / c->n_splits + kv_nth;
    const int64_t batch = kv_item / p->n_heads_kv, kv_head = kv_item % p->n_heads_kv;
    const problem_entry e = clattn__problem_entry(p, &c->args->forward, batch);
    char *first = c->partials + kv_nth * c->n_splits * c->dq_bytes;
    const int64_t bytes = c->dq_bytes / p->gqa_group;
    (void)work;
    for (int s = 1; s < c->n_splits; s++)
        add(first + n * bytes, first + s * c->dq_bytes + n * bytes, bytes, c->ops->real_size);
    store_dq(c, batch, kv_head, n, &e, first);
}

/* ---- stage 4: dbias, BACKWARD_BLOCK rows x BACKWARD_BLOCK keys of its own dimensions, computed again and summed over
 * what is broadcast in a fixed order */

static void put(void *to, clattn_dtype dtype, int64_t at, double x)
{
    switch (dtype) {
    case CLATTN_DTYPE_F32: ((float *)to)[at] = (float)x; break;
    case CLATTN_DTYPE_F16: ((uint16_t *)to)[at] = f16_of_f32((float)x); break;
    case CLATTN_DTYPE_BF16: ((uint16_t *)to)[at] = bf16_of_f32((float)x); break;
    case CLATTN_DTYPE_F64: ((double *)to)[at] = x; break;
    }
}

static double real_at(const void *data, size_t real_size, int64_t at)
{
    return real_size == 4 ? (double)((const float *)data)[at] : ((const double *)data)[at];
}

static void bias_stage(const backward_call *c, int64_t item, char *work)
{
    enum { BLOCK = BACKWARD_BLOCK };
    const problem *p = c->p;
    const tensor_shape *t = &p->tensor[TENSOR_BIAS];
    const int64_t *count = c->bias_count;
    int64_t at[4] = {0}, first[4], end[4], rest = item;
    for (int i = 3; i >= 0; i--) at[i] = rest % count[i], rest /= count[i];
    for (int i = 0; i < 4; i++) {
        const int64_t whole = i < 2 ? t->count[i] : (t->count[i] + BLOCK - 1) / BLOCK;
        first[i] = t->stride[i] ? at[i] : 0;
        end[i] = t->stride[i] ? at[i] + 1 : whole;
    }
    char *sum = work + c->heads_bytes + c->state_bytes; /* real [BLOCK][BLOCK] */
    memset(sum, 0, BLOCK * BLOCK * c->ops->real_size);
    for (int64_t b = first[0]; b < end[0]; b++) {
        const problem_entry e = clattn__problem_entry(p, &c->args->forward, b);
        for (int64_t h = first[1]; h < end[1]; h++) {
            const backward_job job = job_of(c, b, h / p->gqa_group, &e, (backward_head *)work);
            for (int64_t q = first[2]; q < end[2]; q++)
                for (int64_t k = first[3]; k < end[3]; k++)
                    c->ops->bias_tile(&job, (int)(h % p->gqa_group), (int)q * BLOCK, (int)k * BLOCK, sum,
                                      work + c->heads_bytes);
        }
    }
    const int64_t rows = t->stride[2] ? t->count[2] - at[2] * BLOCK : 1,
                  keys = t->stride[3] ? t->count[3] - at[3] * BLOCK : 1;
    void *out = (char *)c->args->dbias.host + c->args->dbias.offset;
    for (int64_t u = 0; u < rows && u < BLOCK; u++)
        for (int64_t v = 0; v < keys && v < BLOCK; v++) {
            double x = 0;
            for (int64_t i = u; i < (t->stride[2] ? u + 1 : BLOCK); i++)
                for (int64_t j = v; j < (t->stride[3] ? v + 1 : BLOCK); j++)
                    x += real_at(sum, c->ops->real_size, i * BLOCK + j);
            put(out, p->bias_dtype,
                at[0] * t->stride[0] + at[1] * t->stride[1] + (at[2] * BLOCK + u) * t->stride[2] +
                    (at[3] * BLOCK + v) * t->stride[3],
                x);
        }
}

/* ---- the call */

static void worker(void *argument, size_t w)
{
    backward_call *c = argument;
    for (;;) {
        const int64_t item = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed);
        if (item >= c->n_stage) return;
        c->stage(c, item, c->work + w * c->work_bytes);
    }
}

static void run_stage(backward_call *c, host_threads *threads, void (*stage)(const backward_call *, int64_t, char *),
                      int64_t n)
{
    c->stage = stage;
    c->n_stage = n;
    atomic_store(&c->next, 0);
    const int64_t workers = n < c->plan->n_threads ? n : c->plan->n_threads;
    if (workers > 1)
        clattn__threads_run(threads, (size_t)workers, worker, c);
    else if (n > 0)
        worker(c, 0);
}

static void sum_over_batch(const backward_call *c)
{
    const problem *p = c->p;
    float *dsinks = clattn__gradient_host(c->args, GRADIENT_DSINKS);
    float *dslopes = clattn__gradient_host(c->args, GRADIENT_DALIBI);
    const bool per_batch = p->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD;
    for (int64_t h = 0; dsinks && h < p->n_heads_q; h++) {
        double sum = 0;
        for (int64_t b = 0; b < p->batch; b++) sum += c->sink_sums[b * p->n_heads_q + h];
        dsinks[h] = (float)sum;
    }
    for (int64_t row = 0; dslopes && row < (per_batch ? p->batch : 1); row++)
        for (int64_t h = 0; h < p->n_heads_q; h++) {
            double sum = 0;
            for (int64_t b = per_batch ? row : 0; b < (per_batch ? row + 1 : p->batch); b++)
                for (int s = 0; s < c->n_splits; s++)
                    sum += c->slope_sums[((b * p->n_heads_kv + h / p->gqa_group) * c->n_splits + s) * p->gqa_group +
                                         h % p->gqa_group];
            dslopes[row * p->n_heads_q + h] = (float)sum;
        }
}

static clattn_status allocate(backward_call *c)
{
    const problem *p = c->p;
    const size_t heads = (size_t)(p->batch * p->n_heads_q);
    const size_t block = BACKWARD_BLOCK * BACKWARD_BLOCK * sizeof(double);
    c->heads_bytes = (size_t)round_up((int64_t)sizeof(backward_head) * p->gqa_group, 64);
    c->state_bytes = (size_t)round_up((int64_t)c->ops->work_bytes((int)p->head_dim_qk, (int)p->head_dim_v), 64);
    c->work_bytes = c->heads_bytes + c->state_bytes +
                    (c->n_splits == 1 && (size_t)c->dq_bytes > block ? (size_t)c->dq_bytes : block);
    const size_t work = c->work_bytes * (size_t)c->plan->n_threads;
    const size_t partials = c->n_splits > 1 ? (size_t)(c->n_entries * p->n_heads_kv * c->n_splits * c->dq_bytes) : 0;
    c->work = aligned_alloc(64, work);
    c->partials = partials ? aligned_alloc(64, partials) : NULL;
    c->delta = malloc(heads * (size_t)p->n_q * sizeof *c->delta + 1);
    c->sink_sums = calloc(heads, sizeof *c->sink_sums);
    c->slope_sums = calloc((size_t)(c->n_items * p->gqa_group), sizeof *c->slope_sums);
    RETURN_IF(!c->work || (partials && !c->partials) || !c->delta || !c->sink_sums || !c->slope_sums,
              OUT_OF_HOST_MEMORY, "no room for %zu bytes of work space",
              work + partials + heads * (size_t)p->n_q * sizeof *c->delta);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__host_backward(const host_plan *plan, const problem *p, host_threads *threads,
                                    const clattn_backward_args *args)
{
    /* Each worker has work space: no more of them than any stage has items. */
    const double items = (double)p->batch * (double)p->n_heads_q * (double)(p->n_q / BACKWARD_BLOCK + 1) *
                         (double)(p->n_kv / BACKWARD_BLOCK + 1);
    host_plan useful = *plan;
    if (items < useful.n_threads) useful.n_threads = (int)items;
    backward_call c = {.plan = &useful, .p = p, .args = args, .ops = plan->backward};
    c.dropout_key = philox((u32)args->forward.dropout_offset, (u32)(args->forward.dropout_offset >> 32), 0, 0,
                           (u32)args->forward.dropout_seed, (u32)(args->forward.dropout_seed >> 32));
    c.dq_bytes =
        round_up(p->n_q, BACKWARD_BLOCK) * c.ops->pitch((int)p->head_dim_qk) * (int64_t)c.ops->real_size * p->gqa_group;
    c.n_splits =
        clattn__plan_backward_splits(p, BACKWARD_BLOCK,
                                     round_up(p->n_q, BACKWARD_BLOCK) * (round_up(p->head_dim_qk, 16) + 16) *
                                         (int64_t)c.ops->real_size * p->gqa_group,
                                     &c.n_entries); /* of the widest vectors, so that all processors split alike */
    c.n_items = p->batch * p->n_heads_kv * c.n_splits;
    if (!args->dq.host) c.dq_bytes = 0;
    const clattn_status status = allocate(&c);
    if (status == CLATTN_STATUS_SUCCESS) {
        run_stage(&c, threads, delta_stage, p->batch * p->n_heads_q);
        if (!c.partials) c.n_entries = p->batch;
        for (int64_t b = 0; b < p->batch; b += c.n_entries) {
            const int64_t n = p->batch - b < c.n_entries ? p->batch - b : c.n_entries;
            c.first_item = b * p->n_heads_kv * c.n_splits;
            run_stage(&c, threads, tiles_stage, n * p->n_heads_kv * c.n_splits);
            if (c.partials && args->dq.host) run_stage(&c, threads, splits_stage, n * p->n_heads_q);
        }
        if (args->dbias.host) {
            const tensor_shape *t = &p->tensor[TENSOR_BIAS];
            int64_t n = 1;
            for (int i = 0; i < 4; i++) {
                c.bias_count[i] = t->stride[i] == 0 ? 1
                                  : i < 2           ? t->count[i]
                                                    : (t->count[i] + BACKWARD_BLOCK - 1) / BACKWARD_BLOCK;
                n *= c.bias_count[i];
            }
            run_stage(&c, threads, bias_stage, n);
        }
        sum_over_batch(&c);
    }
    free(c.work);
    free(c.partials);
    free(c.delta);
    free(c.sink_sums);
    free(c.slope_sums);
    return status;
}
