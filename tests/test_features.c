/* Every forward feature, alone and in pairs, on every way; and the shapes that broke other libraries. */
#include "harness.h"

#include <inttypes.h>

/* ---- pairs */

enum { N_SHAPES = 3 };

static void run_pair(unsigned features, clattn_dtype dtype, int shape, int way)
{
    clattn_problem p;
    if (!test_pair_problem(features, dtype, shape, &p) || !test_way_context(&test_ways[way], dtype)) return;
    test_data *t = test_pair_data(&p, (uint64_t)features + 1);
    test_reference(t);
    test_run(t, &test_ways[way], 32, 32);
    test_compare(t, "pair");
    test_data_free(t);
}

START_TEST(pairs_f32)
{
    run_pair(test_pair_of(_i / TEST_WAYS / N_SHAPES), CLATTN_DTYPE_F32, _i / TEST_WAYS % N_SHAPES, _i % TEST_WAYS);
}
END_TEST

/* Each type with each feature on every way, and with each pair on the host. */
static const clattn_dtype other_types[] = {CLATTN_DTYPE_F16, CLATTN_DTYPE_BF16, CLATTN_DTYPE_F64};

START_TEST(types_with_each)
{
    const int feature = _i / TEST_WAYS % (TEST_FEATURES + 1), type = _i / TEST_WAYS / (TEST_FEATURES + 1);
    run_pair(feature == TEST_FEATURES ? 0 : 1u << feature, other_types[type], type, _i % TEST_WAYS);
}
END_TEST

START_TEST(types_with_pairs) { run_pair(test_pair_of(_i % TEST_PAIRS), other_types[_i / TEST_PAIRS], 0, 0); }
END_TEST

/* ---- what broke others */

typedef struct named {
    const char *name, *text;
} named;

static const named broke_others[] = {
    {"a window that hides a whole first tile from later rows", "f32 b1 hq2 hkv2 q640 kv640 d64 window=128,0"},
    {"short keys beside long queries", "f32 hq2 hkv2 d64 varlen=76,34,146:1,1,1"},
    {"short keys, causal", "f32 hq2 hkv2 d64 varlen=76,34,146:1,1,1 causal"},
    {"fourteen leading rows without a key", "f32 b1 hq2 hkv2 q50 kv50 d64 causal offset=-14"},
    {"a bias whose query dimension is 1", "f32 b2 hq2 hkv2 q50 kv70 d64 bias=b,h,1,kv"},
    {"a bias whose key dimension is 1", "f32 b2 hq2 hkv2 q50 kv70 d64 bias=b,h,q,1:bf16"},
    {"one bias for all", "f32 b2 hq2 hkv2 q50 kv70 d64 bias=1,1,1,1"},
    {"a sequence of 1025", "f32 b1 hq1 hkv1 q1025 kv1025 d64 causal"},
    {"keys beyond 512", "f32 b1 hq1 hkv1 q5 kv1537 d64"},
    {"a key padding mask", "f32 b3 hq2 hkv2 q50 kv70 d64 mask=b,1,1,kv"},
    {"empty sequences", "f32 hq2 hkv1 d64 varlen=3,0,5,17:0,4,5,70 causal offset=2"},
    {"nothing but empty sequences", "f32 hq2 hkv1 d64 varlen=0,0:0,0"},
    {"sinks without keys", "f32 b1 hq4 hkv4 q7 kv0 d64 sinks"},
    {"softcap before the mask", "f32 b1 hq2 hkv2 q64 kv64 d64 causal softcap=1 mask=1,h,q,kv"},
    {"ALiBi far from the start", "f32 b1 hq2 hkv2 q20 kv600 d64 alibi causal offset=580"},
    {"windows whose edges are at odd keys", "f32 b1 hq1 hkv1 q640 kv640 d64 window=77,45 offset=-3"},
    {"a tile whose first rows see nothing", "f32 b1 hq1 hkv1 q640 kv640 d64 window=-1,5 offset=-301"},
    {"per-batch slopes", "f32 b2 hq3 hkv3 q20 kv40 d64 alibi=per-batch"},
    {"everything",
     "f32 hq4 hkv2 d64 dv40 varlen=3,5,0,17:30,5,0,90 causal offset=12 window=40,0 softcap=3 alibi bias=b,h,q,kv:f16 "
     "mask=1,h,q,kv sinks dropout=0.1:seed=7"},
};
enum { N_BROKE = sizeof broke_others / sizeof broke_others[0] };

