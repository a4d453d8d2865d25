/* Gradients on the host: what backward.c hands to the code of each instruction set. */
#ifndef CLATTN_CPU_BACKWARD_H
#define CLATTN_CPU_BACKWARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <clattn/clattn.h>

#include "../../cl/mask.clh"

enum { BACKWARD_BLOCK = 64 }; /* query rows of a block, keys of a kv tile */

/* One query head of the GQA group. real: float, or double when the problem is f64. */
typedef struct backward_head {
    const void *q, *d_o; /* [n_q, head_dim_qk] [n_q, head_dim_v] */
    const float *lse;    /* [n_q], strided */
    const double *delta; /* [n_q]: dO . O - dLSE */
    void *dq;         /* dQ / scale, summed up here: real [n_q up to BACKWARD_BLOCK][pitch of head_dim_qk]; or NULL */
    const void *bias; /* [n_q, n_kv] or NULL */
    const uint8_t *mask; /* likewise */
    double slope;        /* ALiBi's, 0: none */
    double *dslope;      /* summed up here; NULL: not wanted */
    int64_t head;
} backward_head;

/* All query heads of one kv head of one batch entry. */
typedef struct backward_job {
    const void *k, *v;                           /* [n_kv, head_dim_qk] [n_kv, head_dim_v] */
    void *dk, *dv;                               /* likewise; NULL: not wanted */
    int64_t q_row, k_row, v_row, o_row, lse_row; /* strides, elements */
    clattn_dtype dtype;
    int head_dim_qk, head_dim_v, n_q, n_kv;
    mask_band band;
    double scale;
    const backward_head *heads; /* [n_heads] */
    int n_heads;

    bool has_score;
    double softcap;
    int64_t query_offset;
    clattn_dtype bias_dtype;
    int64_t bias_q, bias_kv, mask_q, mask_kv; /* strides */
    clattn_score_fn *score_function, *score_derivative;
    const void *score_data;
    double dropout;
    uint32_t dropout_key0, dropout_key1;
    int64_t batch, n_heads_q;
} backward_job;

typedef struct backward_ops {
    const char *name;      /* instruction set */
    clattn_dtype products; /* BF16: of pairs, P rounded */
    size_t real_size;
    int (*pitch)(int dim); /* reals from one row of dq to the next */
    size_t (*work_bytes)(int head_dim_qk, int head_dim_v);
    /* dK and dV of the kv tiles first_tile, first_tile + tile_step, ... and what they add to dQ and dslope. */
    void (*tiles)(const backward_job *job, int first_tile, int tile_step, void *work);
    /* dZ of one q block and kv tile summed into dbias [BACKWARD_BLOCK rows][BACKWARD_BLOCK keys], real. */
    void (*bias_tile)(const backward_job *job, int head, int q0, int k0, void *sum, void *work);
    /* delta of n rows. d_lse may be NULL. */
    void (*delta)(const void *o, const void *d_o, const float *lse, const float *d_lse, clattn_dtype dtype,
                  int64_t o_row, int64_t lse_row, int n, int head_dim_v, double *delta);
    /* Rows of reals, times factor, into storage: n rows of dim. */
    void (*store)(void *to, clattn_dtype dtype, int64_t row, const void *from, int n, int dim, double factor);
} backward_ops;

const backward_ops *clattn__backward_ops(clattn_dtype dtype);

#endif
