#include "gradients.h"

#include <inttypes.h>

uint64_t test_random_next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

int64_t test_random_below(uint64_t *state, int64_t n) { return (int64_t)(test_random_next(state) % (uint64_t)n); }

/* dense: where the gradient's element n lies in the problem's own memory */
int64_t test_memory_at(const clattn_problem *p, int64_t n, int64_t heads, int64_t rows, int64_t dim)
{
    if (!p->varlen && p->q.seq == 0) return n; /* [batch, heads, rows, dim] both */
    const int64_t d = n % dim, row = n / dim % rows, h = n / dim / rows % heads, b = n / dim / rows / heads;
    return ((b * rows + row) * heads + h) * dim + d; /* [batch, heads, rows, dim] in [batch, rows, heads, dim] */
}

const test_way test_backward_ways[TEST_WAYS] = {
    {"host", CLATTN_PATH_HOST, CLATTN_KERNEL_HOST_BACKWARD},
    {"device, lanes", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_BWD_LANES},
    {"device, local memory", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_BWD},
};

/* What one tensor's gradient may be off: its own largest value is as large as 1, at least; what dropout keeps, it scales.
 * P = e^(S - LSE): LSE's rounding to f32, half a unit in the last place, is P's relative error, as is S's, which is as
 * large where P counts. */
static double tolerance(clattn_dtype dtype, double largest_lse)
{
    const double base = dtype == CLATTN_DTYPE_F64   ? 2e-6
                        : dtype == CLATTN_DTYPE_F32 ? 5e-6
                        : dtype == CLATTN_DTYPE_F16 ? 2e-3
                                                    : 1.6e-2;
    return base + (dtype == CLATTN_DTYPE_F64 ? 0x1p-24 : 0x1p-23) * largest_lse;
}

static double number(const void *data, clattn_dtype dtype, int64_t at)
{
    if (dtype == CLATTN_DTYPE_F32) return (double)((const float *)data)[at];
    if (dtype == CLATTN_DTYPE_F64) return ((const double *)data)[at];
    const uint16_t h = ((const uint16_t *)data)[at];
    if (dtype == CLATTN_DTYPE_BF16) {
        const uint32_t bits = (uint32_t)h << 16;
        float x;
        memcpy(&x, &bits, 4);
        return (double)x;
    }
    const int exponent = h >> 10 & 31;
    const double magnitude = exponent == 31  ? (h & 1023 ? (double)NAN : (double)INFINITY)
                             : exponent == 0 ? ldexp(h & 1023, -24)
                                             : ldexp(1024 + (h & 1023), exponent - 25);
    return h >> 15 ? -magnitude : magnitude;
}

/* A gradient of n elements in the problem's memory beside the reference's. */
static void expect_gradient(const char *what, const char *text, const void *got, clattn_dtype dtype, const double *want,
                            int64_t n, int64_t heads, int64_t rows, int64_t dim, const clattn_problem *p, double most)
{
    double largest = 1 / (1 - (double)p->dropout);
    for (int64_t i = 0; i < n; i++)
        if (fabs(want[i]) > largest) largest = fabs(want[i]);
    for (int64_t i = 0; i < n; i++) {
        const double x = number(got, dtype, heads ? test_memory_at(p, i, heads, rows, dim) : i);
        ck_assert_msg(fabs(x - want[i]) <= most * largest || (isnan(x) && isnan(want[i])),
                      "%s: %s[%lld] is %.9g, not %.9g", text, what, (long long)i, x, want[i]);
    }
}

void test_gradients_free(test_gradients *g)
{
    for (int i = 0; i < 6; i++) free(g->data[i]);
}

clattn_backward_args test_backward_args(test_data *t, const void *d_o, const float *d_lse, test_gradients *g)
{
    const clattn_problem *p = &t->p;
    const size_t size = clattn_dtype_size(p->dtype);
    const int64_t b = p->varlen ? 1 : p->batch;
    const int64_t n_q = b * p->n_heads_q * (p->varlen ? p->total_q : p->n_q);
    const int64_t n_kv = b * p->n_heads_kv * (p->varlen ? p->total_kv : p->n_kv);
    const int64_t n_bias = (p->bias.strides.batch ? p->batch : 1) * (p->bias.strides.head ? p->n_heads_q : 1) *
                           (p->bias.strides.q ? p->n_q : 1) * (p->bias.strides.kv ? p->n_kv : 1);
    const size_t bytes[6] = {
        (size_t)(n_q * p->head_dim_qk) * size,
        (size_t)(n_kv * p->head_dim_qk) * size,
        (size_t)(n_kv * p->head_dim_v) * size,
        p->bias.dtype ? (size_t)n_bias * clattn_dtype_size(p->bias.dtype) : 0,
        p->alibi ? (size_t)(p->n_heads_q * (p->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD ? p->batch : 1)) * 4 : 0,
        p->sinks ? (size_t)p->n_heads_q * 4 : 0};
    clattn_backward_args args;
    clattn_backward_args_init(&args);
    args.forward = test_args(t);
    args.d_o = clattn_host_buffer(d_o);
    args.d_lse = clattn_host_buffer(d_lse);
    clattn_buffer *const outputs[6] = {&args.dq, &args.dk, &args.dv, &args.dbias, &args.dalibi_slopes, &args.dsinks};
    for (int i = 0; i < 6; i++) {
        g->bytes[i] = bytes[i];
        g->data[i] = malloc(bytes[i] + 8);
        memset(g->data[i], 0xff, bytes[i] + 8);
        if (bytes[i]) *outputs[i] = clattn_host_buffer(g->data[i]);
    }
    return args;
}