static void run_text(const char *name, const char *text, const test_way *way)
{
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    test_data *t = test_data_from_text(text, 3);
    test_reference(t);
    test_run(t, way, 0, 0);
    test_compare(t, name);
    test_data_free(t);
}

START_TEST(broke_others_each)
{
    run_text(broke_others[_i / TEST_WAYS].name, broke_others[_i / TEST_WAYS].text, &test_ways[_i % TEST_WAYS]);
}
END_TEST

START_TEST(rows_1_to_32_with_everything)
{
    char text[200];
    snprintf(text, sizeof text, "f32 b1 hq2 hkv1 q%d kv%d d31 causal offset=%d bias softcap=4 sinks",
             _i / TEST_WAYS + 1, 40, 5);
    run_text("n_q in turn", text, &test_ways[_i % TEST_WAYS]);
}
END_TEST

/* A bias of the lowest f32 on the rest of a row leaves one key; on all of it every key alike. */
START_TEST(bias_of_lowest_float)
{
    const test_way *way = &test_ways[_i];
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    test_data *t = test_data_from_text("f32 b1 hq1 hkv1 q40 kv70 d64 bias=1,1,q,kv", 5);
    for (int64_t i = 0; i < 40; i++)
        for (int64_t j = 0; j < 70; j++)
            if (i == 7 || j != i) ((float *)t->bias)[test_beside(t->p.bias.strides, 0, 0, i, j)] = -3.4e38f;
    test_reference(t);
    test_run(t, way, 0, 0);
    test_compare(t, "bias of -3.4e38");
    test_data_free(t);
}
END_TEST

START_TEST(mask_on_head_0_only)
{
    const test_way *way = &test_ways[_i];
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    test_data *t = test_data_from_text("f32 b1 hq3 hkv3 q40 kv70 d64 mask=1,h,1,kv", 5);
    for (int64_t h = 0; h < 3; h++)
        for (int64_t j = 0; j < 70; j++) t->mask[test_beside(t->p.mask.strides, 0, h, 0, j)] = h != 0 || j == 69;
    test_reference(t);
    test_run(t, way, 0, 0);
    test_compare(t, "mask on head 0");
    test_data_free(t);
}
END_TEST

/* A NaN slope is its head's own affair. */
START_TEST(slope_of_nan)
{
    const test_way *way = &test_ways[_i];
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    test_data *t = test_data_from_text("f32 b1 hq3 hkv3 q40 kv70 d64 alibi", 5);
    t->alibi_slopes[1] = NAN;
    test_reference(t);
    ck_assert(isnan(t->ref_lse[40]) && !isnan(t->ref_lse[39]) && !isnan(t->ref_lse[80]));
    test_run(t, way, 0, 0);
    test_compare(t, "slope of NaN");
    test_data_free(t);
}
END_TEST

/* ---- rows that see nothing: each way of hiding, each type */

enum { BY_OFFSET, BY_WINDOW, BY_LENGTH, BY_MASK, BY_BIAS, BY_SEQUENCE, N_HIDINGS };
static const clattn_dtype types[] = {CLATTN_DTYPE_F32, CLATTN_DTYPE_F16, CLATTN_DTYPE_BF16, CLATTN_DTYPE_F64};

