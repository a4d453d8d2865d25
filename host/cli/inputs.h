/* A problem with its data: from files, or random. */
#ifndef CLATTN_CLI_INPUTS_H
#define CLATTN_CLI_INPUTS_H

#include <clattn/clattn.h>

#include "args.h"

typedef struct inputs {
    clattn_problem problem;
    int layout;             /* of Q, K, V and O: LAYOUT_BHSD or LAYOUT_BSHD, as problem's strides say */
    void *q;                /* [batch, n_heads_q, n_q, head_dim_qk], of problem.dtype */
    void *k;                /* [batch, n_heads_kv, n_kv, head_dim_qk] */
    void *v;                /* [batch, n_heads_kv, n_kv, head_dim_v] */
    int64_t *kv_lengths;    /* [batch], NULL: the same for all */
    int64_t *query_offsets; /* [batch], NULL: the same for all */
} inputs;

/* The files that o names, converted to o->dtype; shapes, types and numbers checked. Every function that fails has
 * said why and left nothing to free. */
int inputs_from_files(const options *o, inputs *in);

/* The problem of the text, its data N(0,1) and the same for the same seed. */
int inputs_from_text(const char *text, int64_t seed, inputs *in);

/* Either, as the options say; CLI_USAGE for both or none. */
int inputs_from_options(const options *o, inputs *in);

void inputs_free(inputs *in);

/* The strides that a problem's field means: dense when all are 0. */
clattn_strides inputs_strides(clattn_strides given, int64_t heads, int64_t seq, int64_t dim);

/* Room for O and LSE, all bits set so that what is left unwritten shows as NaN. */
int inputs_alloc_outputs(const inputs *in, void **o, float **lse);

/* Places all but o, lse and workspace in args. */
void inputs_fill_args(const inputs *in, clattn_forward_args *args);

/* Keys [first, end) of one batch entry that query row i sees. */
typedef struct key_range {
    int64_t first, end;
} key_range;
key_range inputs_visible(const inputs *in, int64_t batch, int64_t i);

/* The keys that some row of a batch entry sees: the ranges move with the row, so they leave no gap between them. */
key_range inputs_visible_to_any(const inputs *in, int64_t batch);

#endif
