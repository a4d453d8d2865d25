/* What every test program shares: the contexts to test on, problems with their data, and the comparison with the
 * float64 reference. */
#ifndef CLATTN_TEST_HARNESS_H
#define CLATTN_TEST_HARNESS_H

#include <check.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <clattn/clattn.h>

/* Each test program defines this; main.c has main(). */
Suite *test_suite(void);

/* A test case of the suite without time limits of its own: ctest has one. */
TCase *test_case(Suite *suite, const char *name);

/* A context on the device under test: CLATTN_TEST_DEVICE (a name), else device 0. Made at first use in the process, for
 * a process that has touched OpenCL must not fork. NULL: no OpenCL device. */
clattn_context *test_context(void);

/* The device under test; false when there is none. */
bool test_device_info(clattn_device_info *info);

/* Options for another context on that device. */
void test_context_options(clattn_context_options *options);

/* One that believes in this matrix engine, a name that CLATTN_MMA takes. The caller owns it. */
clattn_context *test_context_by(const char *engine);

/* A host-only context, which leaves OpenCL alone. */
clattn_context *test_host_context(void);

/* The reference, from plain pointers. */
static inline clattn_status test_reference_forward(const clattn_problem *p, const void *q, const void *k, const void *v,
                                                   const int64_t *kv_lengths, const int64_t *query_offsets, double *o,
                                                   double *lse)
{
    clattn_forward_args args;
    clattn_forward_args_init(&args);
    args.q = clattn_host_buffer(q);
    args.k = clattn_host_buffer(k);
    args.v = clattn_host_buffer(v);
    args.kv_lengths = clattn_host_buffer(kv_lengths);
    args.query_offsets = clattn_host_buffer(query_offsets);
    return clattn_reference_forward(p, &args, o, lse);
}

/* Prints "SKIPPED: test: why", which CI counts. */
void test_skip(const char *test, const char *why);

/* Asserts success, with the library's own sentence when there is none. */
#define test_ok(call) test_ok_at(call, #call, __FILE__, __LINE__)
void test_ok_at(clattn_status status, const char *call, const char *file, int line);

/* The three ways to run a problem. */
enum { TEST_WAYS = 3 };
typedef struct test_way {
    const char *name;
    clattn_path path;
    clattn_kernel kernel;
} test_way;
extern const test_way test_ways[TEST_WAYS]; /* host, device lanes, device local-memory */

/* The context that a way runs on; NULL after a test_skip when it cannot run problems of this type here. */
clattn_context *test_way_context(const test_way *way, clattn_dtype dtype);

/* One tensor's memory: [guard][elements and the gaps between them][guard]. */
typedef struct test_block {
    unsigned char *base, *image; /* image: what base held when the plan was last run */
    size_t bytes;
} test_block;

/* A problem's data: inputs in the problem's strides, outputs with guard bytes around them. */
typedef struct test_data {
    clattn_problem p;
    void *q, *k, *v, *o; /* element [0, 0, 0, 0] */
    float *lse;
    int64_t *kv_lengths, *query_offsets;   /* [batch] or NULL; the test fills them */
    void *bias;                            /* in the problem's strides, N(0,1), or NULL */
    uint8_t *mask;                         /* in the problem's strides, 1 with probability 0.7, or NULL */
    float *alibi_slopes, *sinks;           /* or NULL */
    const void *score_data;                /* the test's own */
    int64_t *cu_seqlens_q, *cu_seqlens_kv; /* [batch + 1] or NULL; the test fills them */
    uint64_t dropout_seed;
    clattn_dtype products;   /* of the last run's plan */
    bool is_of_many;         /* one of problems with a thousand million outputs, see harness.c, "comparing" */
    double *ref_o, *ref_lse; /* dense; from test_reference */
    test_block blocks[5];    /* of q, k, v, o, lse; packed: k and v have none */
    char text[200];          /* the problem, and after test_run the way and block sizes */
} test_data;

