#include "problem_numbers.h"

#include "gradients.h"

#include <inttypes.h>

static const test_way ways[NUMBERS_WAYS] = {
    {"host_tile", CLATTN_PATH_HOST, CLATTN_KERNEL_HOST_TILE},
    {"host_decode", CLATTN_PATH_HOST, CLATTN_KERNEL_HOST_DECODE},
    {"attn_fwd_lanes", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_FWD_LANES},
    {"attn_fwd", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_FWD},
    {"attn_decode_lanes", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_DECODE_LANES},
    {"attn_decode", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_DECODE},
    [NUMBERS_MMA] = {"attn_fwd_mma", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_FWD_MMA},
};

uint64_t numbers_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

int64_t numbers_below(uint64_t *state, int64_t n) { return (int64_t)(numbers_next(state) % (uint64_t)n); }

static int64_t rarely(uint64_t *state, int64_t one_in, int64_t n)
{
    return numbers_below(state, one_in) ? 0 : 1 + numbers_below(state, n);
}

/* Small as a rule. */
static int64_t size_of(uint64_t *state, int64_t most)
{
    const int64_t r = numbers_below(state, 16);
    return numbers_below(state, r == 0 ? most : r < 6 ? most / 4 + 2 : most / 16 + 2);
}

numbers numbers_make(uint64_t seed, uint64_t i, bool device)
{
    uint64_t v = seed * 1000003 + (device ? i / 20 * 7919 + 500 : i), s = seed * 77777 + i * 31 + 5;
    numbers p = {{0}};
    for (int k = 0; k < 4; k++) numbers_next(&v), numbers_next(&s);
    p.n[DTYPE] = numbers_below(&v, 5) % 4; /* f32 twice */
    p.n[WAY] = device ? NUMBERS_HOST_WAYS + numbers_below(&v, NUMBERS_WAYS - NUMBERS_HOST_WAYS)
                      : numbers_below(&v, NUMBERS_HOST_WAYS);
    if (p.n[WAY] == NUMBERS_MMA) p.n[DTYPE] = 1 + p.n[DTYPE] % 2; /* f16 and bf16 */
    p.n[DIM] = size_of(&v, p.n[WAY] == NUMBERS_MMA ? 128 : 280);
    p.n[DIM_V] = rarely(&v, 3, 90);
    p.n[SOFTCAP] = rarely(&v, 5, 3);
    p.n[ALIBI] = rarely(&v, 5, 2);
    p.n[BIAS] = rarely(&v, 4, 20);
    p.n[MASK] = rarely(&v, 4, 5);
    p.n[SINKS] = rarely(&v, 5, 1);
    p.n[DROPOUT] = rarely(&v, 6, 2);
    p.n[VARLEN] = rarely(&v, 8, 1);
    const bool windows = numbers_below(&v, 2);
    p.n[BLOCK_Q] = device ? 16 << numbers_below(&v, 5) : rarely(&s, 3, 70);
    p.n[BLOCK_KV] = device ? 16 << numbers_below(&v, 3) : rarely(&s, 3, 300);
    p.n[BATCH] = size_of(&s, 4);
    p.n[HEADS_KV] = size_of(&s, 6);
    p.n[GROUP] = rarely(&s, 2, 5);
    p.n[N_Q] = p.n[WAY] == 1 || p.n[WAY] == 4 || p.n[WAY] == 5 ? size_of(&s, 24) : size_of(&s, 200);
    if (device && p.n[N_Q] >= 24 && numbers_below(&s, 2))
        p.n[N_Q] = numbers_below(&s, 3 * p.n[BLOCK_Q]); /* some tiles */
    p.n[N_KV] = size_of(&s, numbers_below(&s, 12) ? 300 : 2500);
    p.n[LEFT] = windows ? rarely(&s, 2, 60) : 0;
    p.n[RIGHT] =
        windows && !(p.n[LEFT] && numbers_below(&s, 2)) ? 1 + (numbers_below(&s, 2) ? 0 : numbers_below(&s, 30)) : 0;
    p.n[OFFSET] = rarely(&s, 3, 200);
    p.n[KV_LENGTH] = p.n[VARLEN] ? 0 : rarely(&s, 4, p.n[N_KV] + 2);
    p.n[SCALE] = rarely(&s, 5, 4);
    p.n[BSHD] = p.n[VARLEN] ? 0 : rarely(&s, 4, 1);
    p.n[DATA] = rarely(&s, 3, 7);
    p.n[BACKWARD] = p.n[DATA] == 0 ? rarely(&s, 4, 1) : 0;
    p.n[SEED] = numbers_below(&s, 1000);
    return p;
}

/* "3,0,5" from n numbers that sum to whatever they do */
static void sequences_text(uint64_t *state, int64_t n, int64_t most, char *to, size_t size)
{
    size_t at = 0;
    for (int64_t i = 0; i < n && at < size; i++)
        at += (size_t)snprintf(to + at, size - at, "%s%" PRId64, i ? "," : "",
                               i == n - 1 ? most : numbers_below(state, most + 1));
}

