/* Description -> canonical problem, and arguments, or a status and a sentence. */
#include "problem.h"

#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <clattn/clattn.h>

#include "error.h"

const char *const clattn__tensor_names[TENSOR_COUNT] = {
#define NAME(name, field) #field,
    TENSOR_MAP(NAME)
#undef NAME
};

#define SCALE_MAX_F32 2e38 /* times log2(e) it is still an f32 */
#define SCALE_MAX_F64 1e308

void clattn_problem_init(clattn_problem *p, clattn_dtype dtype, int64_t batch, int64_t n_heads_q, int64_t n_heads_kv,
                         int64_t n_q, int64_t n_kv, int64_t head_dim)
{
    if (!p) return;
    memset(p, 0, sizeof *p);
    p->struct_size = sizeof *p;
    p->dtype = dtype;
    p->batch = batch;
    p->n_heads_q = n_heads_q;
    p->n_heads_kv = n_heads_kv;
    p->n_q = n_q;
    p->n_kv = n_kv;
    p->head_dim_qk = p->head_dim_v = head_dim;
    p->scale = CLATTN_SCALE_AUTO;
    p->mask.window_left = p->mask.window_right = CLATTN_WINDOW_UNBOUNDED;
    p->kv_length = CLATTN_KV_LENGTH_ALL;
}

/* What overflows is of no use, and refused later; until then it must do no harm. */
static int64_t product(int64_t a, int64_t b)
{
    int64_t n;
    return __builtin_mul_overflow(a, b, &n) ? INT64_MAX : n;
}

clattn_strides clattn_strides_bhsd(int64_t heads, int64_t seq, int64_t dim)
{
    const clattn_strides s = {product(product(heads, seq), dim), product(seq, dim), dim};
    return s;
}

clattn_strides clattn_strides_bshd(int64_t heads, int64_t seq, int64_t dim)
{
    const clattn_strides s = {product(product(heads, seq), dim), dim, product(heads, dim)};
    return s;
}

size_t clattn_dtype_size(clattn_dtype dtype)
{
    switch (dtype) {
#define SIZE(name, value, bytes, text)                                                                                 \
    case CLATTN_DTYPE_##name: return bytes;
        CLATTN_DTYPE_MAP(SIZE)
#undef SIZE
    }
    return 0;
}

const char *clattn_dtype_name(clattn_dtype dtype)
{
    switch (dtype) {
#define TEXT(name, value, bytes, text)                                                                                 \
    case CLATTN_DTYPE_##name: return text;
        CLATTN_DTYPE_MAP(TEXT)
#undef TEXT
    }
    return "unknown";
}

/* bytes = size * (1 + sum of (count - 1) * stride); false when that leaves 63 bits. */
static bool tensor_extent(tensor_shape *t)
{
    int64_t elements = 1, reach;
    t->bytes = 0;
    for (int i = 0; i < 4; i++) {
        if (t->count[i] == 0) return true;
        if (__builtin_mul_overflow(t->count[i] - 1, t->stride[i], &reach) ||
            __builtin_add_overflow(elements, reach, &elements))
            return false;
    }
    return !__builtin_mul_overflow(elements, (int64_t)t->size, &t->bytes);
}

/* Sorted by stride, each dimension must step over all that the smaller ones cover. */
static bool tensor_overlaps_itself(const tensor_shape *t)
{
    int64_t count[4], stride[4], covered = 1;
    memcpy(count, t->count, sizeof count);
    memcpy(stride, t->stride, sizeof stride);
    if (t->bytes == 0) return false;
    for (int n = 4; n > 0; n--) {
        int least = 0;
        for (int i = 1; i < n; i++)
            if (stride[i] < stride[least]) least = i;
        if (count[least] > 1) {
            if (stride[least] < covered) return true;
            covered += (count[least] - 1) * stride[least];
        }
        count[least] = count[n - 1];
        stride[least] = stride[n - 1];
    }
    return false;
}

