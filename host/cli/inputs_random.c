/* A text -> a problem with random data. */
#include <math.h>
#include <string.h>

#include "cli.h"
#include "convert.h"
#include "inputs.h"
#include "parallel.h"

/* The output of the splitmix64 generator after `counter` steps from state 0. */
static uint64_t splitmix64(uint64_t counter)
{
    uint64_t z = counter * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* [0, 1) */
static double uniform(uint64_t counter) { return (double)(splitmix64(counter) >> 11) * 0x1p-53; }

typedef struct fill {
    void *data;
    clattn_dtype dtype; /* 0: bytes of a mask */
    int64_t count;
    uint64_t key;
} fill;

enum { FILL_PIECE = 1 << 16 };
static const double share_seen = 0.7; /* of a mask's keys */

/* Box-Muller: numbers 2 j and 2 j + 1 come from counters key + 2 j and key + 2 j + 1. */
static void fill_normal(const fill *f, int64_t begin, int64_t end)
{
    const double two_pi = 6.283185307179586;
    for (int64_t i = begin; i < end; i += 2) {
        const uint64_t counter = f->key + (uint64_t)i;
        const double angle = two_pi * uniform(counter + 1), radius = sqrt(-2 * log(uniform(counter) + 0x1p-53));
        element_put(f->data, f->dtype, i, radius * cos(angle));
        if (i + 1 < end) element_put(f->data, f->dtype, i + 1, radius * sin(angle));
    }
}

static void fill_piece(void *argument, int64_t piece)
{
    const fill *f = argument;
    const int64_t begin = piece * FILL_PIECE, end = f->count - begin < FILL_PIECE ? f->count : begin + FILL_PIECE;
    if (f->dtype)
        fill_normal(f, begin, end);
    else
        for (int64_t i = begin; i < end; i++) ((uint8_t *)f->data)[i] = uniform(f->key + (uint64_t)i) < share_seen;
}

/* A dense tensor of these sizes; dtype 0: a mask. NULL: it has said why. */
static void *random_tensor(const char *what, clattn_dtype dtype, uint64_t key, int64_t a, int64_t b, int64_t c,
                           int64_t d)
{
    fill f = {NULL, dtype, a, key};
    if (__builtin_mul_overflow(f.count, b, &f.count) || __builtin_mul_overflow(f.count, c, &f.count) ||
        __builtin_mul_overflow(f.count, d, &f.count)) {
        cli_fail(CLI_FAILED, "%s has more elements than any memory", what);
        return NULL;
    }
    f.data = cli_alloc(what, f.count, dtype ? clattn_dtype_size(dtype) : 1);
    if (f.data) parallel_for(0, f.count / FILL_PIECE + (f.count % FILL_PIECE != 0), fill_piece, &f);
    return f.data;
}

/* Bias or mask: the dimensions that are not broadcast. */
static void *random_beside_scores(const char *what, clattn_dtype dtype, uint64_t key, const clattn_problem *p,
                                  const clattn_score_strides *s)
{
    return random_tensor(what, dtype, key, s->batch ? p->batch : 1, s->head ? p->n_heads_q : 1, s->q ? p->n_q : 1,
                         s->kv ? p->n_kv : 1);
}

/* f32 [n_heads_q] or [batch, n_heads_q]; a later entry's are smaller. */
static float *slopes_make(const clattn_problem *p)
{
    const int64_t batch = p->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD ? p->batch : 1;
    float *slopes = cli_alloc("ALiBi slopes", batch * p->n_heads_q, sizeof *slopes);
    for (int64_t i = 0; slopes && i < batch * p->n_heads_q; i++)
        slopes[i] = (float)(exp2(-8.0 * (double)(i % p->n_heads_q + 1) / (double)p->n_heads_q) /
                            (double)(i / p->n_heads_q + 1));
    return slopes;
}

/* int64 [batch]: from 0 to n_kv in equal steps. */
static int64_t *lengths_make(const clattn_problem *p)
{
    int64_t *lengths = cli_alloc("kv lengths", p->batch, sizeof *lengths);
    for (int64_t b = 0; lengths && b < p->batch; b++)
        lengths[b] = p->batch == 1 ? p->n_kv : (int64_t)((double)p->n_kv * (double)b / (double)(p->batch - 1));
    return lengths;
}

/* int64 [batch]: the last row of each entry stands at its last key, as in decoding. */
static int64_t *offsets_make(const inputs *in)
{
    int64_t *offsets = cli_alloc("query offsets", in->problem.batch, sizeof *offsets);
    for (int64_t b = 0; offsets && b < in->problem.batch; b++) {
        const entry e = inputs_entry(in, b);
        offsets[b] = e.kv_length - e.n_q;
    }
    return offsets;
}

static int make_sequences(const char *text, inputs *in)
{
    in->cu_seqlens_q = cli_alloc("cu_seqlens_q", in->problem.batch + 1, sizeof *in->cu_seqlens_q);
    in->cu_seqlens_kv = cli_alloc("cu_seqlens_kv", in->problem.batch + 1, sizeof *in->cu_seqlens_kv);
    if (!in->cu_seqlens_q || !in->cu_seqlens_kv) return CLI_FAILED;
    return clattn_problem_text_args(text, NULL, in->cu_seqlens_q, in->cu_seqlens_kv) ? cli_fail_library(NULL, NULL)
                                                                                     : CLI_OK;
}

/* Q, K, V, and what the problem asks for beside them. */
static int make_data(uint64_t key, inputs *in)
{
    const clattn_problem *p = &in->problem;
    const storage s = inputs_storage(p);
    in->q = random_tensor("Q", p->dtype, splitmix64(key + 1), s.batch, p->n_heads_q, s.n_q, p->head_dim_qk);
    if (in->q)
        in->k = random_tensor("K", p->dtype, splitmix64(key + 2), s.batch, p->n_heads_kv, s.n_kv, p->head_dim_qk);
    if (in->k) in->v = random_tensor("V", p->dtype, splitmix64(key + 3), s.batch, p->n_heads_kv, s.n_kv, p->head_dim_v);
    if (!in->v) return CLI_FAILED;
    if (p->bias.dtype) {
        in->bias = random_beside_scores("the bias", p->bias.dtype, splitmix64(key + 4), p, &p->bias.strides);
        if (!in->bias) return CLI_FAILED;
    }
    if (p->mask.boolean) {
        in->mask = random_beside_scores("the mask", (clattn_dtype)0, splitmix64(key + 5), p, &p->mask.strides);
        if (!in->mask) return CLI_FAILED;
        if (p->mask.strides.q && p->n_q) /* row 0 of head 0 sees nothing */
            memset(in->mask, 0, p->mask.strides.kv ? (size_t)p->n_kv : 1);
    }
    if (p->sinks) {
        in->sinks = random_tensor("the sinks", CLATTN_DTYPE_F32, splitmix64(key + 6), 1, 1, 1, p->n_heads_q);
        if (!in->sinks) return CLI_FAILED;
    }
    if (p->alibi && !(in->alibi_slopes = slopes_make(p))) return CLI_FAILED;
    if (p->kv_length_per_batch && !(in->kv_lengths = lengths_make(p))) return CLI_FAILED;
    if (p->query_offset_per_batch && !(in->query_offsets = offsets_make(in))) return CLI_FAILED;
    return CLI_OK;
}

void *inputs_random_d_o(const inputs *in, int64_t seed)
{
    const clattn_problem *p = &in->problem;
    const storage s = inputs_storage(p);
    const uint64_t key = splitmix64((uint64_t)seed + 1);
    return random_tensor("dO", p->dtype, splitmix64(key + 7), s.batch, p->n_heads_q, s.n_q, p->head_dim_v);
}

int inputs_from_text(const char *text, int64_t seed, inputs *in)
{
    clattn_problem *p = &in->problem;
    memset(in, 0, sizeof *in);
    if (clattn_problem_from_text(text, p) || clattn_problem_text_args(text, &in->dropout_seed, NULL, NULL))
        return cli_fail_library(NULL, NULL);
    in->text = text;
    in->layout = p->o.head && p->o.head < p->o.seq ? LAYOUT_BSHD : LAYOUT_BHSD;
    int code = p->varlen ? make_sequences(text, in) : CLI_OK;
    if (!code) code = make_data(splitmix64((uint64_t)seed + 1), in);
    if (code) inputs_free(in);
    return code;
}
