/* clattn selftest: small problems on the host and on every device */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "convert.h"
#include "inputs.h"
#include "progress.h"
#include "targets.h"
#include "verify.h"

enum {
    LARGE = 1,  /* Q times 30: scores of some hundreds, where exp must not overflow */
    HIDDEN = 2, /* NaN and infinity in the K and V rows that no query sees */
    SEEN = 4    /* NaN in the last K row in use: it reaches the rows that see it, and only those */
};

typedef struct selftest_case {
    const char *problem;
    unsigned what;
} selftest_case;

static const selftest_case cases[] = {
    /* storage types and tails of tiles */
    {"f32 b1 hq1 hkv1 q1 kv1 d1", 0},
    {"f32 b1 hq2 hkv2 q37 kv53 d64", 0},
    {"f16 b1 hq2 hkv2 q37 kv53 d64", 0},
    {"bf16 b1 hq2 hkv2 q37 kv53 d64", 0},
    {"f64 b1 hq2 hkv2 q37 kv53 d64", 0},
    {"f32 b2 hq2 hkv2 q128 kv128 d64 causal", 0},
    {"f16 b1 hq1 hkv1 q130 kv257 d128", 0},
    {"bf16 b1 hq1 hkv1 q130 kv257 d128 causal", 0},
    /* head dims that no tile likes */
    {"f32 b1 hq1 hkv1 q19 kv70 d7", 0},
    {"f16 b1 hq1 hkv1 q19 kv70 d31", 0},
    {"bf16 b1 hq1 hkv1 q19 kv70 d46", 0},
    {"f32 b1 hq1 hkv1 q33 kv65 d80 causal", 0},
    {"f16 b1 hq1 hkv1 q33 kv65 d96", 0},
    {"f32 b1 hq1 hkv1 q9 kv40 d257", 0},
    {"f64 b1 hq1 hkv1 q9 kv40 d46 causal", 0},
    {"f32 b1 hq2 hkv1 q20 kv40 d64 dv24", 0},
    {"bf16 b1 hq1 hkv1 q20 kv40 d24 dv64 causal", 0},
    /* groups and layouts */
    {"f32 b2 hq8 hkv2 q17 kv64 d32", 0},
    {"f16 b1 hq6 hkv1 q1 kv300 d64", 0},
    {"f32 b2 hq4 hkv2 q33 kv33 d32 causal bshd", 0},
    {"bf16 b2 hq3 hkv3 q5 kv77 d32 bshd", 0},
    /* masks */
    {"f32 b1 hq2 hkv2 q100 kv100 d32 window=16,0", 0},
    {"f32 b1 hq2 hkv2 q640 kv640 d32 window=8,8", 0},
    {"f16 b1 hq1 hkv1 q90 kv200 d64 window=30,5 offset=110", 0},
    {"f64 b1 hq1 hkv1 q40 kv40 d32 window=0,3", 0},
    {"f32 b1 hq1 hkv1 q4 kv1025 d64 causal offset=1021", 0},
    {"f32 b1 hq2 hkv1 q50 kv36 d32 causal offset=-14", 0},
    {"bf16 b1 hq1 hkv1 q20 kv30 d32 window=2,2 offset=40", 0},
    {"f32 b1 hq1 hkv1 q20 kv200 d32 kvlen=77", 0},
    {"f32 b1 hq1 hkv1 q20 kv64 d32 kvlen=0", 0},
    {"f32 b1 hq1 hkv1 q20 kv64 d32 scale=0", 0},
    /* numbers per batch entry */
    {"f32 b3 hq2 hkv1 q10 kv90 d32 kvlen=per-batch", 0},
    {"f16 b3 hq2 hkv2 q10 kv90 d32 causal kvlen=per-batch offset=per-batch", 0},
    {"f64 b2 hq1 hkv1 q30 kv30 d32 window=4,2 offset=per-batch", 0},
    /* nothing there */
    {"f32 b1 hq1 hkv1 q0 kv16 d32", 0},
    {"f32 b1 hq2 hkv1 q16 kv0 d32", 0},
    {"f16 b1 hq1 hkv1 q0 kv0 d32", 0},
    /* values that are not finite, and large ones */
    {"f32 b1 hq2 hkv2 q37 kv128 d64 kvlen=70", HIDDEN},
    {"f16 b1 hq2 hkv2 q37 kv128 d64 causal offset=20", HIDDEN},
    {"bf16 b2 hq2 hkv1 q25 kv90 d32 window=5,5 offset=30 kvlen=per-batch", HIDDEN},
    {"f32 b1 hq1 hkv1 q40 kv40 d64 causal", SEEN},
    {"f32 b1 hq1 hkv1 q40 kv40 d32 window=3,3", SEEN},
    {"f32 b2 hq2 hkv1 q21 kv80 d32 mask=b,1,1,kv", HIDDEN},
    {"f64 b1 hq1 hkv1 q64 kv64 d32", LARGE},
    {"f16 b1 hq1 hkv1 q64 kv64 d32 causal", LARGE},
    {"f32 b1 hq1 hkv1 q64 kv64 d32 softcap=50", LARGE},
    /* what changes the scores, alone ... */
    {"f32 b1 hq2 hkv2 q37 kv53 d64 softcap=2", 0},
    {"f16 b1 hq2 hkv1 q130 kv257 d64 softcap=30", 0},
    {"f32 b1 hq4 hkv2 q37 kv153 d32 alibi", 0},
    {"bf16 b2 hq3 hkv3 q40 kv90 d32 alibi=per-batch", 0},
    {"f32 b2 hq2 hkv2 q37 kv53 d32 bias", 0},
    {"f32 b2 hq4 hkv2 q37 kv153 d64 bias=1,h,q,kv:f16", 0},
    {"f16 b2 hq2 hkv2 q33 kv65 d64 bias=b,1,1,kv:bf16", 0},
    {"f64 b2 hq2 hkv1 q20 kv40 d24 bias=b,h,q,1", 0},
    {"f32 b2 hq2 hkv2 q37 kv153 d32 mask", 0},
    {"f16 b2 hq2 hkv1 q40 kv300 d64 mask=1,1,q,kv", 0},
    {"bf16 b2 hq2 hkv2 q17 kv77 d32 mask=b,h,q,1", 0},
    {"f32 b1 hq4 hkv1 q37 kv53 d64 sinks", 0},
    {"f64 b1 hq2 hkv2 q9 kv0 d32 sinks", 0},
    {"f32 b2 hq2 hkv1 q37 kv153 d32 dropout=0.1:seed=7", 0},
    {"f16 b1 hq2 hkv2 q130 kv130 d64 dropout=0.5:seed=123456789012", 0},
    {"f32 hq2 hkv1 d32 varlen=3,5,0,17", 0},
    {"f16 hq2 hkv2 d64 varlen=1,130,64:90,257,0", 0},
    /* ... and together */
    {"f32 b1 hq2 hkv2 q100 kv100 d32 causal alibi softcap=5", 0},
    {"f16 b2 hq4 hkv2 q33 kv65 d64 bias=1,h,q,kv mask=b,1,1,kv causal offset=32", 0},
    {"bf16 b1 hq2 hkv1 q50 kv50 d32 window=9,0 sinks", 0},
    {"f32 b1 hq2 hkv2 q40 kv90 d32 mask sinks dropout=0.2:seed=1", 0},
    {"f32 b3 hq2 hkv1 q4 kv90 d32 causal kvlen=per-batch offset=per-batch alibi sinks", 0},
    {"f32 hq2 hkv2 d32 causal alibi varlen=40,1,33", 0},
    {"f16 hq4 hkv2 d32 bias mask=b,1,q,kv varlen=20,0,37:35,8,64", 0},
    {"f64 hq2 hkv1 d24 softcap=3 sinks dropout=0.3:seed=9 varlen=5,17:9,40", 0},
    {"f32 b2 hq4 hkv2 q33 kv70 d32 bshd softcap=20 alibi=per-batch bias=b,h,q,kv:f32 mask sinks dropout=0.1:seed=3", 0},
};
enum { N_CASES = sizeof cases / sizeof cases[0] };

