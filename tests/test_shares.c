/* Calls whose copies are more than they may take at a time: in shares they give the bits that they give at once. */
#define _GNU_SOURCE
#include "harness.h"

#include <clattn/opencl.h>

#include <inttypes.h>

/* Contexts whose calls may copy so many bytes; made at first use and kept, for each builds its own kernels. 0: any. */
static clattn_context *limited(int64_t bytes, int copy)
{
    enum { MOST = 24 };
    static struct {
        int64_t bytes;
        int copy;
        clattn_context *context;
    } made[MOST];
    int i = 0;
    while (i < MOST && made[i].context && (made[i].bytes != bytes || made[i].copy != copy)) i++;
    ck_assert_int_lt(i, MOST);
    if (made[i].context) return made[i].context;
    clattn_context_options options;
    test_context_options(&options);
    options.copy_transfers = copy;
    options.copy_bytes_most = bytes;
    test_ok(clattn_context_create(&options, &made[i].context));
    made[i].bytes = bytes;
    made[i].copy = copy;
    return made[i].context;
}

static clattn_plan_info info_of(const clattn_plan *plan)
{
    clattn_plan_info info;
    clattn_plan_info_init(&info);
    test_ok(clattn_plan_get_info(plan, &info));
    return info;
}

/* What test_forward left in the memory of O and LSE, gaps and guards with it. */
typedef struct kept_outputs {
    unsigned char *bytes[2];
} kept_outputs;

static kept_outputs outputs_keep(const test_data *t)
{
    kept_outputs k;
    for (int i = 0; i < 2; i++) {
        const test_block *b = &t->blocks[3 + i];
        k.bytes[i] = malloc(b->bytes);
        ck_assert_ptr_nonnull(k.bytes[i]);
        memcpy(k.bytes[i], b->base, b->bytes);
    }
    return k;
}

static void outputs_compare(const test_data *t, const kept_outputs *k, const char *what)
{
    for (int i = 0; i < 2; i++)
        ck_assert_msg(!memcmp(k->bytes[i], t->blocks[3 + i].base, t->blocks[3 + i].bytes), "%s, %s: other bits of %s",
                      t->text, what, i ? "LSE" : "O");
}

static void outputs_free(kept_outputs *k)
{
    free(k->bytes[0]);
    free(k->bytes[1]);
}

/* In place, then in shares under each limit. A limit may be below the least share, if another is not. Returns under how
 * many of them keys are cut. */
static int compare_limits(test_data *t, const test_way *way, const int64_t *limits, int n)
{
    int refused = 0, keys_cut = 0;
    clattn_plan *whole = test_plan(test_context(), &t->p, way, 0, 0, 0);
    ck_assert_int_eq(info_of(whole).n_shares, 1);
    test_forward(t, whole);
    clattn_plan_release(whole);
    kept_outputs kept = outputs_keep(t);
    for (int i = 0; i < n; i++) {
        char what[100];
        clattn_plan_options options;
        clattn_plan *plan;
        clattn_plan_options_init(&options);
        options.path = way->path;
        options.kernel = way->kernel;
        const clattn_status status = clattn_plan_create(limited(limits[i], 1), &t->p, &options, &plan);
        if (status == CLATTN_STATUS_UNSUPPORTED) {
            snprintf(what, sizeof what, "may hold %" PRId64 " at a time", limits[i]);
            ck_assert_msg(strstr(clattn_last_error()->message, what), "%s", clattn_last_error()->message);
            ck_assert_int_lt(++refused, n);
            continue;
        }
        test_ok(status);
        const clattn_plan_info info = info_of(plan);
        ck_assert_int_eq(info.zero_copy, 0);
        ck_assert_int_gt(info.n_shares, 1);
        snprintf(what, sizeof what, "transfers: %" PRId64 " shares", info.n_shares);
        const char *transfers = strstr(clattn_plan_explain(plan), what);
        ck_assert_ptr_nonnull(transfers);
        snprintf(what, sizeof what, "rows and %" PRId64 " keys, in", t->p.n_kv);
        if (!strstr(transfers, what)) keys_cut++;
        snprintf(what, sizeof what, "%s in %" PRId64 " shares of at most %" PRId64 " bytes", way->name, info.n_shares,
                 limits[i]);
        test_forward(t, plan);
        outputs_compare(t, &kept, what);
        if (i == 0) { /* without LSE: another sum of bytes, the same shares */
            clattn_forward_args args = test_args(t);
            args.lse = clattn_host_buffer(NULL);
            memset(t->blocks[3].base, 0xff, t->blocks[3].bytes);
            test_ok(clattn_forward(plan, &args));
            outputs_compare(t, &kept, "without LSE");
        }
        clattn_plan_release(plan);
    }
    outputs_free(&kept);
    return keys_cut;
}