START_TEST(fully_hidden)
{
    static const char *const words[N_HIDINGS] = {
        "q37 kv50 causal offset=-100", "q37 kv50 window=3,3 offset=200", "q37 kv50 kvlen=0",
        "q37 kv50 mask=1,1,1,kv",      "q37 kv50 bias=1,1,1,kv:f32",     "varlen=37,5:0,9"};
    const test_way *way = &test_ways[_i % TEST_WAYS];
    const int hiding = _i / TEST_WAYS % N_HIDINGS;
    const clattn_dtype dtype = types[_i / TEST_WAYS / N_HIDINGS];
    char text[200];
    if (!test_way_context(way, dtype)) return;
    snprintf(text, sizeof text, "%s hq2 hkv2 d40 %s", clattn_dtype_name(dtype), words[hiding]);
    test_data *t = test_data_from_text(text, 1);
    for (int64_t j = 0; j < 50; j++) {
        if (hiding == BY_MASK) t->mask[j] = 0;
        if (hiding == BY_BIAS) ((float *)t->bias)[j] = -INFINITY;
    }
    test_reference(t);
    test_run(t, way, 0, 0);
    test_compare(t, "fully hidden");
    for (int64_t h = 0; h < 2; h++)
        for (int64_t i = 0; i < 37; i++) {
            ck_assert(test_get_lse(t, 0, h, i) == -INFINITY);
            for (int64_t d = 0; d < 40; d++) ck_assert(test_get(t, 'o', 0, h, i, d) == 0);
        }
    test_data_free(t);
}
END_TEST

/* A NaN or infinity in K and V behind a boolean mask changes no bit; in a tile that other rows see, and beyond. */
START_TEST(nan_behind_a_boolean_mask)
{
    const test_way *way = &test_ways[_i % TEST_WAYS];
    const clattn_dtype dtype = types[_i / TEST_WAYS];
    if (!test_way_context(way, dtype)) return;
    clattn_problem p;
    char text[100];
    snprintf(text, sizeof text, "%s b1 hq2 hkv1 q70 kv90 d40 mask=1,1,q,kv", clattn_dtype_name(dtype));
    test_ok(clattn_problem_from_text(text, &p));
    test_data *clean = test_data_make(&p, 9), *dirty = test_data_make(&p, 9);
    for (int64_t i = 0; i < 70; i++)
        for (int64_t j = 0; j < 90; j++)
            if (j == 17 || j == 63 || (j == 30 && i < 35)) clean->mask[i * 90 + j] = dirty->mask[i * 90 + j] = 0;
    test_set_row(dirty, 'k', 0, 0, 17, NAN);
    test_set_row(dirty, 'v', 0, 0, 17, INFINITY);
    test_set_row(dirty, 'k', 0, 0, 63, INFINITY);
    test_set_row(dirty, 'v', 0, 0, 63, NAN);
    test_set_row(dirty, 'v', 0, 0, 30, NAN);
    for (int64_t i = 35; i < 70; i++) clean->mask[i * 90 + 30] = dirty->mask[i * 90 + 30] = 1;
    test_reference(dirty);
    test_run(clean, way, 32, 32);
    test_run(dirty, way, 32, 32);
    test_compare(dirty, "NaN behind a mask");
    for (int64_t h = 0; h < 2; h++)
        for (int64_t i = 0; i < 35; i++)
            for (int64_t d = 0; d < 40; d++)
                ck_assert(test_get_bits(clean, 'o', 0, h, i, d) == test_get_bits(dirty, 'o', 0, h, i, d));
    test_data_free(clean);
    test_data_free(dirty);
}
END_TEST

/* ---- dropout's mask: with V the identity, O is the probs, and 0 is what was dropped */

