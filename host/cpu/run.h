/* The host path: query tiles of a problem over threads. */
#ifndef CLATTN_CPU_RUN_H
#define CLATTN_CPU_RUN_H

#include "../problem.h"
#include "threads.h"
#include "tile.h"

typedef struct host_plan {
    const host_ops *ops;
    int block_q, block_kv; /* rows of a tile, keys of a block */
    int n_threads;         /* at most */
} host_plan;

/* args: host pointers, checked. */
clattn_status clattn__host_forward(const host_plan *plan, const problem *p, host_threads *threads,
                                   const clattn_forward_args *args);

#endif
