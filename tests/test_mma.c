/* attn_fwd_mma beside the reference, with the emulated engine wherever the device has none: every feature alone and all of
 * them together, head dims, block sizes, NaN behind masks, what is refused, and AUTO's own test of the engine; and again,
 * less of each, in the layouts of AMD's and Intel's engines, emulated. Each kernel variant takes seconds to build, so
 * shapes vary more than features do. */
#include "harness.h"

#include <clattn/opencl.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static const test_way way = {"attn_fwd_mma", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_FWD_MMA};
static const clattn_dtype types[] = {CLATTN_DTYPE_F16, CLATTN_DTYPE_BF16};
static const char *const layouts[] = {"the device's own", "emulated_mfma", "emulated_dpas", "emulated_wmma_gfx11",
                                      "emulated_wmma_gfx12"};
enum { TYPES = 2, SHAPES = 3, BLOCK = 32, LAYOUTS = COUNT(layouts) };

static bool is_missing(void) { return !test_way_context(&way, CLATTN_DTYPE_F16); }

/* The call, in a layout. */
static void forward(int layout, test_data *t, int64_t block_q, int64_t block_kv)
{
    static clattn_context *contexts[LAYOUTS];
    if (layout && !contexts[layout]) contexts[layout] = test_context_by(layouts[layout]);
    clattn_plan *plan = test_plan(layout ? contexts[layout] : test_context(), &t->p, &way, block_q, block_kv, 0);
    if (layout) ck_assert_msg(!!strstr(clattn_plan_explain(plan), layouts[layout]), "%s", clattn_plan_explain(plan));
    test_forward(t, plan);
    clattn_plan_release(plan);
}

static void run(int layout, test_data *t, int64_t block_q, int64_t block_kv, const char *what)
{
    test_reference(t);
    forward(layout, t, block_q, block_kv);
    ck_assert_int_eq(t->products, t->p.dtype);
    test_compare(t, what);
    test_data_free(t);
}

static void run_text(int layout, const char *text, uint64_t seed, int64_t block_q, int64_t block_kv, const char *what)
{
    if (!is_missing()) run(layout, test_data_from_text(text, seed), block_q, block_kv, what);
}

/* ---- features */

static void run_features(int layout, unsigned features, clattn_dtype dtype, int shape)
{
    clattn_problem p;
    if (is_missing() || !test_pair_problem(features, dtype, shape, &p)) return;
    run(layout, test_pair_data(&p, (uint64_t)features + (uint64_t)shape), BLOCK, BLOCK, "features");
}

START_TEST(each_feature)
{
    const int n = _i / SHAPES, bf16 = n > TEST_FEATURES; /* every other one in bf16 too */
    const int feature = bf16 ? 2 * (n - TEST_FEATURES - 1) : n;
    run_features(0, feature == TEST_FEATURES ? 0 : 1u << feature, types[bf16], _i % SHAPES);
}
END_TEST

/* All at once: every pair. Sequences bring their own lengths, so two sets. */
START_TEST(all_features)
{
    const unsigned all = (1u << TEST_FEATURES) - 1, without[2] = {1u << 3, 1u << 12};
    run_features(0, all & ~without[_i / SHAPES % 2], types[_i / SHAPES / 2], _i % SHAPES);
}
END_TEST

START_TEST(all_features_in_layouts)
{
    const unsigned all = (1u << TEST_FEATURES) - 1, without[2] = {1u << 3, 1u << 12};
    const int n = _i / SHAPES % TYPES;
    run_features(1 + _i / SHAPES / TYPES, all & ~without[n], types[n], _i % SHAPES);
}
END_TEST

/* ---- head dims and blocks */

static const char *const shapes[] = {
    "f16 b1 hq2 hkv1 q37 kv67 d1 window=-1,40",
    "bf16 b1 hq2 hkv1 q37 kv67 d7 window=-1,40",
    "f16 b1 hq2 hkv1 q37 kv67 d31 dv33 window=9,40",
    "bf16 b1 hq2 hkv1 q37 kv67 d16 dv128 window=-1,40",
    "f16 b1 hq2 hkv1 q37 kv67 d80 dv96 window=9,40",
    "f16 b1 hq2 hkv1 q37 kv67 d128 causal offset=30",
    "bf16 b1 hq2 hkv1 q37 kv67 d128 dv8",
};