static const test_way decode_ways[2] = {{"attn_decode_lanes", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_DECODE_LANES},
                                        {"attn_decode", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_DECODE}};

static const int64_t limits[] = {130000, 60000, 260000};
enum { N_LIMITS = sizeof limits / sizeof *limits, N_DEVICE_WAYS = 2 };

static bool can_run(const test_way *way, clattn_dtype dtype) { return test_way_context(way, dtype) != NULL; }

/* ---- each feature */

START_TEST(features)
{
    const test_way *way = &test_ways[1 + _i % N_DEVICE_WAYS];
    const int feature = _i / N_DEVICE_WAYS;
    clattn_problem p;
    if (!can_run(way, CLATTN_DTYPE_F32)) return;
    ck_assert(test_pair_problem(feature ? 1u << (feature - 1) : 0, CLATTN_DTYPE_F32, feature % 3, &p));
    test_data *t = test_pair_data(&p, 5);
    compare_limits(t, way, limits, 2);
    test_data_free(t);
}
END_TEST

/* ---- texts: types, everything at once, what is broadcast, layouts */

static const char *const texts[] = {
    "f16 b2 hq4 hkv2 q90 kv133 d64 causal offset=40 bias=1,h,q,kv:f32 sinks",
    "bf16 b2 hq4 hkv1 q90 kv133 d64 window=50,20 alibi mask=b,h,q,kv dropout=0.3:seed=3",
    "f64 b2 hq2 hkv2 q70 kv93 d40 causal softcap=5 bias=b,1,1,kv",
    "f32 b3 hq6 hkv2 q70 kv93 d20 window=9,3 softcap=7 alibi bias=1,h,q,kv:f16 mask=b,1,q,kv sinks dropout=0.2:seed=1",
    "f32 b3 hq6 hkv1 q70 kv93 d20 bias=b,h,q,kv:bf16 mask=1,1,q,kv sinks bshd",
    "f32 b5 hq3 hkv3 q33 kv70 d33 dv65 bias=b,h,1,kv mask=b,h,q,1",
    "f32 hq4 hkv2 d40 varlen=83,5,67:160,9,140 causal bias=b,1,1,kv:bf16 mask=1,h,q,1 sinks alibi dropout=0.1:seed=9",
    "f32 hq6 hkv1 d40 varlen=40,21,3:40,50,7 bias=b,h,q,kv",
    "f32 b7 hq2 hkv1 q150 kv40 d16 causal",
    "f32 b1 hq1 hkv1 q500 kv64 d32 mask=1,1,q,kv bias=b,h,q,kv",
};
enum { N_TEXTS = sizeof texts / sizeof *texts };

START_TEST(everything)
{
    const test_way *way = &test_ways[1 + _i % N_DEVICE_WAYS];
    test_data *t = test_data_from_text(texts[_i / N_DEVICE_WAYS], 6);
    if (can_run(way, t->p.dtype)) compare_limits(t, way, limits, N_LIMITS);
    test_data_free(t);
}
END_TEST

/* Gaps behind rows and heads, O's untouched; K and V that all heads, or all entries, share. */
static void spread(clattn_problem *p, int how)
{
    p->q.seq = p->head_dim_qk + 3;
    p->q.head = p->q.seq * p->n_q + 7;
    p->q.batch = p->q.head * p->n_heads_q + 11;
    p->o.head = p->head_dim_v + 5; /* heads of a row side by side */
    p->o.seq = p->o.head * p->n_heads_q + 1;
    p->o.batch = p->o.seq * p->n_q + 13;
    p->lse.head = p->n_q + 2;
    p->lse.seq = 1;
    p->lse.batch = p->lse.head * p->n_heads_q + 3;
    p->k.seq = p->head_dim_qk;
    p->k.head = how ? 0 : p->k.seq * p->n_kv + 1;
    p->k.batch = how ? p->k.seq * p->n_kv : p->k.head * p->n_heads_kv;
    p->v.seq = p->head_dim_v + 1;
    p->v.head = p->v.seq * p->n_kv;
    p->v.batch = how ? 0 : p->v.head * p->n_heads_kv + 9;
}

