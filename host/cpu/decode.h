/* A few query rows against many keys, and the merge of partials: what run.c asks of each instruction set's code. */
#ifndef CLATTN_CPU_DECODE_H
#define CLATTN_CPU_DECODE_H

#include "tile.h"

typedef struct decode_ops {
    const char *name;
    /* rows: of the GQA group; chunk: most keys of a call. */
    size_t (*work_bytes)(int head_dim_qk, int rows, int chunk);
    /* Partials of the rows [row_first, row_end) of n_heads heads, head by head, over the keys from key_first up to
     * band.length. The heads share K, V and the band. work: aligned to 64 bytes. */
    void (*decode_chunk)(const host_tile *heads, int n_heads, void *work);
    /* O and LSE of one head's rows, from their partials in n_chunks chunks that lie `step` bytes apart, in that order. The
     * first chunk's partials are overwritten. */
    void (*partials_merge)(const host_tile *tile, void *partials, int64_t step, int64_t n_chunks);
} decode_ops;

/* As clattn__host_ops. */
const decode_ops *clattn__decode_ops(clattn_dtype dtype);

#endif