/* Rows at multiples of 16 bytes, and not. */
START_TEST(head_dims) { run_text(0, shapes[_i / 2], 8 + (uint64_t)_i % 2, BLOCK, BLOCK, "head dims"); }
END_TEST

/* 31 and 33; 16 and 128. */
START_TEST(head_dims_in_layouts)
{
    run_text(1 + _i / 4, shapes[2 + _i / 2 % 2], 8 + (uint64_t)_i % 2, BLOCK, BLOCK, "head dims");
}
END_TEST

static const int64_t blocks[][2] = {{16, 16}, {64, 64}, {128, 48}, {17, 100}, {0, 0}};

START_TEST(block_sizes)
{
    char text[100];
    const int64_t *block = blocks[_i / 3];
    snprintf(text, sizeof text, "f16 b1 hq1 hkv1 q%d kv%d d24 window=70,5 offset=%d", (int[]){131, 64, 1}[_i % 3],
             (int[]){257, 128, 300}[_i % 3], (int[]){100, 0, 290}[_i % 3]);
    run_text(0, text, 8, block[0], block[1], "block sizes");
}
END_TEST

/* ---- shapes that broke other libraries */

static const char *const named[] = {
    "b1 hq2 hkv2 q200 kv200 d64 window=70,0",
    "hq2 hkv2 d64 varlen=76,34,146:1,1,1 causal",
    "b1 hq2 hkv2 q50 kv50 d64 causal offset=-14",
    "hq2 hkv1 d64 varlen=3,0,5,17:0,4,5,70 causal offset=2",
    "b1 hq1 hkv1 q5 kv1537 d64 window=-1,-1",
    "b1 hq1 hkv1 q150 kv150 d64 window=77,45 offset=-3",
    "b2 hq2 hkv2 q0 kv90 d64",
    "b2 hq2 hkv2 q70 kv0 d64",
    "b1 hq2 hkv2 q70 kv90 d64 causal offset=-4611686018427387904",
    "b1 hq2 hkv2 q70 kv90 d64 kvlen=33 causal",
    "b1 hq2 hkv2 q70 kv90 d64 scale=-3.7",
    "b1 hq2 hkv2 q70 kv90 d64 scale=0 causal bshd",
};

START_TEST(named_shapes)
{
    char text[160];
    snprintf(text, sizeof text, "%s %s", clattn_dtype_name(types[_i % TYPES]), named[_i]);
    run_text(0, text, (uint64_t)_i, 0, 0, "named shape");
}
END_TEST

START_TEST(everything)
{
    run_text(0,
             "f16 hq4 hkv2 d64 dv40 varlen=3,5,0,17:30,5,0,90 causal offset=12 window=40,0 softcap=3 alibi "
             "bias=b,h,q,kv:f16 mask=1,h,q,kv sinks dropout=0.1:seed=7",
             3, 0, 0, "everything");
}
END_TEST

/* What dropout keeps is scaled after the sums: 1 / (1 - p) is beyond f16. */
START_TEST(dropout_of_nearly_all)
{
    run_text(0, "f16 b1 hq1 hkv1 q40 kv3000 d16 dropout=0.99999:seed=5", 8, BLOCK, BLOCK, "dropout");
}
END_TEST

/* ---- NaN and infinities */