static int64_t rows_of(const clattn_problem *p, bool keys)
{
    return keys ? (p->varlen ? p->total_kv : p->n_kv) : p->varlen ? p->total_q : p->n_q;
}

void test_loss(test_data *t, uint64_t seed, test_data **like_o, float **d_lse)
{
    const clattn_problem *p = &t->p;
    const int64_t b = p->varlen ? 1 : p->batch, rows_q = rows_of(p, false), n_q = b * p->n_heads_q * rows_q;
    uint64_t state = seed;
    *like_o = test_data_make(p, seed + 100); /* its O is dO */
    *d_lse = p->lse.seq ? NULL : calloc((size_t)n_q + 1, 4);
    for (int64_t i = 0; *d_lse && i < n_q; i++) (*d_lse)[i] = (float)test_random_below(&state, 2001) / 1000 - 1;
    for (int64_t i = 0; i < b; i++)
        for (int64_t h = 0; h < p->n_heads_q; h++)
            for (int64_t r = 0; r < rows_q; r++)
                for (int64_t d = 0; d < p->head_dim_v; d++)
                    test_set(*like_o, 'o', i, h, r, d, (double)test_random_below(&state, 2001) / 1000 - 1);
    clattn_plan *forward = test_plan(test_host_context(), p, &test_ways[0], 0, 0, 0);
    test_forward(t, forward);
    clattn_plan_release(forward);
}

static void run(test_data *t, clattn_context *context, const test_way *way, int64_t block, int n_threads,
                const void *d_o, const float *d_lse, test_gradients *g)
{
    clattn_plan *plan = test_plan(context, &t->p, way, block, block, n_threads);
    const clattn_backward_args args = test_backward_args(t, d_o, d_lse, g);
    test_ok(clattn_backward(plan, &args));
    clattn_plan_release(plan);
}

void test_backward_run(test_data *t, const test_way *way, int n_threads, const void *d_o, const float *d_lse,
                       test_gradients *g)
{
    run(t, test_way_context(way, t->p.dtype), way, 0, n_threads, d_o, d_lse, g);
}

/* dLSE, dense, with which the reference's D = sum of dO O - dLSE is that of O in 16 bits, as backward is given it: where
 * gradients are sums that cancel, O's rounding is what is left. NaN rows are as they were. */
static float *d_lse_for_stored_o(test_data *t, const test_data *like_o, const float *d_lse)
{
    const clattn_problem *p = &t->p;
    const int64_t b = p->varlen ? 1 : p->batch, rows_q = rows_of(p, false);
    float *to = calloc((size_t)(b * p->n_heads_q * rows_q) + 1, sizeof *to);
    test_reference(t);
    for (int64_t row = 0; row < b * p->n_heads_q * rows_q; row++) {
        const int64_t head = row / rows_q, i = row % rows_q;
        double rounding = 0;
        for (int64_t d = 0; d < p->head_dim_v; d++)
            rounding +=
                test_get(like_o, 'o', head / p->n_heads_q, head % p->n_heads_q, i, d) *
                (test_get(t, 'o', head / p->n_heads_q, head % p->n_heads_q, i, d) - t->ref_o[row * p->head_dim_v + d]);
        to[row] = (float)((d_lse ? (double)d_lse[row] : 0) - (isfinite(rounding) ? rounding : 0));
    }
    return to;
}

/* |LSE| of the row where it is largest and finite. */
static double largest_lse_of(const test_data *t)
{
    const clattn_problem *p = &t->p;
    const int64_t b = p->varlen ? 1 : p->batch, rows_q = rows_of(p, false);
    double largest = 0;
    for (int64_t row = 0; row < b * p->n_heads_q * rows_q; row++) {
        const int64_t head = row / rows_q;
        const double lse = fabs((double)test_get_lse(t, head / p->n_heads_q, head % p->n_heads_q, row % rows_q));
        if (isfinite(lse) && lse > largest) largest = lse;
    }
    return largest;
}

/* Where a bias has no keys of its own its gradient is a sum of whole rows of dS, each of which is 0: of so many rows' errors
 * alone. */
