/* Gradients: the reference against finite differences of the forward reference, on random problems with every feature. */
#include "gradients.h"

#include <clattn/clattn.h>

enum { RANDOM_PROBLEMS = 50, CHECKED_ELEMENTS = 6 };

/* ---- random problems */

/* One line of problem text with each feature in half of the problems. */
static void random_text(uint64_t seed, char text[256])
{
    static const char *const biases[] = {"", " bias", " bias=1,h,q,kv", " bias=b,1,1,kv", " bias=1,1,q,1"};
    static const char *const masks[] = {"", " mask", " mask=b,1,1,kv", " mask=1,h,q,1"};
    static const char *const windows[] = {"", " causal", " window=2,1", " window=3,0", " window=-1,2"};
    static const char *const offsets[] = {"", "", " offset=2", " offset=-3"};
    static const char *const slopes[] = {"", " alibi", " alibi=per-batch"};
    uint64_t state = seed * 7919 + 1;
    for (int i = 0; i < 8; i++) test_random_next(&state);
    const int64_t heads_kv = 1 + test_random_below(&state, 2), group = 1 + test_random_below(&state, 2);
    char shape[96];
    if (test_random_below(&state, 4) == 0)
        snprintf(shape, sizeof shape, "varlen=4,0,3:5,2,7");
    else
        snprintf(shape, sizeof shape, "b%d q%d kv%d%s", 1 + (int)test_random_below(&state, 2),
                 1 + (int)test_random_below(&state, 7), 1 + (int)test_random_below(&state, 9),
                 test_random_below(&state, 3) == 0 ? " kvlen=1" : "");
    snprintf(text, 256, "f64 hq%d hkv%d d%d dv%d %s%s%s%s%s%s%s%s%s", (int)(heads_kv * group), (int)heads_kv,
             1 + (int)test_random_below(&state, 4), 1 + (int)test_random_below(&state, 4), shape,
             windows[test_random_below(&state, 5)], offsets[test_random_below(&state, 4)],
             test_random_below(&state, 2) ? " softcap=1.5" : "", slopes[test_random_below(&state, 3)],
             biases[test_random_below(&state, 5)], masks[test_random_below(&state, 4)],
             test_random_below(&state, 2) ? " sinks" : "", test_random_below(&state, 2) ? " dropout=0.3:seed=11" : "");
}

/* ---- the loss: sum of dO O and dLSE LSE, LSE where it is finite */

typedef struct loss {
    test_data *t;
    double *d_o;  /* like O in the problem's strides, which are dense here */
    float *d_lse; /* [batch, n_heads_q, n_q] or [n_heads_q, total_q] */
    double *o, *lse;
    int64_t rows; /* all rows of all heads */
} loss;

static double loss_value(const loss *l)
{
    const clattn_problem *p = &l->t->p;
    const clattn_forward_args args = test_args(l->t);
    double sum = 0;
    test_ok(clattn_reference_forward(p, &args, l->o, l->lse));
    for (int64_t r = 0; r < l->rows; r++) {
        if (l->lse[r] != -INFINITY) sum += (double)l->d_lse[r] * l->lse[r];
        /* O and dO are [row, d] of the reference: [batch, heads, n_q, d] or [heads, total_q, d] */
        for (int64_t d = 0; d < p->head_dim_v; d++) sum += l->d_o[r * p->head_dim_v + d] * l->o[r * p->head_dim_v + d];
    }
    return sum;
}

/* d(loss)/d(*x) by five points; step must be exact in x's type. */
static double derivative(const loss *l, double *x, double step)
{
    const double before = *x;
    double y[4];
    for (int i = 0; i < 4; i++) {
        *x = before + (i < 2 ? i - 2 : i - 1) * step;
        y[i] = loss_value(l);
    }
    *x = before;
    return (y[0] - 8 * y[1] + 8 * y[2] - y[3]) / (12 * step);
}

static double derivative_f32(const loss *l, float *x, float step)
{
    const float before = *x;
    double y[4];
    for (int i = 0; i < 4; i++) {
        *x = before + (float)(i < 2 ? i - 2 : i - 1) * step;
        y[i] = loss_value(l);
    }
    *x = before;
    return (y[0] - 8 * y[1] + 8 * y[2] - y[3]) / (12 * (double)step);
}