START_TEST(strides)
{
    const test_way *way = &test_ways[1 + _i % N_DEVICE_WAYS];
    clattn_problem p;
    if (!can_run(way, CLATTN_DTYPE_F32)) return;
    test_ok(clattn_problem_from_text("f32 b2 hq4 hkv2 q90 kv93 d40 causal offset=20 sinks", &p));
    spread(&p, _i / N_DEVICE_WAYS);
    test_data *t = test_data_make(&p, 7);
    compare_limits(t, way, limits, N_LIMITS);
    test_data_free(t);
}
END_TEST

/* The same with the keys cut. */
START_TEST(strides_of_keys)
{
    static const int64_t few[] = {130000, 110000};
    const test_way *way = &decode_ways[_i % 2];
    clattn_problem p;
    if (!can_run(way, CLATTN_DTYPE_F32)) return;
    test_ok(clattn_problem_from_text("f32 b2 hq4 hkv2 q2 kv600 d40 causal offset=595 sinks", &p));
    spread(&p, _i / 2);
    test_data *t = test_data_make(&p, 7);
    ck_assert_int_eq(compare_limits(t, way, few, 2), 2);
    test_data_free(t);
}
END_TEST

/* No keys at all: O is 0, in shares too. */
START_TEST(no_keys)
{
    static const int64_t few[] = {6000, 4800};
    if (!can_run(&decode_ways[_i], CLATTN_DTYPE_F32)) return;
    test_data *t = test_data_from_text("f32 b3 hq4 hkv2 q2 kv0 d16 sinks", 3);
    ck_assert_int_eq(compare_limits(t, &decode_ways[_i], few, 2), 0);
    test_reference(t);
    test_compare(t, "without keys");
    test_data_free(t);
}
END_TEST

START_TEST(packed)
{
    const test_way *way = &test_ways[1 + _i];
    clattn_problem p;
    if (!can_run(way, CLATTN_DTYPE_F32)) return;
    test_ok(clattn_problem_from_text("f32 b2 hq4 hkv2 q93 kv93 d40", &p));
    test_data *t = test_data_make_packed(&p, 8);
    compare_limits(t, way, limits, N_LIMITS);
    test_data_free(t);
}
END_TEST

/* Kernels beside the two: all rows of a GQA group in one work-item, then a merge, and the keys cut in whole chunks where
 * a limit is below those of a head; a matrix engine, emulated. */
START_TEST(other_kernels)
{
    static const test_way mma = {"attn_fwd_mma", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_FWD_MMA};
    static const struct {
        const test_way *way;
        const char *text;
        int64_t limits[3];
        int keys_cut; /* under how many of them */
    } cases[] = {
        {&decode_ways[0],
         "f32 b3 hq4 hkv2 q2 kv600 d16 causal offset=598 alibi mask=b,1,q,kv dropout=0.2:seed=4",
         {260000, 130000, 85000},
         2},
        {&decode_ways[0], "f16 hq8 hkv2 d40 varlen=1,2,1:300,20,500 sinks", {160000, 110000, 20000}, 0},
        {&decode_ways[1], "f16 b3 hq4 hkv2 q2 kv600 d16 causal offset=598 bias=b,1,q,kv", {150000, 100000, 60000}, 1},
        {&decode_ways[0],
         "f32 b1 hq4 hkv1 q2 kv615 d16 window=500,2 offset=610 mask=1,h,q,kv sinks bshd",
         {70000, 60000, 50000},
         3},
        {&decode_ways[1],
         "f64 b2 hq3 hkv1 q3 kv600 d16 kvlen=437 softcap=4 bias=1,h,q,kv dropout=0.1:seed=2",
         {130000, 120000, 110000},
         3},
        {&mma, "f16 b2 hq4 hkv2 q70 kv93 d40 causal", {120000, 60000, 20000}, 0},
    };
    if (!can_run(cases[_i].way, CLATTN_DTYPE_F32)) return;
    test_data *t = test_data_from_text(cases[_i].text, 9);
    ck_assert_int_eq(compare_limits(t, cases[_i].way, cases[_i].limits, 3), cases[_i].keys_cut);
    test_data_free(t);
}
END_TEST

/* ---- limits */

#define CAUSAL "f32 b2 hq4 hkv2 q140 kv150 d40 causal"