int64_t clattn__tensor_copy_bytes(const tensor_shape *t)
{
    int64_t bytes = (int64_t)t->size;
    if (t->bytes == 0) return 0;
    for (int i = 0; i < 4; i++)
        if (t->stride[i] != 0 && __builtin_mul_overflow(bytes, t->count[i], &bytes)) return INT64_MAX;
    return bytes;
}

static bool tensor_is_gapless(const tensor_shape *t)
{
    int64_t n = (int64_t)t->size;
    for (int i = 0; i < 4; i++)
        if (t->stride[i] && __builtin_mul_overflow(n, t->count[i], &n)) return false; /* a broadcast leaves none */
    return n == t->bytes;
}

void clattn__tensor_copy_strides(const tensor_shape *t, int64_t stride[4])
{
    int64_t next = 1;
    for (int i = 3; i >= 0; i--) {
        stride[i] = t->stride[i] ? next : 0;
        if (t->stride[i]) next *= t->count[i];
    }
}

/* "[1, 2, 3, 4] with strides (24, 12, 4, 1)" */
static const char *tensor_text(const tensor_shape *t, char text[224])
{
    snprintf(text, 224,
             "[%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "] with strides (%" PRId64 ", %" PRId64 ", %" PRId64
             ", %" PRId64 ")",
             t->count[0], t->count[1], t->count[2], t->count[3], t->stride[0], t->stride[1], t->stride[2],
             t->stride[3]);
    return text;
}

static clattn_status tensor_check(tensor_name name, tensor_shape *t)
{
    char text[224];
    for (int i = 0; i < 4; i++)
        RETURN_IF(t->stride[i] < 0, INVALID_ARGUMENT, "%s is %s; none may be negative", clattn__tensor_names[name],
                  tensor_text(t, text));
    RETURN_IF(!tensor_extent(t), INVALID_ARGUMENT, "%s is %s; that ends beyond 2^63 bytes", clattn__tensor_names[name],
              tensor_text(t, text));
    RETURN_IF((name == TENSOR_O || name == TENSOR_LSE) && tensor_overlaps_itself(t), INVALID_ARGUMENT,
              "%s is written and is %s; they overlap", clattn__tensor_names[name], tensor_text(t, text));
    t->gapless = tensor_is_gapless(t);
    return CLATTN_STATUS_SUCCESS;
}

/* Q, K, V, O or LSE: [batch, heads, seq, dim], or with varlen [1, heads, total, dim]. Strides of 0 throughout: dense, in
 * that order, with varlen [total, heads, dim] (LSE: [heads, total]). */
static clattn_status tensor_make(problem *p, tensor_name name, clattn_strides given, int64_t heads, int64_t seq,
                                 int64_t dim)
{
    tensor_shape *t = &p->tensor[name];
    const int64_t total = name == TENSOR_K || name == TENSOR_V ? p->total_kv : p->total_q;
    *t = (tensor_shape){{p->varlen ? 1 : p->batch, heads, p->varlen ? total : seq, dim},
                        {p->varlen ? 0 : given.batch, given.head, given.seq, 1},
                        name == TENSOR_LSE ? sizeof(float) : clattn_dtype_size(p->dtype),
                        0,
                        0};
    if (given.batch == 0 && given.head == 0 && given.seq == 0) {
        int64_t head, all;
        RETURN_IF(__builtin_mul_overflow(t->count[2], dim, &head) || __builtin_mul_overflow(heads, head, &all),
                  INVALID_ARGUMENT,
                  "%s has %" PRId64 " x %" PRId64 " x %" PRId64 " elements a batch entry; that overflows 64 bits",
                  clattn__tensor_names[name], heads, t->count[2], dim);
        const clattn_strides dense = p->varlen && name != TENSOR_LSE ? clattn_strides_bshd(heads, t->count[2], dim)
                                                                     : clattn_strides_bhsd(heads, t->count[2], dim);
        t->stride[0] = p->varlen ? 0 : dense.batch;
        t->stride[1] = dense.head;
        t->stride[2] = dense.seq;
    }
    return tensor_check(name, t);
}