static void expect_close(double analytic, double numeric, double tolerance, const char *what, int64_t at,
                         const char *text)
{
    ck_assert_msg(fabs(analytic - numeric) <= tolerance * (1 + fabs(numeric)), "%s: %s[%lld] is %.12g, not %.12g", text,
                  what, (long long)at, analytic, numeric);
}

/* ---- what a score function adds */

static double bent(double s, int64_t b, int64_t h, int64_t i, int64_t j, const void *data)
{
    (void)b, (void)data;
    return s + sin(s) / 2 + 0.01 * (double)(h + i - j);
}

static double bent_derivative(double s, int64_t b, int64_t h, int64_t i, int64_t j, const void *data)
{
    (void)b, (void)h, (void)i, (void)j, (void)data;
    return 1 + cos(s) / 2;
}

/* The elements of a dense tensor that are looked at: spread over it. */
static int64_t element_at(int i, int64_t n)
{
    return n ? (int64_t)(((double)i + 0.5) / CHECKED_ELEMENTS * (double)n) : 0;
}

static void check_gradients(test_data *t, const char *text)
{
    const clattn_problem *p = &t->p;
    const int64_t rows_q = p->varlen ? p->total_q : p->n_q, rows_kv = p->varlen ? p->total_kv : p->n_kv;
    const int64_t b = p->varlen ? 1 : p->batch;
    const int64_t n_q = b * p->n_heads_q * rows_q, n_kv = b * p->n_heads_kv * rows_kv;
    const int64_t n_slopes = (p->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD ? p->batch : 1) * p->n_heads_q;
    loss l = {t,
              calloc((size_t)(n_q * p->head_dim_v) + 1, 8),
              calloc((size_t)n_q + 1, 4),
              calloc((size_t)(n_q * p->head_dim_v) + 1, 8),
              calloc((size_t)n_q + 1, 8),
              n_q};
    double *d_o = calloc((size_t)(n_q * p->head_dim_v) + 1, 8); /* in the problem's strides */
    uint64_t state = 99;
    for (int64_t i = 0; i < n_q * p->head_dim_v; i++) {
        l.d_o[i] = (double)test_random_below(&state, 2001) / 1000 - 1;
        d_o[test_memory_at(p, i, p->n_heads_q, rows_q, p->head_dim_v)] = l.d_o[i];
    }
    for (int64_t i = 0; i < n_q; i++) l.d_lse[i] = (float)test_random_below(&state, 2001) / 1000 - 1;
    for (int64_t i = 0; p->alibi && i < n_slopes; i++) t->alibi_slopes[i] = (float)test_random_below(&state, 512) / 512;
    for (int64_t i = 0; p->sinks && i < p->n_heads_q; i++)
        t->sinks[i] = (float)test_random_below(&state, 1024) / 512 - 1;

    clattn_backward_args args;
    clattn_backward_args_init(&args);
    args.forward = test_args(t);
    args.d_o = clattn_host_buffer(d_o);
    args.d_lse = clattn_host_buffer(l.d_lse);
    const int64_t n_bias = p->bias.dtype
                               ? (p->bias.strides.batch ? p->batch : 1) * (p->bias.strides.head ? p->n_heads_q : 1) *
                                     (p->bias.strides.q ? p->n_q : 1) * (p->bias.strides.kv ? p->n_kv : 1)
                               : 0;
    const clattn_reference_gradients g = {
        calloc((size_t)(n_q * p->head_dim_qk) + 1, 8), calloc((size_t)(n_kv * p->head_dim_qk) + 1, 8),
        calloc((size_t)(n_kv * p->head_dim_v) + 1, 8), p->bias.dtype ? calloc((size_t)n_bias + 1, 8) : NULL,
        p->alibi ? calloc((size_t)n_slopes, 8) : NULL, p->sinks ? calloc((size_t)p->n_heads_q, 8) : NULL};
    test_ok(clattn_reference_backward(p, &args, &g));

    double numeric;
    for (int i = 0; i < CHECKED_ELEMENTS; i++) {
        int64_t at = element_at(i, n_q * p->head_dim_qk);
        if (n_q) {
            numeric =
                derivative(&l, (double *)t->q + test_memory_at(p, at, p->n_heads_q, rows_q, p->head_dim_qk), 1e-3);
            expect_close(g.dq[at], numeric, 1e-8, "dq", at, text);
        }
        at = element_at(i, n_kv * p->head_dim_qk);
        if (n_kv) {
            numeric =
                derivative(&l, (double *)t->k + test_memory_at(p, at, p->n_heads_kv, rows_kv, p->head_dim_qk), 1e-3);
            expect_close(g.dk[at], numeric, 1e-8, "dk", at, text);
            at = element_at(i, n_kv * p->head_dim_v);
            numeric =
                derivative(&l, (double *)t->v + test_memory_at(p, at, p->n_heads_kv, rows_kv, p->head_dim_v), 1e-3);
            expect_close(g.dv[at], numeric, 1e-8, "dv", at, text);
        }
        if (n_bias) { /* dense in its own dimensions */
            at = element_at(i, n_bias);
            numeric = derivative(&l, (double *)t->bias + at, 1e-3);
            expect_close(g.dbias[at], numeric, 1e-8, "dbias", at, text);
        }
        if (p->alibi) {
            at = element_at(i, n_slopes);
            numeric = derivative_f32(&l, t->alibi_slopes + at, 0x1p-11f);
            expect_close(g.dalibi_slopes[at], numeric, 1e-7, "dalibi_slopes", at, text);
        }
        if (p->sinks) {
            at = element_at(i, p->n_heads_q);
            numeric = derivative_f32(&l, t->sinks + at, 0x1p-9f);
            expect_close(g.dsinks[at], numeric, 1e-8, "dsinks", at, text);
        }
    }
    free(l.d_o), free(l.d_lse), free(l.o), free(l.lse), free(d_o);
    free(g.dq), free(g.dk), free(g.dv), free(g.dbias), free(g.dalibi_slopes), free(g.dsinks);
}

