/* The host path: query tiles of a problem over threads. */
#ifndef CLATTN_CPU_RUN_H
#define CLATTN_CPU_RUN_H

#include "../problem.h"
#include "backward.h"
#include "decode.h"
#include "threads.h"
#include "tile.h"

typedef struct host_plan {
    clattn_kernel kernel; /* HOST_TILE, HOST_DECODE or HOST_BACKWARD */
    const host_ops *ops;
    const decode_ops *decode;
    const backward_ops *backward;
    const char *instructions;
    clattn_dtype products; /* what is multiplied: BF16 rounds P */
    int block_q, block_kv; /* rows of a tile, keys of a block */
    int chunk;             /* keys of an item whose partials are merged; 0: items have all keys */
    int n_threads;         /* at most */
} host_plan;

/* args: host pointers, checked. */
clattn_status clattn__host_forward(const host_plan *plan, const problem *p, host_threads *threads,
                                   const clattn_forward_args *args);

/* Gradients. args: host pointers, checked. */
clattn_status clattn__host_backward(const host_plan *plan, const problem *p, host_threads *threads,
                                    const clattn_backward_args *args);

/* Scores [n_q, n_kv] of one head at a step, on one thread. args: host pointers, checked; o is not used. */
clattn_status clattn__host_scores(const problem *p, const clattn_forward_args *args, clattn_score_step step,
                                  int64_t batch, int64_t head, float *scores);

/* keep [batch, n_heads_q, n_q, n_kv]: 1 where dropout keeps. */
void clattn__host_dropout_mask(const problem *p, uint64_t seed, uint64_t offset, uint8_t *keep);

#endif
