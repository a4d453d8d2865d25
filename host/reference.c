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

/* ---- gradients
 * P = exp(z - LSE), r = keep / (1 - p), delta = dO . O - dLSE;  dV_j += P r dO;  at the score function's input
 * dz = P (r (dO . V_j) - delta) f';  dbias += dz,  dslope -= dz |p - j|;  before softcap ds = dz (1 - tanh^2(scale q.k / c)),
 * dQ += scale ds K_j,  dK_j += scale ds Q;  dsink -= exp(sink - LSE) delta. */

static double element_of(const clattn_backward_args *args, gradient_name g, clattn_dtype dtype, int64_t at)
{
    return element(clattn__gradient_host(args, g), dtype, at);
}

/* f'(s) of the app's score function, 1 without one. */
static double function_derivative(const row_at *r, int64_t j)
{
    const clattn_score_function *f = &r->p->score_function;
    if (!f->host) return 1;
    row_at before = *r;
    problem without = *r->p;
    without.score_function.host = NULL;
    before.p = &without;
    return f->host_derivative(score(&before, j, CLATTN_SCORE_MASKED), r->b, r->h, r->i, j,
                              clattn__args_host(r->args, TENSOR_SCORE_DATA));
}

static double softcap_derivative(const row_at *r, int64_t j)
{
    if (!(r->p->softcap > 0)) return 1;
    const double t = tanh(score(r, j, CLATTN_SCORE_SCALED) / r->p->softcap);
    return 1 - t * t;
}

/* Where row n (of heads) of a dense gradient lies. */
static int64_t dense_row(const problem *p, int64_t b, int64_t h, int64_t heads, int64_t rows, int64_t total,
                         int64_t first, int64_t i)
{
    return p->varlen ? h * total + first + i : (b * heads + h) * rows + i;
}