START_TEST(reference_by_differences)
{
    char text[256];
    random_text((uint64_t)_i, text);
    test_data *t = test_data_from_text(text, (uint64_t)_i + 1);
    check_gradients(t, text);
    test_data_free(t);
}
END_TEST

START_TEST(score_function_by_differences)
{
    static const char *const texts[] = {"f64 b1 hq2 hkv1 q5 kv6 d3 causal", "f64 b2 hq1 hkv1 q3 kv4 d2 softcap=2 bias"};
    test_data *t = test_data_from_text(texts[_i], 3);
    t->p.score_function.host = bent;
    t->p.score_function.host_derivative = bent_derivative;
    check_gradients(t, texts[_i]);
    test_data_free(t);
}
END_TEST

/* ---- every way beside the reference */

static const test_backward_how as_usual;

static void check_text(const char *text, uint64_t seed, const test_way *way)
{
    clattn_problem p;
    test_ok(clattn_problem_from_text(text, &p));
    if (!test_way_context(way, p.dtype)) return;
    test_data *t = test_data_from_text(text, seed);
    char what[320];
    snprintf(what, sizeof what, "%s on %s", text, way->name);
    test_backward_check(t, what, seed, way, &as_usual);
    test_data_free(t);
}

static const char *const texts[] = {
    "f32 b1 hq1 hkv1 q1 kv1 d1",
    "f32 b1 hq1 hkv1 q64 kv64 d64",
    "f32 b2 hq3 hkv3 q70 kv130 d48 causal",
    "f32 b1 hq4 hkv2 q130 kv200 d80 dv32 causal offset=70",
    "f32 b1 hq2 hkv1 q300 kv300 d64 window=20,5",
    "f32 b1 hq1 hkv1 q40 kv600 d31 dv65",
    "f32 b1 hq2 hkv1 q33 kv65 d32 causal offset=-14",
    "f32 b3 hq2 hkv2 q40 kv70 d32 kvlen=33",
    "f32 b2 hq4 hkv2 q70 kv90 d32 softcap=2 alibi bias mask sinks dropout=0.2:seed=3",
    "f32 b1 hq2 hkv1 q40 kv70 d300 causal alibi",
    "f32 b2 hq4 hkv2 q70 kv90 d32 bias=1,h,q,kv",
    "f32 b2 hq4 hkv2 q70 kv90 d32 bias=b,1,1,kv causal",
    "f32 b2 hq4 hkv2 q70 kv90 d32 bias=1,1,q,1 mask=b,1,q,kv",
    "f32 hq4 hkv2 d32 causal alibi=per-batch varlen=70,0,1,33",
    "f32 hq2 hkv2 d64 sinks varlen=70,5:33,140",
    "f16 b1 hq2 hkv2 q70 kv70 d64 causal",
    "bf16 b1 hq2 hkv1 q70 kv70 d64 causal softcap=5 bias",
    "f64 b1 hq2 hkv1 q70 kv70 d33 causal alibi sinks bias=1,h,q,kv",
    "f32 b2 hq3 hkv3 q40 kv0 d32 sinks",
    "f32 b1 hq3 hkv3 q0 kv40 d32",
    "f32 b1 hq2 hkv2 q70 kv90 d32 bshd causal",
};
enum { N_TEXTS = sizeof texts / sizeof *texts };

