#include "arrays.h"

#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "convert.h"
#include "npy.h"

array_shape array_of_rows(const inputs *in, int64_t heads, int64_t seq, int64_t dim)
{
    const clattn_problem *p = &in->problem;
    const array_shape packed = {p->dtype, 3, {seq, heads, dim}};
    const array_shape bshd = {p->dtype, 4, {p->batch, seq, heads, dim}};
    const array_shape bhsd = {p->dtype, 4, {p->batch, heads, seq, dim}};
    return p->varlen ? packed : in->layout == LAYOUT_BSHD ? bshd : bhsd;
}

array_shape array_of_o(const inputs *in)
{
    return array_of_rows(in, in->problem.n_heads_q, inputs_storage(&in->problem).n_q, in->problem.head_dim_v);
}

array_shape array_of_lse(const inputs *in)
{
    const clattn_problem *p = &in->problem;
    const array_shape packed = {CLATTN_DTYPE_F32, 2, {p->n_heads_q, p->total_q}};
    const array_shape whole = {CLATTN_DTYPE_F32, 3, {p->batch, p->n_heads_q, p->n_q}};
    return p->varlen ? packed : whole;
}

array_shape array_of_gradient(const inputs *in, int which)
{
    const clattn_problem *p = &in->problem;
    const storage s = inputs_storage(p);
    const array_shape per_head = {CLATTN_DTYPE_F32, 1, {p->n_heads_q}};
    const array_shape per_batch_and_head = {CLATTN_DTYPE_F32, 2, {p->batch, p->n_heads_q}};
    array_shape bias = {p->bias.dtype, in->bias_rank, {0}};
    memcpy(bias.n, in->bias_shape, sizeof bias.n);
    switch (which) {
    case GRADIENT_DQ: return array_of_rows(in, p->n_heads_q, s.n_q, p->head_dim_qk);
    case GRADIENT_DK: return array_of_rows(in, p->n_heads_kv, s.n_kv, p->head_dim_qk);
    case GRADIENT_DV: return array_of_rows(in, p->n_heads_kv, s.n_kv, p->head_dim_v);
    case GRADIENT_DBIAS: return bias;
    case GRADIENT_DALIBI: return p->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD ? per_batch_and_head : per_head;
    default: return per_head;
    }
}

/* INT64_MAX: more than 63 bits can say. */
static int64_t count_of(const array_shape *a)
{
    int64_t count = 1;
    for (int i = 0; i < a->rank; i++)
        if (__builtin_mul_overflow(count, a->n[i], &count)) return INT64_MAX;
    return count;
}

int64_t array_bytes(const array_shape *a) { return count_of(a) * (int64_t)clattn_dtype_size(a->dtype); }

void *array_alloc(const char *what, const array_shape *a)
{
    const size_t size = clattn_dtype_size(a->dtype);
    void *data = cli_alloc(what, count_of(a), size);
    return data ? memset(data, 0xff, (size_t)count_of(a) * size) : NULL;
}

int write_array(output *out, const array_shape *a, const void *data)
{
    const npy_type type = a->dtype == CLATTN_DTYPE_F16 ? NPY_F2 : a->dtype == CLATTN_DTYPE_F64 ? NPY_F8 : NPY_F4;
    float *wide = NULL;
    if (a->dtype == CLATTN_DTYPE_BF16) {
        wide = cli_alloc("a result as f4", count_of(a), sizeof *wide);
        if (!wide) return CLI_FAILED;
        convert_elements(data, a->dtype, wide, CLATTN_DTYPE_F32, count_of(a));
    }
    const int code = output_finish(out, npy_write(out->file, type, a->rank, a->n, wide ? wide : data));
    free(wide);
    return code;
}