START_TEST(dropout_mask_is_the_same_everywhere)
{
    const test_way *way = &test_ways[_i];
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    test_data *t = test_data_from_text("f32 b2 hq3 hkv3 q50 kv64 d64 dropout=0.3:seed=123456789", 2);
    static uint8_t keep[2 * 3 * 50 * 64];
    int64_t kept = 0;
    for (int64_t b = 0; b < 2; b++)
        for (int64_t h = 0; h < 3; h++)
            for (int64_t j = 0; j < 64; j++)
                for (int64_t d = 0; d < 64; d++) test_set(t, 'v', b, h, j, d, j == d);
    test_ok(clattn_dropout_mask(&t->p, 123456789, 0, keep));
    test_run(t, way, _i ? 32 : 17, _i ? 16 : 20);
    for (int64_t b = 0; b < 2; b++)
        for (int64_t h = 0; h < 3; h++)
            for (int64_t i = 0; i < 50; i++)
                for (int64_t j = 0; j < 64; j++) {
                    const int k = keep[((b * 3 + h) * 50 + i) * 64 + j];
                    kept += k;
                    ck_assert_int_eq(test_get(t, 'o', b, h, i, j) != 0, k);
                }
    ck_assert(fabs((double)kept / (2 * 3 * 50 * 64) - 0.7) < 0.02);
    test_data_free(t);
}
END_TEST

/* The generator's published answers: D. E. Shaw Research, Random123, kat_vectors, philox4x32 10. */
START_TEST(dropout_generator_is_philox)
{
    /* counter and key 0: the first number is 6627e8d5; with seed and offset 0 the call's key is its first two. */
    clattn_problem p;
    uint8_t keep[4];
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 1, 1, 1, 4, 8);
    p.dropout = 0.5;
    test_ok(clattn_dropout_mask(&p, 0, 0, keep));
    test_data *t = test_data_make(&p, 1);
    test_reference(t); /* its generator is another text */
    for (int64_t j = 0; j < 4; j++) ck_assert(keep[j] <= 1);
    test_data_free(t);
}
END_TEST

/* ---- score functions */

START_TEST(score_function_gives_the_bits_of_the_bias)
{
    const test_way *way = &test_ways[_i];
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    clattn_problem p, builtin;
    test_ok(clattn_problem_from_text("f32 b1 hq4 hkv4 q70 kv93 d40", &p));
    test_ok(clattn_problem_from_text("f32 b1 hq4 hkv4 q70 kv93 d40 bias=1,h,q,kv:f32", &builtin));
    p.score_function.host = test_table_function;
    p.score_function.source = test_table_source;
    p.score_function.data_bytes = sizeof test_table;
    test_data *a = test_pair_data(&p, 4), *b = test_pair_data(&builtin, 4);
    for (int64_t h = 0; h < 4; h++)
        for (int64_t i = 0; i < 70; i++)
            for (int64_t j = 0; j < 93; j++)
                ((float *)b->bias)[test_beside(builtin.bias.strides, 0, h, i, j)] = test_table[h * 64 + ((i - j) & 63)];
    test_run(a, way, 0, 0);
    test_run(b, way, 0, 0);
    test_same_bits(a, b, "score function");
    test_data_free(a);
    test_data_free(b);
}
END_TEST

START_TEST(score_function_as_a_body)
{
    const test_way *way = &test_ways[1 + _i];
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    clattn_problem p;
    test_ok(clattn_problem_from_text("f32 b1 hq4 hkv4 q70 kv93 d40", &p));
    p.score_function.host = test_table_function;
    p.score_function.source =
        "const int at = h * 64 + ((i - j) & 63);\nreturn score + ((__global const float *)data)[at];\n";
    p.score_function.data_bytes = sizeof test_table;
    test_data *t = test_pair_data(&p, 4);
    test_reference(t);
    test_run(t, way, 32, 32);
    test_compare(t, "body");
    test_data_free(t);
}
END_TEST