START_TEST(texts_each)
{
    check_text(texts[_i / TEST_WAYS], (uint64_t)(_i / TEST_WAYS) + 1, &test_backward_ways[_i % TEST_WAYS]);
}
END_TEST

/* All on the host; on devices, where each is a kernel of its own, some. */
enum { RANDOM_ON_DEVICES = 10, RANDOM_CASES = RANDOM_PROBLEMS + 2 * RANDOM_ON_DEVICES };

START_TEST(random_each)
{
    char text[256];
    const int on_device = _i - RANDOM_PROBLEMS;
    const int nth = on_device < 0 ? _i : on_device / 2, way = on_device < 0 ? 0 : 1 + on_device % 2;
    random_text((uint64_t)nth + 1000, text);
    check_text(text, (uint64_t)nth + 1, &test_backward_ways[way]);
}
END_TEST

/* bent in OpenCL C. Its scores are as large as those it is given: an f32 score, and LSE, of some hundreds would be off by
 * more than the tolerance. */
static const char bent_source[] = "score + sin(score) / 2 + (real)(h + i - j) / 100";
static const char bent_source_derivative[] = "/* no return */ 1 + cos(score) / 2";

static void check_pair(unsigned features, clattn_dtype dtype, int shape, const test_way *way)
{
    clattn_problem p;
    if (!test_pair_problem(features, dtype, shape, &p) || !test_way_context(way, dtype)) return;
    if (p.score_function.host)
        p.score_function = (clattn_score_function){bent, bent_source, 0, bent_derivative, bent_source_derivative};
    test_data *t = test_pair_data(&p, (uint64_t)features + 1);
    char text[320];
    clattn_problem_to_text(&p, text, 256);
    snprintf(text + strlen(text), 64, " on %s", way->name);
    test_backward_check(t, text, (uint64_t)features + 1, way, &as_usual);
    test_data_free(t);
}

START_TEST(pairs)
{
    const int pair = _i / TEST_WAYS / 2, shape = (pair + _i / TEST_WAYS % 2) % 3;
    check_pair(test_pair_of(pair), CLATTN_DTYPE_F32, shape, &test_backward_ways[_i % TEST_WAYS]);
}
END_TEST

START_TEST(types_with_each)
{
    static const clattn_dtype types[] = {CLATTN_DTYPE_F16, CLATTN_DTYPE_BF16, CLATTN_DTYPE_F64};
    const int feature = _i / TEST_WAYS % (TEST_FEATURES + 1), type = _i / TEST_WAYS / (TEST_FEATURES + 1);
    check_pair(feature == TEST_FEATURES ? 0 : 1u << feature, types[type], type, &test_backward_ways[_i % TEST_WAYS]);
}
END_TEST

/* RMS of the error of dQ (0) or dK (1). */
static double gradient_rms(const test_data *t, const test_gradients *g, int which, const double *want)
{
    const clattn_problem *p = &t->p;
    const int64_t heads = which ? p->n_heads_kv : p->n_heads_q, rows = which ? p->n_kv : p->n_q;
    const int64_t n = p->batch * heads * rows * p->head_dim_qk;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const float *got = (const float *)g->data[which] + test_memory_at(p, i, heads, rows, p->head_dim_qk);
        sum += ((double)*got - want[i]) * ((double)*got - want[i]);
    }
    return sqrt(sum / (double)n);
}

/* Scores of some tens, LSE from the kernel of the same family: P is off by LSE's rounding alone. With an S that is rounded
 * otherwise than LSE's S was it would be off by as much again, of which 1.2 is less than half. */