void numbers_text(const numbers *p, char *to, size_t size)
{
    static const char *const dtypes[] = {"f32", "f16", "bf16", "f64"};
    static const char *const biases[] = {"", "=1,h,q,kv", "=b,1,1,kv", "=1,1,q,1", "=1,1,1,1"};
    static const char *const masks[] = {"", "=b,1,1,kv", "=1,h,q,1", "=1,1,q,kv", "=1,1,1,1"};
    static const char *const scales[] = {"", " scale=0", " scale=1", " scale=-0.3", " scale=2.5"};
    static const char *const caps[] = {"", " softcap=1", " softcap=30", " softcap=0.1"};
    char shape[400], window[64] = "", offset[64] = "", length[64] = "", bias[64] = "", mask[64] = "", dims[64] = "";
    const int64_t *n = p->n, batch = n[BATCH] + 1;
    if (n[VARLEN]) {
        char q[160], kv[160];
        uint64_t state = (uint64_t)n[SEED];
        sequences_text(&state, batch, n[N_Q], q, sizeof q);
        sequences_text(&state, batch, n[N_KV], kv, sizeof kv);
        snprintf(shape, sizeof shape, "varlen=%s:%s", q, kv);
    } else {
        snprintf(shape, sizeof shape, "b%" PRId64 " q%" PRId64 " kv%" PRId64, batch, n[N_Q], n[N_KV]);
    }
    if (n[LEFT] || n[RIGHT]) snprintf(window, sizeof window, " window=%" PRId64 ",%" PRId64, n[LEFT] - 1, n[RIGHT] - 1);
    if (n[OFFSET] == 1) snprintf(offset, sizeof offset, " offset=per-batch");
    if (n[OFFSET] > 1) snprintf(offset, sizeof offset, " offset=%" PRId64, n[OFFSET] - 20);
    if (n[KV_LENGTH] == 1) snprintf(length, sizeof length, " kvlen=per-batch");
    if (n[KV_LENGTH] > 1) snprintf(length, sizeof length, " kvlen=%" PRId64, n[KV_LENGTH] - 2);
    if (n[BIAS])
        snprintf(bias, sizeof bias, " bias%s:%s", *biases[(n[BIAS] - 1) % 5] ? biases[(n[BIAS] - 1) % 5] : "=b,h,q,kv",
                 dtypes[(n[BIAS] - 1) / 5]);
    if (n[MASK]) snprintf(mask, sizeof mask, " mask%s", masks[n[MASK] - 1]);
    if (n[DIM_V]) snprintf(dims, sizeof dims, " dv%" PRId64, n[DIM_V]);
    snprintf(to, size, "%s hq%" PRId64 " hkv%" PRId64 " d%" PRId64 "%s %s%s%s%s%s%s%s%s%s%s%s%s", dtypes[n[DTYPE]],
             (n[HEADS_KV] + 1) * (n[GROUP] + 1), n[HEADS_KV] + 1, n[DIM] + 1, dims, shape, window, offset, length,
             scales[n[SCALE]], caps[n[SOFTCAP]],
             n[ALIBI] == 1 ? " alibi"
             : n[ALIBI]    ? " alibi=per-batch"
                           : "",
             bias, mask, n[SINKS] ? " sinks" : "",
             n[DROPOUT] == 1   ? " dropout=0.3:seed=5"
             : n[DROPOUT] == 2 ? " dropout=0.9:seed=6"
                               : "",
             n[BSHD] ? " bshd" : "");
}

bool numbers_make_sense(const numbers *p)
{
    char text[700];
    clattn_problem made;
    numbers_text(p, text, sizeof text);
    return clattn_problem_from_text(text, &made) == CLATTN_STATUS_SUCCESS;
}

void numbers_print(const numbers *p)
{
    char text[700];
    numbers_text(p, text, sizeof text);
    printf("%s  [%s, seed %" PRId64 ", data %" PRId64 ", blocks %" PRId64 "x%" PRId64 "%s]  ./random_problems one ",
           text, ways[p->n[WAY]].name, p->n[SEED], p->n[DATA], p->n[BLOCK_Q], p->n[BLOCK_KV],
           p->n[BACKWARD] ? ", backward" : "");
    for (int i = 0; i < FIELDS; i++) printf("%s%" PRId64, i ? "," : "", p->n[i]);
    printf("\n");
}

/* ---- one problem */

static void spoil_row(test_data *t, char which, uint64_t *state, double value)
{
    const clattn_problem *p = &t->p;
    const int64_t rows = p->varlen ? p->total_kv : p->n_kv;
    if (!rows) return;
    test_set_row(t, which, p->varlen ? 0 : numbers_below(state, p->batch), numbers_below(state, p->n_heads_kv),
                 numbers_below(state, rows), value);
}