/* N(0,1) inputs from seed, rounded to the problem's type. Gaps, guards and outputs hold NaN; the seed also moves the
 * tensors off their alignment by 0 to 3 elements. packed: Q, K and V are one tensor [batch, seq, all heads, dim]. */
test_data *test_data_make(const clattn_problem *p, uint64_t seed);
test_data *test_data_make_packed(const clattn_problem *p, uint64_t seed);
void test_data_free(test_data *t);
void test_reference(test_data *t);

/* One element, any type. which: 'q' 'k' 'v' 'o' */
double test_get(const test_data *t, char which, int64_t b, int64_t h, int64_t row, int64_t d);
void test_set(test_data *t, char which, int64_t b, int64_t h, int64_t row, int64_t d, double value);
float test_get_lse(const test_data *t, int64_t b, int64_t h, int64_t row);

/* The same by its bits, and whole rows at once. */
uint64_t test_get_bits(const test_data *t, char which, int64_t b, int64_t h, int64_t row, int64_t d);
void test_set_bits(test_data *t, char which, int64_t b, int64_t h, int64_t row, int64_t d, uint64_t bits);
void test_set_row(test_data *t, char which, int64_t b, int64_t h, int64_t row, double value);

/* A plan for t->p on a way with these block sizes (0: automatic), asserting from its info that it is what was asked for.
 * n_threads: of the host path, 0 automatic. */
clattn_plan *test_plan(clattn_context *context, const clattn_problem *p, const test_way *way, int64_t block_q,
                       int64_t block_kv, int n_threads);

/* The problem's args: every input and output of t. */
clattn_forward_args test_args(const test_data *t);

/* Poisons the outputs and runs; asserts that only they were written. */
void test_forward(test_data *t, const clattn_plan *plan);

/* Four threads call the plan twenty times each: the bits of test_forward before it. t is dense. */
void test_call_often(const clattn_plan *plan, const test_data *t);

/* Both, on the way's own context, which must be there. */
void test_run(test_data *t, const test_way *way, int64_t block_q, int64_t block_kv);

/* Asserts O and LSE against the reference within the tolerance of the type and length. */
void test_compare(test_data *t, const char *what);

/* Errors of O against the reference. */
void test_errors(const test_data *t, double *max, double *rms);

/* Asserts that O and LSE of a and b, of equal shapes, agree to the bit. */
void test_same_bits(const test_data *a, const test_data *b, const char *what);

/* All of it: data, reference, one way or each, comparison. */
void test_problem_on(const clattn_problem *p, const test_way *way, int64_t block_q, int64_t block_kv);
void test_problem(const char *text);

/* The same from text that may list sequences and a seed. */
test_data *test_data_from_text(const char *text, uint64_t seed);

/* ---- features alone and in pairs */

enum { TEST_FEATURES = 14, TEST_PAIRS = 1 + TEST_FEATURES * (TEST_FEATURES + 1) / 2 };

/* Pair n of {none, each alone, each with a later one}, as bits. */
unsigned test_pair_of(int n);

/* The problem of a pair, in one of three shapes; false where the two exclude each other. */
bool test_pair_problem(unsigned features, clattn_dtype dtype, int nth_shape, clattn_problem *p);

/* Its data, with the numbers that the text leaves open. The first rows of the mask hide everything, and so do the keys from
 * 16 to 35. */
test_data *test_pair_data(const clattn_problem *p, uint64_t seed);

/* The pairs' score function: it adds what the table [4 heads, 64] has for (i - j) mod 64. */
double test_table_function(double score, int64_t b, int64_t h, int64_t i, int64_t j, const void *data);
extern const char test_table_source[];
extern float test_table[4 * 64];

/* Element of what stands beside the scores, through its strides. */
int64_t test_beside(clattn_score_strides s, int64_t b, int64_t h, int64_t i, int64_t j);

#endif
