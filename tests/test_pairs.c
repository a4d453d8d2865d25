/* The lanes kernels' products of bf16 pairs, forward and backward, beside the reference: emulated, so that any CPU device
 * runs them; where a processor has the instruction, every other test of bf16 on the device meets it. */
#include "gradients.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static const test_way lanes = {"attn_fwd_lanes", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_FWD_LANES};
static const test_way decode_lanes = {"attn_decode_lanes", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_DECODE_LANES};
static const test_way backward_lanes = {"attn_bwd_lanes", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_BWD_LANES};
enum { SHAPES = 3, ALL = (1 << TEST_FEATURES) - 1 };

/* Sequences bring their own lengths, so two sets. */
static const unsigned sets[] = {ALL & ~(1u << 3), ALL & ~(1u << 12)};

/* attn_decode_lanes has pairs of Q and K alone: its P is not rounded. */
static void run(test_data *t, const test_way *way, int64_t block_q, int64_t block_kv, const char *what)
{
    if (test_way_context(way, CLATTN_DTYPE_BF16)) {
        clattn_plan *plan = test_plan(test_context(), &t->p, way, block_q, block_kv, 0);
        const char *why = clattn_plan_explain(plan);
        ck_assert_msg(!!strstr(why, "matrix engine: emulated_pairs; its products agree with host_tile's"), "%s", why);
        test_reference(t);
        test_forward(t, plan);
        ck_assert_int_eq(t->products, way == &lanes ? CLATTN_DTYPE_BF16 : CLATTN_DTYPE_F32);
        ck_assert_int_eq(!!strstr(why, "P is rounded to bf16"), way == &lanes);
        test_compare(t, what);
        clattn_plan_release(plan);
    }
    test_data_free(t);
}

static void run_features(const test_way *way, unsigned features, int shape)
{
    clattn_problem p;
    if (!test_pair_problem(features, CLATTN_DTYPE_BF16, shape, &p)) return;
    run(test_pair_data(&p, (uint64_t)features + (uint64_t)shape), way, 0, 0, "features");
}

START_TEST(each_feature) { run_features(&lanes, _i / SHAPES == TEST_FEATURES ? 0 : 1u << _i / SHAPES, _i % SHAPES); }
END_TEST

START_TEST(all_features) { run_features(_i % 2 ? &decode_lanes : &lanes, sets[_i / 2 / SHAPES], _i / 2 % SHAPES); }
END_TEST

/* Odd head dims leave half a word, odd numbers of keys half a pair, and windows may begin in the middle of one. */
static const struct {
    const char *text;
    int block_q, block_kv;
} shapes[] = {
    {"bf16 b1 hq2 hkv1 q37 kv67 d1 window=-1,40", 0, 0},
    {"bf16 b1 hq2 hkv1 q37 kv67 d7 window=9,40", 0, 0},
    {"bf16 b1 hq2 hkv1 q37 kv67 d31 dv33 window=10,40", 0, 0},
    {"bf16 b1 hq2 hkv1 q37 kv67 d16 dv128 window=-1,40", 0, 0},
    {"bf16 b1 hq2 hkv1 q37 kv66 d80 dv96 window=9,40", 0, 0},
    {"bf16 b1 hq2 hkv1 q37 kv67 d128 dv8 causal offset=30", 0, 0},
    {"bf16 b1 hq1 hkv1 q131 kv257 d24 window=71,5 offset=101", 16, 20},
    {"bf16 b1 hq1 hkv1 q131 kv257 d24 window=71,5 offset=101", 32, 64},
    {"bf16 b1 hq1 hkv1 q131 kv257 d24 window=70,4 offset=100", 48, 128},
    {"bf16 b1 hq1 hkv1 q131 kv257 d24 window=70,4 offset=100", 64, 256},
    {"bf16 b1 hq1 hkv1 q131 kv257 d24 window=71,5 offset=101", 96, 128},
    {"bf16 b1 hq1 hkv1 q131 kv257 d24 window=71,5 offset=101", 128, 128},
    {"bf16 b1 hq1 hkv1 q300 kv257 d24 window=71,5 offset=-3", 192, 128},
    {"bf16 b1 hq2 hkv1 q260 kv257 d24 causal mask=b,1,q,kv", 256, 128},
    {"bf16 b1 hq1 hkv1 q257 kv257 d24", 256, 128},
    {"bf16 b1 hq1 hkv1 q1 kv301 d24 window=70,5 offset=290", 0, 0},
    {"bf16 b1 hq2 hkv2 q50 kv51 d64 causal offset=-13", 0, 0},
    {"bf16 hq2 hkv1 d64 varlen=3,0,5,17:0,4,5,70 causal offset=2", 0, 0},
    {"bf16 b2 hq2 hkv2 q70 kv0 d64", 0, 0},
    {"bf16 b1 hq2 hkv2 q70 kv90 d64 kvlen=33 causal", 0, 0},
    {"bf16 b1 hq2 hkv2 q70 kv90 d64 scale=-3.7", 0, 0},
};

