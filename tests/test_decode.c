/* Few query rows against many keys: the kernels that split the keys, every feature, and who chooses them. */
#include "harness.h"

enum { N_WAYS = 3 };
static const test_way ways[N_WAYS] = {{"host decode", CLATTN_PATH_HOST, CLATTN_KERNEL_HOST_DECODE},
                                      {"device decode", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_DECODE_LANES},
                                      {"attn_decode", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_DECODE}};

/* ---- right, in chunks of every size */

static const char *const problems[] = {
    "f32 b1 hq1 hkv1 q1 kv1 d1",
    "f32 b1 hq8 hkv2 q1 kv700 d64",
    "f16 b2 hq6 hkv2 q1 kv513 d128",
    "bf16 b1 hq4 hkv1 q3 kv300 d80 dv48",
    "f64 b1 hq3 hkv1 q2 kv300 d33",
    "f32 b1 hq5 hkv1 q7 kv900 d31 dv65 causal offset=893",
    "f32 b1 hq4 hkv2 q2 kv600 d2",
    "f16 b1 hq4 hkv2 q2 kv600 d3 sinks",
    "f64 b1 hq4 hkv2 q2 kv600 d4",
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
    "f32 b1 hq4 hkv1 q1 kv300 d144 dv272",
    "f64 b1 hq7 hkv1 q1 kv300 d136",
    "f16 b1 hq8 hkv8 q1 kv4100 d16",                          /* chunks of 1024 keys */
    "f32 b1 hq32 hkv16 q2 kv4097 d24 dv8 causal offset=4095", /* of 2048 */
    "bf16 b1 hq9 hkv3 q1 kv400 d48",                          /* three rows: tiles of two and one */
    "f16 b2 hq6 hkv3 q2 kv700 d40 kvlen=per-batch bshd",      /* the heads' chunks by turns */
    "f32 b2 hq2 hkv2 q150 kv700 d32 window=40,0 offset=550 bshd",
};
enum { N_PROBLEMS = sizeof problems / sizeof *problems, N_CHUNKS = 3, N_WAYS_OF_CHUNKS = 2 };
static const int64_t chunks[N_CHUNKS] = {0, 16, 240};

static void check_right(int nth, const test_way *way, int64_t chunk)
{
    test_data *t = test_data_from_text(problems[nth], (uint64_t)nth + 1);
    if (!test_way_context(way, t->p.dtype)) return;
    test_reference(t);
    test_run(t, way, 0, chunk);
    test_compare(t, problems[nth]);
    test_data_free(t);
}

START_TEST(right)
{
    check_right(_i / N_CHUNKS / N_WAYS_OF_CHUNKS, &ways[_i % N_WAYS_OF_CHUNKS],
                chunks[_i / N_WAYS_OF_CHUNKS % N_CHUNKS]);
}
END_TEST

/* Takes long to build: one size each. */
START_TEST(right_on_gpus) { check_right(_i, &ways[2], chunks[_i % N_CHUNKS]); }
END_TEST

/* host_tile splits the keys too, when there are few query rows. */
static const char *const split_tiles[] = {
    "f32 b1 hq2 hkv1 q37 kv2500 d64",
    "f16 b2 hq2 hkv2 q70 kv1100 d80 dv33 causal offset=1030 sinks",
    "bf16 b1 hq1 hkv1 q9 kv3000 d32 window=1500,20 offset=2900 softcap=4 sinks",
    "f64 b1 hq2 hkv1 q40 kv1025 d16 mask=b,1,q,kv alibi",
    "f32 hq2 hkv1 d32 varlen=40,0,7:1500,9,2100 dropout=0.2:seed=3",
    "f32 b1 hq1 hkv1 q20 kv2100 d32 kvlen=0 sinks",
};
enum { N_SPLIT_TILES = sizeof split_tiles / sizeof *split_tiles };

START_TEST(split_tile_right)
{
    test_data *t = test_data_from_text(split_tiles[_i], (uint64_t)_i + 3);
    test_reference(t);
    test_run(t, &test_ways[0], 0, 0);
    test_compare(t, split_tiles[_i]);
    test_data_free(t);
}
END_TEST

/* ---- NaN and infinity in rows that nobody, or not everybody, sees */