/* Less than K and V of one head: the device is refused, AUTO takes the host. */
START_TEST(limit_too_small)
{
    clattn_plan_options options;
    clattn_plan *plan = NULL;
    if (!can_run(&test_ways[1], CLATTN_DTYPE_F32)) return;
    test_data *t = test_data_from_text(CAUSAL, 1);
    clattn_plan_options_init(&options);
    options.kernel = CLATTN_KERNEL_ATTN_FWD_LANES;
    ck_assert_int_eq(clattn_plan_create(limited(20000, 1), &t->p, &options, &plan), CLATTN_STATUS_UNSUPPORTED);
    const char *message = clattn_last_error()->message;
    ck_assert_msg(strstr(message, "rows of 1 query heads and 150 keys") && strstr(message, "may hold 20000"), "%s",
                  message);
    ck_assert_ptr_null(plan);
    test_ok(clattn_plan_create(limited(20000, 1), &t->p, NULL, &plan));
    ck_assert_int_eq(info_of(plan).path, CLATTN_PATH_HOST);
    ck_assert_int_eq(info_of(plan).n_shares, 0);
    ck_assert_ptr_nonnull(strstr(clattn_plan_explain(plan), "path host: "));
    test_reference(t);
    test_forward(t, plan);
    test_compare(t, "on the host");
    clattn_plan_release(plan);
    test_data_free(t);
}
END_TEST

/* In the caller's memory nothing is copied, whatever the limit; only gaps in an output force copies, and those a
 * cut. */
START_TEST(in_place)
{
    const test_way *way = &test_ways[1];
    const int64_t limit = _i ? 20000 : 130000;
    clattn_problem p;
    if (!can_run(way, CLATTN_DTYPE_F32)) return;
    test_ok(clattn_problem_from_text(CAUSAL, &p));
    for (int with_gaps = 0; with_gaps < 2; with_gaps++) {
        if (with_gaps) spread(&p, 0);
        test_data *t = test_data_make(&p, 2);
        clattn_plan *plan = test_plan(limited(limit, 0), &p, way, 0, 0, 0);
        if (!info_of(plan).zero_copy) {
            test_skip("in_place", "the device does not share the host's memory");
        } else if (with_gaps && _i) {
            const clattn_forward_args args = test_args(t);
            memset(t->blocks[3].base, 0x5a, t->blocks[3].bytes);
            ck_assert_int_eq(clattn_forward(plan, &args), CLATTN_STATUS_OUT_OF_DEVICE_MEMORY);
            ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "may hold 20000 at a time"));
            for (size_t i = 0; i < t->blocks[3].bytes; i++) ck_assert_int_eq(t->blocks[3].base[i], 0x5a);
        } else {
            ck_assert_int_eq(info_of(plan).n_shares, 1);
            test_reference(t);
            test_forward(t, plan);
            test_compare(t, "in place");
        }
        clattn_plan_release(plan);
        test_data_free(t);
    }
}
END_TEST

/* Gradients are not cut: they fit, or the call is refused and has written nothing. */
START_TEST(gradients)
{
    const int64_t limit = _i ? 20000000 : 130000;
    clattn_plan_options options;
    clattn_plan *forward, *plan;
    if (!can_run(&test_ways[1], CLATTN_DTYPE_F32)) return;
    test_data *t = test_data_from_text(CAUSAL, 3);
    clattn_plan_options_init(&options);
    options.path = CLATTN_PATH_DEVICE;
    test_ok(clattn_plan_create(limited(limit, 1), &t->p, &options, &forward));
    test_forward(t, forward);
    options.pass = CLATTN_PASS_BACKWARD;
    test_ok(clattn_plan_create(limited(limit, 1), &t->p, &options, &plan));
    ck_assert_int_eq(info_of(plan).n_shares, 1);
    const size_t n = (size_t)(t->p.batch * t->p.n_heads_q * t->p.n_q * t->p.head_dim_qk);
    float *dq = malloc(n * sizeof *dq);
    ck_assert_ptr_nonnull(dq);
    memset(dq, 0xff, n * sizeof *dq);
    clattn_backward_args args;
    clattn_backward_args_init(&args);
    args.forward = test_args(t);
    args.d_o = args.forward.o;
    args.dq = clattn_host_buffer(dq);
    if (_i) {
        test_ok(clattn_backward(plan, &args));
        for (size_t i = 0; i < n; i++) ck_assert(isfinite(dq[i]));
    } else {
        ck_assert_int_eq(clattn_backward(plan, &args), CLATTN_STATUS_OUT_OF_DEVICE_MEMORY);
        const char *message = clattn_last_error()->message;
        ck_assert_msg(strstr(message, "bytes of copies and work space") && strstr(message, "130000"), "%s", message);
        for (size_t i = 0; i < n; i++) ck_assert(isnan(dq[i]));
    }
    clattn_plan_release(forward);
    clattn_plan_release(plan);
    free(dq);
    test_data_free(t);
}
END_TEST

/* Where no call could go well AUTO takes the host, and keeps the kernel for cl_mem. 0: gradients that would be copied;
 * 1: an output with gaps. */
