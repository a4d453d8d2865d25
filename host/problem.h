/* The canonical problem: what the caller described, checked, with every default filled in. The rest of the library
 * sees only this. */
#ifndef CLATTN_PROBLEM_H
#define CLATTN_PROBLEM_H

#include <stdbool.h>

#include <clattn/types.h>

/* Everything that args may hold, in the order of the kernels' arguments. */
#define TENSOR_MAP(XX)                                                                                                 \
    XX(Q, q)                                                                                                           \
    XX(K, k)                                                                                                           \
    XX(V, v)                                                                                                           \
    XX(O, o)                                                                                                           \
    XX(LSE, lse)                                                                                                       \
    XX(BIAS, bias)                                                                                                     \
    XX(MASK, mask)                                                                                                     \
    XX(ALIBI, alibi_slopes)                                                                                            \
    XX(SINKS, sinks)                                                                                                   \
    XX(SCORE_DATA, score_data)                                                                                         \
    XX(KV_LENGTHS, kv_lengths)                                                                                         \
    XX(QUERY_OFFSETS, query_offsets)                                                                                   \
    XX(CU_Q, cu_seqlens_q)                                                                                             \
    XX(CU_KV, cu_seqlens_kv)

typedef enum tensor_name {
#define TENSOR_ENUM(name, field) TENSOR_##name,
    TENSOR_MAP(TENSOR_ENUM)
#undef TENSOR_ENUM
        TENSOR_COUNT
} tensor_name;

/* Four dimensions of elements of `size` bytes: [batch, heads, seq, dim], or [batch, heads, n_q, n_kv] for what stands beside
 * the scores, or [n] as the last. */
typedef struct tensor_shape {
    int64_t count[4], stride[4]; /* elements */
    size_t size;
    int64_t bytes;   /* from element [0, 0, 0, 0] to the end of the last; 0 when empty or not part of the problem */
    int64_t gapless; /* 1: each of those bytes belongs to an element; dimensions of stride 0 do not count */
} tensor_shape;

static inline int64_t div_up(int64_t n, int64_t m) { return (n + m - 1) / m; }

static inline int64_t tensor_at(const tensor_shape *t, int64_t a, int64_t b, int64_t c)
{
    return a * t->stride[0] + b * t->stride[1] + c * t->stride[2];
}

typedef struct problem {
    clattn_dtype dtype;
    int64_t batch, n_heads_q, n_heads_kv, gqa_group, n_q, n_kv, head_dim_qk, head_dim_v;
    tensor_shape tensor[TENSOR_COUNT];
    double scale;
    int64_t window_left, window_right; /* below 0: no bound */
    int64_t query_offset, kv_length;   /* of every batch entry, unless given per batch */
    int query_offset_per_batch, kv_length_per_batch;
    double softcap, dropout;
    clattn_dtype bias_dtype; /* 0: none */
    int alibi, has_mask, has_sinks, varlen;
    int64_t total_q, total_kv;
    clattn_score_function score_function;
} problem;

/* One batch entry (or sequence), with the numbers that calls may change put in. */
typedef struct problem_entry {
    int64_t n_q, n_kv, kv_length, query_offset;
    int64_t row_q, row_kv; /* varlen: its first row and key in the packed tensors; else 0 */
} problem_entry;

/* Bytes of a copy that keeps what the tensor's strides broadcast but has no gaps; INT64_MAX past 63 bits. */
int64_t clattn__tensor_copy_bytes(const tensor_shape *t);

/* That copy's strides. */
void clattn__tensor_copy_strides(const tensor_shape *t, int64_t stride[4]);

extern const char *const clattn__tensor_names[TENSOR_COUNT];

/* The one place that rejects a description. */
clattn_status clattn__problem_make(const clattn_problem *given, problem *p);

/* No args, or those of another version of the library? */
clattn_status clattn__args_check_size(const clattn_forward_args *args);
clattn_status clattn__backward_args_check_size(const clattn_backward_args *args);

/* Rejects args that p cannot run with, wherever the buffers lie: missing ones, misplaced offsets, and numbers that lie in
 * host memory. */
clattn_status clattn__problem_check_args(const problem *p, const clattn_forward_args *args);

/* clattn__problem_check_args, and every buffer must be a host pointer. */
clattn_status clattn__problem_check_host_args(const problem *p, const clattn_forward_args *args);

/* What backward args hold beside the forward's, and the tensor whose shape and strides each has. */
#define GRADIENT_MAP(XX)                                                                                               \
    XX(D_O, d_o, O)                                                                                                    \
    XX(D_LSE, d_lse, LSE)                                                                                              \
    XX(DQ, dq, Q)                                                                                                      \
    XX(DK, dk, K)                                                                                                      \
    XX(DV, dv, V)                                                                                                      \
    XX(DBIAS, dbias, BIAS)                                                                                             \
    XX(DALIBI, dalibi_slopes, ALIBI)                                                                                   \
    XX(DSINKS, dsinks, SINKS)

typedef enum gradient_name {
#define GRADIENT_ENUM(name, field, of) GRADIENT_##name,
    GRADIENT_MAP(GRADIENT_ENUM)
#undef GRADIENT_ENUM
        GRADIENT_COUNT,
    GRADIENT_FIRST_OUTPUT = GRADIENT_DQ
} gradient_name;

extern const char *const clattn__gradient_names[GRADIENT_COUNT];
extern const tensor_name clattn__gradient_of[GRADIENT_COUNT];

/* That tensor's shape; dbias has one element where the bias broadcasts. */
tensor_shape clattn__gradient_shape(const problem *p, gradient_name name);

const clattn_buffer *clattn__gradient_buffer(const clattn_backward_args *args, gradient_name name);
void *clattn__gradient_host(const clattn_backward_args *args, gradient_name name); /* NULL when absent */

/* Rejects backward args that p cannot run with, wherever the buffers lie. */
clattn_status clattn__problem_check_backward_args(const problem *p, const clattn_backward_args *args);

/* The buffer of args that holds a tensor. */
const clattn_buffer *clattn__args_buffer(const clattn_forward_args *args, tensor_name name);

/* Its first element in host memory; NULL when absent. */
void *clattn__args_host(const clattn_forward_args *args, tensor_name name);

/* Batch entry b of host args. */
problem_entry clattn__problem_entry(const problem *p, const clattn_forward_args *args, int64_t b);

#endif