START_TEST(hidden_rows)
{
    static const char *const texts[] = {
        "f32 b1 hq2 hkv1 q3 kv600 d64 kvlen=550", "f32 b1 hq2 hkv1 q3 kv600 d64 causal offset=400",
        "f16 b1 hq2 hkv1 q3 kv600 d64 window=20,0 offset=400", "f32 b1 hq1 hkv1 q3 kv600 d160 window=20,0 offset=400",
        "f64 b1 hq1 hkv1 q3 kv600 d72 causal offset=400"};
    const int which = _i / N_WAYS;
    test_data *t = test_data_from_text(texts[which], 7);
    if (!test_way_context(&ways[_i % N_WAYS], t->p.dtype)) return;
    const int64_t first_hidden = which == 0 ? 550 : 403;
    for (int64_t j = first_hidden; j < 600; j++) {
        test_set_row(t, 'k', 0, 0, j, j % 2 ? (double)NAN : (double)INFINITY);
        test_set_row(t, 'v', 0, 0, j, j % 2 ? (double)INFINITY : (double)NAN);
    }
    if (which) test_set_row(t, 'v', 0, 0, 402, (double)NAN); /* the last row sees it, the others do not */
    test_reference(t);
    test_run(t, &ways[_i % N_WAYS], 0, 0);
    test_compare(t, texts[which]);
    test_data_free(t);
}
END_TEST

START_TEST(nan_scores)
{
    static const char *const texts[] = {"f32 b1 hq1 hkv1 q3 kv600 d64 window=20,0 offset=400",
                                        "f64 b1 hq1 hkv1 q3 kv600 d24 dv72 window=20,0 offset=400"};
    const int which = _i / N_WAYS;
    test_data *t = test_data_from_text(texts[which], 7);
    if (!test_way_context(&ways[_i % N_WAYS], t->p.dtype)) return;
    test_set_row(t, 'q', 0, 0, 2, (double)NAN); /* the chunk begins with keys that this row does not see */
    test_reference(t);
    test_run(t, &ways[_i % N_WAYS], 0, 0);
    test_compare(t, texts[which]);
    test_data_free(t);
}
END_TEST

/* The bias hides all from the second row: it gives 0, whatever stands in V. */
START_TEST(hidden_by_bias)
{
    const test_way *way = &ways[_i];
    test_data *t = test_data_from_text("f32 b1 hq1 hkv1 q3 kv700 d64 bias", 8);
    if (!test_way_context(way, t->p.dtype)) return;
    for (int64_t j = 0; j < 700; j++) ((float *)t->bias)[test_beside(t->p.bias.strides, 0, 0, 1, j)] = -INFINITY;
    test_set(t, 'v', 0, 0, 10, 3, (double)NAN);
    test_set(t, 'v', 0, 0, 400, 5, (double)INFINITY);
    test_reference(t);
    test_run(t, way, 0, 0);
    test_compare(t, "hidden by bias");
    test_data_free(t);
}
END_TEST

/* ---- the choice */

static clattn_kernel kernel_of(const char *text, clattn_path path)
{
    clattn_problem p;
    clattn_plan_options options;
    clattn_plan *plan;
    clattn_plan_info info;
    test_ok(clattn_problem_from_text(text, &p));
    clattn_plan_options_init(&options);
    options.path = path;
    test_ok(clattn_plan_create(test_context(), &p, &options, &plan));
    clattn_plan_info_init(&info);
    test_ok(clattn_plan_get_info(plan, &info));
    clattn_plan_release(plan);
    return info.kernel;
}

START_TEST(chosen_on_host)
{
    const clattn_path host = CLATTN_PATH_HOST;
    ck_assert_int_eq(kernel_of("f32 b1 hq8 hkv2 q1 kv600 d64", host), CLATTN_KERNEL_HOST_DECODE);
    ck_assert_int_eq(kernel_of("f32 b1 hq1 hkv1 q4 kv1 d1", host), CLATTN_KERNEL_HOST_DECODE);
    ck_assert_int_eq(kernel_of("f32 b1 hq8 hkv8 q5 kv600 d64", host), CLATTN_KERNEL_HOST_TILE);
}
END_TEST