static double bias_rows(const clattn_problem *p)
{
    const clattn_score_strides *s = &p->bias.strides;
    if (s->kv) return 1;
    return (double)((s->batch ? 1 : p->batch) * (s->head ? 1 : p->n_heads_q) * (s->q ? 1 : p->n_q));
}

/* Two runs with each other and with the reference. */
static void compare(test_data *t, const char *text, const test_way *way, const test_data *like_o, const float *d_lse,
                    const test_gradients g[2], const test_backward_how *how)
{
    const clattn_problem *p = &t->p;
    const double factor = how->factor ? how->factor : 1;
    const int64_t rows_q = rows_of(p, false), rows_kv = rows_of(p, true), b = p->varlen ? 1 : p->batch;
    const int64_t n_q = b * p->n_heads_q * rows_q, n_kv = b * p->n_heads_kv * rows_kv;
    for (int i = 0; i < 6; i++) {
        ck_assert_msg(!memcmp(g[0].data[i], g[1].data[i], g[0].bytes[i]), "%s on %s: two runs differ in gradient %d",
                      text, way->name, i);
        for (int k = 0; k < 8; k++) ck_assert_int_eq(g[0].data[i][g[0].bytes[i] + (size_t)k], 0xff);
    }

    double *want[6];
    for (int i = 0; i < 6; i++) want[i] = calloc(g[0].bytes[i] + 1, 8);
    const clattn_reference_gradients reference = {want[0],
                                                  want[1],
                                                  want[2],
                                                  p->bias.dtype ? want[3] : NULL,
                                                  p->alibi ? want[4] : NULL,
                                                  p->sinks ? want[5] : NULL};
    test_gradients unused;
    clattn_problem dense = *p;
    clattn_backward_args args = test_backward_args(t, like_o->o, d_lse, &unused);
    float *stored = clattn_dtype_size(p->dtype) == 2 ? d_lse_for_stored_o(t, like_o, d_lse) : NULL;
    if (stored) {
        args.d_lse = clattn_host_buffer(stored);
        dense.lse = (clattn_strides){0};
    }
    test_ok(clattn_reference_backward(&dense, &args, &reference));
    test_gradients_free(&unused);
    free(stored);
    const double largest_lse = largest_lse_of(t), most = factor * tolerance(p->dtype, largest_lse);
    const int64_t n_bias = p->bias.dtype ? (int64_t)(g[0].bytes[3] / clattn_dtype_size(p->bias.dtype)) : 0;
    expect_gradient("dq", text, g[0].data[0], p->dtype, want[0], n_q * p->head_dim_qk, p->n_heads_q, rows_q,
                    p->head_dim_qk, p, most);
    expect_gradient("dk", text, g[0].data[1], p->dtype, want[1], n_kv * p->head_dim_qk, p->n_heads_kv, rows_kv,
                    p->head_dim_qk, p, most);
    expect_gradient("dv", text, g[0].data[2], p->dtype, want[2], n_kv * p->head_dim_v, p->n_heads_kv, rows_kv,
                    p->head_dim_v, p, most);
    expect_gradient("dbias", text, g[0].data[3], p->bias.dtype, want[3], n_bias, 0, 0, 0, p,
                    fmax(most, factor * tolerance(p->bias.dtype, largest_lse)) * sqrt(fmax(1, bias_rows(p))));
    if (!how->slopes_cancel)
        expect_gradient("dalibi_slopes", text, g[0].data[4], CLATTN_DTYPE_F32, want[4], (int64_t)g[0].bytes[4] / 4, 0,
                        0, 0, p, most);
    expect_gradient("dsinks", text, g[0].data[5], CLATTN_DTYPE_F32, want[5], (int64_t)g[0].bytes[5] / 4, 0, 0, 0, p,
                    most);
    for (int i = 0; i < 6; i++) free(want[i]);
}

void test_backward_check(test_data *t, const char *text, uint64_t seed, const test_way *way,
                         const test_backward_how *how)
{
    const clattn_problem *p = &t->p;
    test_data *like_o;
    float *d_lse;
    test_gradients g[2];
    const int runs = how->runs_alone ? 1 : 2;
    test_loss(t, seed, &like_o, &d_lse);
    for (int64_t i = 0; i < how->nan_rows; i++)
        for (int64_t h = 0; h < p->n_heads_q; h++) {
            test_set_row(like_o, 'o', 0, h, i, NAN);
            d_lse[h * p->n_q + i] = NAN;
        }
    clattn_context *context = how->context ? how->context : test_way_context(way, p->dtype);
    for (int i = 0; i < runs; i++)
        run(t, context, way, how->block, way->path == CLATTN_PATH_HOST ? 1 + 4 * i : 0, like_o->o, d_lse, &g[i]);
    if (!how->runs_alone) compare(t, text, way, like_o, d_lse, g, how);
    for (int i = 0; i < runs; i++) test_gradients_free(&g[i]);
    free(d_lse);
    test_data_free(like_o);
}
