/* Textbook attention in double: the definition of right. Never optimised, and shares nothing with the other paths but
 * the description of the problem and the decoding of a number. */
#include <math.h>
#include <stdlib.h>

#include <clattn/clattn.h>

#include "error.h"
#include "half.h"
#include "problem.h"

static double element(const void *data, clattn_dtype dtype, int64_t at)
{
    switch (dtype) {
    case CLATTN_DTYPE_F32: return ((const float *)data)[at];
    case CLATTN_DTYPE_F16: return f32_of_f16(((const uint16_t *)data)[at]);
    case CLATTN_DTYPE_BF16: return f32_of_bf16(((const uint16_t *)data)[at]);
    case CLATTN_DTYPE_F64: return ((const double *)data)[at];
    }
    return NAN;
}

static int64_t place(const tensor_shape *t, int64_t a, int64_t b, int64_t c, int64_t d)
{
    return a * t->stride[0] + b * t->stride[1] + c * t->stride[2] + d * t->stride[3];
}

/* ---- dropout: Philox 4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011) */

static void philox(uint32_t c[4], uint32_t k0, uint32_t k1)
{
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)c[0] * 0xD2511F53u, b = (uint64_t)c[2] * 0xCD9E8D57u;
        const uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ k1,
                                  (uint32_t)a};
        for (int i = 0; i < 4; i++) c[i] = next[i];
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* The key of a call is the first block of its seed at its offset; the counter of a prob is its place. */
static bool keeps(double p, uint64_t seed, uint64_t offset, uint64_t batch_head, int64_t i, int64_t j)
{
    uint32_t key[4] = {(uint32_t)offset, (uint32_t)(offset >> 32), 0, 0};
    uint32_t c[4] = {(uint32_t)(j / 4), (uint32_t)i, (uint32_t)batch_head, (uint32_t)(batch_head >> 32)};
    philox(key, (uint32_t)seed, (uint32_t)(seed >> 32));
    philox(c, key[0], key[1]);
    return (double)c[j % 4] >= floor(p * 4294967296.0);
}

/* ---- one row */

typedef struct row_at {
    const problem *p;
    const clattn_forward_args *args;
    problem_entry entry;
    int64_t b, h, i;
} row_at;

static bool sees(const row_at *r, int64_t j)
{
    const problem *p = r->p;
    const int64_t ahead = j - r->i, offset = r->entry.query_offset; /* p - left <= j <= p + right with p = offset + i */
    if (j >= r->entry.kv_length) return false;
    if (p->window_left >= 0 && offset >= INT64_MIN + p->window_left && ahead < offset - p->window_left) return false;
    if (p->window_right >= 0 && offset <= INT64_MAX - p->window_right && ahead > offset + p->window_right) return false;
    const uint8_t *mask = clattn__args_host(r->args, TENSOR_MASK);
    return !p->has_mask || mask[place(&p->tensor[TENSOR_MASK], r->b, r->h, r->i, j)];
}

static double score(const row_at *r, int64_t j, clattn_score_step step)
{
    const problem *p = r->p;
    const void *q = clattn__args_host(r->args, TENSOR_Q), *k = clattn__args_host(r->args, TENSOR_K);
    const int64_t entry = p->varlen ? 0 : r->b;
    const int64_t q_at = place(&p->tensor[TENSOR_Q], entry, r->h, r->entry.row_q + r->i, 0);
    const int64_t k_at = place(&p->tensor[TENSOR_K], entry, r->h / p->gqa_group, r->entry.row_kv + j, 0);
    double s = 0;
    for (int64_t d = 0; d < p->head_dim_qk; d++) s += element(q, p->dtype, q_at + d) * element(k, p->dtype, k_at + d);
    s *= p->scale;
    if (step == CLATTN_SCORE_SCALED) return s;
    if (p->softcap > 0) s = p->softcap * tanh(s / p->softcap);
    if (step == CLATTN_SCORE_CAPPED) return s;
    if (p->alibi) {
        const float *slopes = clattn__args_host(r->args, TENSOR_ALIBI);
        const int64_t row = p->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD ? r->b : 0;
        s -= (double)slopes[row * p->n_heads_q + r->h] * fabs((double)r->entry.query_offset + (double)(r->i - j));
    }
    if (p->bias_dtype)
        s += element(clattn__args_host(r->args, TENSOR_BIAS), p->bias_dtype,
                     place(&p->tensor[TENSOR_BIAS], r->b, r->h, r->i, j));
    if (p->score_function.host)
        s = p->score_function.host(s, r->b, r->h, r->i, j, clattn__args_host(r->args, TENSOR_SCORE_DATA));
    return s;
}

/* s [n_kv]: scores of the keys that the row sees, -infinity for the others; m and l of the softmax. */
static void row_softmax(const row_at *r, double *s, double *m, double *l)
{
    const float *sinks = clattn__args_host(r->args, TENSOR_SINKS);
    *m = r->p->has_sinks ? sinks[r->h] : -INFINITY;
    for (int64_t j = 0; j < r->entry.n_kv; j++) {
        s[j] = -INFINITY;
        if (!sees(r, j)) continue;
        s[j] = score(r, j, CLATTN_SCORE_MASKED);
        if (isnan(s[j]) || s[j] > *m) *m = s[j];
    }
    *l = 0;
    if (*m == -INFINITY) return; /* nothing above -infinity */
    if (r->p->has_sinks) *l += exp(sinks[r->h] - *m);
    for (int64_t j = 0; j < r->entry.n_kv; j++)
        if (sees(r, j)) *l += exp(s[j] - *m);
}