static void row_backward(const row_at *r, const clattn_backward_args *args, const int64_t bias_strides[4], double *s,
                         double *o, const clattn_reference_gradients *g)
{
    const problem *p = r->p;
    const problem_entry *e = &r->entry;
    const int64_t entry = p->varlen ? 0 : r->b, kv_head = r->h / p->gqa_group;
    const uint64_t batch_head = (uint64_t)(r->b * p->n_heads_q + r->h);
    const tensor_shape *t = p->tensor;
    const void *q = clattn__args_host(r->args, TENSOR_Q), *k = clattn__args_host(r->args, TENSOR_K);
    const void *v = clattn__args_host(r->args, TENSOR_V);
    const float *sinks = clattn__args_host(r->args, TENSOR_SINKS), *d_lse = clattn__gradient_host(args, GRADIENT_D_LSE);
    const int64_t q_at = place(&t[TENSOR_Q], entry, r->h, e->row_q + r->i, 0);
    const int64_t o_at = place(&t[TENSOR_O], entry, r->h, e->row_q + r->i, 0);
    const int64_t q_row = dense_row(p, r->b, r->h, p->n_heads_q, p->n_q, p->total_q, e->row_q, r->i);
    const int64_t slope = p->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD ? r->b * p->n_heads_q + r->h : r->h;
    double lse, m, l, delta = 0;
    row_forward(r, s, o, &lse);
    if (lse == -INFINITY) return; /* an empty row: all gradients are 0 */
    row_softmax(r, s, &m, &l);
    for (int64_t d = 0; d < p->head_dim_v; d++) delta += element_of(args, GRADIENT_D_O, p->dtype, o_at + d) * o[d];
    if (d_lse) delta -= d_lse[place(&t[TENSOR_LSE], entry, r->h, e->row_q + r->i, 0)];
    if (g->dsinks) g->dsinks[r->h] -= exp(sinks[r->h] - lse) * delta;
    for (int64_t j = 0; j < e->n_kv; j++) {
        if (!sees(r, j)) continue;
        const int64_t k_at = place(&t[TENSOR_K], entry, kv_head, e->row_kv + j, 0);
        const int64_t v_at = place(&t[TENSOR_V], entry, kv_head, e->row_kv + j, 0);
        const int64_t kv_row = dense_row(p, r->b, kv_head, p->n_heads_kv, p->n_kv, p->total_kv, e->row_kv, j);
        const double prob = exp(s[j] - lse);
        double kept = 1, d_prob = 0;
        if (p->dropout > 0)
            kept = keeps(p->dropout, r->args->dropout_seed, r->args->dropout_offset, batch_head, r->i, j)
                       ? 1 / (1 - p->dropout)
                       : 0;
        for (int64_t d = 0; d < p->head_dim_v; d++) {
            const double d_o = element_of(args, GRADIENT_D_O, p->dtype, o_at + d);
            if (g->dv) g->dv[kv_row * p->head_dim_v + d] += prob * kept * d_o;
            d_prob += d_o * element(v, p->dtype, v_at + d);
        }
        const double dz = prob * (kept * d_prob - delta) * function_derivative(r, j);
        if (g->dbias)
            g->dbias[r->b * bias_strides[0] + r->h * bias_strides[1] + r->i * bias_strides[2] + j * bias_strides[3]] +=
                dz;
        if (g->dalibi_slopes) g->dalibi_slopes[slope] -= dz * fabs((double)e->query_offset + (double)(r->i - j));
        const double ds = p->scale * dz * softcap_derivative(r, j);
        for (int64_t d = 0; d < p->head_dim_qk; d++) {
            if (g->dq) g->dq[q_row * p->head_dim_qk + d] += ds * element(k, p->dtype, k_at + d);
            if (g->dk) g->dk[kv_row * p->head_dim_qk + d] += ds * element(q, p->dtype, q_at + d);
        }
    }
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
    FORWARD(clattn__args_check_size(args));
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
    FORWARD(clattn__args_check_size(args));
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

static void clear(double *x, int64_t n)
{
    for (int64_t i = 0; x && i < n; i++) x[i] = 0;
}

clattn_status clattn_reference_backward(const clattn_problem *given, const clattn_backward_args *args,
                                        const clattn_reference_gradients *gradients)
{
    problem p;
    clattn_backward_args inputs;
    FORWARD(clattn__backward_args_check_size(args));
    RETURN_IF(!gradients, INVALID_ARGUMENT, "gradients is NULL");
    FORWARD(clattn__problem_make(given, &p));
    inputs = *args;
    const int64_t o_bytes = p.tensor[TENSOR_O].bytes; /* neither o nor lse nor an output is looked at */
    inputs.forward.o = inputs.forward.lse = clattn_host_buffer(NULL);
    inputs.dq = inputs.dk = inputs.dv = inputs.dbias = inputs.dalibi_slopes = inputs.dsinks = clattn_host_buffer(NULL);
    FORWARD(check(given, &inputs.forward, false, &p));
    inputs.forward.o = inputs.d_o; /* stands for it, and may be Q itself, for it is not written */
    p.tensor[TENSOR_O].bytes = o_bytes;
    p.tensor[TENSOR_O].gapless = false;
    p.tensor[TENSOR_LSE].bytes = 0;
    FORWARD(clattn__problem_check_backward_args(&p, &inputs));
    RETURN_IF(p.score_function.host && !p.score_function.host_derivative, UNSUPPORTED,
              "score_function.host_derivative is NULL; the reference needs it");
    RETURN_IF((gradients->dbias && !p.bias_dtype) || (gradients->dalibi_slopes && !p.alibi) ||
                  (gradients->dsinks && !p.has_sinks),
              INVALID_ARGUMENT, "a gradient of the bias, slopes or sinks is asked for; the problem has none");
    double *s = scores_make(&p), *o = calloc((size_t)p.head_dim_v, sizeof *o); /* [n_kv], [head_dim_v] of one row */
    if (!s || !o) {
        free(s);
        free(o);
        RETURN_IF(true, OUT_OF_HOST_MEMORY, "no room for %lld scores", (long long)p.n_kv);
    }
    int64_t bias_strides[4];
    clattn__tensor_copy_strides(&p.tensor[TENSOR_BIAS], bias_strides);
    const int64_t rows_q = p.varlen ? p.total_q : p.batch * p.n_q, rows_kv = p.varlen ? p.total_kv : p.batch * p.n_kv;
    clear(gradients->dq, p.n_heads_q * rows_q * p.head_dim_qk);
    clear(gradients->dk, p.n_heads_kv * rows_kv * p.head_dim_qk);
    clear(gradients->dv, p.n_heads_kv * rows_kv * p.head_dim_v);
    clear(gradients->dbias, clattn__tensor_copy_bytes(&p.tensor[TENSOR_BIAS]) /
                                (int64_t)(p.bias_dtype ? clattn_dtype_size(p.bias_dtype) : 1));
    clear(gradients->dalibi_slopes, p.tensor[TENSOR_ALIBI].count[3]);
    clear(gradients->dsinks, p.n_heads_q);
    for (int64_t b = 0; b < p.batch; b++) {
        const problem_entry entry = clattn__problem_entry(&p, &args->forward, b);
        for (int64_t h = 0; h < p.n_heads_q; h++)
            for (int64_t i = 0; i < entry.n_q; i++) {
                const row_at r = {&p, &args->forward, entry, b, h, i};
                row_backward(&r, args, bias_strides, s, o, gradients);
            }
    }
    free(s);
    free(o);
    return CLATTN_STATUS_SUCCESS;
}
