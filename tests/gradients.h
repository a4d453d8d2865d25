/* Gradients of any problem on any way, beside the reference. */
#ifndef CLATTN_TEST_GRADIENTS_H
#define CLATTN_TEST_GRADIENTS_H
#include "harness.h"

uint64_t test_random_next(uint64_t *state);
int64_t test_random_below(uint64_t *state, int64_t n);

/* host, device lanes, device local-memory */
extern const test_way test_backward_ways[TEST_WAYS];

/* Where element n of a dense gradient lies in the problem's own memory: dense, or [batch, seq, heads, dim]. */
int64_t test_memory_at(const clattn_problem *p, int64_t n, int64_t heads, int64_t rows, int64_t dim);

/* dQ, dK, dV, dbias, dslopes, dsinks of one run, with 8 bytes of 0xff after each. */
typedef struct test_gradients {
    size_t bytes[6];
    unsigned char *data[6];
} test_gradients;
void test_gradients_free(test_gradients *g);

/* The args of a call that wants every gradient; g: the outputs, to be freed. */
clattn_backward_args test_backward_args(test_data *t, const void *d_o, const float *d_lse, test_gradients *g);

/* t with O and LSE of a forward call on the host. *like_o: its O is dO, random; *d_lse: random, or NULL if LSE has strides
 * of its own. Both to be freed. */
void test_loss(test_data *t, uint64_t seed, test_data **like_o, float **d_lse);

void test_backward_run(test_data *t, const test_way *way, int n_threads, const void *d_o, const float *d_lse,
                       test_gradients *g);

typedef struct test_backward_how {
    int64_t nan_rows;        /* dO and dLSE of the first rows are NaN */
    double factor;           /* of the type's tolerance; 0: 1 */
    bool slopes_cancel;      /* dslopes, differences of sums as large as the distances, are not looked at */
    int64_t block;           /* block_q and block_kv; 0: automatic */
    clattn_context *context; /* NULL: the way's */
    bool runs_alone;         /* the results are not looked at */
} test_backward_how;

/* Runs twice, on the host by 1 and by 5 threads: the same bits, and right. */
void test_backward_check(test_data *t, const char *text, uint64_t seed, const test_way *way,
                         const test_backward_how *how);
#endif
