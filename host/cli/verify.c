/* Reference, distance and tolerance, for compare and selftest. */
#include "verify.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "convert.h"
#include "parallel.h"
#include "progress.h"

enum { MOST_TIMED_RUNS = 5 };

/* ---- the reference, in slices of a few query rows of one head of one entry */

typedef struct slicing {
    const inputs *in;
    answer *a;
    int64_t rows, slices_per_head; /* rows of a slice */
    progress *bar;                 /* NULL: none */
    atomic_flag failed;            /* set by the first slice that fails, which fills message */
    char message[512];
} slicing;

static void note_failure(slicing *s)
{
    if (!atomic_flag_test_and_set(&s->failed))
        snprintf(s->message, sizeof s->message, "%s", clattn_last_error()->message);
}

/* A buffer whose first element is `elements` later. */
static clattn_buffer moved(clattn_buffer b, size_t element, int64_t elements)
{
    return clattn_host_buffer(b.host ? (char *)b.host + elements * (int64_t)element : NULL);
}

static int64_t row_at(clattn_strides s, int64_t batch, int64_t head, int64_t row)
{
    return batch * s.batch + head * s.head + row * s.seq;
}

static int64_t score_at(clattn_score_strides s, int64_t batch, int64_t head, int64_t row)
{
    return batch * s.batch + head * s.head + row * s.q;
}

/* Rows first_row to first_row + p->n_q of head h of an entry, as a problem of their own. */
static void describe_slice(const inputs *in, const entry *e, int64_t h, int64_t first_row, clattn_problem *p,
                           clattn_forward_args *args)
{
    const clattn_problem *whole = &in->problem;
    const storage s = inputs_storage(whole);
    const int64_t kv_head = h / (whole->n_heads_q / whole->n_heads_kv), row = e->first_q + first_row;
    const int64_t slopes_row = whole->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD ? e->index * whole->n_heads_q : 0;
    const size_t size = clattn_dtype_size(p->dtype);
    p->varlen = 0;
    p->batch = p->n_heads_q = p->n_heads_kv = 1;
    p->n_kv = e->n_kv;
    p->q = inputs_strides(whole, whole->q, whole->n_heads_q, s.n_q, whole->head_dim_qk);
    p->k = inputs_strides(whole, whole->k, whole->n_heads_kv, s.n_kv, whole->head_dim_qk);
    p->v = inputs_strides(whole, whole->v, whole->n_heads_kv, s.n_kv, whole->head_dim_v);
    memset(&p->o, 0, sizeof p->o);
    p->query_offset = e->query_offset + first_row;
    p->kv_length = e->kv_length;
    p->query_offset_per_batch = p->kv_length_per_batch = 0;
    if (p->alibi) p->alibi = CLATTN_ALIBI_PER_HEAD;
    inputs_fill_args(in, args);
    args->q = moved(args->q, size, row_at(p->q, e->batch, h, row));
    args->k = moved(args->k, size, row_at(p->k, e->batch, kv_head, e->first_kv));
    args->v = moved(args->v, size, row_at(p->v, e->batch, kv_head, e->first_kv));
    args->bias = moved(args->bias, clattn_dtype_size(p->bias.dtype), score_at(p->bias.strides, e->index, h, first_row));
    args->mask = moved(args->mask, 1, score_at(p->mask.strides, e->index, h, first_row));
    args->alibi_slopes = moved(args->alibi_slopes, sizeof(float), slopes_row + h);
    args->sinks = moved(args->sinks, sizeof(float), h);
}

static void run_slice(void *argument, int64_t index)
{
    slicing *s = argument;
    const clattn_problem *whole = &s->in->problem;
    const int64_t head_index = index / s->slices_per_head, first_row = index % s->slices_per_head * s->rows;
    const int64_t h = head_index % whole->n_heads_q;
    const entry e = inputs_entry(s->in, head_index / whole->n_heads_q);
    const storage all = inputs_storage(whole);
    const int64_t row = (e.batch * whole->n_heads_q + h) * all.n_q + e.first_q + first_row;
    clattn_problem p = *whole;
    clattn_forward_args args;
    if (first_row >= e.n_q) return; /* a sequence shorter than the longest */
    p.n_q = e.n_q - first_row < s->rows ? e.n_q - first_row : s->rows;
    describe_slice(s->in, &e, h, first_row, &p, &args);
    if (clattn_reference_forward(&p, &args, s->a->o + row * p.head_dim_v, s->a->lse + row)) note_failure(s);
    if (s->bar) progress_add(s->bar, p.n_q);
}

