/* A problem with its data: from files, or random. */
#ifndef CLATTN_CLI_INPUTS_H
#define CLATTN_CLI_INPUTS_H

#include <clattn/clattn.h>

#include "args.h"
#include "output.h"

typedef struct inputs {
    clattn_problem problem;
    const char *text; /* the text that the problem was read from, NULL: files */
    int layout;       /* of Q, K, V and O: LAYOUT_BHSD or LAYOUT_BSHD, as problem's strides say; varlen: neither */
    void *q;          /* [batch, n_heads_q, n_q, head_dim_qk], of problem.dtype; varlen: [total_q, n_heads_q, dim] */
    void *k;          /* [batch, n_heads_kv, n_kv, head_dim_qk]; varlen: [total_kv, n_heads_kv, dim] */
    void *v;          /* [batch, n_heads_kv, n_kv, head_dim_v] */
    void *bias;       /* problem.bias: of its dtype [batch, n_heads_q, n_q, n_kv] without what strides of 0 broadcast */
    int bias_rank;    /* of its file, whose dimensions are bias_shape */
    int64_t bias_shape[4];
    uint8_t *mask;                         /* problem.mask.boolean: likewise */
    float *alibi_slopes;                   /* problem.alibi: [n_heads_q] or [batch, n_heads_q] */
    float *sinks;                          /* problem.sinks: [n_heads_q] */
    int64_t *kv_lengths;                   /* [batch], NULL: the same for all */
    int64_t *query_offsets;                /* [batch], NULL: the same for all */
    int64_t *cu_seqlens_q, *cu_seqlens_kv; /* problem.varlen: [batch + 1] */
    uint64_t dropout_seed;
} inputs;

/* The files that o names, converted to o->dtype; shapes, types and numbers checked. Every function that fails has
 * said why and left nothing to free. */
int inputs_from_files(const options *o, inputs *in);

/* dL/dO, as O, and dL/dLSE, NULL when o names none: the files of --do and --dlse, likewise. */
int inputs_gradients_from_files(const options *o, const inputs *in, void **d_o, float **d_lse);

/* Every flag that names an input file. */
enum { N_INPUT_FILES = 13 };
void inputs_files(const options *o, file_flag files[N_INPUT_FILES]);

/* The problem of the text, its data random and the same for the same seed: Q, K, V, bias and sinks N(0,1), mask 0.7 of
 * ones, ALiBi slopes 2^(-8 (h + 1) / n_heads_q), numbers per batch entry from the least to the most that is legal. */
int inputs_from_text(const char *text, int64_t seed, inputs *in);

/* dL/dO for a problem of a text, N(0,1), as O. NULL: it has said why. */
void *inputs_random_d_o(const inputs *in, int64_t seed);

/* Either, as the options say; CLI_USAGE for both or none. */
int inputs_from_options(const options *o, inputs *in);

void inputs_free(inputs *in);

/* One line that says what the problem is; it can be given to compare and bench when the problem came from a text. */
enum { PROBLEM_TEXT_SIZE = 1024 };
void inputs_to_text(const inputs *in, char text[PROBLEM_TEXT_SIZE]);

/* Batch entries and rows of the tensors as they are stored: of varlen one entry, that holds all sequences. */
typedef struct storage {
    int64_t batch, n_q, n_kv;
} storage;
storage inputs_storage(const clattn_problem *p);

/* The strides that a problem's field for Q, K, V or O means; seq is inputs_storage's. */
clattn_strides inputs_strides(const clattn_problem *p, clattn_strides given, int64_t heads, int64_t seq, int64_t dim);

/* Room for O and LSE, all bits set so that what is left unwritten shows as NaN. */
int inputs_alloc_outputs(const inputs *in, void **o, float **lse);

/* Places all but o, lse and workspace in args. */
void inputs_fill_args(const inputs *in, clattn_forward_args *args);

/* One batch entry, or sequence. */
typedef struct entry {
    int64_t batch;                          /* in the tensors: 0 with varlen */
    int64_t first_q, n_q, first_kv, n_kv;   /* its rows and keys in the tensors */
    int64_t kv_length, query_offset, index; /* keys in use; index: in the problem's batch */
} entry;
entry inputs_entry(const inputs *in, int64_t index);

/* Keys [first, end) of an entry that its query row i sees, as far as the window and the length go. */
typedef struct key_range {
    int64_t first, end;
} key_range;
key_range inputs_visible(const inputs *in, const entry *e, int64_t i);

/* The keys that some row of an entry sees: the ranges move with the row, so they leave no gap between them. */
key_range inputs_visible_to_any(const inputs *in, const entry *e);

#endif
