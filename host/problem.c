/* Description -> canonical problem, or a status and a sentence. The only file that rejects. */
#include "problem.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include <clattn/clattn.h>

#include "error.h"

const char *const clattn__tensor_names[TENSOR_COUNT] = {"q", "k", "v", "o", "lse"};

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

static bool is_dense_default(clattn_strides s) { return s.batch == 0 && s.head == 0 && s.seq == 0; }

/* bytes = size * (1 + sum of (n - 1) * stride); false when that leaves 63 bits. */
static bool tensor_extent(tensor_shape *t)
{
    const int64_t counts[3] = {t->batch, t->heads, t->seq};
    const int64_t strides[3] = {t->strides.batch, t->strides.head, t->strides.seq};
    int64_t elements = t->dim, reach;
    if (t->seq == 0) return t->bytes = 0, true;
    for (int i = 0; i < 3; i++)
        if (__builtin_mul_overflow(counts[i] - 1, strides[i], &reach) ||
            __builtin_add_overflow(elements, reach, &elements))
            return false;
    return !__builtin_mul_overflow(elements, (int64_t)t->size, &t->bytes);
}

/* Sorted by stride, each dimension must step over all that the smaller ones cover. */
static bool tensor_overlaps_itself(const tensor_shape *t)
{
    int64_t counts[3] = {t->batch, t->heads, t->seq};
    int64_t strides[3] = {t->strides.batch, t->strides.head, t->strides.seq};
    int64_t covered = t->dim;
    if (t->seq == 0) return false;
    for (int n = 3; n > 0; n--) {
        int least = 0;
        for (int i = 1; i < n; i++)
            if (strides[i] < strides[least]) least = i;
        if (counts[least] > 1) {
            if (strides[least] < covered) return true;
            covered += (counts[least] - 1) * strides[least];
        }
        counts[least] = counts[n - 1];
        strides[least] = strides[n - 1];
    }
    return false;
}