/* Numbers as real data has them at its worst. */
static void spoil(test_data *t, int64_t kind, uint64_t seed)
{
    const clattn_problem *p = &t->p;
    uint64_t state = seed * 3 + 1;
    switch (kind) {
    case 1: spoil_row(t, 'v', &state, (double)NAN); break;
    case 2: spoil_row(t, 'k', &state, (double)NAN); break;
    case 3: /* a prob that is 0 in f32 alone would make it a NaN there alone */
        if (!p->alibi && p->scale == CLATTN_SCALE_AUTO) spoil_row(t, 'v', &state, (double)INFINITY);
        break;
    case 4: spoil_row(t, 'k', &state, 0); break;
    case 5: /* nobody sees anything, mostly */
        for (int64_t i = 0; t->mask && p->n_q && p->n_kv &&
                            i <= test_beside(p->mask.strides, p->batch - 1, p->n_heads_q - 1, p->n_q - 1, p->n_kv - 1);
             i++)
            t->mask[i] = numbers_below(&state, 8) == 0;
        break;
    case 6:
        for (int i = 0; i < 4; i++) spoil_row(t, 'v', &state, (double)NAN);
        break;
    case 7:
        for (int64_t h = 0; t->sinks && h < p->n_heads_q; h++) t->sinks[h] = h % 2 ? -INFINITY : 40;
        break;
    default: break;
    }
}

/* What backward subtracts, dP and delta, are sums of head_dim_v products; a prob's relative error is its score's error, which
 * grows with the scores. A slope's gradient is a difference of sums as large as the distances: the pairs look at that. */
static void check_backward(test_data *t, const char *text, int64_t seed, const test_way *way)
{
    const clattn_problem *p = &t->p;
    const double scale = p->scale == CLATTN_SCALE_AUTO ? 1 / sqrt((double)p->head_dim_qk) : fabs(p->scale);
    const test_backward_how how = {.factor = (p->dtype == CLATTN_DTYPE_F64 ? 1 : 2) *
                                             fmax(1, sqrt((double)p->head_dim_v) / 8) *
                                             fmax(1, scale * sqrt((double)p->head_dim_qk)),
                                   .slopes_cancel = true};
    const int nth = way->path == CLATTN_PATH_HOST ? 0 : way->kernel == CLATTN_KERNEL_ATTN_FWD ? 2 : 1;
    test_backward_check(t, text, (uint64_t)seed, &test_backward_ways[nth], &how);
}

void numbers_run(const numbers *n, bool is_of_many)
{
    char text[700];
    numbers_text(n, text, sizeof text);
    clattn_problem p;
    test_ok(clattn_problem_from_text(text, &p));
    if (n->n[SEED] % 5 == 4 && !p.varlen) /* LSE with a gap after each number */
        p.lse = (clattn_strides){2 * p.n_heads_q * p.n_q, 2 * p.n_q, 2};
    if (n->n[SEED] % 5 == 3 && !n->n[BACKWARD]) /* bias and mask too */
        for (int i = 0; i < 2; i++) {
            clattn_score_strides *s = i ? &p.mask.strides : &p.bias.strides;
            *s = (clattn_score_strides){2 * s->batch, 2 * s->head, 2 * s->q, 2 * s->kv};
        }
    test_data *t = test_data_make(&p, (uint64_t)n->n[SEED]);
    test_ok(clattn_problem_text_args(text, &t->dropout_seed, t->cu_seqlens_q, t->cu_seqlens_kv));
    const test_way *way = &ways[n->n[WAY]];
    uint64_t state = (uint64_t)n->n[SEED] + 17;
    for (int64_t b = 0; b < t->p.batch; b++) {
        if (t->kv_lengths) t->kv_lengths[b] = numbers_below(&state, t->p.n_kv + 1);
        if (t->query_offsets) t->query_offsets[b] = numbers_below(&state, t->p.n_kv + 9) - 4;
    }
    spoil(t, n->n[DATA], (uint64_t)n->n[SEED]);
    t->is_of_many = is_of_many;
    test_reference(t);
    clattn_context *context = way->path == CLATTN_PATH_HOST ? test_host_context() : test_context();
    clattn_plan_options options;
    clattn_plan *plan;
    clattn_plan_options_init(&options);
    options.path = way->path;
    options.kernel = way->kernel;
    options.block_q = n->n[BLOCK_Q];
    options.block_kv = n->n[BLOCK_KV];
    const clattn_status status = clattn_plan_create(context, &t->p, &options, &plan);
    if (status != CLATTN_STATUS_UNSUPPORTED) { /* which a kernel may say of a shape */
        test_ok(status);
        test_forward(t, plan);
        clattn_plan_release(plan);
        test_compare(t, way->name);
        if (n->n[BACKWARD]) check_backward(t, text, n->n[SEED], way);
    }
    test_data_free(t);
}