START_TEST(scores_as_in_forward)
{
    double rms[TEST_WAYS][2] = {{0}};
    test_data *t = test_data_from_text("f32 hq2 hkv2 q300 kv300 d64 causal scale=1.25", 3), *like_o;
    float *d_lse;
    test_gradients g;
    test_loss(t, 4, &like_o, &d_lse);
    double *want[2];
    for (int i = 0; i < 2; i++) want[i] = calloc(2 * 300 * 64, sizeof *want[i]);
    const clattn_backward_args args = test_backward_args(t, like_o->o, NULL, &g);
    test_ok(clattn_reference_backward(&t->p, &args, &(clattn_reference_gradients){.dq = want[0], .dk = want[1]}));
    test_gradients_free(&g);
    for (int w = 0; w < TEST_WAYS; w++) {
        if (!test_way_context(&test_backward_ways[w], t->p.dtype)) continue;
        test_run(t, &test_ways[w], 0, 0);
        test_backward_run(t, &test_backward_ways[w], 0, like_o->o, NULL, &g);
        for (int i = 0; i < 2; i++) {
            rms[w][i] = gradient_rms(t, &g, i, want[i]);
            ck_assert_msg(rms[w][i] <= 1.2 * rms[0][i], "%s: RMS of d%c's error %.3g; the host's %.3g",
                          test_backward_ways[w].name, "QK"[i], rms[w][i], rms[0][i]);
        }
        test_gradients_free(&g);
    }
    for (int i = 0; i < 2; i++) free(want[i]);
    free(d_lse);
    test_data_free(like_o);
    test_data_free(t);
}
END_TEST

/* ---- NaN */

/* Behind the mask, in tiles and beyond, and in rows that see nothing: it must not reach anything. */
START_TEST(nan_unseen)
{
    static const char *const texts_of[] = {
        "f32 b1 hq2 hkv1 q140 kv150 d32 causal offset=-5 kvlen=130 mask=1,1,1,kv sinks",
        "f16 b1 hq2 hkv2 q70 kv90 d40 window=9,3 offset=100 mask=1,h,1,kv softcap=5"};
    const double poisons[] = {(double)NAN, (double)INFINITY};
    const test_way *way = &test_backward_ways[_i % TEST_WAYS];
    const char *text = texts_of[_i / TEST_WAYS / 2];
    test_data *t = test_data_from_text(text, 3);
    const clattn_problem *p = &t->p;
    if (!test_way_context(way, p->dtype)) return;
    const int64_t length = p->kv_length < 0 ? p->n_kv : p->kv_length, empty = p->query_offset < 0 ? 5 : 0;
    for (int64_t j = 0; j < p->n_kv; j++) {
        const bool hidden = j >= length || j % 7 == 3;
        for (int64_t h = 0; h < p->n_heads_q; h++) t->mask[test_beside(p->mask.strides, 0, h, 0, j)] = !hidden;
        for (int64_t h = 0; hidden && h < p->n_heads_kv; h++) {
            test_set_row(t, 'k', 0, h, j, poisons[_i / TEST_WAYS % 2]);
            test_set_row(t, 'v', 0, h, j, poisons[_i / TEST_WAYS % 2]);
        }
    }
    for (int64_t i = 0; i < empty; i++)
        for (int64_t h = 0; h < p->n_heads_q; h++) test_set_row(t, 'q', 0, h, i, poisons[_i / TEST_WAYS % 2]);
    char what[320];
    snprintf(what, sizeof what, "%s with %g unseen, on %s", text, poisons[_i / TEST_WAYS % 2], way->name);
    test_backward_check(t, what, 4, way, &(test_backward_how){.nan_rows = empty});
    test_data_free(t);
}
END_TEST

/* A score function's derivative is NaN for the pairs that the mask hides. */
static double nan_unseen_derivative(double s, int64_t b, int64_t h, int64_t i, int64_t j, const void *data)
{
    (void)s, (void)b, (void)h, (void)data;
    return j > i ? (double)NAN : 1.25;
}

static double plain(double s, int64_t b, int64_t h, int64_t i, int64_t j, const void *data)
{
    (void)b, (void)h, (void)i, (void)j, (void)data;
    return 1.25 * s;
}