/* Sets one row of K or V, whatever the layout, to a value. */
static void set_row(void *data, clattn_dtype dtype, clattn_strides s, int64_t dim, int64_t b, int64_t h, int64_t row,
                    double value)
{
    const int64_t at = b * s.batch + h * s.head + row * s.seq;
    for (int64_t d = 0; d < dim; d++) element_put(data, dtype, at + d, value);
}

/* A boolean mask that is the same for all rows and heads hides key j. */
static bool mask_hides_from_all(const inputs *in, int64_t b, int64_t j)
{
    const clattn_score_strides *s = &in->problem.mask.strides;
    return in->mask && !s->head && !s->q && !in->mask[b * s->batch + j * s->kv];
}

static void spoil_keys(inputs *in, unsigned what)
{
    const clattn_problem *p = &in->problem;
    const storage s = inputs_storage(p);
    const clattn_strides k = inputs_strides(p, p->k, p->n_heads_kv, s.n_kv, p->head_dim_qk);
    const clattn_strides v = inputs_strides(p, p->v, p->n_heads_kv, s.n_kv, p->head_dim_v);
    for (int64_t b = 0; b < p->batch; b++) {
        const entry e = inputs_entry(in, b);
        const key_range seen = inputs_visible_to_any(in, &e);
        for (int64_t h = 0; h < p->n_heads_kv; h++)
            for (int64_t j = 0; j < e.n_kv; j++) {
                const bool hidden = j < seen.first || j >= seen.end || mask_hides_from_all(in, b, j);
                const int64_t row = e.first_kv + j;
                if (hidden && what & HIDDEN) {
                    set_row(in->k, p->dtype, k, p->head_dim_qk, e.batch, h, row,
                            j % 2 ? (double)NAN : (double)INFINITY);
                    set_row(in->v, p->dtype, v, p->head_dim_v, e.batch, h, row, j % 2 ? (double)INFINITY : (double)NAN);
                }
                if (j == seen.end - 1 && what & SEEN)
                    set_row(in->k, p->dtype, k, p->head_dim_qk, e.batch, h, row, (double)NAN);
            }
    }
}

