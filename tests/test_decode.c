/* Few query rows against many keys: the kernels that split the keys, every feature, and who chooses them. */
#include "harness.h"

static const test_way decode = {"device decode", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_DECODE_LANES};

/* ---- right, in chunks of every size */

static const char *const problems[] = {
    "f32 b1 hq1 hkv1 q1 kv1 d1",
    "f32 b1 hq8 hkv2 q1 kv700 d64",
    "f16 b2 hq6 hkv2 q1 kv513 d128",
    "bf16 b1 hq4 hkv1 q3 kv300 d80 dv48",
    "f64 b1 hq3 hkv1 q2 kv300 d33",
    "f32 b1 hq5 hkv1 q7 kv900 d31 dv65 causal offset=893",
    "f32 b1 hq2 hkv1 q4 kv600 d64 window=100,3 offset=500",
    "f32 b3 hq2 hkv1 q2 kv400 d32 causal kvlen=per-batch offset=per-batch",
    "f32 b1 hq2 hkv1 q2 kv0 d32",
    "f32 b1 hq2 hkv2 q2 kv600 d32 kvlen=0 sinks",
    "f16 b1 hq1 hkv1 q2 kv600 d31",
    "f32 b1 hq4 hkv2 q2 kv600 d64 softcap=3",
    "f32 b2 hq4 hkv2 q2 kv600 d32 alibi=per-batch",
    "f32 b2 hq4 hkv2 q2 kv600 d32 bias",
    "f16 b2 hq4 hkv2 q2 kv600 d32 bias=b,1,1,kv:f32 mask",
    "f32 b2 hq4 hkv2 q3 kv600 d32 mask=b,1,q,kv causal offset=597",
    "f32 b1 hq4 hkv2 q2 kv600 d32 sinks softcap=2 alibi",
    "f32 b1 hq4 hkv2 q2 kv600 d32 dropout=0.3:seed=5",
    "f32 hq4 hkv2 d32 varlen=1,0,3:300,17,700",
    "f16 hq4 hkv1 d64 causal alibi varlen=1,2:300,700",
    "f64 b1 hq2 hkv1 q2 kv300 d24 softcap=3 sinks bias mask dropout=0.1:seed=3",
    "bf16 b1 hq2 hkv1 q20 kv300 d32 window=9,0 offset=280 sinks",
};
enum { N_PROBLEMS = sizeof problems / sizeof *problems, N_CHUNKS = 3 };
static const int64_t chunks[N_CHUNKS] = {0, 16, 240};

START_TEST(right)
{
    const char *text = problems[_i / N_CHUNKS];
    test_data *t = test_data_from_text(text, (uint64_t)_i + 1);
    if (!test_way_context(&decode, t->p.dtype)) return;
    test_reference(t);
    test_run(t, &decode, 0, chunks[_i % N_CHUNKS]);
    test_compare(t, text);
    test_data_free(t);
}
END_TEST

/* ---- NaN and infinity in rows that nobody, or not everybody, sees */

START_TEST(hidden_rows)
{
    static const char *const texts[] = {"f32 b1 hq2 hkv1 q3 kv600 d64 kvlen=550",
                                        "f32 b1 hq2 hkv1 q3 kv600 d64 causal offset=400",
                                        "f16 b1 hq2 hkv1 q3 kv600 d64 window=20,0 offset=400"};
    test_data *t = test_data_from_text(texts[_i], 7);
    if (!test_way_context(&decode, t->p.dtype)) return;
    const int64_t first_hidden = _i == 0 ? 550 : 403;
    for (int64_t j = first_hidden; j < 600; j++) {
        test_set_row(t, 'k', 0, 0, j, j % 2 ? (double)NAN : (double)INFINITY);
        test_set_row(t, 'v', 0, 0, j, j % 2 ? (double)INFINITY : (double)NAN);
    }
    if (_i) test_set_row(t, 'v', 0, 0, 402, (double)NAN); /* the last row sees it, the others do not */
    test_reference(t);
    test_run(t, &decode, 0, 0);
    test_compare(t, texts[_i]);
    test_data_free(t);
}
END_TEST

/* ---- the choice, and the bits */

static clattn_kernel kernel_of(const char *text)
{
    clattn_problem p;
    clattn_plan_options options;
    clattn_plan *plan;
    clattn_plan_info info;
    test_ok(clattn_problem_from_text(text, &p));
    clattn_plan_options_init(&options);
    options.path = CLATTN_PATH_DEVICE;
    test_ok(clattn_plan_create(test_context(), &p, &options, &plan));
    clattn_plan_info_init(&info);
    test_ok(clattn_plan_get_info(plan, &info));
    clattn_plan_release(plan);
    return info.kernel;
}

START_TEST(chosen)
{
    clattn_device_info info;
    if (!test_way_context(&decode, CLATTN_DTYPE_F32)) return;
    ck_assert(test_device_info(&info));
    const bool cpu = !strcmp(info.type, "cpu");
    const clattn_kernel few = cpu ? CLATTN_KERNEL_ATTN_DECODE_LANES : CLATTN_KERNEL_ATTN_FWD;
    const clattn_kernel many = cpu ? CLATTN_KERNEL_ATTN_FWD_LANES : CLATTN_KERNEL_ATTN_FWD;
    ck_assert_int_eq(kernel_of("f32 b1 hq8 hkv2 q1 kv600 d64"), few);
    ck_assert_int_eq(kernel_of("f32 b1 hq8 hkv8 q16 kv600 d64"), few);
    ck_assert_int_eq(kernel_of("f32 b1 hq8 hkv8 q64 kv600 d64"), many);
    ck_assert_int_eq(kernel_of("f32 b1 hq8 hkv2 q1 kv100 d64"), many);
}
END_TEST

/* A sequence alone, and as the second of a batch, has the same bits. */
START_TEST(alone_and_in_a_batch)
{
    test_data *one = test_data_from_text("f32 b1 hq4 hkv2 q2 kv700 d64 causal offset=698", 5);
    test_data *two = test_data_from_text("f32 b2 hq4 hkv2 q2 kv700 d64 causal offset=698", 9);
    if (!test_way_context(&decode, CLATTN_DTYPE_F32)) return;
    for (int64_t h = 0; h < 4; h++)
        for (int64_t j = 0; j < 700; j++)
            for (int64_t d = 0; d < 64; d++) {
                if (j < 2) test_set(two, 'q', 1, h, j, d, test_get(one, 'q', 0, h, j, d));
                if (h < 2) test_set(two, 'k', 1, h, j, d, test_get(one, 'k', 0, h, j, d));
                if (h < 2) test_set(two, 'v', 1, h, j, d, test_get(one, 'v', 0, h, j, d));
            }
    test_run(one, &decode, 0, 0);
    test_run(two, &decode, 0, 0);
    for (int64_t h = 0; h < 4; h++)
        for (int64_t i = 0; i < 2; i++)
            for (int64_t d = 0; d < 64; d++)
                ck_assert_uint_eq(test_get_bits(one, 'o', 0, h, i, d), test_get_bits(two, 'o', 1, h, i, d));
    test_data_free(one);
    test_data_free(two);
}
END_TEST

Suite *test_suite(void)
{
    Suite *s = suite_create("decode");
    TCase *t = test_case(s, "device");
    tcase_add_loop_test(t, right, 0, N_PROBLEMS * N_CHUNKS);
    tcase_add_loop_test(t, hidden_rows, 0, 3);
    tcase_add_test(t, chosen);
    tcase_add_test(t, alone_and_in_a_batch);
    return s;
}