START_TEST(chosen_on_device)
{
    clattn_device_info info;
    if (!test_way_context(&ways[1], CLATTN_DTYPE_F32)) return;
    ck_assert(test_device_info(&info));
    const clattn_path device = CLATTN_PATH_DEVICE;
    const bool cpu = !strcmp(info.type, "cpu");
    const clattn_kernel few = cpu ? CLATTN_KERNEL_ATTN_DECODE_LANES : CLATTN_KERNEL_ATTN_DECODE;
    const clattn_kernel many = cpu ? CLATTN_KERNEL_ATTN_FWD_LANES : CLATTN_KERNEL_ATTN_FWD;
    ck_assert_int_eq(kernel_of("f32 b1 hq8 hkv2 q1 kv600 d64", device), few);
    ck_assert_int_eq(kernel_of("f32 b1 hq8 hkv8 q16 kv600 d64", device), few);
    ck_assert_int_eq(kernel_of("f32 b1 hq8 hkv8 q64 kv600 d64", device), many);
    ck_assert_int_eq(kernel_of("f32 b1 hq8 hkv2 q1 kv100 d64", device), many);
}
END_TEST

/* ---- the same bits: in a batch, and for any number of threads */

/* A sequence alone, and as the second of a batch, has the same bits. */
START_TEST(alone_and_in_a_batch)
{
    test_data *one = test_data_from_text("f32 b1 hq4 hkv2 q2 kv700 d64 causal offset=698", 5);
    test_data *two = test_data_from_text("f32 b2 hq4 hkv2 q2 kv700 d64 causal offset=698", 9);
    const test_way *way = &ways[_i];
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    for (int64_t h = 0; h < 4; h++)
        for (int64_t j = 0; j < 700; j++)
            for (int64_t d = 0; d < 64; d++) {
                if (j < 2) test_set(two, 'q', 1, h, j, d, test_get(one, 'q', 0, h, j, d));
                if (h < 2) test_set(two, 'k', 1, h, j, d, test_get(one, 'k', 0, h, j, d));
                if (h < 2) test_set(two, 'v', 1, h, j, d, test_get(one, 'v', 0, h, j, d));
            }
    test_run(one, way, 0, 0);
    test_run(two, way, 0, 0);
    for (int64_t h = 0; h < 4; h++)
        for (int64_t i = 0; i < 2; i++)
            for (int64_t d = 0; d < 64; d++)
                ck_assert_uint_eq(test_get_bits(one, 'o', 0, h, i, d), test_get_bits(two, 'o', 1, h, i, d));
    test_data_free(one);
    test_data_free(two);
}
END_TEST

static const char *const threaded[] = {"f32 b1 hq6 hkv2 q2 kv5000 d64 causal offset=4998",
                                       "f16 b2 hq2 hkv2 q20 kv6000 d40 sinks", "bf16 b1 hq1 hkv1 q1 kv9000 d128"};

START_TEST(thread_counts)
{
    static const int counts[] = {1, 2, 3, 8};
    const test_way *way = _i == 1 ? &test_ways[0] : &ways[0];
    test_data *t = test_data_from_text(threaded[_i], 11);
    uint64_t bits[4][64];
    for (int n = 0; n < 4; n++) {
        clattn_plan *plan = test_plan(test_host_context(), &t->p, way, 0, 0, counts[n]);
        test_forward(t, plan);
        clattn_plan_release(plan);
        for (int k = 0; k < 64; k++)
            bits[n][k] = test_get_bits(t, 'o', k % t->p.batch, k % t->p.n_heads_q, k % t->p.n_q, k % t->p.head_dim_v);
        ck_assert_mem_eq(bits[n], bits[0], sizeof bits[0]);
    }
    test_data_free(t);
}
END_TEST

Suite *test_suite(void)
{
    Suite *s = suite_create("decode");
    TCase *t = test_case(s, "right");
    tcase_add_loop_test(t, right, 0, N_PROBLEMS * N_CHUNKS * N_WAYS_OF_CHUNKS);
    tcase_add_loop_test(t, split_tile_right, 0, N_SPLIT_TILES);
    tcase_add_loop_test(t, hidden_rows, 0, 5 * N_WAYS);
    tcase_add_loop_test(t, nan_scores, 0, 2 * N_WAYS);
    tcase_add_loop_test(t, hidden_by_bias, 0, N_WAYS);
    t = test_case(s, "attn_decode");
    tcase_add_loop_test(t, right_on_gpus, 0, N_PROBLEMS);
    t = test_case(s, "choice");
    tcase_add_test(t, chosen_on_host);
    tcase_add_test(t, chosen_on_device);
    t = test_case(s, "bits");
    tcase_add_loop_test(t, alone_and_in_a_batch, 0, N_WAYS);
    tcase_add_loop_test(t, thread_counts, 0, 3);
    return s;
}