START_TEST(nan_derivative_unseen)
{
    static const char *const texts_of[] = {"f32 b1 hq2 hkv1 q70 kv70 d32 causal",
                                           "f32 b1 hq2 hkv2 q40 kv90 d20 causal softcap=5 alibi bias"};
    const test_way *way = &test_backward_ways[_i % TEST_WAYS];
    const char *text = texts_of[_i / TEST_WAYS];
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    test_data *t = test_data_from_text(text, 3);
    t->p.score_function =
        (clattn_score_function){plain, "score * 5 / 4", 0, nan_unseen_derivative, "j > i ? NAN : 1.25f"};
    char what[320];
    snprintf(what, sizeof what, "%s with an unseen derivative of NaN, on %s", text, way->name);
    test_backward_check(t, what, 4, way, &as_usual);
    test_data_free(t);
}
END_TEST

/* A row that sees nothing, where the sink of one head is no logit at all, and LSE has a gap after each number. */
START_TEST(rows_without_lse)
{
    const test_way *way = &test_backward_ways[_i];
    clattn_problem p;
    test_ok(clattn_problem_from_text("f32 b1 hq2 hkv1 q70 kv80 d32 causal offset=-5 sinks", &p));
    p.lse = (clattn_strides){4 * p.n_q, 2 * p.n_q, 2};
    if (!test_way_context(way, p.dtype)) return;
    test_data *t = test_data_make(&p, 3);
    t->sinks[0] = -INFINITY;
    test_backward_check(t, way->name, 4, way, &as_usual);
    test_data_free(t);
}
END_TEST

/* A row that a bias of -infinity, or a Q of -infinity, hides all from: 0 whatever its dO is. A key of weight 0 in an infinite
 * K, which rows that are not there must not see either. */
START_TEST(nan_without_probs)
{
    static const char *const texts_of[] = {"f32 b1 hq2 hkv1 q37 kv70 d16 bias=1,h,q,kv", "f32 b1 hq1 hkv1 q37 kv70 d16",
                                           "f32 b1 hq1 hkv1 q37 kv64 d16 alibi"};
    const int which = _i / TEST_WAYS;
    const test_way *way = &test_backward_ways[_i % TEST_WAYS];
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    test_data *t = test_data_from_text(texts_of[which], 3);
    for (int64_t i = 0; which == 0 && i < 2; i++)
        for (int64_t h = 0; h < 2; h++)
            for (int64_t j = 0; j < 70; j++) ((float *)t->bias)[test_beside(t->p.bias.strides, 0, h, i, j)] = -INFINITY;
    for (int64_t j = 0; which == 1 && j < 70; j++) test_set(t, 'k', 0, 0, j, 0, 1);
    if (which == 1) test_set(t, 'q', 0, 0, 0, 0, -INFINITY);
    for (int64_t i = 0; which == 2 && i < 37; i++) test_set(t, 'q', 0, 0, i, 0, 1);
    if (which == 2) test_set(t, 'k', 0, 0, 7, 0, -INFINITY);
    char what[320];
    snprintf(what, sizeof what, "%s without probs, on %s", texts_of[which], way->name);
    test_backward_check(t, what, 4, way, &(test_backward_how){.nan_rows = which == 0 ? 2 : which == 1 ? 1 : 0});
    test_data_free(t);
}
END_TEST

/* ---- bits */