static clattn_status tensor_make(tensor_name name, clattn_strides given, int64_t batch, int64_t heads, int64_t seq,
                                 int64_t dim, size_t size, tensor_shape *t)
{
    const char *text = clattn__tensor_names[name];
    *t = (tensor_shape){batch, heads, seq, dim, given, size, 0};
    if (is_dense_default(given)) {
        int64_t head, all;
        RETURN_IF(__builtin_mul_overflow(seq, dim, &head) || __builtin_mul_overflow(heads, head, &all),
                  INVALID_ARGUMENT,
                  "%s has %" PRId64 " x %" PRId64 " x %" PRId64 " elements a batch entry; that overflows 64 bits", text,
                  heads, seq, dim);
        t->strides = (clattn_strides){all, head, dim};
    }
    RETURN_IF(given.batch < 0 || given.head < 0 || given.seq < 0, INVALID_ARGUMENT,
              "%s has strides (%" PRId64 ", %" PRId64 ", %" PRId64 "); none may be negative", text, given.batch,
              given.head, given.seq);
    RETURN_IF(!tensor_extent(t), INVALID_ARGUMENT,
              "%s [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "] with strides (%" PRId64 ", %" PRId64 ", %" PRId64
              ") ends beyond 2^63 bytes",
              text, batch, heads, seq, dim, t->strides.batch, t->strides.head, t->strides.seq);
    RETURN_IF((name == TENSOR_O || name == TENSOR_LSE) && tensor_overlaps_itself(t), INVALID_ARGUMENT,
              "%s [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "] is written through strides (%" PRId64
              ", %" PRId64 ", %" PRId64 ") that overlap",
              text, batch, heads, seq, dim, t->strides.batch, t->strides.head, t->strides.seq);
    return CLATTN_STATUS_SUCCESS;
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
    RETURN_IF(!isfinite(g->scale), INVALID_ARGUMENT, "scale is %g; it must be finite", g->scale);
    FORWARD(check_window("mask.window_left", g->mask.window_left));
    FORWARD(check_window("mask.window_right", g->mask.window_right));
    RETURN_IF(!g->kv_length_per_batch && g->kv_length != CLATTN_KV_LENGTH_ALL &&
                  (g->kv_length < 0 || g->kv_length > g->n_kv),
              INVALID_ARGUMENT, "kv_length is %" PRId64 "; it must be in 0..n_kv = %" PRId64, g->kv_length, g->n_kv);

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
    p->scale = g->scale == CLATTN_SCALE_AUTO ? 1.0 / sqrt((double)g->head_dim_qk) : g->scale;
    p->window_left = g->mask.window_left;
    p->window_right = g->mask.window_right;
    p->query_offset_per_batch = g->query_offset_per_batch != 0;
    p->kv_length_per_batch = g->kv_length_per_batch != 0;
    p->query_offset = p->query_offset_per_batch ? 0 : g->query_offset;
    p->kv_length = p->kv_length_per_batch || g->kv_length == CLATTN_KV_LENGTH_ALL ? g->n_kv : g->kv_length;

    const size_t size = clattn_dtype_size(g->dtype);
    FORWARD(tensor_make(TENSOR_Q, g->q, g->batch, g->n_heads_q, g->n_q, g->head_dim_qk, size, &p->tensor[TENSOR_Q]));
    FORWARD(tensor_make(TENSOR_K, g->k, g->batch, g->n_heads_kv, g->n_kv, g->head_dim_qk, size, &p->tensor[TENSOR_K]));
    FORWARD(tensor_make(TENSOR_V, g->v, g->batch, g->n_heads_kv, g->n_kv, g->head_dim_v, size, &p->tensor[TENSOR_V]));
    FORWARD(tensor_make(TENSOR_O, g->o, g->batch, g->n_heads_q, g->n_q, g->head_dim_v, size, &p->tensor[TENSOR_O]));
    return tensor_make(TENSOR_LSE, g->lse, g->batch, g->n_heads_q, g->n_q, 1, sizeof(float), &p->tensor[TENSOR_LSE]);
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
    const clattn_buffer *const buffers[TENSOR_COUNT] = {&args->q, &args->k, &args->v, &args->o, &args->lse};
    return buffers[name];
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

/* Certain overlap only: tensors without gaps. Others may interleave legally. */
static bool is_gapless(const tensor_shape *t)
{
    int64_t n;
    return !__builtin_mul_overflow(t->batch, t->heads, &n) && !__builtin_mul_overflow(n, t->seq, &n) &&
           !__builtin_mul_overflow(n, t->dim, &n) && !__builtin_mul_overflow(n, (int64_t)t->size, &n) && n == t->bytes;
}

static clattn_status check_outputs_apart(const problem *p, const clattn_forward_args *args, tensor_name output)
{
    const clattn_buffer *out = clattn__args_buffer(args, output);
    if (!out->host && !out->mem) return CLATTN_STATUS_SUCCESS;
    for (tensor_name i = 0; i < TENSOR_COUNT; i++) {
        const clattn_buffer *in = clattn__args_buffer(args, i);
        const tensor_shape *a = &p->tensor[output], *b = &p->tensor[i];
        if (i == output || in->mem != out->mem || !is_gapless(a) || !is_gapless(b) || !a->bytes || !b->bytes) continue;
        const uintptr_t x = (uintptr_t)out->host + out->offset, y = (uintptr_t)in->host + in->offset;
        if (!in->mem && !in->host) continue;
        RETURN_IF(x < y + (uint64_t)b->bytes && y < x + (uint64_t)a->bytes, INVALID_ARGUMENT,
                  "args.%s, %" PRId64 " bytes, overlaps args.%s, %" PRId64 " bytes", clattn__tensor_names[output],
                  a->bytes, clattn__tensor_names[i], b->bytes);
    }
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__problem_check_args(const problem *p, const clattn_forward_args *args)
{
    RETURN_IF(!args, INVALID_ARGUMENT, "args is NULL");
    RETURN_IF(args->struct_size != sizeof *args, INVALID_ARGUMENT,
              "args.struct_size is %zu; this library knows %zu: call clattn_forward_args_init", args->struct_size,
              sizeof *args);
    for (tensor_name i = 0; i < TENSOR_COUNT; i++)
        FORWARD(check_place(clattn__tensor_names[i], clattn__args_buffer(args, i),
                            i != TENSOR_LSE && p->tensor[i].bytes != 0, p->tensor[i].size));
    FORWARD(check_place("kv_lengths", &args->kv_lengths, p->kv_length_per_batch, sizeof(int64_t)));
    FORWARD(check_place("query_offsets", &args->query_offsets, p->query_offset_per_batch, sizeof(int64_t)));
    FORWARD(check_place("workspace", &args->workspace, false, 1));
    FORWARD(check_outputs_apart(p, args, TENSOR_O));
    FORWARD(check_outputs_apart(p, args, TENSOR_LSE));
    if (p->kv_length_per_batch && args->kv_lengths.host) {
        const int64_t *lengths = (const int64_t *)((const char *)args->kv_lengths.host + args->kv_lengths.offset);
        for (int64_t b = 0; b < p->batch; b++)
            RETURN_IF(lengths[b] < 0 || lengths[b] > p->n_kv, INVALID_ARGUMENT,
                      "kv_lengths[%" PRId64 "] is %" PRId64 "; it must be in 0..n_kv = %" PRId64, b, lengths[b],
                      p->n_kv);
    }
    return CLATTN_STATUS_SUCCESS;
}