START_TEST(auto_takes_the_host)
{
    clattn_problem p;
    clattn_plan_options options;
    clattn_plan *plan;
    if (!can_run(&test_ways[1], CLATTN_DTYPE_F32)) return;
    test_ok(clattn_problem_from_text(CAUSAL, &p));
    if (_i) spread(&p, 0);
    clattn_plan_options_init(&options);
    options.pass = _i ? CLATTN_PASS_FORWARD : CLATTN_PASS_BACKWARD;
    for (int is_small = 0; is_small < 2; is_small++) {
        test_ok(clattn_plan_create(limited(is_small ? 20000 : 20000000, !_i), &p, &options, &plan));
        const clattn_plan_info info = info_of(plan);
        const char *why = clattn_plan_explain(plan);
        ck_assert_int_eq(info.path, is_small ? CLATTN_PATH_HOST : CLATTN_PATH_DEVICE);
        ck_assert_int_ne(info.cl_kernel, CLATTN_KERNEL_AUTO);
        ck_assert_msg(!is_small || (strstr(why, "path host: ") && strstr(why, "may hold 20000 at a time")), "%s", why);
        if (is_small && _i) {
            test_data *t = test_data_make(&p, 3);
            test_reference(t);
            test_forward(t, plan);
            test_compare(t, "on the host");
            test_data_free(t);
        }
        clattn_plan_release(plan);
    }
}
END_TEST

/* ---- many threads, one plan */

START_TEST(one_plan)
{
    const test_way *way = &test_ways[1 + _i];
    if (!can_run(way, CLATTN_DTYPE_F32)) return;
    test_data *t = test_data_from_text(CAUSAL, 4);
    clattn_plan *plan = test_plan(limited(130000, 1), &t->p, way, 0, 0, 0);
    ck_assert_int_gt(info_of(plan).n_shares, 1);
    test_reference(t);
    test_forward(t, plan);
    test_compare(t, "first");
    test_call_often(plan, t);
    clattn_plan_release(plan);
    test_data_free(t);
}
END_TEST

/* Copies of several parts, several slots and more than all of them, by four threads: the bits of the call in place. */
START_TEST(large_copies)
{
    clattn_context_options options;
    clattn_plan_options plan_options;
    clattn_context *context;
    clattn_plan *plan;
    if (!test_context()) return;
    test_context_options(&options);
    clattn_plan_options_init(&plan_options);
    plan_options.path = CLATTN_PATH_DEVICE;
    test_data *t = test_data_from_text("f32 b1 hq4 hkv1 q5000 kv4200 d64 bshd mask=1,1,q,kv", 8);
    test_ok(clattn_plan_create(test_context(), &t->p, &plan_options, &plan));
    test_forward(t, plan);
    clattn_plan_release(plan);
    kept_outputs kept = outputs_keep(t);
    options.copy_transfers = 1;
    options.n_threads = 4;
    test_ok(clattn_context_create(&options, &context));
    test_ok(clattn_plan_create(context, &t->p, &plan_options, &plan));
    for (int i = 0; i < 2; i++) {
        memset(t->blocks[3].base, 0xff, t->blocks[3].bytes);
        test_forward(t, plan);
        outputs_compare(t, &kept, "in large copies");
    }
    outputs_free(&kept);
    clattn_plan_release(plan);
    clattn_context_release(context);
    test_data_free(t);
}
END_TEST

Suite *test_suite(void)
{
    Suite *s = suite_create("shares");
    TCase *c = test_case(s, "bits");
    tcase_add_loop_test(c, features, 0, (TEST_FEATURES + 1) * N_DEVICE_WAYS);
    tcase_add_loop_test(c, everything, 0, N_TEXTS * N_DEVICE_WAYS);
    tcase_add_loop_test(c, strides, 0, 2 * N_DEVICE_WAYS);
    tcase_add_loop_test(c, strides_of_keys, 0, 4);
    tcase_add_loop_test(c, no_keys, 0, 2);
    tcase_add_loop_test(c, packed, 0, N_DEVICE_WAYS);
    tcase_add_loop_test(c, other_kernels, 0, 6);
    c = test_case(s, "limits");
    tcase_add_test(c, limit_too_small);
    tcase_add_loop_test(c, in_place, 0, 2);
    tcase_add_loop_test(c, gradients, 0, 2);
    tcase_add_loop_test(c, auto_takes_the_host, 0, 2);
    c = test_case(s, "threads");
    tcase_add_test(c, large_copies);
    tcase_add_loop_test(c, one_plan, 0, N_DEVICE_WAYS);
    return s;
}