/* Dropout's random numbers belong to a prob's place in the whole problem. */
static void run_whole(slicing *s)
{
    clattn_forward_args args;
    inputs_fill_args(s->in, &args);
    if (clattn_reference_forward(&s->in->problem, &args, s->a->o, s->a->lse)) note_failure(s);
}

/* Rows of a slice: about a tenth of a second of work; all when a row's position would leave 64 bits on the way. */
static int64_t rows_of_slice(const inputs *in)
{
    const clattn_problem *p = &in->problem;
    const double work = (double)p->n_kv * (double)(p->head_dim_qk + p->head_dim_v) + 1, enough = 5e7;
    for (int64_t b = 0, last; b < (in->query_offsets ? p->batch : 1); b++)
        if (__builtin_add_overflow(in->query_offsets ? in->query_offsets[b] : p->query_offset, p->n_q, &last))
            return p->n_q;
    return work * (double)p->n_q < enough ? p->n_q : work > enough ? 1 : (int64_t)(enough / work);
}

static double largest(const double *x, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(x[i]) && fabs(x[i]) > most) most = fabs(x[i]);
    return most;
}

int answer_make(const inputs *in, const char *label, answer *a)
{
    const clattn_problem *p = &in->problem;
    const storage all = inputs_storage(p);
    const int64_t rows = all.batch * p->n_heads_q * all.n_q;
    const bool whole = p->dropout > 0;
    const double start = cli_now();
    slicing s = {.in = in, .a = a, .failed = ATOMIC_FLAG_INIT};
    progress bar;
    memset(a, 0, sizeof *a);
    a->o = cli_alloc("the reference's O", rows * p->head_dim_v, sizeof *a->o);
    a->lse = cli_alloc("the reference's LSE", rows, sizeof *a->lse);
    if (!a->o || !a->lse) return answer_free(a), CLI_FAILED;
    if (rows) {
        s.rows = rows_of_slice(in);
        s.slices_per_head = (p->n_q - 1) / s.rows + 1;
        s.bar = label ? &bar : NULL;
        if (label) progress_start(&bar, label, whole ? 0 : rows);
        if (whole)
            run_whole(&s);
        else
            parallel_for(0, p->batch * p->n_heads_q * s.slices_per_head, run_slice, &s);
        if (label) progress_stop(&bar);
    }
    if (atomic_flag_test_and_set(&s.failed)) {
        answer_free(a);
        return cli_fail(CLI_FAILED, "the reference: %s", s.message);
    }
    a->seconds = cli_now() - start;
    a->max_o = largest(a->o, rows * p->head_dim_v);
    a->max_lse = largest(a->lse, rows);
    return CLI_OK;
}

int answer_from(const inputs *in, const void *o, const float *lse, answer *a)
{
    const clattn_problem *p = &in->problem;
    const storage s = inputs_storage(p);
    const clattn_strides strides = inputs_strides(p, p->o, p->n_heads_q, s.n_q, p->head_dim_v);
    const int64_t rows = s.batch * p->n_heads_q * s.n_q;
    memset(a, 0, sizeof *a);
    a->o = cli_alloc("the answer's O", rows * p->head_dim_v, sizeof *a->o);
    a->lse = cli_alloc("the answer's LSE", rows, sizeof *a->lse);
    if (!a->o || !a->lse) return answer_free(a), CLI_FAILED;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t head = row / s.n_q;
        const int64_t at = row_at(strides, head / p->n_heads_q, head % p->n_heads_q, row % s.n_q);
        for (int64_t d = 0; d < p->head_dim_v; d++) a->o[row * p->head_dim_v + d] = element_get(o, p->dtype, at + d);
        a->lse[row] = lse[row];
    }
    a->max_o = largest(a->o, rows * p->head_dim_v);
    a->max_lse = largest(a->lse, rows);
    return CLI_OK;
}

void answer_free(answer *a)
{
    free(a->o);
    free(a->lse);
    memset(a, 0, sizeof *a);
}

/* ---- the distance */

/* O is stored in dtype, so half a unit in the last place of its largest value is unavoidable, and inputs of magnitude 1
 * add a few roundings of the f32 (f64) sums. A score of size S, which |LSE| - ln(n_kv) tells, is itself known to
 * u S sqrt(head_dim) only, as a sum of head_dim rounded steps, and takes its row of O along. LSE is stored as f32 always. */