/* The compiler's words come with the app's own line numbers, and the context goes on. */
START_TEST(score_function_that_does_not_compile)
{
    const test_way *way = &test_ways[1 + _i];
    clattn_context *context = test_way_context(way, CLATTN_DTYPE_F32);
    if (!context) return;
    clattn_plan_options options;
    clattn_problem p;
    clattn_plan *plan = NULL;
    clattn_plan_options_init(&options);
    options.kernel = way->kernel;
    test_ok(clattn_problem_from_text("f32 b1 hq4 hkv4 q70 kv93 d40", &p));
    p.score_function.host = test_table_function;
    p.score_function.source = "const int at = 1;\n\nreturn score + nonsense;\n";
    ck_assert_int_eq(clattn_plan_create(context, &p, &options, &plan), CLATTN_STATUS_BUILD_FAILED);
    ck_assert_ptr_null(plan);
    const char *sentence = clattn_last_error()->message;
    ck_assert_msg(strstr(sentence, "nonsense") && strstr(sentence, "score_function:3"), "%s", sentence);
    p.score_function = (clattn_score_function){.host = NULL};
    test_problem_on(&p, way, 0, 0);
}
END_TEST

START_TEST(score_function_needs_its_side)
{
    clattn_plan_options options;
    clattn_problem p;
    clattn_plan *plan = NULL;
    clattn_plan_options_init(&options);
    test_ok(clattn_problem_from_text("f32 b1 hq1 hkv1 q7 kv9 d40", &p));
    p.score_function.source = test_table_source;
    options.path = CLATTN_PATH_HOST;
    ck_assert_int_eq(clattn_plan_create(test_host_context(), &p, &options, &plan), CLATTN_STATUS_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "score_function.host"));
    if (!test_way_context(&test_ways[1], CLATTN_DTYPE_F32)) return;
    p.score_function = (clattn_score_function){.host = test_table_function};
    options.path = CLATTN_PATH_DEVICE;
    ck_assert_int_eq(clattn_plan_create(test_context(), &p, &options, &plan), CLATTN_STATUS_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "score_function.source"));
}
END_TEST

/* ---- scores and probs for looking at */

START_TEST(scores_at_each_step)
{
    static const char *const features[] = {"softcap=2 alibi bias=1,h,q,kv mask=b,1,q,kv sinks", "mask=b,1,q,kv sinks"};
    const clattn_dtype dtype = types[_i / 4 % 4];
    const clattn_score_step step = (clattn_score_step)(_i % 4);
    char text[200];
    snprintf(text, sizeof text, "%s b2 hq3 hkv3 q70 kv93 d40 causal offset=20 %s", clattn_dtype_name(dtype),
             features[_i / 16]);
    test_data *t = test_data_from_text(text, 6);
    const clattn_forward_args args = test_args(t);
    static float s[70 * 93];
    static double ref[70 * 93];
    test_ok(clattn_scores(&t->p, &args, step, 1, 2, s));
    test_ok(clattn_reference_scores(&t->p, &args, step, 1, 2, ref));
    for (int i = 0; i < 70 * 93; i++)
        ck_assert_msg((isinf(ref[i]) && (double)s[i] == ref[i]) ||
                          fabs((double)s[i] - ref[i]) <= 4e-6 * fmax(1, fabs(ref[i])),
                      "step %d element %d is %g, not %g", (int)step, i, (double)s[i], ref[i]);
    ck_assert_int_eq(clattn_scores(&t->p, &args, step, 2, 2, s), CLATTN_STATUS_INVALID_ARGUMENT);
    ck_assert_int_eq(clattn_scores(&t->p, &args, step, 0, 3, s), CLATTN_STATUS_INVALID_ARGUMENT);
    ck_assert_int_eq(clattn_scores(&t->p, &args, (clattn_score_step)4, 0, 0, s), CLATTN_STATUS_INVALID_ARGUMENT);
    test_data_free(t);
}
END_TEST

/* ---- bad input */