static void row_forward(const row_at *r, double *s, double *o, double *lse)
{
    const problem *p = r->p;
    const void *v = clattn__args_host(r->args, TENSOR_V);
    const uint64_t batch_head = (uint64_t)(r->b * p->n_heads_q + r->h);
    double m, l;
    row_softmax(r, s, &m, &l);
    for (int64_t d = 0; d < p->head_dim_v; d++) o[d] = 0;
    if (lse) *lse = m == -INFINITY ? m : m + log(l);
    if (m == -INFINITY) return;
    for (int64_t j = 0; j < r->entry.n_kv; j++) {
        if (!sees(r, j)) continue;
        double prob = exp(s[j] - m);
        if (p->dropout > 0)
            prob = keeps(p->dropout, r->args->dropout_seed, r->args->dropout_offset, batch_head, r->i, j)
                       ? prob / (1 - p->dropout)
                       : 0;
        const int64_t v_at =
            place(&p->tensor[TENSOR_V], p->varlen ? 0 : r->b, r->h / p->gqa_group, r->entry.row_kv + j, 0);
        for (int64_t d = 0; d < p->head_dim_v; d++) o[d] += prob * element(v, p->dtype, v_at + d);
    }
    for (int64_t d = 0; d < p->head_dim_v; d++) o[d] /= l;
}

/* ---- public */

static clattn_status check(const clattn_problem *given, const clattn_forward_args *args, bool writes_o, problem *p)
{
    FORWARD(clattn__problem_make(given, p));
    if (!writes_o) p->tensor[TENSOR_O].bytes = 0;
    FORWARD(clattn__problem_check_host_args(p, args));
    RETURN_IF(p->score_function.source && !p->score_function.host, INVALID_ARGUMENT,
              "score_function.host is NULL; the host needs it");
    return CLATTN_STATUS_SUCCESS;
}

static double *scores_make(const problem *p) { return calloc((size_t)p->n_kv + 1, sizeof(double)); }

clattn_status clattn_reference_forward(const clattn_problem *given, const clattn_forward_args *args, double *o,
                                       double *lse)
{
    problem p;
    clattn_forward_args inputs;
    RETURN_IF(!args, INVALID_ARGUMENT, "args is NULL");
    RETURN_IF(!o, INVALID_ARGUMENT, "o is NULL");
    inputs = *args; /* o stands for args.o in the checks */
    inputs.o = clattn_host_buffer(o);
    inputs.lse = clattn_host_buffer(NULL);
    FORWARD(check(given, &inputs, true, &p));
    double *s = scores_make(&p); /* [n_kv] of one row */
    RETURN_IF(!s, OUT_OF_HOST_MEMORY, "no room for %lld scores", (long long)p.n_kv);
    for (int64_t b = 0; b < p.batch; b++) {
        const problem_entry entry = clattn__problem_entry(&p, args, b);
        for (int64_t h = 0; h < p.n_heads_q; h++)
            for (int64_t i = 0; i < entry.n_q; i++) {
                const row_at r = {&p, args, entry, b, h, i};
                const int64_t row = p.varlen ? h * p.total_q + entry.row_q + i : (b * p.n_heads_q + h) * p.n_q + i;
                row_forward(&r, s, o + row * p.head_dim_v, lse ? lse + row : NULL);
            }
    }
    free(s);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn_reference_scores(const clattn_problem *given, const clattn_forward_args *args,
                                      clattn_score_step step, int64_t batch, int64_t head, double *scores)
{
    problem p;
    clattn_forward_args inputs;
    RETURN_IF(!args, INVALID_ARGUMENT, "args is NULL");
    RETURN_IF(!scores, INVALID_ARGUMENT, "scores is NULL");
    inputs = *args;
    inputs.o = inputs.lse = clattn_host_buffer(NULL);
    FORWARD(check(given, &inputs, false, &p));
    RETURN_IF(step < CLATTN_SCORE_SCALED || step > CLATTN_SCORE_PROBS, INVALID_ARGUMENT,
              "step is %d; it must be one of clattn_score_step", (int)step);
    RETURN_IF(batch < 0 || batch >= p.batch, INVALID_ARGUMENT, "batch is %lld; the problem has %lld", (long long)batch,
              (long long)p.batch);
    RETURN_IF(head < 0 || head >= p.n_heads_q, INVALID_ARGUMENT, "head is %lld; the problem has %lld", (long long)head,
              (long long)p.n_heads_q);
    const problem_entry entry = clattn__problem_entry(&p, args, batch);
    for (int64_t i = 0; i < entry.n_q; i++) {
        const row_at r = {&p, args, entry, batch, head, i};
        double *s = scores + i * entry.n_kv, m, l;
        if (step >= CLATTN_SCORE_MASKED) row_softmax(&r, s, &m, &l);
        for (int64_t j = 0; j < entry.n_kv; j++) {
            if (step < CLATTN_SCORE_MASKED) s[j] = score(&r, j, step);
            if (step == CLATTN_SCORE_PROBS) s[j] = m == -INFINITY || !sees(&r, j) ? 0 : exp(s[j] - m) / l;
        }
    }
    return CLATTN_STATUS_SUCCESS;
}