/* Behind a boolean mask they change no bit; some rows of the tile see key 30. */
static void run_nan_behind_a_mask(int layout, clattn_dtype dtype, uint64_t seed)
{
    char text[100];
    clattn_problem p;
    if (is_missing()) return;
    snprintf(text, sizeof text, "%s b1 hq2 hkv1 q70 kv90 d40 mask=1,1,q,kv", clattn_dtype_name(dtype));
    test_ok(clattn_problem_from_text(text, &p));
    test_data *clean = test_data_make(&p, seed), *dirty = test_data_make(&p, seed);
    for (int i = 0; i < 70; i++)
        for (int j = 0; j < 90; j++) {
            if (j == 17 || j == 63) clean->mask[i * 90 + j] = dirty->mask[i * 90 + j] = 0;
            if (j == 30) clean->mask[i * 90 + j] = dirty->mask[i * 90 + j] = i >= 35;
        }
    test_set_row(dirty, 'k', 0, 0, 17, NAN);
    test_set_row(dirty, 'v', 0, 0, 17, INFINITY);
    test_set_row(dirty, 'k', 0, 0, 63, INFINITY);
    test_set_row(dirty, 'v', 0, 0, 63, NAN);
    for (int d = 0; d < 40; d += 3) test_set(dirty, 'v', 0, 0, 30, d, (double[]){NAN, INFINITY, -INFINITY}[d / 3 % 3]);
    test_reference(dirty);
    forward(layout, clean, BLOCK, BLOCK);
    forward(layout, dirty, BLOCK, BLOCK);
    test_compare(dirty, "NaN behind a mask");
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 70; i++)
            for (int d = 0; d < 40; d++)
                if (i < 35 || d % 3)
                    ck_assert(test_get_bits(clean, 'o', 0, h, i, d) == test_get_bits(dirty, 'o', 0, h, i, d));
    test_data_free(clean);
    test_data_free(dirty);
}

START_TEST(nan_behind_a_mask) { run_nan_behind_a_mask(0, types[_i % TYPES], 8 + (uint64_t)_i / TYPES); }
END_TEST

START_TEST(nan_behind_a_mask_in_layouts) { run_nan_behind_a_mask(1 + _i, types[_i % TYPES], 8); }
END_TEST

/* At a window's edges, in whole blocks that all rows see, behind kv_length, and in K and Q. */
static const char *const windows[] = {"causal", "window=9,5 offset=20", "kvlen=61", "window=40,-1 offset=30"};

static void set_special_values(test_data *t, int dim)
{
    const double special[] = {NAN, INFINITY, -INFINITY, NAN, INFINITY};
    for (int n = 0; n < COUNT(special); n++)
        for (int d = n; d < dim; d += 7) test_set(t, 'v', 0, n % 2, (int[]){5, 33, 60, 61, 100}[n], d, special[n]);
    test_set_row(t, 'k', 0, 0, 62, NAN);
    test_set_row(t, 'v', 0, 1, 149, NAN);
    test_set(t, 'q', 0, 1, 13, 3, NAN);
}

static void run_nan_in_windows(int layout, clattn_dtype dtype, const char *window, uint64_t seed)
{
    char text[100];
    if (is_missing()) return;
    snprintf(text, sizeof text, "%s b1 hq2 hkv2 q70 kv150 d40 %s", clattn_dtype_name(dtype), window);
    test_data *t = test_data_from_text(text, seed);
    set_special_values(t, 40);
    run(layout, t, BLOCK, BLOCK, "NaN in a window");
}

START_TEST(nan_in_windows)
{
    run_nan_in_windows(0, types[_i % TYPES], windows[_i / TYPES % 4], 8 + (uint64_t)_i / TYPES / 4);
}
END_TEST

START_TEST(nan_in_windows_in_layouts) { run_nan_in_windows(1 + _i / 2, types[1 - _i / 2 % TYPES], windows[_i % 2], 8); }
END_TEST

/* In the tiles that the plan chooses, of heads that are narrower than those are high; a mask that hides nothing in some blocks. */
START_TEST(nan_in_default_tiles)
{
    static const char *const texts[] = {
        "bf16 b1 hq2 hkv2 q150 kv200 d16 causal", "f16 b1 hq2 hkv2 q150 kv200 d64 causal",
        "f16 b1 hq2 hkv2 q150 kv200 d16 mask=1,1,q,kv", "bf16 b1 hq2 hkv2 q150 kv200 d64 mask=1,1,q,kv"};
    if (is_missing()) return;
    test_data *t = test_data_from_text(texts[_i], 8);
    for (int i = 0; t->mask && i < 150; i++)
        for (int j = 0; j < 128; j++) t->mask[i * 200 + j] = 1;
    set_special_values(t, (int)t->p.head_dim_qk);
    run(0, t, 0, 0, "NaN in a default tile");
}
END_TEST

