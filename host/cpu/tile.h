/* One query tile on the host: what run.c hands to the code of each instruction set. */
#ifndef CLATTN_CPU_TILE_H
#define CLATTN_CPU_TILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <clattn/clattn.h>

#include "../../cl/mask.clh"

/* Pointers to one head of one batch entry. */
typedef struct host_tile {
    const void *q, *k, *v;                       /* [n_q, head_dim_qk] [n_kv, head_dim_qk] [n_kv, head_dim_v] */
    void *o;                                     /* [n_q, head_dim_v] */
    float *lse;                                  /* [n_q] or NULL */
    int64_t q_row, k_row, v_row, o_row, lse_row; /* strides, elements */
    clattn_dtype dtype;
    int head_dim_qk, head_dim_v;
    int row_first, row_end; /* the rows of this tile, at most host_ops.block_q of them */
    int block_kv;
    int key_first; /* keys before it belong to other chunks, and those from band.length on */
    mask_band band;
    double scale;

    bool has_score; /* any of the next lines: scores take the long way */
    double softcap; /* 0: none */
    double slope;   /* ALiBi's, 0: none */
    int64_t query_offset;
    const void *bias; /* [n_q, n_kv] or NULL */
    clattn_dtype bias_dtype;
    int64_t bias_q, bias_kv; /* strides */
    clattn_score_fn *score_function;
    const void *score_data;

    const uint8_t *mask; /* [n_q, n_kv] or NULL */
    int64_t mask_q, mask_kv;

    bool has_sink;
    double sink;
    double dropout;
    uint32_t dropout_key0, dropout_key1;
    int64_t batch, head, n_heads_q; /* for the score function and dropout */

    /* One chunk's share, instead of o and lse; NULL: all keys are here. */
    void *partial; /* [rows of this tile][partial_pitch] */

    const void *k_next; /* K's first row that this worker is likely to read next, or NULL */
} host_tile;

/* A row's partial, in reals: O unnormalised [head_dim_v], with room for a whole last vector; running maximum m in the
 * scores' unit; sum l. A row that saw nothing of its chunk has O = 0, m = -infinity, l = 0. */
static inline int partial_state_at(int head_dim_v) { return (head_dim_v + 15) / 16 * 16; }
static inline int64_t partial_pitch(int head_dim_v) { return partial_state_at(head_dim_v) + 16; }

/* One instruction set's code for f32 accumulation (f32, f16, bf16) or f64. */
typedef struct host_ops {
    const char *name;
    clattn_dtype products;
    int block_q, panel_rows; /* most rows of a tile: one, two or four panels' */
    int block_kv;            /* keys of a kv block that suit the caches */
    size_t (*work_bytes)(int head_dim_qk, int head_dim_v, int block_q, int block_kv, clattn_dtype dtype);
    void (*tile_forward)(const host_tile *tile, void *work); /* work: aligned to 64 bytes */
    /* Scores of the tile's rows at a step before the softmax, natural units, to scores [n_q, n_kv] of the whole head. */
    void (*tile_scores)(const host_tile *tile, void *work, clattn_score_step step, int n_kv, float *scores);
} host_ops;

/* The widest set that this processor has and CLATTN_CPU ("avx512_bf16", "avx512", "avx2", "portable") does not
 * mask. */
const host_ops *clattn__host_ops(clattn_dtype dtype);

/* This processor has vdpbf16ps, and is faster with it. */
bool clattn__cpu_has_pairs(void);
bool clattn__cpu_pairs_pay(void);

/* Whether two codes with bf16 products give the same numbers on small problems, but for the order of sums; false when
 * there is no memory for them. */
bool clattn__host_ops_agree(const host_ops *a, const host_ops *b);

#endif
