/* The public interface: what it refuses and in which words, what it promises about lifetimes, names, texts, the log and
 * the choice of a path. Every refusal leaves the outputs alone and the next good call works. */
#define _POSIX_C_SOURCE 200809L
#include "harness.h"

#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

enum { B = 2, HQ = 4, HKV = 2, NQ = 5, NKV = 7, D = 8, DV = 6, ROOM = 4096 };
static const float sentinel = 12345.5F;

/* A small problem, its data, and what the reference says. */
typedef struct fixture {
    float q[ROOM], k[ROOM], v[ROOM], o[ROOM], lse[ROOM];
    int64_t lengths[B], offsets[B];
    double ref_o[ROOM], ref_lse[ROOM];
} fixture;
static fixture f;

static void setup(void)
{
    uint32_t x = 1;
    float *const inputs[] = {f.q, f.k, f.v};
    for (int t = 0; t < 3; t++)
        for (int i = 0; i < ROOM; i++) {
            x = x * 1664525U + 1013904223U;
            inputs[t][i] = (float)(x >> 8) * 0x1p-23F - 1;
        }
    for (int i = 0; i < ROOM; i++) f.o[i] = f.lse[i] = sentinel;
    for (int b = 0; b < B; b++) {
        f.lengths[b] = NKV - b;
        f.offsets[b] = b;
    }
}

static clattn_problem good_problem(void)
{
    clattn_problem p;
    clattn_problem_init(&p, CLATTN_DTYPE_F32, B, HQ, HKV, NQ, NKV, D);
    p.head_dim_v = DV;
    return p;
}

static clattn_forward_args good_args(void)
{
    clattn_forward_args a;
    clattn_forward_args_init(&a);
    a.q = clattn_host_buffer(f.q);
    a.k = clattn_host_buffer(f.k);
    a.v = clattn_host_buffer(f.v);
    a.o = clattn_host_buffer(f.o);
    a.lse = clattn_host_buffer(f.lse);
    return a;
}

static clattn_context *context_of(clattn_device_select device)
{
    clattn_context_options o;
    clattn_context *c = NULL;
    clattn_context_options_init(&o);
    o.device = device;
    ck_assert_msg(clattn_context_create(&o, &c) == CLATTN_STATUS_SUCCESS, "%s", clattn_last_error()->message);
    ck_assert_ptr_nonnull(c);
    return c;
}
static clattn_context *host_context(void) { return context_of(CLATTN_DEVICE_NONE); }

/* Four words at most that a sentence must hold. */
typedef const char *words[4];

static void expect(clattn_status got, clattn_status want, const words says, const char *what)
{
    const clattn_error *e = clattn_last_error();
    ck_assert_msg(got == want, "%s: %s, not %s: %s", what, clattn_status_name(got), clattn_status_name(want),
                  e->message);
    ck_assert_msg(e->status == want, "%s: the last error is %s", what, clattn_status_name(e->status));
    ck_assert_msg(strlen(e->message) > 8 && !strchr(e->message, '\n'), "%s: '%s' is no sentence", what, e->message);
    for (int i = 0; says && i < 4 && says[i]; i++)
        ck_assert_msg(strstr(e->message, says[i]) != NULL, "%s: '%s' lacks '%s'", what, e->message, says[i]);
}

static void expect_untouched(const char *what)
{
    for (int i = 0; i < ROOM; i++)
        ck_assert_msg(f.o[i] == sentinel && f.lse[i] == sentinel, "%s: wrote an output at %d", what, i);
}

/* O and LSE are dense, and right within a few roundings of sums of NKV products of D. */
static void expect_right(const clattn_problem *p, const char *what)
{
    const int64_t rows = p->batch * p->n_heads_q * p->n_q;
    const clattn_status status = test_reference_forward(p, f.q, f.k, f.v, f.lengths, f.offsets, f.ref_o, f.ref_lse);
    ck_assert_msg(status == CLATTN_STATUS_SUCCESS, "%s: reference: %s", what, clattn_last_error()->message);
    for (int64_t i = 0; i < rows * p->head_dim_v; i++)
        ck_assert_msg(fabs(f.o[i] - f.ref_o[i]) < 2e-6, "%s: O[%d] is %g, not %g", what, (int)i, (double)f.o[i],
                      f.ref_o[i]);
    for (int64_t i = 0; i < rows; i++)
        ck_assert_msg((isinf(f.ref_lse[i]) && (double)f.lse[i] == f.ref_lse[i]) || fabs(f.lse[i] - f.ref_lse[i]) < 4e-6,
                      "%s: LSE[%d] is %g, not %g", what, (int)i, (double)f.lse[i], f.ref_lse[i]);
    ck_assert_msg(f.o[rows * p->head_dim_v] == sentinel && f.lse[rows] == sentinel, "%s: wrote past an output", what);
}

static void run_good(clattn_context *c, const char *what)
{
    const clattn_problem p = good_problem();
    const clattn_status status = clattn_attention(c, &p, f.q, f.k, f.v, f.o, f.lse);
    ck_assert_msg(status == CLATTN_STATUS_SUCCESS, "%s: then a good call: %s", what, clattn_last_error()->message);
    expect_right(&p, what);
}

/* ---- names */

START_TEST(version_text)
{
    char want[32];
    snprintf(want, sizeof want, "%d.%d.%d", CLATTN_VERSION_MAJOR, CLATTN_VERSION_MINOR, CLATTN_VERSION_PATCH);
    ck_assert_str_eq(clattn_version(), want);
}
END_TEST

