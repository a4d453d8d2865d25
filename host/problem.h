/* The canonical problem: what the caller described, checked, with every default filled in. The rest of the library
 * sees only this. */
#ifndef CLATTN_PROBLEM_H
#define CLATTN_PROBLEM_H

#include <stdbool.h>

#include <clattn/types.h>

typedef enum tensor_name { TENSOR_Q, TENSOR_K, TENSOR_V, TENSOR_O, TENSOR_LSE, TENSOR_COUNT } tensor_name;

/* [batch, heads, seq, dim] of elements of `size` bytes; the last dimension contiguous. */
typedef struct tensor_shape {
    int64_t batch, heads, seq, dim;
    clattn_strides strides;
    size_t size;
    int64_t bytes; /* from element [0, 0, 0, 0] to the end of the last; 0 when empty */
} tensor_shape;

typedef struct problem {
    clattn_dtype dtype;
    int64_t batch, n_heads_q, n_heads_kv, gqa_group, n_q, n_kv, head_dim_qk, head_dim_v;
    tensor_shape tensor[TENSOR_COUNT];
    double scale;
    int64_t window_left, window_right; /* below 0: no bound */
    int64_t query_offset, kv_length;   /* of every batch entry, unless given per batch */
    int query_offset_per_batch, kv_length_per_batch;
} problem;

extern const char *const clattn__tensor_names[TENSOR_COUNT];

/* The only place that rejects a description. */
clattn_status clattn__problem_make(const clattn_problem *given, problem *p);

/* Rejects args that p cannot run with, wherever the buffers lie: missing ones, misplaced offsets, and per-batch numbers
 * that lie in host memory. */
clattn_status clattn__problem_check_args(const problem *p, const clattn_forward_args *args);

/* The buffer of args that holds a tensor. */
const clattn_buffer *clattn__args_buffer(const clattn_forward_args *args, tensor_name name);

#endif
