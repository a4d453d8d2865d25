/* A problem as a list of small numbers: one that fails can be made smaller number by number. */
#ifndef CLATTN_TEST_PROBLEM_NUMBERS_H
#define CLATTN_TEST_PROBLEM_NUMBERS_H

#include "harness.h"

typedef enum field {
    DTYPE, /* 0 is f32 */
    WAY,   /* see ways */
    BATCH, /* less 1, as the heads and dims */
    HEADS_KV,
    GROUP,
    N_Q,
    N_KV,
    DIM,
    DIM_V, /* 0: DIM */
    LEFT,  /* window, plus 1; 0: unbounded */
    RIGHT,
    OFFSET,    /* plus 20; 0: none, 1: per batch entry */
    KV_LENGTH, /* plus 2; 0: all, 1: per batch entry */
    SCALE,
    SOFTCAP,
    ALIBI,
    BIAS,
    MASK,
    SINKS,
    DROPOUT,
    VARLEN,
    BSHD,
    DATA, /* see spoil */
    BLOCK_Q,
    BLOCK_KV,
    BACKWARD, /* 1: the gradients too */
    SEED,
    FIELDS
} field;

typedef struct numbers {
    int64_t n[FIELDS];
} numbers;

/* host_tile, host_decode, then the device's kernels */
enum { NUMBERS_WAYS = 7, NUMBERS_MMA = 6, NUMBERS_HOST_WAYS = 2 };

/* splitmix64, and a number in 0..n-1 */
uint64_t numbers_next(uint64_t *state);
int64_t numbers_below(uint64_t *state, int64_t n);

/* Problem i of a seed. Those of a device come in twenties with the same kernel, which takes long to build. */
numbers numbers_make(uint64_t seed, uint64_t i, bool device);

/* As problem text. */
void numbers_text(const numbers *p, char *to, size_t size);

/* Whether its text is a problem's: of fewer keys than its kv_length it is none. */
bool numbers_make_sense(const numbers *p);

/* One line: the text, the way, and the list. */
void numbers_print(const numbers *p);

/* Runs it and asserts what the reference says, or that the kernel does not support it. is_of_many: see test_data. */
void numbers_run(const numbers *p, bool is_of_many);

#endif
