/* The arrays that come out: their shapes in the files' layout, room for them, and writing them. */
#ifndef CLATTN_CLI_ARRAYS_H
#define CLATTN_CLI_ARRAYS_H

#include "inputs.h"
#include "output.h"

typedef struct array_shape {
    clattn_dtype dtype;
    int rank;
    int64_t n[4];
} array_shape;

/* [batch, heads, seq, dim] in the layout of in's files, or of varlen [total, heads, dim]; of the problem's type. */
array_shape array_of_rows(const inputs *in, int64_t heads, int64_t seq, int64_t dim);
array_shape array_of_o(const inputs *in);
array_shape array_of_lse(const inputs *in); /* f32 [batch, n_heads_q, n_q], or of varlen [n_heads_q, total_q] */

/* The gradients, in the order of clattn_backward_args. */
enum { GRADIENT_DQ, GRADIENT_DK, GRADIENT_DV, GRADIENT_DBIAS, GRADIENT_DALIBI, GRADIENT_DSINKS, N_GRADIENTS };
array_shape array_of_gradient(const inputs *in, int which);

/* Of one that there is room for. */
int64_t array_bytes(const array_shape *a);

/* Room for it, all bits set so that what is left unwritten shows as NaN. NULL: it has said why. */
void *array_alloc(const char *what, const array_shape *a);

/* Writes and finishes an output; bf16, which NumPy does not have, as f4. */
int write_array(output *out, const array_shape *a, const void *data);

#endif