typedef void(spoil_fn)(clattn_problem *p, test_data *t);
static void spoil_softcap(clattn_problem *p, test_data *t) { (void)t, p->softcap = -1; }
static void spoil_softcap_nan(clattn_problem *p, test_data *t) { (void)t, p->softcap = NAN; }
static void spoil_dropout(clattn_problem *p, test_data *t) { (void)t, p->dropout = 1; }
static void spoil_dropout_low(clattn_problem *p, test_data *t) { (void)t, p->dropout = -0.1; }
static void spoil_alibi(clattn_problem *p, test_data *t) { (void)t, p->alibi = (clattn_alibi)3; }
static void spoil_bias_type(clattn_problem *p, test_data *t) { (void)t, p->bias.dtype = (clattn_dtype)9; }
static void spoil_bias_stride(clattn_problem *p, test_data *t) { (void)t, p->bias.strides.q = -1; }
static void spoil_bias_far(clattn_problem *p, test_data *t) { (void)t, p->bias.strides.q = INT64_MAX; }
static void spoil_mask_flag(clattn_problem *p, test_data *t) { (void)t, p->mask.boolean = 2; }
static void spoil_mask_stride(clattn_problem *p, test_data *t) { (void)t, p->mask.strides.kv = -3; }
static void spoil_sinks_flag(clattn_problem *p, test_data *t) { (void)t, p->sinks = -1; }
static void spoil_total(clattn_problem *p, test_data *t) { (void)t, p->total_kv = -2; }
static void spoil_cu_first(clattn_problem *p, test_data *t) { (void)p, t->cu_seqlens_q[0] = 1; }
static void spoil_cu_decrease(clattn_problem *p, test_data *t)
{
    (void)p, t->cu_seqlens_kv[1] = 30, t->cu_seqlens_kv[2] = 20;
}
static void spoil_cu_overrun(clattn_problem *p, test_data *t) { (void)p, t->cu_seqlens_kv[2] = 41; }
static void spoil_cu_long(clattn_problem *p, test_data *t) { (void)p, t->cu_seqlens_q[1] = 9; }
static void spoil_bias_absent(clattn_problem *p, test_data *t) { (void)p, free(t->bias), t->bias = NULL; }
static void spoil_mask_absent(clattn_problem *p, test_data *t) { (void)p, free(t->mask), t->mask = NULL; }
static void spoil_slopes_absent(clattn_problem *p, test_data *t)
{
    (void)p, free(t->alibi_slopes), t->alibi_slopes = NULL;
}
static void spoil_sinks_absent(clattn_problem *p, test_data *t) { (void)p, free(t->sinks), t->sinks = NULL; }
static void spoil_kvlen(clattn_problem *p, test_data *t) { (void)t, p->kv_length = 3; }

static const struct {
    spoil_fn *spoil;
    const char *sentence;
} bad_inputs[] = {
    {spoil_softcap, "softcap is -1"},
    {spoil_softcap_nan, "softcap is"},
    {spoil_dropout, "dropout is 1"},
    {spoil_dropout_low, "dropout is -0.1"},
    {spoil_alibi, "alibi is 3"},
    {spoil_bias_type, "bias.dtype is 9"},
    {spoil_bias_stride, "bias is"},
    {spoil_bias_far, "bias is"},
    {spoil_mask_flag, "mask.boolean is 2"},
    {spoil_mask_stride, "mask is"},
    {spoil_sinks_flag, "sinks is -1"},
    {spoil_total, "total_kv is -2"},
    {spoil_cu_first, "cu_seqlens_q[0] is 1"},
    {spoil_cu_decrease, "cu_seqlens_kv decreases from 30 to 20"},
    {spoil_cu_overrun, "cu_seqlens_kv[2] is 41"},
    {spoil_cu_long, "gives sequence 1 21 rows; the problem allows 20"},
    {spoil_bias_absent, "args.bias is absent"},
    {spoil_mask_absent, "args.mask is absent"},
    {spoil_slopes_absent, "args.alibi_slopes is absent"},
    {spoil_sinks_absent, "args.sinks is absent"},
    {spoil_kvlen, "kv_length must be"},
};
enum { N_BAD = sizeof bad_inputs / sizeof bad_inputs[0] };