/* The last entry of a batch of 3 alone gives the bits that it gives there. */
START_TEST(alone_and_in_a_batch)
{
    static const char *const rests[] = {"hq2 hkv1 q150 kv300 d40 causal",
                                        "hq4 hkv4 q70 kv90 d32 softcap=3 window=40,9"};
    const test_way *way = &test_backward_ways[_i % TEST_WAYS];
    char text[2][128];
    for (int i = 0; i < 2; i++) snprintf(text[i], sizeof text[i], "f32 b%d %s", i ? 1 : 3, rests[_i / TEST_WAYS]);
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    test_data *all = test_data_from_text(text[0], 5), *one = test_data_from_text(text[1], 6);
    const clattn_problem *p = &one->p;
    for (int64_t h = 0; h < p->n_heads_q; h++)
        for (int64_t i = 0; i < p->n_q; i++)
            for (int64_t d = 0; d < p->head_dim_qk; d++) test_set(one, 'q', 0, h, i, d, test_get(all, 'q', 2, h, i, d));
    for (int64_t h = 0; h < p->n_heads_kv; h++)
        for (int64_t j = 0; j < p->n_kv; j++)
            for (int64_t d = 0; d < p->head_dim_qk; d++) {
                test_set(one, 'k', 0, h, j, d, test_get(all, 'k', 2, h, j, d));
                test_set(one, 'v', 0, h, j, d, test_get(all, 'v', 2, h, j, d));
            }
    test_data *d_o_all, *d_o_one;
    float *d_lse_all, *d_lse_one;
    test_gradients g_all, g_one;
    test_loss(all, 1, &d_o_all, &d_lse_all);
    test_loss(one, 1, &d_o_one, &d_lse_one);
    for (int64_t h = 0; h < p->n_heads_q; h++)
        for (int64_t i = 0; i < p->n_q; i++) {
            d_lse_one[h * p->n_q + i] = d_lse_all[(2 * p->n_heads_q + h) * p->n_q + i];
            for (int64_t d = 0; d < p->head_dim_v; d++)
                test_set(d_o_one, 'o', 0, h, i, d, test_get(d_o_all, 'o', 2, h, i, d));
        }
    test_backward_run(all, way, 0, d_o_all->o, d_lse_all, &g_all);
    test_backward_run(one, way, 0, d_o_one->o, d_lse_one, &g_one);
    for (int i = 0; i < 3; i++)
        ck_assert_msg(!memcmp(g_one.data[i], g_all.data[i] + 2 * g_one.bytes[i], g_one.bytes[i]),
                      "%s on %s: gradient %d depends on the batch", text[0], way->name, i);
    test_gradients_free(&g_all), test_gradients_free(&g_one);
    free(d_lse_all), free(d_lse_one);
    test_data_free(d_o_all), test_data_free(d_o_one), test_data_free(all), test_data_free(one);
}
END_TEST

/* ---- refusals: of clattn_backward, with nothing written */

static const char *const refusals[] = {
    "args is NULL",
    "args.struct_size is 7",
    "args.struct_size is 9",
    "args.d_o is absent",
    "args.forward.lse is absent",
    "args.q is absent",
    "args.dsinks is given; the problem has no sinks",
    "overlaps args.q,",
    "overlaps args.dq,",
    "overlaps args.d_o,",
    "args.dk is at",
    "args.dv.offset is 2 bytes",
    "args.dk has both a host pointer and a cl_mem",
    "args.dv is a cl_mem; this call takes host pointers",
    "args.k is a cl_mem; this call takes host pointers",
};
enum { N_REFUSALS = sizeof refusals / sizeof *refusals };

static const clattn_backward_args *spoil(clattn_backward_args *a, int nth)
{
    switch (nth) {
    case 0: return NULL;
    case 1: a->struct_size = 7; break;
    case 2: a->forward.struct_size = 9; break;
    case 3: a->d_o = clattn_host_buffer(NULL); break;
    case 4: a->forward.lse = clattn_host_buffer(NULL); break;
    case 5: a->forward.q = clattn_host_buffer(NULL); break;
    case 6: a->dsinks = a->dalibi_slopes; break;
    case 7: a->dq = a->forward.q; break;
    case 8: a->dk = a->dq; break;
    case 9: a->dv = a->d_o; break;
    case 10: a->dk.host = (char *)a->dk.host + 1; break;
    case 11: a->dv.offset = 2; break;
    case 12: a->dk.mem = a; break;
    case 13: a->dv = (clattn_buffer){NULL, a, 0}; break;
    default: a->forward.k = (clattn_buffer){NULL, a, 0}; break;
    }
    return a;
}

START_TEST(what_is_refused)
{
    const test_way *way = &test_backward_ways[_i % TEST_WAYS];
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    test_data *t = test_data_from_text("f32 b1 hq2 hkv2 q20 kv20 d16 alibi", 3), *like_o;
    float *d_lse;
    test_gradients g;
    test_loss(t, 1, &like_o, &d_lse);
    clattn_plan *plan = test_plan(test_way_context(way, t->p.dtype), &t->p, way, 0, 0, 0);
    clattn_backward_args args = test_backward_args(t, like_o->o, d_lse, &g);
    ck_assert_int_eq(clattn_backward(plan, spoil(&args, _i / TEST_WAYS)), CLATTN_STATUS_INVALID_ARGUMENT);
    ck_assert_msg(strstr(clattn_last_error()->message, refusals[_i / TEST_WAYS]) != NULL, "%s: %s",
                  refusals[_i / TEST_WAYS], clattn_last_error()->message);
    for (int i = 0; i < 6; i++)
        for (size_t n = 0; n < g.bytes[i]; n++) ck_assert_int_eq(g.data[i][n], 0xff);
    test_gradients_free(&g);
    free(d_lse);
    clattn_plan_release(plan);
    test_data_free(like_o), test_data_free(t);
}
END_TEST