START_TEST(fully_hidden)
{
    static const char *const words[] = {"q37 kv50 causal offset=-100", "q37 kv50 kvlen=0", "q37 kv50 mask=1,1,1,kv",
                                        "q37 kv50 bias=1,1,1,kv:f32", "varlen=37,5:0,9"};
    char text[100];
    if (is_missing()) return;
    snprintf(text, sizeof text, "f16 hq2 hkv2 d40 %s", words[_i]);
    test_data *t = test_data_from_text(text, 1);
    for (int j = 0; j < 50; j++) {
        if (t->mask) t->mask[j] = 0;
        if (t->bias) ((float *)t->bias)[j] = -INFINITY;
    }
    test_reference(t);
    test_run(t, &way, BLOCK, BLOCK);
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 37; i++) {
            ck_assert(test_get_lse(t, 0, h, i) == -INFINITY);
            for (int d = 0; d < 40; d++) ck_assert(test_get(t, 'o', 0, h, i, d) == 0);
        }
    test_compare(t, "fully hidden");
    test_data_free(t);
}
END_TEST

/* ---- attn_fwd's slices copied ahead, as NVIDIA's engines do with f32: with the emulated engine by plain copies */

static const char *const ahead[] = {
    "f32 b1 hq2 hkv1 q300 kv400 d64",
    "f32 b1 hq2 hkv2 q200 kv330 d33 dv61 window=70,5",
    "f32 b1 hq1 hkv1 q131 kv257 d128 causal offset=100",
    "f32 b1 hq2 hkv1 q70 kv300 d80 dv17 mask=1,h,q,kv",
    "f32 b2 hq2 hkv2 q70 kv150 d5 kvlen=61",
    ("f32 hq4 hkv2 d64 dv40 varlen=3,5,0,17:30,5,0,90 causal offset=12 window=40,0 softcap=3 alibi bias=b,h,q,kv:f16 "
     "mask=1,h,q,kv sinks dropout=0.1:seed=7"),
    "f32 b1 hq2 hkv2 q70 kv150 d40 window=9,5 offset=20",
};

enum { AHEAD_LOCAL_BYTES = 86 << 10 }; /* of the widest */

static int64_t local_bytes(clattn_context *context)
{
    cl_device_id device;
    cl_ulong bytes = 0;
    test_ok(clattn_context_get_cl(context, NULL, &device));
    ck_assert_int_eq(clGetDeviceInfo(device, CL_DEVICE_LOCAL_MEM_SIZE, sizeof bytes, &bytes, NULL), CL_SUCCESS);
    return bytes > 48 << 10 ? (int64_t)bytes : 227 << 10; /* NVIDIA's say 48 KiB, whatever they have */
}

/* Rows at multiples of 16 bytes, and not; whole blocks that the mask hides; NaN and infinities in the last. */
START_TEST(slices_ahead)
{
    static const test_way attn_fwd = {"attn_fwd, ahead", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_FWD};
    static clattn_context *context;
    if (is_missing()) return;
    if (!context) context = test_context_by("emulated");
    if (local_bytes(context) < 2 * AHEAD_LOCAL_BYTES) {
        test_skip(ahead[_i / 2], "no local memory for slices ahead");
        return;
    }
    test_data *t = test_data_from_text(ahead[_i / 2], 8 + (uint64_t)_i % 2);
    if (_i / 2 == 3)
        for (int i = 0; i < 2 * 70; i++) memset(t->mask + 300 * i + 64, 0, 128);
    if (_i / 2 == COUNT(ahead) - 1) set_special_values(t, 40);
    test_reference(t);
    clattn_plan *plan = test_plan(context, &t->p, &attn_fwd, 0, 0, 0);
    ck_assert_msg(!!strstr(clattn_plan_explain(plan), "copied one ahead"), "%s", clattn_plan_explain(plan));
    test_forward(t, plan);
    test_compare(t, "slices ahead");
    clattn_plan_release(plan);
    test_data_free(t);
}
END_TEST

/* ---- decisions */