START_TEST(shapes_of_pairs)
{
    run(test_data_from_text(shapes[_i / 2].text, 8 + (uint64_t)_i % 2), &lanes, shapes[_i / 2].block_q,
        shapes[_i / 2].block_kv, "shape");
}
END_TEST

/* In chunks of 32 keys, or as the plan has it. */
START_TEST(decode_of_shapes)
{
    run(test_data_from_text(shapes[_i].text, 8), &decode_lanes, 0, _i % 2 ? 32 : 0, "shape");
}
END_TEST

/* Behind masks and window edges, and where rows see it: each half of a pair is its own key. */
static const char *const windows[] = {"causal", "window=9,5 offset=20", "kvlen=61", "window=40,-1 offset=30",
                                      "mask=1,1,q,kv"};

START_TEST(nan_beside_keys)
{
    const double special[] = {(double)NAN, (double)INFINITY, -(double)INFINITY, (double)NAN, (double)INFINITY};
    char text[100];
    snprintf(text, sizeof text, "bf16 b1 hq2 hkv2 q70 kv150 d40 %s", windows[_i / 3]);
    test_data *t = test_data_from_text(text, 8 + (uint64_t)_i % 3);
    for (int n = 0; n < COUNT(special); n++)
        for (int d = n; d < 40; d += 7) test_set(t, 'v', 0, n % 2, (int[]){5, 33, 60, 61, 100}[n], d, special[n]);
    test_set_row(t, 'k', 0, 0, 62, (double)NAN);
    test_set_row(t, 'v', 0, 1, 149, (double)NAN);
    test_set(t, 'q', 0, 1, 13, 3, (double)NAN);
    run(t, _i % 3 == 2 ? &decode_lanes : &lanes, 0, 0, "NaN");
}
END_TEST

/* ---- gradients */

static void check_gradients(test_data *t, const char *text, uint64_t seed, int block)
{
    clattn_context *context = test_way_context(&backward_lanes, CLATTN_DTYPE_BF16);
    if (context) {
        const test_backward_how how = {.block = block};
        clattn_plan_options options;
        clattn_plan *plan;
        clattn_plan_options_init(&options);
        options.pass = CLATTN_PASS_BACKWARD;
        options.kernel = backward_lanes.kernel;
        options.block_q = options.block_kv = block;
        test_ok(clattn_plan_create(context, &t->p, &options, &plan));
        const char *why = clattn_plan_explain(plan);
        ck_assert_msg(!!strstr(why, "matrix engine: emulated_pairs; its products agree"), "%s", why);
        clattn_plan_release(plan);
        test_backward_check(t, text, seed, &backward_lanes, &how);
    }
    test_data_free(t);
}

/* All but the score function, whose derivative the pairs' has not. */
enum { GRADIENTS = TEST_FEATURES - 1, GRADIENT_CASES = GRADIENTS + 1 + COUNT(sets) };

START_TEST(gradients_of_features)
{
    const unsigned all = (1u << GRADIENTS) - 1;
    const unsigned features = _i < GRADIENTS ? 1u << _i : _i > GRADIENTS ? all & sets[_i - GRADIENTS - 1] : 0;
    char text[320];
    clattn_problem p;
    if (!test_pair_problem(features, CLATTN_DTYPE_BF16, _i % SHAPES, &p)) return;
    clattn_problem_to_text(&p, text, sizeof text);
    check_gradients(test_pair_data(&p, (uint64_t)_i), text, (uint64_t)_i, 0);
}
END_TEST

START_TEST(gradients_of_shapes)
{
    const char *text = shapes[_i].text;
    check_gradients(test_data_from_text(text, (uint64_t)_i), text, (uint64_t)_i, shapes[_i].block_q);
}
END_TEST

Suite *test_suite(void)
{
    Suite *s = suite_create("pairs");
    setenv("CLATTN_MMA", "emulated_pairs", 1);
    TCase *c = test_case(s, "features");
    tcase_add_loop_test(c, each_feature, 0, (TEST_FEATURES + 1) * SHAPES);
    tcase_add_loop_test(c, all_features, 0, 2 * COUNT(sets) * SHAPES);
    c = test_case(s, "shapes");
    tcase_add_loop_test(c, shapes_of_pairs, 0, 2 * COUNT(shapes));
    tcase_add_loop_test(c, decode_of_shapes, 0, COUNT(shapes));
    c = test_case(s, "nan");
    tcase_add_loop_test(c, nan_beside_keys, 0, 3 * COUNT(windows));
    c = test_case(s, "gradients");
    tcase_add_loop_test(c, gradients_of_features, 0, GRADIENT_CASES);
    tcase_add_loop_test(c, gradients_of_shapes, 0, COUNT(shapes));
    return s;
}