/* A bias whose elements overlap may be read; its gradient would be written over itself. */
START_TEST(overlapping_bias)
{
    test_data *t = test_data_from_text("f32 b1 hq1 hkv1 q20 kv20 d16", 3), *like_o;
    float *d_lse, bias[64] = {0}, dbias[64];
    test_gradients g;
    test_loss(t, 1, &like_o, &d_lse);
    t->p.bias.dtype = CLATTN_DTYPE_F32;
    t->p.bias.strides = (clattn_score_strides){0, 0, 1, 1};
    clattn_plan *plan = test_plan(test_host_context(), &t->p, &test_backward_ways[0], 0, 0, 0);
    clattn_backward_args args = test_backward_args(t, like_o->o, d_lse, &g);
    args.forward.bias = clattn_host_buffer(bias);
    args.dbias = clattn_host_buffer(dbias);
    ck_assert_int_eq(clattn_backward(plan, &args), CLATTN_STATUS_INVALID_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "args.dbias has the strides of bias, whose elements"));
    args.dbias = clattn_host_buffer(NULL);
    test_ok(clattn_backward(plan, &args));
    test_gradients_free(&g);
    free(d_lse);
    clattn_plan_release(plan);
    test_data_free(like_o), test_data_free(t);
}
END_TEST

START_TEST(plans_of_the_other_pass)
{
    const test_way *way = &test_backward_ways[_i];
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    clattn_problem p;
    clattn_backward_args args;
    clattn_backward_args_init(&args);
    test_ok(clattn_problem_from_text("f32 b1 hq2 hkv2 q20 kv20 d16", &p));
    clattn_plan *forward = test_plan(test_way_context(way, p.dtype), &p, &test_ways[_i], 0, 0, 0);
    clattn_plan *backward = test_plan(test_way_context(way, p.dtype), &p, way, 0, 0, 0);
    ck_assert_int_eq(clattn_backward(forward, &args), CLATTN_STATUS_INVALID_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "the plan was made for forward"));
    ck_assert_int_eq(clattn_forward(backward, &args.forward), CLATTN_STATUS_INVALID_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "the plan was made for backward"));
    ck_assert_int_eq(clattn_backward(NULL, &args), CLATTN_STATUS_INVALID_ARGUMENT);
    clattn_plan_release(forward);
    clattn_plan_release(backward);
}
END_TEST

Suite *test_suite(void)
{
    Suite *s = suite_create("backward");
    TCase *t = test_case(s, "reference");
    tcase_add_loop_test(t, reference_by_differences, 0, RANDOM_PROBLEMS);
    tcase_add_loop_test(t, score_function_by_differences, 0, 2);
    t = test_case(s, "ways");
    tcase_add_loop_test(t, texts_each, 0, N_TEXTS * TEST_WAYS);
    tcase_add_loop_test(t, random_each, 0, RANDOM_CASES);
    tcase_add_test(t, scores_as_in_forward);
    t = test_case(s, "pairs");
    tcase_add_loop_test(t, pairs, 0, 2 * TEST_PAIRS * TEST_WAYS);
    t = test_case(s, "types");
    tcase_add_loop_test(t, types_with_each, 0, 3 * (TEST_FEATURES + 1) * TEST_WAYS);
    t = test_case(s, "nan");
    tcase_add_loop_test(t, nan_unseen, 0, 4 * TEST_WAYS);
    tcase_add_loop_test(t, nan_derivative_unseen, 0, 2 * TEST_WAYS);
    tcase_add_loop_test(t, nan_without_probs, 0, 3 * TEST_WAYS);
    tcase_add_loop_test(t, rows_without_lse, 0, TEST_WAYS);
    t = test_case(s, "bits");
    tcase_add_loop_test(t, alone_and_in_a_batch, 0, 2 * TEST_WAYS);
    t = test_case(s, "refusals");
    tcase_add_loop_test(t, what_is_refused, 0, N_REFUSALS * TEST_WAYS);
    tcase_add_test(t, overlapping_bias);
    tcase_add_loop_test(t, plans_of_the_other_pass, 0, TEST_WAYS);
    return s;
}