static const struct {
    const char *text, *sentence;
} refused[] = {
    {"f32 b1 hq1 hkv1 q70 kv90 d64", "dtype is f32; attn_fwd_mma takes f16 and bf16"},
    {"f64 b1 hq1 hkv1 q70 kv90 d64", "attn_fwd_mma takes f16 and bf16"},
    {"f16 b1 hq1 hkv1 q70 kv90 d129 dv64", "head_dim_qk is 129 and head_dim_v 64; attn_fwd_mma takes up to 128"},
    {"bf16 b1 hq1 hkv1 q70 kv90 d64 dv256", "attn_fwd_mma takes up to 128"},
};

START_TEST(refuses)
{
    clattn_context *context = test_way_context(&way, _i == 1 ? CLATTN_DTYPE_F64 : CLATTN_DTYPE_F16);
    clattn_plan_options options;
    clattn_problem p;
    clattn_plan *plan = NULL;
    if (!context) return;
    clattn_plan_options_init(&options);
    options.kernel = CLATTN_KERNEL_ATTN_FWD_MMA;
    test_ok(clattn_problem_from_text(refused[_i].text, &p));
    ck_assert_int_eq(clattn_plan_create(context, &p, &options, &plan), CLATTN_STATUS_UNSUPPORTED);
    ck_assert_msg(strstr(clattn_last_error()->message, refused[_i].sentence), "%s", clattn_last_error()->message);
}
END_TEST

/* A device that has an engine (here one that CLATTN_MMA makes up): AUTO tests it, takes it for f16 and bf16, and says so. */
START_TEST(automatic)
{
    static const char *const engines[] = {"emulated", "emulated_mfma", "emulated_dpas", "emulated_wmma_gfx11",
                                          "emulated_wmma_gfx12"};
    static const char *const texts[] = {"f16 b1 hq2 hkv2 q150 kv200 d64", "bf16 b1 hq2 hkv2 q150 kv200 d64",
                                        "f32 b1 hq2 hkv2 q150 kv200 d64", "f16 b1 hq2 hkv2 q150 kv200 d160"};
    char sentence[100];
    clattn_plan_info info;
    if (is_missing()) return;
    clattn_context *context = test_context_by(engines[_i]);
    snprintf(sentence, sizeof sentence, "matrix engine: %s; its products agree with attn_fwd's", engines[_i]);
    for (int i = _i ? (_i - 1) % 2 : 0, end = _i ? i + 1 : COUNT(texts); i < end; i++) { /* a type for each layout */
        clattn_plan *plan;
        test_data *t = test_data_from_text(texts[i], 2);
        test_ok(clattn_plan_create(context, &t->p, NULL, &plan));
        clattn_plan_info_init(&info);
        test_ok(clattn_plan_get_info(plan, &info));
        ck_assert_msg((info.kernel == CLATTN_KERNEL_ATTN_FWD_MMA) == (i < 2), "%s", clattn_plan_explain(plan));
        ck_assert_msg(!!strstr(clattn_plan_explain(plan), sentence) == (i < 2), "%s", clattn_plan_explain(plan));
        test_reference(t);
        test_forward(t, plan);
        test_compare(t, "automatic");
        test_data_free(t);
        clattn_plan_release(plan);
    }
    clattn_context_release(context);
}
END_TEST

/* Of engines that the device cannot have the plan says so, one after the other, and ends with the emulation. */
START_TEST(engines_fall)
{
    clattn_plan_options plan_options;
    clattn_plan *plan;
    if (is_missing()) return;
    clattn_context *context = test_context_by("wgmma");
    test_data *t = test_data_from_text("bf16 b1 hq2 hkv2 q40 kv50 d16", 2);
    clattn_plan_options_init(&plan_options);
    plan_options.kernel = CLATTN_KERNEL_ATTN_FWD_MMA;
    test_ok(clattn_plan_create(context, &t->p, &plan_options, &plan));
    const char *why = clattn_plan_explain(plan), *wgmma = strstr(why, "refused: attn_fwd_mma by wgmma: ");
    const char *mma_sync = strstr(why, "refused: attn_fwd_mma by mma_sync: ");
    ck_assert_msg(!strstr(why, "matrix engine: emulated") == !mma_sync, "%s", why);
    ck_assert_msg(!mma_sync || (wgmma && wgmma < mma_sync), "%s", why);
    test_reference(t);
    test_forward(t, plan);
    test_compare(t, "engines fall");
    test_data_free(t);
    clattn_plan_release(plan);
    clattn_context_release(context);
}
END_TEST

