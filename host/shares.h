/* A call that copies its arrays to a device may run in shares, one after the other: what of the problem each has. */
#ifndef CLATTN_SHARES_H
#define CLATTN_SHARES_H

#include <stdbool.h>
#include <string.h>

#include "problem.h"

/* Most batch entries, query heads, query rows and keys of a share. What has not all heads, rows or keys has one entry
 * (of packed sequences all); what has not all rows has one head; what has not all keys has one GQA group, and whole
 * chunks of a decode kernel, whose partials wait in the work space for the group's last share. Heads are those of whole
 * GQA groups, or of a part of one. */
typedef struct device_cut {
    int64_t n_shares; /* 1: the call is whole; 0: no cut fits, and this is the least */
    int64_t entries, heads, rows, keys;
    int n_sets;                        /* of buffers: 2 where a share is copied in while the one before computes */
    int64_t share_bytes, common_bytes; /* of a set; of what all shares use, the work space with it */
    int64_t bytes_most;                /* that all of them may take */
} device_cut;

/* Batch entries, query heads, query rows and keys [first, end). */
typedef struct share {
    int64_t entry, entry_end, head, head_end, row, row_end, key, key_end;
    bool skips_chunks, skips_merge; /* of a decode kernel's two stages: the first; the second, and so the outputs */
} share;

/* What of a tensor a share uses: counts of its own, strides of the whole, from element [first[0], first[1], first[2],
 * 0]. */
typedef struct tensor_part {
    tensor_shape shape;
    int64_t first[3];
} tensor_part;

static inline bool part_is(const tensor_part *a, const tensor_part *b)
{
    return !memcmp(a->first, b->first, sizeof a->first) &&
           !memcmp(a->shape.count, b->shape.count, sizeof a->shape.count);
}

/* The nth of cut->n_shares. The first is the largest. */
share clattn__share_of(const problem *p, const device_cut *cut, int64_t nth);
tensor_part clattn__share_part(const problem *p, const share *s, tensor_name name);

#endif