static int make_inputs(const selftest_case *c, int64_t seed, inputs *in)
{
    const clattn_problem *p = &in->problem;
    const int code = inputs_from_text(c->problem, seed, in);
    if (code) return code;
    if (c->what & LARGE)
        for (int64_t i = 0; i < p->batch * p->n_heads_q * p->n_q * p->head_dim_qk; i++)
            element_put(in->q, p->dtype, i, 30 * element_get(in->q, p->dtype, i));
    spoil_keys(in, c->what);
    return CLI_OK;
}

typedef struct tally {
    int passed, failed, skipped;
    struct worst {
        const selftest_case *of; /* NULL: none ran */
        double share;            /* of the tolerance */
        difference distance;
    } * worst; /* [targets] */
} tally;

static void report(const selftest_case *c, const target *t, const outcome *out, tally *sum, struct worst *worst)
{
    if (!out->status && (!worst->of || out->share > worst->share))
        *worst = (struct worst){c, out->share, out->distance};
    if (out->ok && !out->status) {
        sum->passed++;
        return;
    }
    const bool skipped = out->status == CLATTN_STATUS_UNSUPPORTED;
    *(skipped ? &sum->skipped : &sum->failed) += 1;
    printf("%s  %s %s %s: %s", skipped ? "SKIPPED" : "FAILED ", clattn_path_name(t->path), t->device,
           clattn_kernel_name(t->kernel), c->problem);
    if (c->what) printf(" (variant %u)", c->what);
    if (out->status)
        printf(": %s\n", out->message);
    else
        printf(": max |dO| %.3g, max |dLSE| %.3g\n", out->distance.max_o, out->distance.max_lse);
}

static int run_case(const options *o, const selftest_case *c, const target_list *list, tally *sum, progress *bar)
{
    inputs in;
    answer a;
    int code = make_inputs(c, o->seed, &in);
    if (code) return code;
    code = answer_make(&in, NULL, &a);
    for (int i = 0; !code && i < list->n; i++) {
        outcome out;
        code = outcome_make(&list->targets[i], o, &in, &a, 0, &out);
        if (!code) report(c, &list->targets[i], &out, sum, &sum->worst[i]);
        progress_add(bar, 1);
    }
    answer_free(&a);
    inputs_free(&in);
    return code;
}

int cmd_selftest(const options *o)
{
    target_list list;
    progress bar;
    tally sum = {0};
    int code = targets_open(o, &list);
    if (code) return code;
    sum.worst = cli_alloc("the worst of each kernel", list.n, sizeof *sum.worst);
    if (!sum.worst) return targets_close(&list), CLI_FAILED;
    memset(sum.worst, 0, sizeof *sum.worst * (size_t)list.n);
    for (int i = 0; i < list.n; i++)
        printf("%s %s %s\n", clattn_path_name(list.targets[i].path), list.targets[i].device,
               clattn_kernel_name(list.targets[i].kernel));
    fflush(stdout);
    progress_start(&bar, "selftest", (int64_t)N_CASES * list.n);
    for (int i = 0; !code && i < N_CASES; i++) code = run_case(o, &cases[i], &list, &sum, &bar);
    progress_stop(&bar);
    for (int i = 0; !code && i < list.n; i++) {
        const struct worst *w = &sum.worst[i];
        if (w->of)
            printf("worst of %s: %.0f %% of the tolerance, max |dO| %.2g, max |dLSE| %.2g: %s\n",
                   clattn_kernel_name(list.targets[i].kernel), 100 * w->share, w->distance.max_o, w->distance.max_lse,
                   w->of->problem);
    }
    free(sum.worst);
    targets_close(&list);
    if (code) return code;
    printf("%d passed, %d failed, %d skipped\n", sum.passed, sum.failed, sum.skipped);
    return sum.failed ? CLI_FAILED : CLI_OK;
}