START_TEST(status_names)
{
    int n = 0;
#define CHECK(name, value, text)                                                                                       \
    ck_assert_int_eq(CLATTN_STATUS_##name, value);                                                                     \
    ck_assert_str_eq(clattn_status_name(CLATTN_STATUS_##name), #name);                                                 \
    ck_assert_str_eq(clattn_status_text(CLATTN_STATUS_##name), text);                                                  \
    n++;
    CLATTN_STATUS_MAP(CHECK)
#undef CHECK
    ck_assert_int_eq(n, CLATTN_STATUS_COUNT);
    const int outside[] = {-1, CLATTN_STATUS_COUNT, 1000, INT_MAX};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        ck_assert_str_eq(clattn_status_name((clattn_status)outside[i]), "UNKNOWN");
        ck_assert_str_eq(clattn_status_text((clattn_status)outside[i]), "unknown status");
    }
}
END_TEST

START_TEST(dtype_names)
{
#define CHECK(name, value, bytes, text)                                                                                \
    ck_assert_str_eq(clattn_dtype_name(CLATTN_DTYPE_##name), text);                                                    \
    ck_assert_uint_eq(clattn_dtype_size(CLATTN_DTYPE_##name), bytes);
    CLATTN_DTYPE_MAP(CHECK)
#undef CHECK
    const int outside[] = {-1, 0, 5, 1000};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        ck_assert_str_eq(clattn_dtype_name((clattn_dtype)outside[i]), "unknown");
        ck_assert_uint_eq(clattn_dtype_size((clattn_dtype)outside[i]), 0);
    }
}
END_TEST

START_TEST(path_and_kernel_names)
{
#define CHECK(name, value, text) ck_assert_str_eq(clattn_path_name(CLATTN_PATH_##name), text);
    CLATTN_PATH_MAP(CHECK)
#undef CHECK
#define CHECK(name, value, text) ck_assert_str_eq(clattn_kernel_name(CLATTN_KERNEL_##name), text);
    CLATTN_KERNEL_MAP(CHECK)
#undef CHECK
    ck_assert_str_eq(clattn_path_name((clattn_path)3), "unknown");
    ck_assert_str_eq(clattn_path_name((clattn_path)-1), "unknown");
    ck_assert_str_eq(clattn_kernel_name((clattn_kernel)99), "unknown");
    ck_assert_str_eq(clattn_kernel_name((clattn_kernel)-1), "unknown");
}
END_TEST

START_TEST(stride_helpers)
{
    const clattn_strides s = clattn_strides_bhsd(3, 5, 7), t = clattn_strides_bshd(3, 5, 7);
    ck_assert_int_eq(s.batch, 105);
    ck_assert_int_eq(s.head, 35);
    ck_assert_int_eq(s.seq, 7);
    ck_assert_int_eq(t.batch, 105);
    ck_assert_int_eq(t.head, 7);
    ck_assert_int_eq(t.seq, 21);
    const clattn_buffer b = clattn_host_buffer(f.q);
    ck_assert(b.host == f.q && b.mem == NULL && b.offset == 0);
}
END_TEST

START_TEST(problem_init_defaults)
{
    clattn_problem p;
    memset(&p, 0xa5, sizeof p);
    clattn_problem_init(&p, CLATTN_DTYPE_BF16, 1, 2, 3, 4, 5, 6);
    ck_assert_uint_eq(p.struct_size, sizeof p);
    ck_assert(p.dtype == CLATTN_DTYPE_BF16 && p.batch == 1 && p.n_heads_q == 2 && p.n_heads_kv == 3 && p.n_q == 4);
    ck_assert(p.n_kv == 5 && p.head_dim_qk == 6 && p.head_dim_v == 6 && p.scale == CLATTN_SCALE_AUTO);
    ck_assert(p.mask.window_left == CLATTN_WINDOW_UNBOUNDED && p.mask.window_right == CLATTN_WINDOW_UNBOUNDED);
    ck_assert(p.query_offset == 0 && p.kv_length == CLATTN_KV_LENGTH_ALL && !p.query_offset_per_batch);
    ck_assert(!p.kv_length_per_batch && !p.q.batch && !p.k.head && !p.v.seq && !p.o.seq && !p.lse.batch);
}
END_TEST

START_TEST(inits_of_null)
{
    clattn_problem_init(NULL, CLATTN_DTYPE_F32, 1, 1, 1, 1, 1, 1);
    clattn_device_info_init(NULL);
    clattn_context_options_init(NULL);
    clattn_plan_options_init(NULL);
    clattn_plan_info_init(NULL);
    clattn_forward_args_init(NULL);
    ck_assert_int_eq(clattn_last_error()->status, CLATTN_STATUS_SUCCESS);
}
END_TEST

START_TEST(inits_fill_all)
{
    clattn_device_info d;
    clattn_context_options c;
    clattn_plan_options o;
    clattn_plan_info i;
    clattn_forward_args a;
    memset(&d, 0xa5, sizeof d);
    memset(&c, 0xa5, sizeof c);
    memset(&o, 0xa5, sizeof o);
    memset(&i, 0xa5, sizeof i);
    memset(&a, 0xa5, sizeof a);
    clattn_device_info_init(&d);
    clattn_context_options_init(&c);
    clattn_plan_options_init(&o);
    clattn_plan_info_init(&i);
    clattn_forward_args_init(&a);
    ck_assert(d.struct_size == sizeof d && d.name[0] == 0 && d.why[0] == 0 && d.index == 0);
    ck_assert(c.struct_size == sizeof c && c.device == CLATTN_DEVICE_DEFAULT && !c.device_name && c.n_threads == 0);
    ck_assert(!c.parallel_for && !c.log && !c.copy_transfers && c.program_cache == CLATTN_PROGRAM_CACHE_DEFAULT);
    ck_assert_int_eq(c.copy_bytes_most, 0);
    ck_assert(o.struct_size == sizeof o && o.path == CLATTN_PATH_AUTO && o.kernel == CLATTN_KERNEL_AUTO);
    ck_assert(o.block_q == 0 && o.block_kv == 0 && o.n_threads == 0);
    ck_assert(i.struct_size == sizeof i && i.n_threads == 0 && i.instructions == NULL);
    ck_assert(a.struct_size == sizeof a && !a.q.host && !a.lse.mem && !a.kv_lengths.host && !a.workspace.offset);
}
END_TEST

/* ---- problems that are refused */

typedef struct set_field {
    size_t at;
    char kind; /* 'l' int64, 'i' int or enum, 'z' size_t, 'd' double; 0: none */
    int64_t n;
    double x;
} set_field;

#define L(field, value)                                                                                                \
    {                                                                                                                  \
        offsetof(clattn_problem, field), 'l', value, 0                                                                 \
    }
#define I(field, value)                                                                                                \
    {                                                                                                                  \
        offsetof(clattn_problem, field), 'i', value, 0                                                                 \
    }
#define Z(field, value)                                                                                                \
    {                                                                                                                  \
        offsetof(clattn_problem, field), 'z', (int64_t)(value), 0                                                      \
    }
#define X(field, value)                                                                                                \
    {                                                                                                                  \
        offsetof(clattn_problem, field), 'd', 0, value                                                                 \
    }
#define STRIDES(t, b, h, s) L(t.batch, b), L(t.head, h), L(t.seq, s)

typedef struct problem_case {
    const char *what;
    set_field set[3];
    words says;
} problem_case;

static void set_fields(clattn_problem *p, const set_field *set)
{
    for (int i = 0; i < 3 && set[i].kind; i++) {
        void *field = (char *)p + set[i].at;
        const int n = (int)set[i].n;
        const size_t z = (size_t)set[i].n;
        if (set[i].kind == 'l') memcpy(field, &set[i].n, sizeof set[i].n);
        if (set[i].kind == 'i') memcpy(field, &n, sizeof n);
        if (set[i].kind == 'z') memcpy(field, &z, sizeof z);
        if (set[i].kind == 'd') memcpy(field, &set[i].x, sizeof set[i].x);
    }
}

static const problem_case refused[] = {
    {"struct_size 0", {Z(struct_size, 0)}, {"problem.struct_size is 0", "clattn_problem_init"}},
    {"struct_size past", {Z(struct_size, sizeof(clattn_problem) - 8)}, {"problem.struct_size"}},
    {"struct_size future", {Z(struct_size, sizeof(clattn_problem) + 8)}, {"problem.struct_size"}},
    {"struct_size all ones", {Z(struct_size, SIZE_MAX)}, {"problem.struct_size is 18446744073709551615"}},
    {"dtype 0", {I(dtype, 0)}, {"dtype is 0"}},
    {"dtype 5", {I(dtype, 5)}, {"dtype is 5"}},
    {"dtype -1", {I(dtype, -1)}, {"dtype is -1"}},
    {"batch 0", {L(batch, 0)}, {"batch is 0", "at least 1"}},
    {"batch -1", {L(batch, -1)}, {"batch is -1"}},
    {"batch least", {L(batch, INT64_MIN)}, {"batch is -9223372036854775808"}},
    {"n_heads_q 0", {L(n_heads_q, 0)}, {"n_heads_q is 0"}},
    {"n_heads_q -4", {L(n_heads_q, -4)}, {"n_heads_q is -4"}},
    {"n_heads_kv 0", {L(n_heads_kv, 0)}, {"n_heads_kv is 0"}},
    {"n_heads_kv -2", {L(n_heads_kv, -2)}, {"n_heads_kv is -2"}},
    {"n_q -1", {L(n_q, -1)}, {"n_q is -1", "at least 0"}},
    {"n_kv -1", {L(n_kv, -1)}, {"n_kv is -1"}},
    {"n_kv least", {L(n_kv, INT64_MIN)}, {"n_kv is -9223372036854775808"}},
    {"head_dim_qk 0", {L(head_dim_qk, 0)}, {"head_dim_qk is 0"}},
    {"head_dim_qk -8", {L(head_dim_qk, -8)}, {"head_dim_qk is -8"}},
    {"head_dim_v 0", {L(head_dim_v, 0)}, {"head_dim_v is 0", "at least 1"}},
    {"head_dim_v -1", {L(head_dim_v, -1)}, {"head_dim_v is -1"}},
    {"5 heads in groups of 2", {L(n_heads_q, 5)}, {"n_heads_q is 5", "multiple of n_heads_kv, 2"}},
    {"fewer query heads", {L(n_heads_q, 1)}, {"n_heads_q is 1", "2"}},
    {"scale inf", {X(scale, (double)INFINITY)}, {"scale is inf"}},
    {"scale -inf", {X(scale, -(double)INFINITY)}, {"scale is -inf"}},
    {"scale NaN", {X(scale, (double)NAN)}, {"scale is", "nan"}},
    {"scale of f64", {X(scale, 1.5e308), I(dtype, CLATTN_DTYPE_F64)}, {"scale is 1.5e+308", "1e+308"}},
    {"window_left -2", {L(mask.window_left, -2)}, {"window_left is -2", "-1 for no bound"}},
    {"window_left least", {L(mask.window_left, INT64_MIN)}, {"window_left is -9223372036854775808"}},
    {"window_right -2", {L(mask.window_right, -2)}, {"window_right is -2"}},
    {"window_right -100", {L(mask.window_right, -100)}, {"window_right is -100"}},
    {"kv_length 8 of 7", {L(kv_length, 8)}, {"kv_length is 8", "0..n_kv = 7"}},
    {"kv_length -2", {L(kv_length, -2)}, {"kv_length is -2"}},
    {"kv_length least", {L(kv_length, INT64_MIN)}, {"kv_length is -9223372036854775808"}},
    {"kv_length most", {L(kv_length, INT64_MAX)}, {"kv_length is 9223372036854775807"}},
    {"q.batch -1", {L(q.batch, -1)}, {"q is [", "-1", "negative"}},
    {"q.head -8", {STRIDES(q, 160, -8, 8)}, {"q is [", "-8"}},
    {"k.seq -8", {STRIDES(k, 112, 56, -8)}, {"k is [", "-8"}},
    {"v.head least", {STRIDES(v, 84, INT64_MIN, 6)}, {"v is [", "-9223372036854775808"}},
    {"o.seq -6", {STRIDES(o, 120, 30, -6)}, {"o is [", "-6"}},
    {"lse.seq -1", {L(lse.seq, -1)}, {"lse is [", "-1"}},
    {"o rows overlap", {STRIDES(o, 120, 30, 5)}, {"o ", "(120, 30, 5", "overlap"}},
    {"o heads overlap", {STRIDES(o, 120, 29, 6)}, {"o ", "(120, 29, 6", "overlap"}},
    {"o batches overlap", {STRIDES(o, 119, 30, 6)}, {"o ", "(119, 30, 6", "overlap"}},
    {"o heads interleave and overlap", {STRIDES(o, 120, 5, 24)}, {"o ", "(120, 5, 24", "overlap"}},
    {"o of one row for all", {STRIDES(o, 120, 30, 0)}, {"o ", "(120, 30, 0", "overlap"}},
    {"o of one batch for all", {STRIDES(o, 0, 30, 6)}, {"o ", "(0, 30, 6", "overlap"}},
    {"lse rows overlap", {STRIDES(lse, 20, 5, 0)}, {"lse ", "(20, 5, 0", "overlap"}},
    {"lse heads overlap", {STRIDES(lse, 20, 4, 1)}, {"lse ", "(20, 4, 1", "overlap"}},
    {"lse batches overlap", {STRIDES(lse, 19, 5, 1)}, {"lse ", "(19, 5, 1", "overlap"}},
    {"n_q most", {L(n_q, INT64_MAX)}, {"9223372036854775807", "overflows 64 bits"}},
    {"n_kv 2^62", {L(n_kv, INT64_C(1) << 62)}, {"4611686018427387904"}},
    {"head_dim_qk 2^61", {L(head_dim_qk, INT64_C(1) << 61)}, {"2305843009213693952"}},
    {"head_dim_v 2^62", {L(head_dim_v, INT64_C(1) << 62)}, {"4611686018427387904"}},
    {"batch 2^60", {L(batch, INT64_C(1) << 60)}, {"1152921504606846976", "2^63"}},
    {"q.batch most", {STRIDES(q, INT64_MAX, 40, 8)}, {"q ", "9223372036854775807", "2^63"}},
    {"k.head most", {STRIDES(k, 112, INT64_MAX, 8)}, {"k ", "9223372036854775807", "2^63"}},
    {"v.seq 2^61", {STRIDES(v, 84, 42, INT64_C(1) << 61)}, {"v ", "2305843009213693952", "2^63"}},
    {"o.batch 2^61 elements is 2^63 bytes", {STRIDES(o, INT64_C(1) << 61, 30, 6)}, {"o ", "2305843009213693952"}},
    {"lse.head 2^62", {STRIDES(lse, 20, INT64_C(1) << 62, 1)}, {"lse ", "4611686018427387904"}},
};
enum { N_REFUSED = sizeof refused / sizeof *refused };

START_TEST(problem_refused)
{
    const problem_case *c = &refused[_i];
    clattn_problem p = good_problem();
    clattn_context *context = host_context();
    clattn_plan *const marker = (clattn_plan *)(void *)&p, *plan = marker;
    set_fields(&p, c->set);
    expect(clattn_problem_check(&p), CLATTN_STATUS_INVALID_ARGUMENT, c->says, c->what);
    expect(clattn_plan_create(context, &p, NULL, &plan), CLATTN_STATUS_INVALID_ARGUMENT, c->says, c->what);
    ck_assert_msg(plan == marker, "%s: *plan was changed", c->what);
    expect(clattn_attention(context, &p, f.q, f.k, f.v, f.o, f.lse), CLATTN_STATUS_INVALID_ARGUMENT, c->says, c->what);
    for (int i = 0; i < ROOM; i++) f.ref_o[i] = f.ref_lse[i] = (double)sentinel;
    expect(test_reference_forward(&p, f.q, f.k, f.v, f.lengths, f.offsets, f.ref_o, f.ref_lse),
           CLATTN_STATUS_INVALID_ARGUMENT, c->says, c->what);
    for (int i = 0; i < ROOM; i++)
        ck_assert_msg(f.ref_o[i] == (double)sentinel && f.ref_lse[i] == (double)sentinel, "%s: reference wrote",
                      c->what);
    expect_untouched(c->what);
    run_good(context, c->what);
    ck_assert_int_eq(clattn_context_release(context), CLATTN_STATUS_SUCCESS);
}
END_TEST

/* ---- problems at the edge of what is legal */

static const problem_case legal[] = {
    {"scale 0", {X(scale, 0.0)}, {NULL}},
    {"scale below 0", {X(scale, -2.5)}, {NULL}},
    {"scale nearly automatic", {X(scale, -1e-300)}, {NULL}},
    {"window most", {L(mask.window_left, INT64_MAX), L(mask.window_right, INT64_MAX)}, {NULL}},
    {"window 0,0", {L(mask.window_left, 0), L(mask.window_right, 0)}, {NULL}},
    {"offset most, left window", {L(query_offset, INT64_MAX), L(mask.window_left, INT64_MAX)}, {NULL}},
    {"offset most, causal", {L(query_offset, INT64_MAX), L(mask.window_right, 0)}, {NULL}},
    {"offset least, causal", {L(query_offset, INT64_MIN), L(mask.window_right, 0)}, {NULL}},
    {"offset least, wide right", {L(query_offset, INT64_MIN), L(mask.window_right, INT64_MAX)}, {NULL}},
    {"offset -3, causal", {L(query_offset, -3), L(mask.window_right, 0)}, {NULL}},
    {"kv_length 0", {L(kv_length, 0)}, {NULL}},
    {"kv_length all", {L(kv_length, NKV)}, {NULL}},
    {"kv_length 3", {L(kv_length, 3)}, {NULL}},
    {"n_q 0", {L(n_q, 0)}, {NULL}},
    {"n_kv 0", {L(n_kv, 0)}, {NULL}},
    {"one query, many heads", {L(n_q, 1), L(n_heads_q, 6), L(n_heads_kv, 3)}, {NULL}},
    {"one key row for all", {STRIDES(k, 0, 8, 0)}, {NULL}},
    {"q the same in every head", {STRIDES(q, 40, 0, 8)}, {NULL}},
    {"v bshd", {STRIDES(v, 84, 6, 12)}, {NULL}},
    {"stride of a dimension of one", {L(batch, 1), L(o.batch, INT64_MAX), L(o.head, 30)}, {NULL}},
    {"head dims 1", {L(head_dim_qk, 1), L(head_dim_v, 1)}, {NULL}},
};
enum { N_LEGAL = sizeof legal / sizeof *legal };

START_TEST(problem_legal)
{
    const problem_case *c = &legal[_i];
    clattn_problem p = good_problem();
    clattn_context *context = host_context();
    set_fields(&p, c->set);
    if (p.o.head) p.o.seq = 6;
    ck_assert_msg(clattn_problem_check(&p) == CLATTN_STATUS_SUCCESS, "%s: %s", c->what, clattn_last_error()->message);
    ck_assert_msg(clattn_attention(context, &p, f.q, f.k, f.v, f.o, f.lse) == CLATTN_STATUS_SUCCESS, "%s: %s", c->what,
                  clattn_last_error()->message);
    expect_right(&p, c->what);
    clattn_context_release(context);
}
END_TEST

START_TEST(out_of_range_field_that_is_unused)
{
    clattn_problem p = good_problem();
    p.kv_length = -77; /* unused: the lengths come with the call */
    p.kv_length_per_batch = 1;
    ck_assert_int_eq(clattn_problem_check(&p), CLATTN_STATUS_SUCCESS);
    p.kv_length_per_batch = 0;
    ck_assert_int_eq(clattn_problem_check(&p), CLATTN_STATUS_INVALID_ARGUMENT);
}
END_TEST

/* ---- arguments that are refused, on every way to run */

typedef struct args_case {
    const char *what;
    void (*spoil)(clattn_forward_args *a);
    words says;
} args_case;

#define SPOIL(name, ...)                                                                                               \
    static void spoil_##name(clattn_forward_args *a) { (void)a, __VA_ARGS__; }
#define ARGS(name, ...)                                                                                                \
    {                                                                                                                  \
#name, spoil_##name, { __VA_ARGS__ }                                                                           \
    }

SPOIL(struct_size_0, a->struct_size = 0)
SPOIL(struct_size_past, a->struct_size -= 8)
SPOIL(struct_size_future, a->struct_size += 8)
SPOIL(no_q, a->q.host = NULL)
SPOIL(no_k, a->k.host = NULL)
SPOIL(no_v, a->v.host = NULL)
SPOIL(no_o, a->o.host = NULL)
SPOIL(no_lengths, a->kv_lengths.host = NULL)
SPOIL(no_offsets, a->query_offsets.host = NULL)
SPOIL(q_both, a->q.mem = f.q)
SPOIL(o_both, a->o.mem = f.o)
SPOIL(lse_both, a->lse.mem = f.lse)
SPOIL(lengths_both, a->kv_lengths.mem = f.lengths)
SPOIL(offsets_both, a->query_offsets.mem = f.offsets)
SPOIL(workspace_both, a->workspace.host = f.q, a->workspace.mem = f.q)
SPOIL(q_misaligned, a->q.host = (char *)f.q + 1)
SPOIL(k_misaligned, a->k.host = (char *)f.k + 2)
SPOIL(o_misaligned, a->o.host = (char *)f.o + 3)
SPOIL(lse_misaligned, a->lse.host = (char *)f.lse + 2)
SPOIL(lengths_misaligned, a->kv_lengths.host = (char *)f.lengths + 4)
SPOIL(offsets_misaligned, a->query_offsets.host = (char *)f.offsets + 4)
SPOIL(q_offset_odd, a->q.offset = 2)
SPOIL(v_offset_odd, a->v.offset = 7)
SPOIL(lse_offset_odd, a->lse.offset = 1)
SPOIL(lengths_offset_odd, a->kv_lengths.offset = 4)
SPOIL(o_is_q, a->o.host = f.q)
SPOIL(o_ends_in_k, a->o.host = f.k, a->k.host = f.k + B * HQ * NQ * DV - 1)
SPOIL(o_begins_in_v, a->o.host = f.v + B * HKV * NKV * DV - 1)
SPOIL(lse_in_o, a->lse.host = f.o + 8)
SPOIL(lse_is_v, a->lse.host = f.v)
SPOIL(length_too_long, f.lengths[1] = NKV + 1)
SPOIL(length_negative, f.lengths[0] = -1)
SPOIL(length_least, f.lengths[1] = INT64_MIN)
SPOIL(q_mem, a->q = (clattn_buffer){NULL, f.q, 0})
SPOIL(o_mem, a->o = (clattn_buffer){NULL, f.o, 0})
SPOIL(lse_mem, a->lse = (clattn_buffer){NULL, f.lse, 0})
SPOIL(lengths_mem, a->kv_lengths = (clattn_buffer){NULL, f.lengths, 0})
SPOIL(offsets_mem, a->query_offsets = (clattn_buffer){NULL, f.offsets, 0})

static const args_case bad_args[] = {
    ARGS(struct_size_0, "args.struct_size is 0", "clattn_forward_args_init"),
    ARGS(struct_size_past, "args.struct_size"),
    ARGS(struct_size_future, "args.struct_size"),
    ARGS(no_q, "args.q is absent"),
    ARGS(no_k, "args.k is absent"),
    ARGS(no_v, "args.v is absent"),
    ARGS(no_o, "args.o is absent"),
    ARGS(no_lengths, "args.kv_lengths is absent"),
    ARGS(no_offsets, "args.query_offsets is absent"),
    ARGS(q_both, "args.q has both"),
    ARGS(o_both, "args.o has both"),
    ARGS(lse_both, "args.lse has both"),
    ARGS(lengths_both, "args.kv_lengths has both"),
    ARGS(offsets_both, "args.query_offsets has both"),
    ARGS(workspace_both, "args.workspace has both"),
    ARGS(q_misaligned, "args.q", "aligned to 4"),
    ARGS(k_misaligned, "args.k", "aligned to 4"),
    ARGS(o_misaligned, "args.o", "aligned to 4"),
    ARGS(lse_misaligned, "args.lse", "aligned to 4"),
    ARGS(lengths_misaligned, "args.kv_lengths", "aligned to 8"),
    ARGS(offsets_misaligned, "args.query_offsets", "aligned to 8"),
    ARGS(q_offset_odd, "args.q.offset is 2", "multiple of 4"),
    ARGS(v_offset_odd, "args.v.offset is 7"),
    ARGS(lse_offset_odd, "args.lse.offset is 1"),
    ARGS(lengths_offset_odd, "args.kv_lengths.offset is 4", "multiple of 8"),
    ARGS(o_is_q, "args.o, 960 bytes, overlaps args.q, 1280 bytes"),
    ARGS(o_ends_in_k, "args.o, 960 bytes, overlaps args.k, 896 bytes"),
    ARGS(o_begins_in_v, "args.o, 960 bytes, overlaps args.v, 672 bytes"),
    ARGS(lse_in_o, "args.o", "overlaps args.lse, 160 bytes"),
    ARGS(lse_is_v, "args.lse, 160 bytes, overlaps args.v"),
    ARGS(length_too_long, "kv_lengths[1] is 8", "0..n_kv = 7"),
    ARGS(length_negative, "kv_lengths[0] is -1"),
    ARGS(length_least, "kv_lengths[1] is -9223372036854775808"),
    ARGS(q_mem, "args.q is a cl_mem"),
    ARGS(o_mem, "args.o is a cl_mem"),
    ARGS(lse_mem, "args.lse is a cl_mem"),
    ARGS(lengths_mem, "args.kv_lengths is a cl_mem"),
    ARGS(offsets_mem, "args.query_offsets is a cl_mem"),
};
enum { N_BAD_ARGS = sizeof bad_args / sizeof *bad_args, N_WAYS = sizeof test_ways / sizeof *test_ways };

/* One reference, of the caller's. */
static clattn_context *context_of_way(const test_way *way)
{
    clattn_context *c = way->path == CLATTN_PATH_HOST ? host_context() : test_context();
    if (way->path != CLATTN_PATH_HOST) clattn_context_retain(c);
    return c;
}

static void bad_args_on_way(const args_case *c, const test_way *way, clattn_context *context)
{
    clattn_problem p = good_problem();
    clattn_plan_options options;
    clattn_plan *plan = NULL;
    clattn_forward_args good = good_args(), a;
    good.kv_lengths = clattn_host_buffer(f.lengths);
    good.query_offsets = clattn_host_buffer(f.offsets);
    p.kv_length_per_batch = p.query_offset_per_batch = 1;
    p.mask.window_right = 0;
    clattn_plan_options_init(&options);
    options.path = way->path;
    options.kernel = way->kernel;
    ck_assert_msg(clattn_plan_create(context, &p, &options, &plan) == CLATTN_STATUS_SUCCESS, "%s",
                  clattn_last_error()->message);
    a = good;
    c->spoil(&a);
    expect(clattn_forward(plan, &a), CLATTN_STATUS_INVALID_ARGUMENT, c->says, c->what);
    expect_untouched(c->what);
    setup();
    ck_assert_msg(clattn_forward(plan, &good) == CLATTN_STATUS_SUCCESS, "%s: then a good call: %s", c->what,
                  clattn_last_error()->message);
    expect_right(&p, c->what);
    clattn_plan_release(plan);
}

START_TEST(args_refused_host)
{
    clattn_context *context = host_context();
    bad_args_on_way(&bad_args[_i], &test_ways[0], context);
    clattn_context_release(context);
}
END_TEST

/* Every case in one process, for opening a device takes its time. */
START_TEST(args_refused_device)
{
    const test_way *way = &test_ways[1 + _i];
    clattn_context *context = test_context();
    if (!context) {
        test_skip("args_refused_device", "no OpenCL device");
        return;
    }
    for (int i = 0; i < N_BAD_ARGS; i++) {
        setup();
        bad_args_on_way(&bad_args[i], way, context);
    }
}
END_TEST

START_TEST(inputs_may_share_memory)
{
    clattn_problem p = good_problem();
    clattn_context *context = host_context();
    p.head_dim_v = D;
    ck_assert_int_eq(clattn_attention(context, &p, f.q, f.q, f.q, f.o, f.lse), CLATTN_STATUS_SUCCESS);
    memcpy(f.k, f.q, sizeof f.k);
    memcpy(f.v, f.q, sizeof f.v);
    expect_right(&p, "q, k and v in one place");
    clattn_context_release(context);
}
END_TEST

START_TEST(outputs_beside_each_other)
{
    /* O, then LSE, then K, without a gap: legal, whatever the comparison of ends */
    const clattn_problem p = good_problem();
    clattn_context *context = host_context();
    enum { O = B * HQ * NQ * DV, LSE = B * HQ * NQ, K = B * HKV * NKV * D };
    float *place = f.o, *k = place + O + LSE;
    memcpy(k, f.k, K * sizeof *k);
    ck_assert_msg(clattn_attention(context, &p, f.q, k, f.v, place, place + O) == CLATTN_STATUS_SUCCESS, "%s",
                  clattn_last_error()->message);
    memcpy(f.lse, place + O, LSE * sizeof *place);
    place[O] = sentinel;
    expect_right(&p, "beside each other");
    ck_assert(!memcmp(k, f.k, K * sizeof *k));
    clattn_context_release(context);
}
END_TEST

START_TEST(offsets_of_host_buffers)
{
    const clattn_problem p = good_problem();
    clattn_context *context = context_of_way(&test_ways[_i]);
    if (!context) {
        test_skip("offsets_of_host_buffers", "no OpenCL device");
        return;
    }
    clattn_plan_options options;
    clattn_plan *plan = NULL;
    clattn_forward_args a = good_args();
    clattn_plan_options_init(&options);
    options.path = test_ways[_i].path;
    options.kernel = test_ways[_i].kernel;
    ck_assert_int_eq(clattn_plan_create(context, &p, &options, &plan), CLATTN_STATUS_SUCCESS);
    a.q.offset = 12;
    a.k.offset = 400;
    a.v.offset = 4;
    a.o.offset = 64;
    a.lse.offset = 8;
    ck_assert_int_eq(clattn_forward(plan, &a), CLATTN_STATUS_SUCCESS);
    for (int i = 0; i < 16; i++) ck_assert(f.o[i] == sentinel);
    ck_assert(f.lse[0] == sentinel && f.lse[1] == sentinel);
    memmove(f.q, f.q + 3, sizeof f.q - 12);
    memmove(f.k, f.k + 100, sizeof f.k - 400);
    memmove(f.v, f.v + 1, sizeof f.v - 4);
    memmove(f.o, f.o + 16, sizeof f.o - 64);
    memmove(f.lse, f.lse + 2, sizeof f.lse - 8);
    expect_right(&p, test_ways[_i].name);
    clattn_plan_release(plan);
    clattn_context_release(context);
}
END_TEST

/* ---- struct_size of every struct, NULL where it is not allowed */

static const size_t wrong_sizes[] = {0, 1, 8, 4096, SIZE_MAX};
enum { N_WRONG_SIZES = sizeof wrong_sizes / sizeof *wrong_sizes };

START_TEST(struct_sizes)
{
    const size_t size = wrong_sizes[_i];
    const clattn_problem p = good_problem();
    clattn_context *c = NULL;
    clattn_plan *plan = NULL;
    clattn_context_options co;
    clattn_plan_options po;
    clattn_plan_info pi;
    clattn_device_info di;
    char number[32];
    snprintf(number, sizeof number, " is %zu;", size);
    clattn_context_options_init(&co);
    clattn_plan_options_init(&po);
    clattn_plan_info_init(&pi);
    clattn_device_info_init(&di);
    co.struct_size = po.struct_size = pi.struct_size = di.struct_size = size;
    expect(clattn_context_create(&co, &c), CLATTN_STATUS_INVALID_ARGUMENT,
           (words){"options.struct_size", number, "clattn_context_options_init"}, "context options");
    ck_assert_ptr_null(c);
    c = host_context();
    expect(clattn_plan_create(c, &p, &po, &plan), CLATTN_STATUS_INVALID_ARGUMENT,
           (words){"options.struct_size", number, "clattn_plan_options_init"}, "plan options");
    ck_assert_ptr_null(plan);
    ck_assert_int_eq(clattn_plan_create(c, &p, NULL, &plan), CLATTN_STATUS_SUCCESS);
    memset((char *)&pi + sizeof pi.struct_size, 0x5a, sizeof pi - sizeof pi.struct_size);
    expect(clattn_plan_get_info(plan, &pi), CLATTN_STATUS_INVALID_ARGUMENT,
           (words){"info.struct_size", number, "clattn_plan_info_init"}, "plan info");
    ck_assert_int_eq(pi.n_threads, 0x5a5a5a5a);
    expect(clattn_device_get_info(0, &di), CLATTN_STATUS_INVALID_ARGUMENT,
           (words){"info.struct_size", number, "clattn_device_info_init"}, "device info");
    ck_assert_str_eq(di.name, "");
    clattn_plan_release(plan);
    run_good(c, "struct sizes");
    clattn_context_release(c);
}
END_TEST

START_TEST(nulls)
{
    const clattn_status invalid = CLATTN_STATUS_INVALID_ARGUMENT;
    clattn_problem p = good_problem();
    clattn_context *c = host_context();
    clattn_plan *plan = NULL;
    clattn_plan_info info;
    clattn_forward_args a = good_args();
    clattn_plan_info_init(&info);
    expect(clattn_problem_check(NULL), invalid, (words){"problem is NULL"}, "check");
    expect(clattn_problem_from_text(NULL, &p), invalid, (words){"NULL"}, "from_text");
    expect(clattn_problem_from_text("f32 hq1 q1 kv1 d1", NULL), invalid, (words){"NULL"}, "from_text");
    ck_assert_uint_eq(clattn_problem_to_text(NULL, NULL, 0), 0);
    expect(clattn_device_count(NULL), invalid, (words){"count is NULL"}, "device_count");
    expect(clattn_device_get_info(0, NULL), invalid, (words){"info is NULL"}, "device_get_info");
    expect(clattn_context_create(NULL, NULL), invalid, (words){"context is NULL"}, "context_create");
    expect(clattn_plan_create(c, &p, NULL, NULL), invalid, (words){"plan is NULL"}, "plan_create");
    expect(clattn_plan_create(c, NULL, NULL, &plan), invalid, (words){"problem is NULL"}, "plan_create");
    ck_assert_ptr_null(plan);
    ck_assert_int_eq(clattn_plan_create(c, &p, NULL, &plan), CLATTN_STATUS_SUCCESS);
    expect(clattn_plan_get_info(NULL, &info), invalid, (words){"plan is NULL"}, "plan_get_info");
    expect(clattn_plan_get_info(plan, NULL), invalid, (words){"info is NULL"}, "plan_get_info");
    size_t needed = 5;
    expect(clattn_plan_get_binaries(NULL, NULL, 0, &needed), invalid, (words){"plan is NULL"}, "plan_get_binaries");
    expect(clattn_plan_get_binaries(plan, NULL, 0, NULL), invalid, (words){"needed is NULL"}, "plan_get_binaries");
    ck_assert_uint_eq(needed, 5);
    ck_assert_int_eq(clattn_plan_get_binaries(plan, NULL, 0, &needed), CLATTN_STATUS_SUCCESS);
    ck_assert_uint_eq(needed, 0);
    expect(clattn_context_add_binaries(c, NULL, 3), invalid, (words){"data is NULL", "size is 3"}, "add_binaries");
    expect(clattn_context_add_binaries(c, "abc", 3), CLATTN_STATUS_NO_DEVICE,
           (words){CLATTN_HAVE_OPENCL ? "host-only" : "OpenCL"}, "add_binaries");
    expect(clattn_forward(NULL, &a), invalid, (words){"plan is NULL"}, "forward");
    expect(clattn_forward(plan, NULL), invalid, (words){"args is NULL"}, "forward");
    expect(clattn_attention(c, NULL, f.q, f.k, f.v, f.o, f.lse), invalid, (words){"problem is NULL"}, "attention");
    expect(clattn_attention(c, &p, NULL, f.k, f.v, f.o, f.lse), invalid, (words){"args.q is absent"}, "attention");
    expect(clattn_attention(c, &p, f.q, NULL, f.v, f.o, f.lse), invalid, (words){"args.k is absent"}, "attention");
    expect(clattn_attention(c, &p, f.q, f.k, NULL, f.o, f.lse), invalid, (words){"args.v is absent"}, "attention");
    expect(clattn_attention(c, &p, f.q, f.k, f.v, NULL, f.lse), invalid, (words){"args.o is absent"}, "attention");
    expect(test_reference_forward(NULL, f.q, f.k, f.v, NULL, NULL, f.ref_o, NULL), invalid, (words){"problem"}, "ref");
    expect(test_reference_forward(&p, NULL, f.k, f.v, NULL, NULL, f.ref_o, NULL), invalid, (words){"args.q"}, "ref");
    expect(test_reference_forward(&p, f.q, f.k, f.v, NULL, NULL, NULL, NULL), invalid, (words){"o is NULL"}, "ref");
    expect(test_reference_forward(&p, f.q, f.k, NULL, NULL, NULL, f.ref_o, NULL), invalid, (words){"args.v"}, "ref");
    p.kv_length_per_batch = 1;
    expect(test_reference_forward(&p, f.q, f.k, f.v, NULL, NULL, f.ref_o, NULL), invalid, (words){"kv_lengths"}, "r");
    p.query_offset_per_batch = 1;
    expect(test_reference_forward(&p, f.q, f.k, f.v, f.lengths, NULL, f.ref_o, NULL), invalid, (words){"query_offsets"},
           "ref");
    f.lengths[1] = 8;
    expect(test_reference_forward(&p, f.q, f.k, f.v, f.lengths, f.offsets, f.ref_o, NULL), invalid,
           (words){"kv_lengths[1] is 8", "7"}, "ref");
    expect_untouched("nulls");
    clattn_plan_release(plan);
    run_good(c, "nulls");
    clattn_context_release(c);
}
END_TEST

START_TEST(null_handles)
{
    ck_assert_int_eq(clattn_context_retain(NULL), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_context_release(NULL), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_plan_retain(NULL), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_plan_release(NULL), CLATTN_STATUS_SUCCESS);
    ck_assert_str_eq(clattn_plan_explain(NULL), "");
    ck_assert_uint_eq(clattn_plan_workspace_size(NULL), 0);
}
END_TEST

START_TEST(attention_takes_no_per_batch_numbers)
{
    clattn_context *c = host_context();
    clattn_problem p = good_problem();
    p.kv_length_per_batch = 1;
    expect(clattn_attention(c, &p, f.q, f.k, f.v, f.o, f.lse), CLATTN_STATUS_INVALID_ARGUMENT,
           (words){"clattn_attention takes none"}, "lengths");
    p = good_problem();
    p.query_offset_per_batch = 1;
    expect(clattn_attention(c, &p, f.q, f.k, f.v, f.o, f.lse), CLATTN_STATUS_INVALID_ARGUMENT,
           (words){"clattn_attention takes none"}, "offsets");
    expect_untouched("per-batch");
    run_good(c, "per-batch");
    clattn_context_release(c);
}
END_TEST

/* ---- options that are refused */

typedef struct plan_case {
    const char *what;
    clattn_plan_options o;
    words says;
} plan_case;

#define OPTIONS(path, kernel, block_q, block_kv, n_threads)                                                            \
    {                                                                                                                  \
        sizeof(clattn_plan_options), (clattn_path)(path), (clattn_kernel)(kernel), block_q, block_kv, n_threads, 0     \
    }

static const plan_case bad_plans[] = {
    {"path 3", OPTIONS(3, 0, 0, 0, 0), {"options.path is 3"}},
    {"path -1", OPTIONS(-1, 0, 0, 0, 0), {"options.path is -1"}},
    {"kernel 99", OPTIONS(0, 99, 0, 0, 0), {"options.kernel is 99"}},
    {"kernel -1", OPTIONS(0, -1, 0, 0, 0), {"options.kernel is -1"}},
    {"block_q -1", OPTIONS(0, 0, -1, 0, 0), {"options.block_q is -1", "at least 0"}},
    {"block_q least", OPTIONS(0, 0, INT64_MIN, 0, 0), {"options.block_q is -9223372036854775808"}},
    {"block_kv -16", OPTIONS(0, 0, 0, -16, 0), {"options.block_kv is -16"}},
    {"n_threads -1", OPTIONS(0, 0, 0, 0, -1), {"options.n_threads is -1"}},
    {"n_threads least", OPTIONS(1, 0, 0, 0, INT_MIN), {"options.n_threads is -2147483648"}},
    {"host_tile on the device", OPTIONS(2, 1, 0, 0, 0), {"host_tile", "device"}},
    {"attn_fwd on the host", OPTIONS(1, 2, 0, 0, 0), {"attn_fwd", "host"}},
    {"host_backward for forward", OPTIONS(0, 8, 0, 0, 0), {"host_backward", "forward"}},
    {"attn_fwd_lanes on the host", OPTIONS(1, 3, 0, 0, 0), {"attn_fwd_lanes", "host"}},
};
enum { N_BAD_PLANS = sizeof bad_plans / sizeof *bad_plans };

START_TEST(plan_options_refused)
{
    const plan_case *k = &bad_plans[_i];
    const clattn_problem p = good_problem();
    clattn_context *c = host_context();
    clattn_plan *const marker = (clattn_plan *)(void *)&c, *plan = marker;
    expect(clattn_plan_create(c, &p, &k->o, &plan), CLATTN_STATUS_INVALID_ARGUMENT, k->says, k->what);
    ck_assert_ptr_eq(plan, marker);
    run_good(c, k->what);
    clattn_context_release(c);
}
END_TEST

typedef struct context_case {
    const char *what;
    clattn_device_select device;
    int index;
    const char *name;
    int n_threads;
    clattn_status status;
    words says;
} context_case;

static const context_case bad_contexts[] = {
    {"device 4", (clattn_device_select)4, 0, NULL, 0, CLATTN_STATUS_INVALID_ARGUMENT, {"options.device is 4"}},
    {"device -1", (clattn_device_select)-1, 0, NULL, 0, CLATTN_STATUS_INVALID_ARGUMENT, {"options.device is -1"}},
    {"index -1", CLATTN_DEVICE_INDEX, -1, NULL, 0, CLATTN_STATUS_INVALID_ARGUMENT, {"options.device_index is -1"}},
    {"no name", CLATTN_DEVICE_NAME, 0, NULL, 0, CLATTN_STATUS_INVALID_ARGUMENT, {"options.device_name is NULL"}},
    {"n_threads", CLATTN_DEVICE_NONE, 0, NULL, -3, CLATTN_STATUS_INVALID_ARGUMENT, {"options.n_threads is -3"}},
    {"index 9999", CLATTN_DEVICE_INDEX, 9999, NULL, 0, CLATTN_STATUS_NO_DEVICE, {"9999"}},
    {"unknown name", CLATTN_DEVICE_NAME, 0, "no such thing", 0, CLATTN_STATUS_NO_DEVICE, {"no such thing"}},
};
enum { N_BAD_CONTEXTS = sizeof bad_contexts / sizeof *bad_contexts };

START_TEST(context_options_refused)
{
    const context_case *k = &bad_contexts[_i];
    clattn_context *const marker = (clattn_context *)(void *)&f, *c = marker;
    clattn_context_options o;
#if !CLATTN_HAVE_OPENCL
    if (k->status == CLATTN_STATUS_NO_DEVICE) {
        test_skip("context_options_refused", "built without OpenCL, whose sentence is another");
        return;
    }
#endif
    clattn_context_options_init(&o);
    o.device = k->device;
    o.device_index = k->index;
    o.device_name = k->name;
    o.n_threads = k->n_threads;
    expect(clattn_context_create(&o, &c), k->status, k->says, k->what);
    clattn_context_options_init(&o);
    o.program_cache = (clattn_program_cache)(2 + _i);
    expect(clattn_context_create(&o, &c), CLATTN_STATUS_INVALID_ARGUMENT, (words){"options.program_cache is "},
           k->what);
    clattn_context_options_init(&o);
    o.copy_bytes_most = -1 - _i;
    expect(clattn_context_create(&o, &c), CLATTN_STATUS_INVALID_ARGUMENT, (words){"options.copy_bytes_most is -"},
           k->what);
    ck_assert_ptr_eq(c, marker);
    c = host_context();
    run_good(c, k->what);
    clattn_context_release(c);
}
END_TEST

START_TEST(device_index_refused)
{
    clattn_device_info info;
    const int indices[] = {-1, INT_MIN, 9999, INT_MAX};
    int count = -1;
    ck_assert_int_eq(clattn_device_count(&count), CLATTN_STATUS_SUCCESS);
    ck_assert_int_ge(count, 0);
    for (size_t i = 0; i < sizeof indices / sizeof *indices; i++) {
        char number[16];
        snprintf(number, sizeof number, "%d", indices[i]);
        clattn_device_info_init(&info);
        expect(clattn_device_get_info(indices[i], &info), CLATTN_STATUS_NO_DEVICE,
               (words){CLATTN_HAVE_OPENCL ? number : "OpenCL"}, number);
        ck_assert_str_eq(info.name, "");
    }
}
END_TEST

/* ---- statuses beyond the arguments */

START_TEST(unsupported_sizes)
{
    typedef struct large {
        int64_t n_q, n_kv, head_dim, batch;
        const char *number;
    } large;
    const large cases[] = {{INT64_C(1) << 30, 1, 1, 1, "1073741824"},
                           {1, INT64_C(1) << 30, 1, 1, "1073741824"},
                           {1, 1, 1 << 24, 1, "16777216"},
                           {1, 1, 1, INT64_C(1) << 31, "2147483648"}};
    const large *k = &cases[_i];
    const clattn_path paths[] = {CLATTN_PATH_HOST, CLATTN_PATH_AUTO, CLATTN_PATH_DEVICE};
    clattn_problem p;
    clattn_context *host = host_context();
    clattn_problem_init(&p, CLATTN_DTYPE_F32, k->batch, 1, 1, k->n_q, k->n_kv, k->head_dim);
    ck_assert_int_eq(clattn_problem_check(&p), CLATTN_STATUS_SUCCESS);
    for (int i = 0; i < 3; i++) {
        clattn_context *c = paths[i] == CLATTN_PATH_DEVICE ? test_context() : host;
        clattn_plan_options o;
        clattn_plan *plan = NULL;
        if (!c) {
            test_skip("unsupported_sizes", "no OpenCL device");
            continue;
        }
        clattn_plan_options_init(&o);
        o.path = paths[i];
        expect(clattn_plan_create(c, &p, &o, &plan), CLATTN_STATUS_UNSUPPORTED, (words){k->number}, "large");
        ck_assert_ptr_null(plan);
    }
    run_good(host, "unsupported");
    clattn_context_release(host);
}
END_TEST

START_TEST(device_path_of_a_host_only_context)
{
    const clattn_problem p = good_problem();
    clattn_context *c = host_context();
    const clattn_kernel kernels[] = {CLATTN_KERNEL_AUTO, CLATTN_KERNEL_ATTN_FWD, CLATTN_KERNEL_ATTN_FWD_LANES};
    clattn_plan *plan = NULL;
    clattn_plan_options o;
    clattn_plan_options_init(&o);
    for (int i = 0; i < 5; i++) { /* the path by name, by kernel, or both */
        o.path = i < 3 ? CLATTN_PATH_DEVICE : CLATTN_PATH_AUTO;
        o.kernel = kernels[i < 3 ? i : i - 2];
        expect(clattn_plan_create(c, &p, &o, &plan), CLATTN_STATUS_NO_DEVICE,
               (words){CLATTN_HAVE_OPENCL ? "host-only" : "OpenCL"}, "device");
        ck_assert_ptr_null(plan);
    }
    run_good(c, "host-only");
    clattn_context_release(c);
}
END_TEST

START_TEST(no_memory_for_the_reference)
{
    clattn_problem p;
    clattn_context *c = host_context();
    double o = 7, lse = 7;
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 1, 1, 1, INT64_C(1) << 50, 8);
    p.k.head = p.v.head = 8; /* all keys in one row: no memory of theirs, but a score each */
    expect(test_reference_forward(&p, f.q, f.k, f.v, NULL, NULL, &o, &lse), CLATTN_STATUS_OUT_OF_HOST_MEMORY,
           (words){"1125899906842624"}, "reference");
    ck_assert(o == 7 && lse == 7);
    run_good(c, "reference");
    clattn_context_release(c);
}
END_TEST

#if defined(__SANITIZE_ADDRESS__)
#define HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_ASAN 1
#endif
#endif
#ifdef HAS_ASAN
/* Its address space has no limit; its allocations have. Called by the sanitizer. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "max_allocation_size_mb=64:allocator_may_return_null=1"; }
#else
#define HAS_ASAN 0
#endif

/* A workspace of more than 64 MiB in an address space that is already full, or of allocations of 64 MiB at most. */
START_TEST(no_memory_for_the_workspace)
{
    enum { DIM = (1 << 24) - 1 };
    struct rlimit old, tight;
    clattn_problem p;
    clattn_context *c = host_context();
    clattn_plan *plan = NULL;
    clattn_plan_options options;
    float *row = malloc(DIM * sizeof *row);
    ck_assert_ptr_nonnull(row);
    memset(row, 0, DIM * sizeof *row);
    clattn_forward_args a = good_args();
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 1, 1, 1, 1, DIM);
    p.head_dim_v = 6;
    clattn_plan_options_init(&options);
    options.path = CLATTN_PATH_HOST;
    ck_assert_int_eq(clattn_plan_create(c, &p, &options, &plan), CLATTN_STATUS_SUCCESS);
    a.q = a.k = clattn_host_buffer(row);
    ck_assert_int_eq(getrlimit(RLIMIT_AS, &old), 0);
    tight = old;
    tight.rlim_cur = 64 << 20;
    if (!HAS_ASAN) ck_assert_int_eq(setrlimit(RLIMIT_AS, &tight), 0);
    const clattn_status status = clattn_forward(plan, &a);
    ck_assert_int_eq(setrlimit(RLIMIT_AS, &old), 0);
    expect(status, CLATTN_STATUS_OUT_OF_HOST_MEMORY, (words){"bytes of work space"}, "workspace");
    expect_untouched("workspace");
    if (HAS_ASAN) {
        run_good(c, "workspace");
    } else {
        ck_assert_int_eq(clattn_forward(plan, &a), CLATTN_STATUS_SUCCESS);
        for (int i = 0; i < 6; i++) ck_assert(f.o[i] == f.v[i]);
    }
    free(row);
    clattn_plan_release(plan);
    clattn_context_release(c);
}
END_TEST

/* ---- last error */

static void *first_error(void *is_empty)
{
    const clattn_error *e = clattn_last_error();
    *(bool *)is_empty = e->status == CLATTN_STATUS_SUCCESS && e->cl_error == 0 && !*e->message;
    return NULL;
}

START_TEST(last_error_at_first)
{
    pthread_t thread;
    bool is_empty = false;
    ck_assert_int_eq(pthread_create(&thread, NULL, first_error, &is_empty), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert(is_empty);
}
END_TEST

static void *fail_elsewhere(void *argument)
{
    clattn_problem p = good_problem();
    const bool fresh = clattn_last_error()->status == CLATTN_STATUS_SUCCESS && !*clattn_last_error()->message;
    p.batch = -4711;
    const bool own = clattn_problem_check(&p) && strstr(clattn_last_error()->message, "-4711");
    *(bool *)argument = fresh && own;
    return NULL;
}

START_TEST(last_error_per_thread)
{
    clattn_problem p = good_problem();
    pthread_t thread;
    bool ok = false;
    p.n_q = -815;
    expect(clattn_problem_check(&p), CLATTN_STATUS_INVALID_ARGUMENT, (words){"-815"}, "this thread");
    ck_assert_int_eq(pthread_create(&thread, NULL, fail_elsewhere, &ok), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert_msg(ok, "the other thread did not see its own error");
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "-815"));
}
END_TEST

/* Calls that succeed leave the last error alone, those too that fell back on the way. */
START_TEST(last_error_outlives_success)
{
    clattn_problem p = good_problem(), large;
    clattn_context *c = host_context();
    clattn_plan *plan = NULL;
    clattn_problem_init(&large, CLATTN_DTYPE_F32, 1, 1, 1, 1000, 1000, 8);
    p.n_q = -815;
    expect(clattn_problem_check(&p), CLATTN_STATUS_INVALID_ARGUMENT, (words){"-815"}, "first");
    run_good(c, "after an error");
    expect(CLATTN_STATUS_INVALID_ARGUMENT, CLATTN_STATUS_INVALID_ARGUMENT, (words){"-815"}, "after success");
    ck_assert_int_eq(clattn_plan_create(c, &large, NULL, &plan), CLATTN_STATUS_SUCCESS);
    expect(CLATTN_STATUS_INVALID_ARGUMENT, CLATTN_STATUS_INVALID_ARGUMENT, (words){"-815"}, "after falling back");
    clattn_plan_release(plan);
    clattn_context_release(c);
}
END_TEST

/* ---- lifetimes */

START_TEST(plan_keeps_its_context)
{
    const clattn_problem p = good_problem();
    const clattn_forward_args a = good_args();
    clattn_context *c = context_of_way(&test_ways[_i]);
    clattn_plan *plan = NULL;
    clattn_plan_options o;
    if (!c) {
        test_skip("plan_keeps_its_context", "no OpenCL device");
        return;
    }
    clattn_plan_options_init(&o);
    o.path = test_ways[_i].path;
    o.kernel = test_ways[_i].kernel;
    if (_i) { /* the harness keeps a reference to its own */
        clattn_context_release(c);
        c = context_of(CLATTN_DEVICE_DEFAULT);
    }
    ck_assert_int_eq(clattn_plan_create(c, &p, &o, &plan), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_context_retain(c), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_context_release(c), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_context_release(c), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_plan_retain(plan), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_plan_release(plan), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_forward(plan, &a), CLATTN_STATUS_SUCCESS);
    expect_right(&p, test_ways[_i].name);
    ck_assert_str_ne(clattn_plan_explain(plan), "");
    ck_assert_int_eq(clattn_plan_release(plan), CLATTN_STATUS_SUCCESS);
}
END_TEST

START_TEST(default_context)
{
    const clattn_problem p = good_problem();
    const clattn_forward_args a = good_args();
    clattn_plan *plan = NULL;
    run_good(NULL, "attention");
    setup();
    ck_assert_int_eq(clattn_plan_create(NULL, &p, NULL, &plan), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_forward(plan, &a), CLATTN_STATUS_SUCCESS);
    expect_right(&p, "plan");
    clattn_plan_release(plan);
    run_good(NULL, "attention, after a plan of the same context was released");
}
END_TEST

static int parallel_calls, parallel_tasks;

static void backwards(void *user, size_t n, void (*task)(void *, size_t), void *argument)
{
    ck_assert_ptr_eq(user, &parallel_calls);
    parallel_calls++;
    parallel_tasks += (int)n;
    while (n--) task(argument, n);
}

START_TEST(threads_of_the_app)
{
    clattn_problem p;
    clattn_context *c = NULL;
    clattn_context_options o;
    clattn_context_options_init(&o);
    o.device = CLATTN_DEVICE_NONE;
    o.n_threads = 3;
    o.parallel_for = backwards;
    o.parallel_for_user = &parallel_calls;
    ck_assert_int_eq(clattn_context_create(&o, &c), CLATTN_STATUS_SUCCESS);
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 8, 8, 256, 256, 16);
    const size_t n = 8 * 256 * 16;
    float *q = malloc(n * sizeof *q), *o1 = malloc(n * sizeof *o1), *o2 = malloc(n * sizeof *o2);
    ck_assert(q && o1 && o2);
    for (size_t i = 0; i < n; i++) q[i] = f.q[i % ROOM];
    ck_assert_int_eq(clattn_attention(c, &p, q, q, q, o1, NULL), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(parallel_calls, 1);
    ck_assert_int_gt(parallel_tasks, 1);
    ck_assert_int_le(parallel_tasks, 3);
    clattn_context_release(c);
    c = host_context();
    ck_assert_int_eq(clattn_attention(c, &p, q, q, q, o2, NULL), CLATTN_STATUS_SUCCESS);
    ck_assert_msg(!memcmp(o1, o2, n * sizeof *o1), "the threads changed the result");
    clattn_context_release(c);
    free(q);
    free(o1);
    free(o2);
}
END_TEST

/* ---- the log */

typedef struct log_counts {
    int plan, build, run, other;
    char last_plan[4096], last_run[4096];
} log_counts;

static void count_line(const char *kind, const char *text, void *user)
{
    log_counts *n = user;
    if (strchr(text, '\n') || !*text) n->other++;
    if (!strcmp(kind, "plan")) {
        n->plan++;
        snprintf(n->last_plan, sizeof n->last_plan, "%s", text);
    } else if (!strcmp(kind, "build")) {
        n->build++;
    } else if (!strcmp(kind, "run")) {
        n->run++;
        snprintf(n->last_run, sizeof n->last_run, "%s", text);
    } else {
        n->other++;
    }
}

static clattn_context *logging_context(clattn_device_select device, log_counts *n)
{
    clattn_context *c = NULL;
    clattn_context_options o;
    memset(n, 0, sizeof *n);
    clattn_context_options_init(&o);
    o.device = device;
    o.log = count_line;
    o.log_user = n;
    ck_assert_int_eq(clattn_context_create(&o, &c), CLATTN_STATUS_SUCCESS);
    return c;
}

START_TEST(log_of_a_plan)
{
    static log_counts n;
    const clattn_problem p = good_problem();
    clattn_context *c = logging_context(CLATTN_DEVICE_NONE, &n);
    clattn_plan *plan = NULL;
    ck_assert_int_eq(clattn_plan_create(c, &p, NULL, &plan), CLATTN_STATUS_SUCCESS);
    ck_assert_int_ge(n.plan, 2);
    ck_assert_int_eq(n.build + n.run + n.other, 0);
    ck_assert_ptr_nonnull(strstr(clattn_plan_explain(plan), n.last_plan));
    clattn_plan_release(plan);
    clattn_context_release(c);
}
END_TEST

START_TEST(log_of_a_run)
{
    static log_counts n;
    const clattn_problem p = good_problem();
    const clattn_forward_args a = good_args();
    clattn_context *c = logging_context(CLATTN_DEVICE_NONE, &n);
    clattn_plan *plan = NULL;
    ck_assert_int_eq(clattn_plan_create(c, &p, NULL, &plan), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_forward(plan, &a), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(n.run, 1);
    ck_assert_ptr_nonnull(strstr(n.last_run, "host"));
    ck_assert_int_eq(clattn_forward(plan, &a), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(n.run, 2);
    ck_assert_int_eq(n.other, 0);
    clattn_plan_release(plan);
    clattn_context_release(c);
}
END_TEST

START_TEST(log_of_a_build)
{
    static log_counts n;
    const clattn_problem p = good_problem();
    clattn_plan_options o;
    clattn_plan *plan = NULL, *again = NULL;
    if (!test_context()) {
        test_skip("log_of_a_build", "no OpenCL device");
        return;
    }
    clattn_context *c = logging_context(CLATTN_DEVICE_DEFAULT, &n);
    clattn_plan_options_init(&o);
    o.path = CLATTN_PATH_DEVICE;
    ck_assert_int_eq(clattn_plan_create(c, &p, &o, &plan), CLATTN_STATUS_SUCCESS);
    ck_assert_int_ge(n.build, 1);
    const int built = n.build;
    ck_assert_int_eq(clattn_plan_create(c, &p, &o, &again), CLATTN_STATUS_SUCCESS);
    ck_assert_msg(n.build == built, "an equal plan built a kernel again");
    ck_assert_int_eq(n.other, 0);
    clattn_plan_release(plan);
    clattn_plan_release(again);
    clattn_context_release(c);
}
END_TEST

typedef struct verbose_case {
    const char *value;
    bool plan, run;
} verbose_case;
static const verbose_case verbose_cases[] = {
    {"plan", true, false},     {"run", false, true},    {"plan,run", true, true}, {"run,build,plan", true, true},
    {"build", false, false},   {"planx", false, false}, {"", false, false},       {"pla", false, false},
    {"x,plan,y", true, false}, {NULL, false, false},    {"xplan", false, false},  {",,plan", true, false},
};
enum { N_VERBOSE = sizeof verbose_cases / sizeof *verbose_cases };

START_TEST(verbose_on_stderr)
{
    const verbose_case *k = &verbose_cases[_i];
    static char text[16384];
    FILE *file = tmpfile();
    ck_assert_ptr_nonnull(file);
    if (k->value)
        setenv("CLATTN_VERBOSE", k->value, 1);
    else
        unsetenv("CLATTN_VERBOSE");
    clattn_context *c = host_context(); /* reads it */
    fflush(stderr);
    const int old = dup(2);
    ck_assert_int_ge(dup2(fileno(file), 2), 0);
    run_good(c, "verbose");
    fflush(stderr);
    dup2(old, 2);
    close(old);
    unsetenv("CLATTN_VERBOSE");
    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    ck_assert_msg((strstr(text, "clattn: plan: ") != NULL) == k->plan, "'%s': %s", k->value ? k->value : "unset", text);
    ck_assert_msg((strstr(text, "clattn: run: ") != NULL) == k->run, "'%s': %s", k->value ? k->value : "unset", text);
    ck_assert_msg(k->plan || k->run || !*text, "'%s': %s", k->value ? k->value : "unset", text);
    clattn_context_release(c);
}
END_TEST

/* ---- the plans that clattn_attention keeps */

static void attention_of(clattn_context *c, int64_t n_kv)
{
    clattn_problem p = good_problem();
    p.n_kv = n_kv;
    ck_assert_int_eq(clattn_attention(c, &p, f.q, f.k, f.v, f.o, f.lse), CLATTN_STATUS_SUCCESS);
    expect_right(&p, "kept plan");
}

START_TEST(attention_keeps_plans)
{
    static log_counts n;
    clattn_context *c = logging_context(CLATTN_DEVICE_NONE, &n);
    attention_of(c, 1);
    const int one = n.plan;
    ck_assert_int_gt(one, 0);
    attention_of(c, 1);
    ck_assert_msg(n.plan == one, "an equal problem was planned again");
    for (int i = 2; i <= 20; i++) attention_of(c, i);
    const int all = n.plan;
    ck_assert_int_eq(all, 20 * one);
    attention_of(c, 20);
    attention_of(c, 19);
    attention_of(c, 20);
    ck_assert_int_eq(n.plan, all);
    attention_of(c, 1); /* long since dropped: planned anew, and right */
    ck_assert_int_eq(n.plan, all + one);
    clattn_context_release(c);
}
END_TEST

/* Each field alone makes another problem. */
START_TEST(attention_tells_problems_apart)
{
    static log_counts n;
    clattn_context *c = logging_context(CLATTN_DEVICE_NONE, &n);
    const clattn_problem base = good_problem();
    clattn_problem others[10];
    for (int i = 0; i < 10; i++) others[i] = base;
    others[0].scale = 0.25;
    others[1].mask.window_right = 0;
    others[2].mask.window_left = 2;
    others[3].query_offset = 1;
    others[4].kv_length = 6;
    others[5].n_q = 4;
    others[6].head_dim_v = 5;
    others[7].k = (clattn_strides){112, 8, 16};
    others[8].q = (clattn_strides){160, 8, 32};
    others[9].n_heads_kv = 4;
    for (int i = 0; i < 10; i++) {
        ck_assert_int_eq(clattn_attention(c, &base, f.q, f.k, f.v, f.o, f.lse), CLATTN_STATUS_SUCCESS);
        const int before = n.plan;
        ck_assert_int_eq(clattn_attention(c, &others[i], f.q, f.k, f.v, f.o, f.lse), CLATTN_STATUS_SUCCESS);
        ck_assert_msg(n.plan > before, "problem %d was taken for another", i);
        for (int j = (int)(others[i].batch * others[i].n_heads_q * others[i].n_q); j < ROOM; j++) f.lse[j] = sentinel;
        for (int64_t j = others[i].batch * others[i].n_heads_q * others[i].n_q * others[i].head_dim_v; j < ROOM; j++)
            f.o[j] = sentinel;
        expect_right(&others[i], "told apart");
    }
    clattn_context_release(c);
}
END_TEST

/* ---- the choice of a path */

typedef struct auto_case {
    int64_t n_q, n_kv;
    clattn_path path;
} auto_case;
static const auto_case auto_cases[] = {
    {128, 128, CLATTN_PATH_HOST},   {129, 128, CLATTN_PATH_DEVICE}, {128, 129, CLATTN_PATH_DEVICE},
    {129, 129, CLATTN_PATH_DEVICE}, {1, 128, CLATTN_PATH_HOST},     {1, 129, CLATTN_PATH_DEVICE},
    {129, 0, CLATTN_PATH_DEVICE},   {0, 0, CLATTN_PATH_HOST},
};
enum { N_AUTO = sizeof auto_cases / sizeof *auto_cases };

static clattn_plan_info info_of(const clattn_plan *plan)
{
    clattn_plan_info info;
    clattn_plan_info_init(&info);
    ck_assert_int_eq(clattn_plan_get_info(plan, &info), CLATTN_STATUS_SUCCESS);
    return info;
}

START_TEST(auto_rule)
{
    const auto_case *k = &auto_cases[_i];
    clattn_context *c = test_context();
    clattn_problem p;
    clattn_plan *plan = NULL;
    if (!c) {
        test_skip("auto_rule", "no OpenCL device");
        return;
    }
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 1, 1, k->n_q, k->n_kv, 8);
    ck_assert_msg(clattn_plan_create(c, &p, NULL, &plan) == CLATTN_STATUS_SUCCESS, "%s", clattn_last_error()->message);
    const clattn_plan_info info = info_of(plan);
    ck_assert_int_eq(info.path, k->path);
    const char *explain = clattn_plan_explain(plan);
    if (k->path == CLATTN_PATH_HOST) {
        ck_assert_int_eq(info.kernel, k->n_q <= 4 ? CLATTN_KERNEL_HOST_DECODE : CLATTN_KERNEL_HOST_TILE);
        ck_assert_str_ne(info.instructions, "");
        ck_assert_str_eq(info.device, "");
        ck_assert_int_ge(info.n_threads, 1);
        ck_assert_int_eq(info.work_group_size, 0);
        ck_assert_int_eq(info.zero_copy, 1);
        ck_assert_msg(strstr(explain, "path host") && strstr(explain, "128") && strstr(explain, info.instructions),
                      "%s", explain);
    } else {
        ck_assert(info.kernel == CLATTN_KERNEL_ATTN_FWD_LANES || info.kernel == CLATTN_KERNEL_ATTN_FWD);
        ck_assert_int_eq(info.kernel, info.cl_kernel);
        ck_assert_str_eq(info.instructions, "");
        ck_assert_str_ne(info.device, "");
        ck_assert_int_eq(info.n_threads, 0);
        ck_assert_int_ge(info.work_group_size, 1);
        ck_assert_msg(strstr(explain, "path device") && strstr(explain, info.device) &&
                          strstr(explain, clattn_kernel_name(info.kernel)),
                      "%s", explain);
    }
    ck_assert_int_ge(info.block_q, 1);
    ck_assert_int_ge(info.block_kv, 1);
    clattn_plan_release(plan);
}
END_TEST

START_TEST(auto_without_a_device)
{
    clattn_context *c = host_context();
    clattn_problem p;
    clattn_plan *plan = NULL;
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 1, 1, 1000, 1000, 8);
    ck_assert_int_eq(clattn_plan_create(c, &p, NULL, &plan), CLATTN_STATUS_SUCCESS);
    const clattn_plan_info info = info_of(plan);
    ck_assert_int_eq(info.path, CLATTN_PATH_HOST);
    ck_assert_int_eq(info.cl_kernel, CLATTN_KERNEL_AUTO);
    const char *explain = clattn_plan_explain(plan);
    ck_assert_msg(strstr(explain, "path host: ") && strstr(explain, CLATTN_HAVE_OPENCL ? "host-only" : "OpenCL"), "%s",
                  explain);
    ck_assert_uint_eq(clattn_plan_workspace_size(plan), 0);
    clattn_plan_release(plan);
    clattn_context_release(c);
}
END_TEST

START_TEST(ways_asked_for)
{
    const test_way *way = &test_ways[_i];
    const clattn_problem p = good_problem();
    clattn_context *c = context_of_way(way);
    clattn_plan_options o;
    if (!c) {
        test_skip("ways_asked_for", "no OpenCL device");
        return;
    }
    clattn_plan_options_init(&o);
    for (int by_kernel = 0; by_kernel < 2; by_kernel++) { /* the kernel alone names the path */
        clattn_plan *plan = NULL;
        o.path = by_kernel ? CLATTN_PATH_AUTO : way->path;
        o.kernel = way->path == CLATTN_PATH_HOST && by_kernel ? CLATTN_KERNEL_HOST_TILE : way->kernel;
        ck_assert_msg(clattn_plan_create(c, &p, &o, &plan) == CLATTN_STATUS_SUCCESS, "%s",
                      clattn_last_error()->message);
        const clattn_plan_info info = info_of(plan);
        ck_assert_int_eq(info.path, way->path);
        ck_assert_int_eq(info.kernel, way->path == CLATTN_PATH_HOST ? CLATTN_KERNEL_HOST_TILE : way->kernel);
        ck_assert_ptr_nonnull(strstr(clattn_plan_explain(plan), "asked for"));
        clattn_plan_release(plan);
    }
    clattn_context_release(c);
}
END_TEST

typedef struct block_case {
    int64_t asked_q, asked_kv;
} block_case;
static const block_case block_cases[] = {{1, 1}, {3, 5}, {16, 16}, {100, 100}, {1000, 1000}, {INT64_MAX, INT64_MAX}};
enum { N_BLOCKS = sizeof block_cases / sizeof *block_cases };

/* Every block size that is asked for works; one that had to change is told of. */
START_TEST(blocks_asked_for)
{
    const block_case *k = &block_cases[_i % N_BLOCKS];
    const test_way *way = &test_ways[_i / N_BLOCKS];
    const clattn_problem p = good_problem();
    const clattn_forward_args a = good_args();
    clattn_context *c = context_of_way(way);
    clattn_plan_options o;
    clattn_plan *plan = NULL;
    char want[96];
    if (!c) {
        test_skip("blocks_asked_for", "no OpenCL device");
        return;
    }
    clattn_plan_options_init(&o);
    o.path = way->path;
    o.kernel = way->kernel;
    o.block_q = k->asked_q;
    o.block_kv = k->asked_kv;
    ck_assert_msg(clattn_plan_create(c, &p, &o, &plan) == CLATTN_STATUS_SUCCESS, "%s", clattn_last_error()->message);
    const clattn_plan_info info = info_of(plan);
    snprintf(want, sizeof want, "block_q %" PRId64 " was asked for and became %" PRId64 "\n", k->asked_q, info.block_q);
    ck_assert_msg((strstr(clattn_plan_explain(plan), want) != NULL) == (info.block_q != k->asked_q), "%s",
                  clattn_plan_explain(plan));
    snprintf(want, sizeof want, "block_kv %" PRId64 " was asked for and became %" PRId64 "\n", k->asked_kv,
             info.block_kv);
    ck_assert_msg((strstr(clattn_plan_explain(plan), want) != NULL) == (info.block_kv != k->asked_kv), "%s",
                  clattn_plan_explain(plan));
    if (way->path == CLATTN_PATH_HOST) {
        ck_assert_int_eq(info.block_q, k->asked_q < NQ ? k->asked_q : NQ);
        ck_assert_int_eq(info.block_kv, k->asked_kv < NKV ? k->asked_kv : NKV);
    }
    ck_assert_int_eq(clattn_forward(plan, &a), CLATTN_STATUS_SUCCESS);
    expect_right(&p, way->name);
    clattn_plan_release(plan);
    clattn_context_release(c);
}
END_TEST

START_TEST(threads_of_a_plan)
{
    const clattn_problem p = good_problem();
    clattn_context *c = NULL;
    clattn_context_options co;
    clattn_plan_options o;
    clattn_plan *plan = NULL;
    clattn_context_options_init(&co);
    co.device = CLATTN_DEVICE_NONE;
    co.n_threads = 5;
    ck_assert_int_eq(clattn_context_create(&co, &c), CLATTN_STATUS_SUCCESS);
    clattn_plan_options_init(&o);
    for (int n = 0; n < 4; n++) {
        o.n_threads = n;
        ck_assert_int_eq(clattn_plan_create(c, &p, &o, &plan), CLATTN_STATUS_SUCCESS);
        ck_assert_int_eq(info_of(plan).n_threads, n ? n : 5);
        clattn_plan_release(plan);
    }
    clattn_context_release(c);
}
END_TEST

START_TEST(instruction_sets)
{
    static const char *const sets[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"};
    const clattn_problem p = good_problem();
    clattn_context *c = host_context();
    clattn_plan *plan = NULL;
    setenv("CLATTN_CPU", sets[_i], 1);
    ck_assert_int_eq(clattn_plan_create(c, &p, NULL, &plan), CLATTN_STATUS_SUCCESS);
    const char *got = info_of(plan).instructions;
    int rank = -1;
    for (int i = 0; i < 5; i++)
        if (!strcmp(got, sets[i])) rank = i;
    ck_assert_msg(rank >= 0 && rank <= _i, "'%s' with CLATTN_CPU=%s", got, sets[_i]);
    const clattn_forward_args a = good_args();
    ck_assert_int_eq(clattn_forward(plan, &a), CLATTN_STATUS_SUCCESS);
    expect_right(&p, got);
    clattn_plan_release(plan);
    clattn_context_release(c);
}
END_TEST

START_TEST(nothing_to_do)
{
    const test_way *way = &test_ways[_i];
    clattn_context *c = context_of_way(way);
    clattn_problem p = good_problem();
    clattn_forward_args a = good_args();
    clattn_plan_options o;
    clattn_plan *plan = NULL;
    if (!c) {
        test_skip("nothing_to_do", "no OpenCL device");
        return;
    }
    clattn_plan_options_init(&o);
    o.path = way->path;
    o.kernel = way->kernel;
    p.n_q = 0;
    ck_assert_int_eq(clattn_plan_create(c, &p, &o, &plan), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_forward(plan, &a), CLATTN_STATUS_SUCCESS);
    a.q = a.o = a.lse = clattn_host_buffer(NULL);
    ck_assert_int_eq(clattn_forward(plan, &a), CLATTN_STATUS_SUCCESS);
    expect_untouched("no query");
    clattn_plan_release(plan);
    p = good_problem();
    p.n_kv = 0;
    a = good_args();
    ck_assert_int_eq(clattn_plan_create(c, &p, &o, &plan), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn_forward(plan, &a), CLATTN_STATUS_SUCCESS);
    expect_right(&p, "no key");
    setup();
    a.k = a.v = clattn_host_buffer(NULL);
    ck_assert_int_eq(clattn_forward(plan, &a), CLATTN_STATUS_SUCCESS);
    expect_right(&p, "no key, no buffer");
    ck_assert(f.o[0] == 0 && isinf(f.lse[0]) && f.lse[0] < 0);
    clattn_plan_release(plan);
    clattn_context_release(c);
}
END_TEST

START_TEST(no_lse_asked_for)
{
    const clattn_problem p = good_problem();
    clattn_context *c = host_context();
    ck_assert_int_eq(clattn_attention(c, &p, f.q, f.k, f.v, f.o, NULL), CLATTN_STATUS_SUCCESS);
    for (int i = 0; i < ROOM; i++) ck_assert(f.lse[i] == sentinel);
    ck_assert_int_eq(test_reference_forward(&p, f.q, f.k, f.v, NULL, NULL, f.ref_o, NULL), CLATTN_STATUS_SUCCESS);
    for (int i = 0; i < B * HQ * NQ * DV; i++) ck_assert(fabs(f.o[i] - f.ref_o[i]) < 2e-6);
    clattn_context_release(c);
}
END_TEST

/* ---- problems as text */

typedef struct text_case {
    const char *text, *canonical; /* canonical NULL: the text itself */
} text_case;
static const text_case texts[] = {
    {"f32 b1 hq1 hkv1 q1 kv1 d1", NULL},
    {"f16 b2 hq8 hkv2 q128 kv1024 d128", NULL},
    {"bf16 b2 hq8 hkv2 q128 kv1024 d128 dv64", NULL},
    {"f64 b3 hq6 hkv3 q0 kv0 d7 dv9", NULL},
    {"f16 b2 hq8 hkv2 q128 kv1024 d128 dv64 causal", NULL},
    {"f16 b2 hq8 hkv2 q128 kv1024 d128 causal offset=896", NULL},
    {"f32 b1 hq1 hkv1 q9 kv9 d8 window=256,0", NULL},
    {"f32 b1 hq1 hkv1 q9 kv9 d8 window=0,0", NULL},
    {"f32 b1 hq1 hkv1 q9 kv9 d8 window=-1,3", NULL},
    {"f32 b1 hq1 hkv1 q9 kv9 d8 window=3,-1", NULL},
    {"f32 b1 hq1 hkv1 q9 kv9 d8 window=9223372036854775807,9223372036854775807", NULL},
    {"f32 b1 hq1 hkv1 q9 kv9 d8 offset=-896", NULL},
    {"f32 b1 hq1 hkv1 q9 kv9 d8 offset=9223372036854775807", NULL},
    {"f32 b1 hq1 hkv1 q9 kv9 d8 offset=-9223372036854775808", NULL},
    {"f32 b1 hq1 hkv1 q9 kv1000 d8 kvlen=1000", NULL},
    {"f32 b1 hq1 hkv1 q9 kv1000 d8 kvlen=0", NULL},
    {"f32 b1 hq1 hkv1 q9 kv9 d8 scale=0.5", NULL},
    {"f32 b1 hq1 hkv1 q9 kv9 d8 scale=0", NULL},
    {"f32 b1 hq1 hkv1 q9 kv9 d8 scale=-3", NULL},
    {"f32 b1 hq1 hkv1 q9 kv9 d8 scale=0.10000000000000001", NULL},
    {"f32 b2 hq8 hkv2 q128 kv1024 d128 bshd", NULL},
    {"f16 b2 hq8 hkv2 q128 kv1024 d128 dv64 causal offset=896 kvlen=1000 scale=0.5 bshd", NULL},
    {"f32 hq2 q3 kv4 d5", "f32 b1 hq2 hkv2 q3 kv4 d5"},
    {"kv4 d5 hq2 f32 q3", "f32 b1 hq2 hkv2 q3 kv4 d5"},
    {"  f32\t hq2  q3 kv4 d5 \t", "f32 b1 hq2 hkv2 q3 kv4 d5"},
    {"f32 hq2\nq3 kv4\r\n d5\n", "f32 b1 hq2 hkv2 q3 kv4 d5"},
    {"f32 hq2 q3 kv4 d5 dv5", "f32 b1 hq2 hkv2 q3 kv4 d5"},
    {"f32 hq2 q3 kv4 d5 window=-1,0", "f32 b1 hq2 hkv2 q3 kv4 d5 causal"},
    {"f32 hq2 q3 kv4 d5 causal window=7,-1", "f32 b1 hq2 hkv2 q3 kv4 d5 window=7,0"},
    {"f32 hq2 q3 kv4 d5 window=-1,-1", "f32 b1 hq2 hkv2 q3 kv4 d5"},
    {"f32 hq2 q3 kv4 d5 kvlen=-1", "f32 b1 hq2 hkv2 q3 kv4 d5"},
    {"f32 hq2 q3 kv4 d5 offset=0", "f32 b1 hq2 hkv2 q3 kv4 d5"},
    {"f32 hq2 q3 kv4 d5 scale=1e-3", "f32 b1 hq2 hkv2 q3 kv4 d5 scale=0.001"},
};
enum { N_TEXTS = sizeof texts / sizeof *texts };

START_TEST(text_round_trip)
{
    const text_case *k = &texts[_i];
    const char *want = k->canonical ? k->canonical : k->text;
    clattn_problem p, again;
    char out[512];
    memset(&p, 0xa5, sizeof p);
    ck_assert_msg(clattn_problem_from_text(k->text, &p) == CLATTN_STATUS_SUCCESS, "%s", clattn_last_error()->message);
    ck_assert_int_eq(clattn_problem_check(&p), CLATTN_STATUS_SUCCESS);
    ck_assert_uint_eq(clattn_problem_to_text(&p, out, sizeof out), strlen(want));
    ck_assert_str_eq(out, want);
    ck_assert_int_eq(clattn_problem_from_text(out, &again), CLATTN_STATUS_SUCCESS);
    ck_assert(again.dtype == p.dtype && again.batch == p.batch && again.n_heads_q == p.n_heads_q);
    ck_assert(again.n_heads_kv == p.n_heads_kv && again.n_q == p.n_q && again.n_kv == p.n_kv);
    ck_assert(again.head_dim_qk == p.head_dim_qk && again.head_dim_v == p.head_dim_v && again.scale == p.scale);
    ck_assert(again.mask.window_left == p.mask.window_left && again.mask.window_right == p.mask.window_right);
    ck_assert(again.query_offset == p.query_offset && again.kv_length == p.kv_length);
    ck_assert(!memcmp(&again.q, &p.q, 5 * sizeof p.q));
    for (size_t size = 0; size <= strlen(want) + 1; size++) { /* a buffer that is too short is cut, and no byte more */
        memset(out, '#', sizeof out);
        ck_assert_uint_eq(clattn_problem_to_text(&p, size ? out : NULL, size), strlen(want));
        if (size) ck_assert(!strncmp(out, want, size - 1) && out[size - 1] == 0);
        ck_assert_int_eq(out[size], '#');
    }
}
END_TEST

#define GOOD "f32 hq2 hkv2 q3 kv4 d5 "
static const text_case bad_texts[] = {
    {"", "storage type"},
    {"   ", "storage type"},
    {"hq1 q1 kv1 d1", "storage type"},
    {"f32", "must be given"},
    {"f32 q1 kv1 d1", "hq"},
    {"f32 hq1 kv1 d1", "q"},
    {"f32 hq1 q1 d1", "kv"},
    {"f32 hq1 q1 kv1", "d"},
    {GOOD "f16", "'f16'"},
    {"f33 hq1 q1 kv1 d1", "'f33'"},
    {"F32 hq1 q1 kv1 d1", "'F32'"},
    {GOOD "x", "'x'"},
    {GOOD "b", "'b'"},
    {GOOD "b2x", "'b2x'"},
    {GOOD "b+2", "'b+2'"},
    {GOOD "b 2", "'b'"},
    {GOOD "b2.5", "'b2.5'"},
    {GOOD "b1e3", "'b1e3'"},
    {GOOD "b0x10", "'b0x10'"},
    {GOOD "b99999999999999999999", "'b99999999999999999999'"},
    {GOOD "offset=-9223372036854775809", "'offset=-9223372036854775809'"},
    {GOOD "b\v2", "'b\v2'"},
    {GOOD "b\n2", "'b'"},
    {GOOD "b1 b2", "'b2': an unknown word"},
    {GOOD "causal causal", "'causal': an unknown word"},
    {GOOD "bshd bshd", "'bshd': an unknown word"},
    {GOOD "scale=1 scale=2", "'scale=2': an unknown word"},
    {GOOD "window=1,2 window=3,4", "'window=3,4': an unknown word"},
    {GOOD "hq=2", "'hq=2'"},
    {GOOD "causal=1", "'causal=1'"},
    {GOOD "Causal", "'Causal'"},
    {GOOD "bshd2", "'bshd2'"},
    {GOOD "window", "'window'"},
    {GOOD "window=", "'window='"},
    {GOOD "window=5", "'window=5'"},
    {GOOD "window=5,", "'window=5,'"},
    {GOOD "window=,5", "'window=,5'"},
    {GOOD "window=5,6,7", "'window=5,6,7'"},
    {GOOD "window=5,x", "'window=5,x'"},
    {GOOD "window=0000000000000000000000000000000000000x,1", "'window=0000"},
    {GOOD "offset", "'offset'"},
    {GOOD "offset=", "'offset='"},
    {GOOD "offset=x", "'offset=x'"},
    {GOOD "kvlen=", "'kvlen='"},
    {GOOD "kvlen=1,2", "'kvlen=1,2'"},
    {GOOD "scale=", "'scale='"},
    {GOOD "scale=x", "'scale=x'"},
    {GOOD "scale=1x", "'scale=1x'"},
    {GOOD "scale=nan", "scale is nan"},
    {GOOD "alibi=x", "'alibi=x'"},
    {GOOD "bias=x", "'bias=x'"},
    {GOOD "bias=b,h,q", "'bias=b,h,q'"},
    {GOOD "bias=q,h,b,kv", "'bias=q,h,b,kv'"},
    {GOOD "bias=b,h,q,kv:x", "'bias=b,h,q,kv:x'"},
    {GOOD "biased", "'biased'"},
    {GOOD "mask=2,h,q,kv", "'mask=2,h,q,kv'"},
    {GOOD "masked", "'masked'"},
    {GOOD "dropout=", "'dropout='"},
    {GOOD "dropout=x:seed=1", "'dropout=x:seed=1'"},
    {GOOD "dropout=0.1:seed=", "'dropout=0.1:seed='"},
    {GOOD "dropout=0.1:seed=-1", "'dropout=0.1:seed=-1'"},
    {GOOD "dropout=0.1:sad=1", "'dropout=0.1:sad=1'"},
    {GOOD "softcap=x", "'softcap=x'"},
    {GOOD "varlen=", "'varlen='"},
    {GOOD "varlen=1,x", "'varlen=1,x'"},
    {GOOD "varlen=1,-2", "'varlen=1,-2'"},
    {GOOD "varlen=1,2:3", "'varlen=1,2:3'"},
    {GOOD "varlen=1,2:3,", "'varlen=1,2:3,'"},
    {GOOD "varlen=1,2", "varlen"},
    {GOOD "total=3,4", "total without varlen"},
    {GOOD "scale=inf", "scale is inf"},
    {GOOD "scale=1e999", "scale is inf"},
    {GOOD "window=-2,0", "window_left is -2"},
    {GOOD "window=0,-5", "window_right is -5"},
    {GOOD "kvlen=5", "kv_length is 5"},
    {GOOD "kvlen=-2", "kv_length is -2"},
    {"f32 b0 hq2 q3 kv4 d5", "batch is 0"},
    {"f32 b-1 hq2 q3 kv4 d5", "batch is -1"},
    {"f32 hq-2 q3 kv4 d5", "n_heads_q is -2"},
    {"f32 hq2 hkv-1 q3 kv4 d5", "n_heads_kv is -1"},
    {"f32 hq3 hkv2 q3 kv4 d5", "n_heads_q is 3"},
    {"f32 hq2 q-2 kv4 d5", "n_q is -2"},
    {"f32 hq2 q3 kv-2 d5", "n_kv is -2"},
    {"f32 hq2 q3 kv4 d-5", "head_dim_qk is -5"},
    {"f32 hq2 q3 kv4 d5 dv-1", "head_dim_v is -1"},
    {"f32 hq2 q3 kv4 d5 dv0", "head_dim_v is 0"},
    {"f32 hq2 hkv0 q3 kv4 d5", "n_heads_kv is 0"},
    {"f32 hq2 q9223372036854775807 kv4 d5", "9223372036854775807"},
    {"f32 hq2 q3 kv4 d5 0123456789012345678901234567890123456789012345678901234567890123", "cannot read '0123"},
};
enum { N_BAD_TEXTS = sizeof bad_texts / sizeof *bad_texts };

START_TEST(text_refused)
{
    const text_case *k = &bad_texts[_i];
    clattn_problem p, before;
    memset(&p, 0x5a, sizeof p);
    memset(&before, 0x5a, sizeof before);
    expect(clattn_problem_from_text(k->text, &p), CLATTN_STATUS_INVALID_ARGUMENT, NULL, k->text);
    ck_assert_msg(strstr(clattn_last_error()->message, k->canonical) != NULL, "'%s': '%s' lacks '%s'", k->text,
                  clattn_last_error()->message, k->canonical);
    ck_assert_msg(!memcmp(&p, &before, sizeof p), "'%s' changed the problem", k->text);
    ck_assert_int_eq(clattn_problem_from_text("f32 hq1 q1 kv1 d1", &p), CLATTN_STATUS_SUCCESS);
}
END_TEST

/* Every beginning of a long text, and every one with one byte changed, is read or refused; nothing else happens. */
START_TEST(text_mangled)
{
    static const char whole[] = "f16 b2 hq8 hkv2 q128 kv1024 d128 dv64 causal offset=896 window=256,0 kvlen=1000 "
                                "scale=0.5 bshd";
    char text[sizeof whole + 1] = "", out[512];
    clattn_problem p;
    int read = 0, refused_ones = 0;
    for (size_t n = 0; n < sizeof whole; n++) /* the 0 at its end too */
        for (int byte = 0; byte < 256; byte++) {
            memcpy(text, whole, sizeof whole);
            text[n] = (char)byte;
            const clattn_status status = clattn_problem_from_text(text, &p);
            ck_assert_msg(status == CLATTN_STATUS_SUCCESS || status == CLATTN_STATUS_INVALID_ARGUMENT, "%s", text);
            if (status == CLATTN_STATUS_SUCCESS) {
                read++;
                ck_assert_int_eq(clattn_problem_check(&p), CLATTN_STATUS_SUCCESS);
                clattn_problem_to_text(&p, out, sizeof out);
                ck_assert_msg(clattn_problem_from_text(out, &p) == CLATTN_STATUS_SUCCESS, "%s became %s", text, out);
            } else {
                refused_ones++;
            }
        }
    ck_assert_int_gt(read, 200);
    ck_assert_int_gt(refused_ones, 10000);
}
END_TEST

START_TEST(text_overlong)
{
    enum { LONG = 100000 };
    char *text = malloc(LONG + 1);
    clattn_problem p;
    const size_t lengths[] = {63, 64, 65, 1000, LONG};
    ck_assert_ptr_nonnull(text);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        memset(text, 'f', lengths[i]);
        text[lengths[i]] = 0;
        expect(clattn_problem_from_text(text, &p), CLATTN_STATUS_INVALID_ARGUMENT, (words){"ffffffff"}, "overlong");
    }
    memset(text, ' ', LONG);
    strcpy(text + LONG - 18, " f32 hq1 q1 kv1 d1");
    ck_assert_int_eq(clattn_problem_from_text(text, &p), CLATTN_STATUS_SUCCESS);
    free(text);
}
END_TEST

static TCase *add_case(Suite *s, const char *name)
{
    TCase *t = tcase_create(name);
    tcase_add_checked_fixture(t, setup, NULL);
    tcase_set_timeout(t, 300);
    suite_add_tcase(s, t);
    return t;
}

Suite *test_suite(void)
{
    Suite *s = suite_create("api");
    TCase *t = add_case(s, "names");
    tcase_add_test(t, version_text);
    tcase_add_test(t, status_names);
    tcase_add_test(t, dtype_names);
    tcase_add_test(t, path_and_kernel_names);
    tcase_add_test(t, stride_helpers);
    tcase_add_test(t, problem_init_defaults);
    tcase_add_test(t, inits_of_null);
    tcase_add_test(t, inits_fill_all);

    t = add_case(s, "refusals");
    tcase_add_loop_test(t, problem_refused, 0, N_REFUSED);
    tcase_add_loop_test(t, problem_legal, 0, N_LEGAL);
    tcase_add_test(t, out_of_range_field_that_is_unused);
    tcase_add_loop_test(t, args_refused_host, 0, N_BAD_ARGS);
    tcase_add_loop_test(t, args_refused_device, 0, N_WAYS - 1);
    tcase_add_test(t, inputs_may_share_memory);
    tcase_add_test(t, outputs_beside_each_other);
    tcase_add_loop_test(t, offsets_of_host_buffers, 0, N_WAYS);
    tcase_add_loop_test(t, struct_sizes, 0, N_WRONG_SIZES);
    tcase_add_test(t, nulls);
    tcase_add_test(t, null_handles);
    tcase_add_test(t, attention_takes_no_per_batch_numbers);
    tcase_add_loop_test(t, plan_options_refused, 0, N_BAD_PLANS);
    tcase_add_loop_test(t, context_options_refused, 0, N_BAD_CONTEXTS);
    tcase_add_test(t, device_index_refused);

    t = add_case(s, "failures");
    tcase_add_loop_test(t, unsupported_sizes, 0, 4);
    tcase_add_test(t, device_path_of_a_host_only_context);
    tcase_add_test(t, no_memory_for_the_reference);
    tcase_add_test(t, no_memory_for_the_workspace);
    tcase_add_test(t, last_error_at_first);
    tcase_add_test(t, last_error_per_thread);
    tcase_add_test(t, last_error_outlives_success);

    t = add_case(s, "contexts and plans");
    tcase_add_loop_test(t, plan_keeps_its_context, 0, N_WAYS);
    tcase_add_test(t, default_context);
    tcase_add_test(t, threads_of_the_app);
    tcase_add_test(t, log_of_a_plan);
    tcase_add_test(t, log_of_a_run);
    tcase_add_test(t, log_of_a_build);
    tcase_add_loop_test(t, verbose_on_stderr, 0, N_VERBOSE);
    tcase_add_test(t, attention_keeps_plans);
    tcase_add_test(t, attention_tells_problems_apart);
    tcase_add_loop_test(t, auto_rule, 0, N_AUTO);
    tcase_add_test(t, auto_without_a_device);
    tcase_add_loop_test(t, ways_asked_for, 0, N_WAYS);
    tcase_add_loop_test(t, blocks_asked_for, 0, N_WAYS * N_BLOCKS);
    tcase_add_test(t, threads_of_a_plan);
    tcase_add_loop_test(t, instruction_sets, 0, 5);
    tcase_add_loop_test(t, nothing_to_do, 0, N_WAYS);
    tcase_add_test(t, no_lse_asked_for);

    t = add_case(s, "texts");
    tcase_add_loop_test(t, text_round_trip, 0, N_TEXTS);
    tcase_add_loop_test(t, text_refused, 0, N_BAD_TEXTS);
    tcase_add_test(t, text_mangled);
    tcase_add_test(t, text_overlong);
    return s;
}