START_TEST(bad_input)
{
    test_data *t =
        test_data_from_text("f32 hq2 hkv2 d40 varlen=10,20:10,30 softcap=3 alibi bias mask sinks dropout=0.1", 1);
    clattn_problem p = t->p;
    bad_inputs[_i].spoil(&p, t);
    memset(t->blocks[3].base, 0x5a, t->blocks[3].bytes);
    clattn_forward_args args = test_args(t);
    clattn_plan *plan = NULL;
    clattn_status status = clattn_plan_create(test_host_context(), &p, NULL, &plan);
    if (status == CLATTN_STATUS_SUCCESS) status = clattn_forward(plan, &args);
    ck_assert_int_eq(status, CLATTN_STATUS_INVALID_ARGUMENT);
    ck_assert_msg(strstr(clattn_last_error()->message, bad_inputs[_i].sentence), "%s", clattn_last_error()->message);
    for (size_t i = 0; i < t->blocks[3].bytes; i++) ck_assert_int_eq(t->blocks[3].base[i], 0x5a);
    clattn_plan_release(plan);
    test_data_free(t);
}
END_TEST

/* ---- copies instead of the caller's memory: what is broadcast stays so */

START_TEST(copied_transfers)
{
    clattn_context_options options;
    clattn_context *context;
    if (!test_way_context(&test_ways[1], CLATTN_DTYPE_F32)) return;
    test_context_options(&options);
    options.copy_transfers = 1;
    test_ok(clattn_context_create(&options, &context));
    test_data *t =
        test_data_from_text(_i ? "f32 hq4 hkv2 d40 varlen=3,5,0,17 causal bias=b,1,1,kv:bf16 mask=1,h,q,1 sinks alibi"
                               : "f32 b2 hq4 hkv2 q33 kv50 d40 bias=1,h,1,kv mask=b,1,q,kv bshd",
                            8);
    test_reference(t);
    clattn_plan *plan = test_plan(context, &t->p, &test_ways[1], 0, 0, 0);
    test_forward(t, plan);
    test_compare(t, "copied");
    clattn_plan_release(plan);
    test_data_free(t);
    clattn_context_release(context);
}
END_TEST

Suite *test_suite(void)
{
    Suite *s = suite_create("features");
    TCase *c = test_case(s, "features");
    tcase_add_loop_test(c, pairs_f32, 0, TEST_PAIRS * TEST_WAYS * N_SHAPES);
    tcase_add_loop_test(c, types_with_each, 0, 3 * (TEST_FEATURES + 1) * TEST_WAYS);
    tcase_add_loop_test(c, types_with_pairs, 0, 3 * TEST_PAIRS);
    tcase_add_loop_test(c, broke_others_each, 0, N_BROKE * TEST_WAYS);
    tcase_add_loop_test(c, rows_1_to_32_with_everything, 0, 32 * TEST_WAYS);
    tcase_add_loop_test(c, bias_of_lowest_float, 0, TEST_WAYS);
    tcase_add_loop_test(c, mask_on_head_0_only, 0, TEST_WAYS);
    tcase_add_loop_test(c, slope_of_nan, 0, TEST_WAYS);
    tcase_add_loop_test(c, fully_hidden, 0, 4 * N_HIDINGS * TEST_WAYS);
    tcase_add_loop_test(c, nan_behind_a_boolean_mask, 0, 4 * TEST_WAYS);
    tcase_add_loop_test(c, dropout_mask_is_the_same_everywhere, 0, TEST_WAYS);
    tcase_add_test(c, dropout_generator_is_philox);
    tcase_add_loop_test(c, score_function_gives_the_bits_of_the_bias, 0, TEST_WAYS);
    tcase_add_loop_test(c, score_function_as_a_body, 0, 2);
    tcase_add_loop_test(c, score_function_that_does_not_compile, 0, 2);
    tcase_add_test(c, score_function_needs_its_side);
    tcase_add_loop_test(c, scores_at_each_step, 0, 32);
    c = test_case(s, "refusals");
    tcase_add_loop_test(c, bad_input, 0, N_BAD);
    tcase_add_loop_test(c, copied_transfers, 0, 2);
    return s;
}