/* AMD's and Intel's have none below them: AUTO goes on with attn_fwd, and attn_fwd_mma with the emulation. */
START_TEST(engines_fall_to_none)
{
    static const char *const engines[] = {"mfma", "dpas", "wmma_gfx11", "wmma_gfx12"};
    char sentence[100];
    clattn_plan_options options;
    clattn_plan_info info;
    if (is_missing()) return;
    clattn_context *context = test_context_by(engines[_i]);
    clattn_plan_options_init(&options);
    clattn_plan_info_init(&info);
    if (_i % 2) options.kernel = CLATTN_KERNEL_ATTN_FWD_MMA;
    test_data *t = test_data_from_text("f16 b1 hq2 hkv2 q150 kv200 d16", 2);
    clattn_plan *plan;
    test_ok(clattn_plan_create(context, &t->p, &options, &plan));
    test_ok(clattn_plan_get_info(plan, &info));
    const char *why = clattn_plan_explain(plan);
    snprintf(sentence, sizeof sentence, "matrix engine: %s", engines[_i]);
    if (!strstr(why, sentence)) {
        snprintf(sentence, sizeof sentence, "refused: attn_fwd_mma by %s: ", engines[_i]);
        ck_assert_msg(!!strstr(why, sentence), "%s", why);
        ck_assert_msg((info.kernel == CLATTN_KERNEL_ATTN_FWD_MMA) == (_i % 2), "%s", why);
        ck_assert_msg(!!strstr(why, "matrix engine: emulated\n") == (_i % 2), "%s", why);
    }
    test_reference(t);
    test_forward(t, plan);
    test_compare(t, "engines fall to none");
    test_data_free(t);
    clattn_plan_release(plan);
    clattn_context_release(context);
}
END_TEST

Suite *test_suite(void)
{
    Suite *s = suite_create("mma");
    TCase *c = test_case(s, "features");
    tcase_add_loop_test(c, each_feature, 0, (TEST_FEATURES + 1 + TEST_FEATURES / 2 + 1) * SHAPES);
    tcase_add_loop_test(c, all_features, 0, 2 * SHAPES * TYPES);
    c = test_case(s, "shapes");
    tcase_add_loop_test(c, head_dims, 0, 2 * COUNT(shapes));
    tcase_add_loop_test(c, block_sizes, 0, 3 * COUNT(blocks));
    tcase_add_loop_test(c, named_shapes, 0, COUNT(named));
    tcase_add_test(c, everything);
    tcase_add_test(c, dropout_of_nearly_all);
    c = test_case(s, "nan");
    tcase_add_loop_test(c, nan_behind_a_mask, 0, 2 * TYPES);
    tcase_add_loop_test(c, nan_in_windows, 0, 2 * 4 * TYPES);
    tcase_add_loop_test(c, nan_in_default_tiles, 0, 4);
    tcase_add_loop_test(c, fully_hidden, 0, 5);
    c = test_case(s, "ahead");
    tcase_add_loop_test(c, slices_ahead, 0, 2 * COUNT(ahead));
    c = test_case(s, "decisions");
    tcase_add_loop_test(c, refuses, 0, COUNT(refused));
    tcase_add_loop_test(c, automatic, 0, 5);
    tcase_add_test(c, engines_fall);
    tcase_add_loop_test(c, engines_fall_to_none, 0, 4);
    c = test_case(s, "layouts");
    tcase_add_loop_test(c, all_features_in_layouts, 0, SHAPES * TYPES * (LAYOUTS - 1));
    tcase_add_loop_test(c, head_dims_in_layouts, 0, 4 * (LAYOUTS - 1));
    tcase_add_loop_test(c, nan_behind_a_mask_in_layouts, 0, LAYOUTS - 1);
    tcase_add_loop_test(c, nan_in_windows_in_layouts, 0, 2 * (LAYOUTS - 1));
    return s;
}
