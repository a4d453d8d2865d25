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

static int64_t place(const tensor_shape *t, int64_t batch, int64_t head, int64_t row)
{
    return batch * t->strides.batch + head * t->strides.head + row * t->strides.seq;
}

__extension__ typedef __int128 wide; /* sums of two int64 may leave 64 bits */

static bool sees(const problem *p, wide position, int64_t key, int64_t kv_length)
{
    if (key >= kv_length) return false;
    if (p->window_left >= 0 && key < position - p->window_left) return false;
    return p->window_right < 0 || key <= position + p->window_right;
}

clattn_status clattn_reference_forward(const clattn_problem *given, const void *q, const void *k, const void *v,
                                       const int64_t *kv_lengths, const int64_t *query_offsets, double *o, double *lse)
{
    problem p;
    FORWARD(clattn__problem_make(given, &p));
    RETURN_IF(p.tensor[TENSOR_Q].bytes && (!q || !o), INVALID_ARGUMENT, "q or o is NULL");
    RETURN_IF(p.tensor[TENSOR_K].bytes && (!k || !v), INVALID_ARGUMENT, "k or v is NULL");
    RETURN_IF(p.kv_length_per_batch && !kv_lengths, INVALID_ARGUMENT, "kv_lengths is NULL");
    RETURN_IF(p.query_offset_per_batch && !query_offsets, INVALID_ARGUMENT, "query_offsets is NULL");
    for (int64_t b = 0; p.kv_length_per_batch && b < p.batch; b++)
        RETURN_IF(kv_lengths[b] < 0 || kv_lengths[b] > p.n_kv, INVALID_ARGUMENT,
                  "kv_lengths[%lld] is %lld; it must be in 0..n_kv = %lld", (long long)b, (long long)kv_lengths[b],
                  (long long)p.n_kv);
    double *s = calloc((size_t)p.n_kv + 1, sizeof *s); /* [n_kv] scores of one row */
    RETURN_IF(!s, OUT_OF_HOST_MEMORY, "no room for %lld scores", (long long)p.n_kv);

    for (int64_t b = 0; b < p.batch; b++) {
        const int64_t length = p.kv_length_per_batch ? kv_lengths[b] : p.kv_length;
        const int64_t offset = p.query_offset_per_batch ? query_offsets[b] : p.query_offset;
        for (int64_t h = 0; h < p.n_heads_q; h++) {
            const int64_t kv_head = h / p.gqa_group;
            for (int64_t i = 0; i < p.n_q; i++) {
                const int64_t q_at = place(&p.tensor[TENSOR_Q], b, h, i);
                const int64_t row = (b * p.n_heads_q + h) * p.n_q + i;
                double m = -INFINITY, l = 0;
                for (int64_t j = 0; j < p.n_kv; j++) {
                    if (!sees(&p, (wide)offset + i, j, length)) continue;
                    const int64_t k_at = place(&p.tensor[TENSOR_K], b, kv_head, j);
                    double dot = 0;
                    for (int64_t d = 0; d < p.head_dim_qk; d++)
                        dot += element(q, p.dtype, q_at + d) * element(k, p.dtype, k_at + d);
                    s[j] = dot * p.scale;
                    if (isnan(s[j]) || s[j] > m) m = s[j];
                }
                for (int64_t d = 0; d < p.head_dim_v; d++) o[row * p.head_dim_v + d] = 0;
                if (lse) lse[row] = m;
                if (m == -INFINITY) continue; /* sees no key, or none above -infinity */
                for (int64_t j = 0; j < p.n_kv; j++) {
                    if (!sees(&p, (wide)offset + i, j, length)) continue;
                    const int64_t v_at = place(&p.tensor[TENSOR_V], b, kv_head, j);
                    const double prob = exp(s[j] - m);
                    l += prob;
                    for (int64_t d = 0; d < p.head_dim_v; d++)
                        o[row * p.head_dim_v + d] += prob * element(v, p.dtype, v_at + d);
                }
                for (int64_t d = 0; d < p.head_dim_v; d++) o[row * p.head_dim_v + d] /= l;
                if (lse) lse[row] = m + log(l);
            }
        }
    }
    free(s);
    return CLATTN_STATUS_SUCCESS;
}