/* Bias or mask: [batch, n_heads_q, n_q, n_kv] through strides that may be 0. */
static clattn_status tensor_make_beside_scores(problem *p, tensor_name name, clattn_score_strides s, size_t size)
{
    tensor_shape *t = &p->tensor[name];
    *t = (tensor_shape){{p->batch, p->n_heads_q, p->n_q, p->n_kv}, {s.batch, s.head, s.q, s.kv}, size, 0, 0};
    return tensor_check(name, t);
}

static clattn_status tensor_make_list(problem *p, tensor_name name, int64_t n, size_t size)
{
    p->tensor[name] = (tensor_shape){{1, 1, 1, n}, {0, 0, 0, 1}, size, 0, 0};
    return tensor_check(name, &p->tensor[name]);
}

static clattn_status check_at_least(const char *name, int64_t value, int64_t least)
{
    RETURN_IF(value < least, INVALID_ARGUMENT, "%s is %" PRId64 "; it must be at least %" PRId64, name, value, least);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status check_window(const char *name, int64_t keys)
{
    RETURN_IF(keys < CLATTN_WINDOW_UNBOUNDED, INVALID_ARGUMENT,
              "%s is %" PRId64 "; it must be at least 0, or -1 for no bound", name, keys);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status check_flag(const char *name, int flag)
{
    RETURN_IF(flag != 0 && flag != 1, INVALID_ARGUMENT, "%s is %d; it must be 0 or 1", name, flag);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__problem_make(const clattn_problem *g, problem *p)
{
    RETURN_IF(!g, INVALID_ARGUMENT, "the problem is NULL");
    RETURN_IF(g->struct_size != sizeof *g, INVALID_ARGUMENT,
              "problem.struct_size is %zu; this library knows %zu: call clattn_problem_init", g->struct_size,
              sizeof *g);
    RETURN_IF(clattn_dtype_size(g->dtype) == 0, INVALID_ARGUMENT, "dtype is %d; it must be one of clattn_dtype",
              (int)g->dtype);
    FORWARD(check_at_least("batch", g->batch, 1));
    FORWARD(check_at_least("n_heads_q", g->n_heads_q, 1));
    FORWARD(check_at_least("n_heads_kv", g->n_heads_kv, 1));
    FORWARD(check_at_least("n_q", g->n_q, 0));
    FORWARD(check_at_least("n_kv", g->n_kv, 0));
    FORWARD(check_at_least("head_dim_qk", g->head_dim_qk, 1));
    FORWARD(check_at_least("head_dim_v", g->head_dim_v, 1));
    RETURN_IF(g->n_heads_q % g->n_heads_kv, INVALID_ARGUMENT,
              "n_heads_q is %" PRId64 "; it must be a multiple of n_heads_kv, %" PRId64, g->n_heads_q, g->n_heads_kv);
    const bool is_auto = g->scale == CLATTN_SCALE_AUTO;
    RETURN_IF(!isfinite(g->scale), INVALID_ARGUMENT, "scale is %g; it must be finite", g->scale);
    const double scale_most = g->dtype == CLATTN_DTYPE_F64 ? SCALE_MAX_F64 : SCALE_MAX_F32;
    RETURN_IF(!is_auto && fabs(g->scale) > scale_most, INVALID_ARGUMENT,
              "scale is %g; it must be at most %g, for scores are %s", g->scale, scale_most,
              g->dtype == CLATTN_DTYPE_F64 ? "f64" : "f32");
    FORWARD(check_window("mask.window_left", g->mask.window_left));
    FORWARD(check_window("mask.window_right", g->mask.window_right));
    RETURN_IF(!g->kv_length_per_batch && g->kv_length != CLATTN_KV_LENGTH_ALL &&
                  (g->kv_length < 0 || g->kv_length > g->n_kv),
              INVALID_ARGUMENT, "kv_length is %" PRId64 "; it must be in 0..n_kv = %" PRId64, g->kv_length, g->n_kv);

    RETURN_IF(!isfinite(g->softcap) || g->softcap < 0, INVALID_ARGUMENT,
              "softcap is %g; it must be finite and at least 0, which is none", g->softcap);
    RETURN_IF(g->dtype != CLATTN_DTYPE_F64 && g->softcap > 0 && (g->softcap < FLT_MIN || g->softcap > SCALE_MAX_F32),
              INVALID_ARGUMENT, "softcap is %g; it must be in %g..%g, for scores are f32", g->softcap, (double)FLT_MIN,
              SCALE_MAX_F32);
    RETURN_IF(!(g->dropout >= 0 && g->dropout < 1), INVALID_ARGUMENT, "dropout is %g; it must be in [0, 1)",
              g->dropout);
    RETURN_IF(g->alibi < CLATTN_ALIBI_NONE || g->alibi > CLATTN_ALIBI_PER_BATCH_AND_HEAD, INVALID_ARGUMENT,
              "alibi is %d; it must be one of clattn_alibi", (int)g->alibi);
    RETURN_IF(g->bias.dtype && clattn_dtype_size(g->bias.dtype) == 0, INVALID_ARGUMENT,
              "bias.dtype is %d; it must be 0 or one of clattn_dtype", (int)g->bias.dtype);
    FORWARD(check_flag("mask.boolean", g->mask.boolean));
    FORWARD(check_flag("sinks", g->sinks));
    FORWARD(check_flag("varlen", g->varlen));
    FORWARD(check_flag("kv_length_per_batch", g->kv_length_per_batch));
    FORWARD(check_flag("query_offset_per_batch", g->query_offset_per_batch));
    if (g->varlen) {
        FORWARD(check_at_least("total_q", g->total_q, 0));
        FORWARD(check_at_least("total_kv", g->total_kv, 0));
        RETURN_IF(g->kv_length_per_batch || g->kv_length != CLATTN_KV_LENGTH_ALL, INVALID_ARGUMENT,
                  "varlen has its lengths in cu_seqlens_kv; kv_length must be CLATTN_KV_LENGTH_ALL");
    }

    memset(p, 0, sizeof *p);
    p->dtype = g->dtype;
    p->batch = g->batch;
    p->n_heads_q = g->n_heads_q;
    p->n_heads_kv = g->n_heads_kv;
    p->gqa_group = g->n_heads_q / g->n_heads_kv;
    p->n_q = g->n_q;
    p->n_kv = g->n_kv;
    p->head_dim_qk = g->head_dim_qk;
    p->head_dim_v = g->head_dim_v;
    p->scale = is_auto ? 1.0 / sqrt((double)g->head_dim_qk) : g->scale;
    p->window_left = g->mask.window_left;
    p->window_right = g->mask.window_right;
    p->query_offset_per_batch = g->query_offset_per_batch;
    p->kv_length_per_batch = g->kv_length_per_batch;
    p->query_offset = p->query_offset_per_batch ? 0 : g->query_offset;
    p->kv_length = p->kv_length_per_batch || g->kv_length == CLATTN_KV_LENGTH_ALL ? g->n_kv : g->kv_length;
    p->softcap = g->softcap;
    p->dropout = g->dropout;
    p->bias_dtype = g->bias.dtype;
    p->alibi = g->alibi;
    p->has_mask = g->mask.boolean;
    p->has_sinks = g->sinks;
    p->score_function = g->score_function;
    RETURN_IF(g->score_function.data_bytes > INT64_MAX, INVALID_ARGUMENT,
              "score_function.data_bytes is %zu; it must fit 63 bits", g->score_function.data_bytes);
    p->varlen = g->varlen;
    p->total_q = p->varlen ? g->total_q : 0;
    p->total_kv = p->varlen ? g->total_kv : 0;

    const int64_t per_batch = g->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD ? g->batch : 1;
    FORWARD(tensor_make(p, TENSOR_Q, g->q, g->n_heads_q, g->n_q, g->head_dim_qk));
    FORWARD(tensor_make(p, TENSOR_K, g->k, g->n_heads_kv, g->n_kv, g->head_dim_qk));
    FORWARD(tensor_make(p, TENSOR_V, g->v, g->n_heads_kv, g->n_kv, g->head_dim_v));
    FORWARD(tensor_make(p, TENSOR_O, g->o, g->n_heads_q, g->n_q, g->head_dim_v));
    FORWARD(tensor_make(p, TENSOR_LSE, g->lse, g->n_heads_q, g->n_q, 1));
    if (p->bias_dtype)
        FORWARD(tensor_make_beside_scores(p, TENSOR_BIAS, g->bias.strides, clattn_dtype_size(p->bias_dtype)));
    if (p->has_mask) FORWARD(tensor_make_beside_scores(p, TENSOR_MASK, g->mask.strides, 1));
    RETURN_IF(per_batch > INT64_MAX / (int64_t)sizeof(float) / g->n_heads_q || g->batch == INT64_MAX, INVALID_ARGUMENT,
              "batch is %" PRId64 " and n_heads_q %" PRId64 "; that overflows 64 bits", g->batch, g->n_heads_q);
    if (p->alibi) FORWARD(tensor_make_list(p, TENSOR_ALIBI, per_batch * g->n_heads_q, sizeof(float)));
    if (p->has_sinks) FORWARD(tensor_make_list(p, TENSOR_SINKS, g->n_heads_q, sizeof(float)));
    if (g->score_function.data_bytes)
        FORWARD(tensor_make_list(p, TENSOR_SCORE_DATA, (int64_t)g->score_function.data_bytes, 1));
    if (p->kv_length_per_batch) FORWARD(tensor_make_list(p, TENSOR_KV_LENGTHS, g->batch, sizeof(int64_t)));
    if (p->query_offset_per_batch) FORWARD(tensor_make_list(p, TENSOR_QUERY_OFFSETS, g->batch, sizeof(int64_t)));
    if (p->varlen) FORWARD(tensor_make_list(p, TENSOR_CU_Q, g->batch + 1, sizeof(int64_t)));
    if (p->varlen) FORWARD(tensor_make_list(p, TENSOR_CU_KV, g->batch + 1, sizeof(int64_t)));
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn_problem_check(const clattn_problem *given)
{
    problem p;
    return clattn__problem_make(given, &p);
}

/* ---- arguments */

void clattn_forward_args_init(clattn_forward_args *args)
{
    if (!args) return;
    memset(args, 0, sizeof *args);
    args->struct_size = sizeof *args;
}

const clattn_buffer *clattn__args_buffer(const clattn_forward_args *args, tensor_name name)
{
    static const size_t at[TENSOR_COUNT] = {
#define BUFFER(name, field) offsetof(clattn_forward_args, field),
        TENSOR_MAP(BUFFER)
#undef BUFFER
    };
    return (const clattn_buffer *)((const char *)args + at[name]);
}

void *clattn__args_host(const clattn_forward_args *args, tensor_name name)
{
    const clattn_buffer *b = clattn__args_buffer(args, name);
    return b->host ? (char *)b->host + b->offset : NULL;
}

static clattn_status check_place(const char *name, const clattn_buffer *b, bool needed, size_t element)
{
    RETURN_IF(b->host && b->mem, INVALID_ARGUMENT, "args.%s has both a host pointer and a cl_mem", name);
    RETURN_IF(needed && !b->host && !b->mem, INVALID_ARGUMENT, "args.%s is absent", name);
    RETURN_IF(b->offset % element, INVALID_ARGUMENT, "args.%s.offset is %zu bytes; it must be a multiple of %zu", name,
              b->offset, element);
    RETURN_IF((uintptr_t)b->host % element, INVALID_ARGUMENT, "args.%s is at %p; it must be aligned to %zu bytes", name,
              b->host, element);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status check_output_apart(const problem *p, const clattn_forward_args *args, tensor_name output)
{
    const clattn_buffer *out = clattn__args_buffer(args, output);
    const tensor_shape *a = &p->tensor[output];
    if ((!out->host && !out->mem) || !a->bytes || !a->gapless) return CLATTN_STATUS_SUCCESS;
    for (tensor_name i = 0; i < TENSOR_COUNT; i++) {
        const clattn_buffer *in = clattn__args_buffer(args, i);
        const tensor_shape *b = &p->tensor[i];
        if (i == output || (!in->host && !in->mem) || in->mem != out->mem || !b->bytes ||
            !b->gapless) /* those with gaps may interleave legally */
            continue;
        const uintptr_t x = (uintptr_t)out->host + out->offset, y = (uintptr_t)in->host + in->offset;
        RETURN_IF(x < y + (uint64_t)b->bytes && y < x + (uint64_t)a->bytes, INVALID_ARGUMENT,
                  "args.%s, %" PRId64 " bytes, overlaps args.%s, %" PRId64 " bytes", clattn__tensor_names[output],
                  a->bytes, clattn__tensor_names[i], b->bytes);
    }
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status check_lengths(const problem *p, const int64_t *lengths)
{
    for (int64_t b = 0; lengths && b < p->batch; b++)
        RETURN_IF(lengths[b] < 0 || lengths[b] > p->n_kv, INVALID_ARGUMENT,
                  "kv_lengths[%" PRId64 "] is %" PRId64 "; it must be in 0..n_kv = %" PRId64, b, lengths[b], p->n_kv);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status check_cu_seqlens(const char *name, const int64_t *cu, int64_t batch, int64_t total,
                                      int64_t longest)
{
    if (!cu) return CLATTN_STATUS_SUCCESS;
    RETURN_IF(cu[0] != 0, INVALID_ARGUMENT, "%s[0] is %" PRId64 "; it must be 0", name, cu[0]);
    for (int64_t b = 0; b < batch; b++) {
        RETURN_IF(cu[b + 1] < cu[b], INVALID_ARGUMENT, "%s decreases from %" PRId64 " to %" PRId64 " at %" PRId64, name,
                  cu[b], cu[b + 1], b + 1);
        RETURN_IF(cu[b + 1] > total, INVALID_ARGUMENT, "%s[%" PRId64 "] is %" PRId64 "; there are %" PRId64 " rows",
                  name, b + 1, cu[b + 1], total);
        RETURN_IF(cu[b + 1] - cu[b] > longest, INVALID_ARGUMENT,
                  "%s gives sequence %" PRId64 " %" PRId64 " rows; the problem allows %" PRId64, name, b,
                  cu[b + 1] - cu[b], longest);
    }
    RETURN_IF(cu[batch] != total, INVALID_ARGUMENT, "%s ends at %" PRId64 "; there are %" PRId64 " rows", name,
              cu[batch], total);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__args_check_size(const clattn_forward_args *args)
{
    RETURN_IF(!args, INVALID_ARGUMENT, "args is NULL");
    RETURN_IF(args->struct_size != sizeof *args, INVALID_ARGUMENT,
              "args.struct_size is %zu; this library knows %zu: call clattn_forward_args_init", args->struct_size,
              sizeof *args);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__problem_check_args(const problem *p, const clattn_forward_args *args)
{
    FORWARD(clattn__args_check_size(args));
    for (tensor_name i = 0; i < TENSOR_COUNT; i++) {
        const tensor_shape *t = &p->tensor[i];
        if (!t->size) continue; /* not part of the problem: not looked at */
        FORWARD(check_place(clattn__tensor_names[i], clattn__args_buffer(args, i), i != TENSOR_LSE && t->bytes != 0,
                            t->size));
    }
    FORWARD(check_place("workspace", &args->workspace, false, 1));
    FORWARD(check_output_apart(p, args, TENSOR_O));
    FORWARD(check_output_apart(p, args, TENSOR_LSE));
    if (p->kv_length_per_batch) FORWARD(check_lengths(p, clattn__args_host(args, TENSOR_KV_LENGTHS)));
    if (!p->varlen) return CLATTN_STATUS_SUCCESS;
    FORWARD(check_cu_seqlens("cu_seqlens_q", clattn__args_host(args, TENSOR_CU_Q), p->batch, p->total_q, p->n_q));
    return check_cu_seqlens("cu_seqlens_kv", clattn__args_host(args, TENSOR_CU_KV), p->batch, p->total_kv, p->n_kv);
}

clattn_status clattn__problem_check_host_args(const problem *p, const clattn_forward_args *args)
{
    FORWARD(clattn__problem_check_args(p, args));
    for (tensor_name i = 0; i < TENSOR_COUNT; i++)
        RETURN_IF(p->tensor[i].size && clattn__args_buffer(args, i)->mem, INVALID_ARGUMENT,
                  "args.%s is a cl_mem; this call takes host pointers", clattn__tensor_names[i]);
    return CLATTN_STATUS_SUCCESS;
}

/* ---- backward */

void clattn_backward_args_init(clattn_backward_args *args)
{
    if (!args) return;
    memset(args, 0, sizeof *args);
    args->struct_size = sizeof *args;
    clattn_forward_args_init(&args->forward);
}

const char *const clattn__gradient_names[GRADIENT_COUNT] = {
#define NAME(name, field, of) #field,
    GRADIENT_MAP(NAME)
#undef NAME
};

const tensor_name clattn__gradient_of[GRADIENT_COUNT] = {
#define OF(name, field, of) TENSOR_##of,
    GRADIENT_MAP(OF)
#undef OF
};

tensor_shape clattn__gradient_shape(const problem *p, gradient_name name)
{
    tensor_shape t = p->tensor[clattn__gradient_of[name]];
    for (int i = 0; name == GRADIENT_DBIAS && t.size && i < 4; i++)
        if (t.stride[i] == 0) t.count[i] = 1;
    tensor_extent(&t); /* no further than the tensor's own, or one element where that has none */
    t.gapless = tensor_is_gapless(&t);
    return t;
}

const clattn_buffer *clattn__gradient_buffer(const clattn_backward_args *args, gradient_name name)
{
    static const size_t at[GRADIENT_COUNT] = {
#define BUFFER(name, field, of) offsetof(clattn_backward_args, field),
        GRADIENT_MAP(BUFFER)
#undef BUFFER
    };
    return (const clattn_buffer *)((const char *)args + at[name]);
}

void *clattn__gradient_host(const clattn_backward_args *args, gradient_name name)
{
    const clattn_buffer *b = clattn__gradient_buffer(args, name);
    return b->host ? (char *)b->host + b->offset : NULL;
}

/* A range of bytes in host memory or in one cl_mem. */
typedef struct byte_range {
    const void *mem;
    uintptr_t first;
    uint64_t bytes; /* 0: absent, or has gaps in which another may lie */
    const char *name;
} byte_range;

static byte_range byte_range_of(const clattn_buffer *b, const tensor_shape *t, const char *name)
{
    const byte_range r = {b->mem, (uintptr_t)b->host + b->offset,
                          (b->host || b->mem) && t->gapless ? (uint64_t)t->bytes : 0, name};
    return r;
}

static clattn_status check_ranges_apart(const byte_range *a, const byte_range *b)
{
    RETURN_IF(a->bytes && b->bytes && a->mem == b->mem && a->first < b->first + b->bytes &&
                  b->first < a->first + a->bytes,
              INVALID_ARGUMENT, "args.%s, %" PRIu64 " bytes, overlaps args.%s, %" PRIu64 " bytes", a->name, a->bytes,
              b->name, b->bytes);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status check_gradients_apart(const problem *p, const clattn_backward_args *args)
{
    byte_range ranges[TENSOR_COUNT + GRADIENT_COUNT];
    for (tensor_name i = 0; i < TENSOR_COUNT; i++)
        ranges[i] = byte_range_of(clattn__args_buffer(&args->forward, i), &p->tensor[i], clattn__tensor_names[i]);
    for (gradient_name g = 0; g < GRADIENT_COUNT; g++) {
        const tensor_shape t = clattn__gradient_shape(p, g);
        ranges[TENSOR_COUNT + g] = byte_range_of(clattn__gradient_buffer(args, g), &t, clattn__gradient_names[g]);
    }
    for (gradient_name g = GRADIENT_FIRST_OUTPUT; g < GRADIENT_COUNT; g++)
        for (int i = 0; i < TENSOR_COUNT + (int)g; i++)
            FORWARD(check_ranges_apart(&ranges[TENSOR_COUNT + g], &ranges[i]));
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__backward_args_check_size(const clattn_backward_args *args)
{
    RETURN_IF(!args, INVALID_ARGUMENT, "args is NULL");
    RETURN_IF(args->struct_size != sizeof *args, INVALID_ARGUMENT,
              "args.struct_size is %zu; this library knows %zu: call clattn_backward_args_init", args->struct_size,
              sizeof *args);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__problem_check_backward_args(const problem *p, const clattn_backward_args *args)
{
    FORWARD(clattn__backward_args_check_size(args));
    FORWARD(clattn__problem_check_args(p, &args->forward));
    RETURN_IF(p->tensor[TENSOR_LSE].bytes && !args->forward.lse.host && !args->forward.lse.mem, INVALID_ARGUMENT,
              "args.forward.lse is absent; the forward call must store it");
    for (gradient_name g = 0; g < GRADIENT_COUNT; g++) {
        const tensor_shape shape = clattn__gradient_shape(p, g), *t = &shape;
        const clattn_buffer *b = clattn__gradient_buffer(args, g);
        RETURN_IF(!t->size && (b->host || b->mem), INVALID_ARGUMENT, "args.%s is given; the problem has no %s",
                  clattn__gradient_names[g], clattn__tensor_names[clattn__gradient_of[g]]);
        if (!t->size) continue;
        FORWARD(check_place(clattn__gradient_names[g], b, g == GRADIENT_D_O && t->bytes != 0, t->size));
        RETURN_IF(g >= GRADIENT_FIRST_OUTPUT && (b->host || b->mem) && tensor_overlaps_itself(t), INVALID_ARGUMENT,
                  "args.%s has the strides of %s, whose elements overlap; it is written", clattn__gradient_names[g],
                  clattn__tensor_names[clattn__gradient_of[g]]);
    }
    FORWARD(check_gradients_apart(p, args));
    return check_place("workspace", &args->workspace, false, 1);
}

problem_entry clattn__problem_entry(const problem *p, const clattn_forward_args *args, int64_t b)
{
    problem_entry e = {p->n_q, p->n_kv, p->kv_length, p->query_offset, 0, 0};
    if (p->varlen) {
        const int64_t *q = clattn__args_host(args, TENSOR_CU_Q), *kv = clattn__args_host(args, TENSOR_CU_KV);
        e.row_q = q[b];
        e.n_q = q[b + 1] - q[b];
        e.row_kv = kv[b];
        e.n_kv = e.kv_length = kv[b + 1] - kv[b];
    }
    if (p->kv_length_per_batch) e.kv_length = ((const int64_t *)clattn__args_host(args, TENSOR_KV_LENGTHS))[b];
    if (p->query_offset_per_batch) e.query_offset = ((const int64_t *)clattn__args_host(args, TENSOR_QUERY_OFFSETS))[b];
    return e;
}