tolerance tolerance_of(const clattn_problem *p, const answer *a)
{
    const double o = p->dtype == CLATTN_DTYPE_F64   ? 1e-13
                     : p->dtype == CLATTN_DTYPE_F32 ? 5e-6
                     : p->dtype == CLATTN_DTYPE_F16 ? 6.2e-4
                                                    : 5.2e-3;
    const double u = p->dtype == CLATTN_DTYPE_F64 ? 0x1p-53 : 0x1p-24;
    const double score = fmax(0, a->max_lse - log(fmax(1, (double)p->n_kv)) - 1);
    const tolerance t = {o * fmax(1, a->max_o) + u * score * sqrt((double)p->head_dim_qk), 1e-5 * fmax(1, a->max_lse)};
    return t;
}

typedef struct error_sum {
    double max, squares;
} error_sum;

static void error_add(error_sum *e, double value, double reference)
{
    double error = fabs(value - reference);
    if (isnan(error)) /* one of them is NaN, or both are the same infinity */
        error = (isnan(value) && isnan(reference)) || value == reference ? 0 : (double)INFINITY;
    if (error > e->max) e->max = error;
    e->squares += error * error;
}

static double rms(const error_sum *e, int64_t n) { return n ? sqrt(e->squares / (double)n) : 0; }

static difference difference_of(const inputs *in, const answer *a, const void *o, const float *lse)
{
    const clattn_problem *p = &in->problem;
    const storage s = inputs_storage(p);
    const clattn_strides o_strides = inputs_strides(p, p->o, p->n_heads_q, s.n_q, p->head_dim_v);
    error_sum e_o = {0, 0}, e_lse = {0, 0};
    int64_t row = 0; /* LSE is dense in both */
    for (int64_t b = 0; s.n_q && b < s.batch; b++)
        for (int64_t h = 0; h < p->n_heads_q; h++)
            for (int64_t i = 0; i < s.n_q; i++, row++) {
                const int64_t at = row_at(o_strides, b, h, i);
                for (int64_t d = 0; d < p->head_dim_v; d++)
                    error_add(&e_o, element_get(o, p->dtype, at + d), a->o[row * p->head_dim_v + d]);
                error_add(&e_lse, lse[row], a->lse[row]);
            }
    const difference d = {e_o.max, rms(&e_o, row * p->head_dim_v), e_lse.max, rms(&e_lse, row)};
    return d;
}

/* ---- one target */

static clattn_status time_runs(const clattn_plan *plan, const clattn_forward_args *args, double seconds, outcome *out)
{
    double times[MOST_TIMED_RUNS];
    size_t n = 0;
    for (const double start = cli_now(); n < MOST_TIMED_RUNS && (n == 0 || cli_now() - start < seconds); n++) {
        const double before = cli_now();
        const clattn_status status = clattn_forward(plan, args);
        if (status) return status;
        times[n] = cli_now() - before;
    }
    out->seconds = cli_median(times, n);
    return CLATTN_STATUS_SUCCESS;
}

int outcome_make(const target *t, const options *o, const inputs *in, const answer *a, double seconds, outcome *out)
{
    clattn_forward_args args;
    clattn_plan_options options_of_plan;
    clattn_plan *plan = NULL;
    void *o_data = NULL; /* as in->problem says */
    float *lse_data = NULL;
    memset(out, 0, sizeof *out);
    if (!t->context) {
        out->status = t->status;
        snprintf(out->message, sizeof out->message, "%s", t->why);
        return CLI_OK;
    }
    if (inputs_alloc_outputs(in, &o_data, &lse_data)) return CLI_FAILED;
    inputs_fill_args(in, &args);
    args.o = clattn_host_buffer(o_data);
    args.lse = clattn_host_buffer(lse_data);
    clattn_plan_options_init(&options_of_plan);
    options_of_plan.path = t->path;
    options_of_plan.kernel = t->kernel;
    options_of_plan.block_q = o->block_q;
    options_of_plan.block_kv = o->block_kv;
    out->status = clattn_plan_create(t->context, &in->problem, &options_of_plan, &plan);
    if (!out->status) out->status = clattn_forward(plan, &args);
    if (!out->status && seconds > 0) out->status = time_runs(plan, &args, seconds, out);
    if (out->status) {
        snprintf(out->message, sizeof out->message, "%s", clattn_last_error()->message);
    } else {
        const tolerance most = tolerance_of(&in->problem, a);
        out->distance = difference_of(in, a, o_data, lse_data);
        out->share = fmax(out->distance.max_o / most.o, out->distance.max_lse / most.lse);
        out->ok = out->share <= 1;
    }
    clattn_plan_release(plan);
    free(o_data);
    free(lse_data);
    return CLI_OK;
}
