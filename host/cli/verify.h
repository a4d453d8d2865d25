/* Is an answer right: the float64 reference, the distance to it, and the tolerance. */
#ifndef CLATTN_CLI_VERIFY_H
#define CLATTN_CLI_VERIFY_H

#include "inputs.h"
#include "targets.h"

typedef struct answer {
    double *o;             /* [batch, n_heads_q, n_q, head_dim_v], dense; varlen: [n_heads_q, total_q, head_dim_v] */
    double *lse;           /* [batch, n_heads_q, n_q], dense; varlen: [n_heads_q, total_q] */
    double max_o, max_lse; /* largest finite magnitudes */
    double seconds;
} answer;

/* The reference on all processors (with dropout on one); label NULL: without a progress bar. On failure it has said why. */
int answer_make(const inputs *in, const char *label, answer *a);
/* The same from a run's O and LSE, as in->problem says. */
int answer_from(const inputs *in, const void *o, const float *lse, answer *a);
void answer_free(answer *a);

/* What |O - O_ref| and |LSE - LSE_ref| may be. */
typedef struct tolerance {
    double o, lse;
} tolerance;
tolerance tolerance_of(const clattn_problem *p, const answer *a);

typedef struct difference {
    double max_o, rms_o, max_lse, rms_lse; /* infinite where one is -inf, inf or NaN and the other is not the same */
} difference;

/* What came of one target. */
typedef struct outcome {
    clattn_status status; /* of the first call that failed; UNSUPPORTED: nothing is wrong, it cannot run there */
    char message[512];    /* its sentence */
    difference distance;
    double share;   /* the larger of max_o and max_lse, each divided by its tolerance */
    bool ok;        /* at most 1 */
    double seconds; /* median of the timed runs, 0: none */
} outcome;

/* Plans and runs in on t, and compares with a. When seconds > 0 it then runs again, at most 5 times and about as long
 * as that, and takes the median. CLI_FAILED: no memory, and it has said so. */
int outcome_make(const target *t, const options *o, const inputs *in, const answer *a, double seconds, outcome *out);

#endif
