/* What every test program shares: main(), the contexts to test on, problems with their data, and the comparison with the
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

/* Each test program defines this; harness.c has main(). */
Suite *test_suite(void);

/* A context on the device under test: CLATTN_TEST_DEVICE (a name), else device 0. Made at first use in the process, for
 * a process that has touched OpenCL must not fork. NULL: no OpenCL device. */
clattn_context *test_context(void);

/* Prints "SKIPPED: test: why", which CI counts. */
void test_skip(const char *test, const char *why);

/* The three ways to run a problem. */
typedef struct test_way {
    const char *name;
    clattn_path path;
    clattn_kernel kernel;
} test_way;
extern const test_way test_ways[3]; /* host, device lanes, device local-memory */

/* A problem's data: inputs in the problem's strides, outputs with guard bytes around them. */
typedef struct test_data {
    clattn_problem p;
    void *q, *k, *v, *o;
    float *lse;
    int64_t *kv_lengths, *query_offsets; /* [batch] or NULL */
    double *ref_o, *ref_lse;             /* dense; from test_reference */
} test_data;

/* N(0,1) inputs from seed, rounded to the problem's type. The gaps that strides leave hold NaN. */
test_data *test_data_make(const clattn_problem *p, uint64_t seed);
void test_data_free(test_data *t);
void test_reference(test_data *t);

/* One element, any type. which: 'q' 'k' 'v' 'o' */
double test_get(const test_data *t, char which, int64_t b, int64_t h, int64_t row, int64_t d);
void test_set(test_data *t, char which, int64_t b, int64_t h, int64_t row, int64_t d, double value);

/* Runs t->p on a way with these block sizes (0: automatic) and asserts from the plan that it ran there. */
void test_run(test_data *t, const test_way *way, int64_t block_q, int64_t block_kv);

/* Asserts O and LSE against the reference within the tolerance of the type and length, and that nothing but O and LSE was
 * written. */
void test_compare(test_data *t, const char *what);

/* All of it: data, reference, each way, comparison. */
void test_problem(const char *text);

#endif
