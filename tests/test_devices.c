/* A context with several devices: a call has the bits that one device gives, whoever ran which share. On PoCL the devices
 * are three of its own, all of the kind `pthread`: those of the kind `basic` lock each other out. */
#define _GNU_SOURCE
#include "gradients.h"

#include <clattn/opencl.h>

#include <inttypes.h>

enum { DEVICES_MOST = 3, N_DEVICE_WAYS = 2 };

/* The first n devices, made at first use and kept. NULL after a test_skip when there are not so many. */
static clattn_context *context_of(int n)
{
    static clattn_context *contexts[DEVICES_MOST + 1];
    static const int devices[DEVICES_MOST] = {0, 1, 2};
    clattn_context_options options;
    int count;
    test_ok(clattn_device_count(&count));
    if (count < n) test_skip("several devices", "there are fewer OpenCL devices");
    if (count < n || contexts[n]) return contexts[n];
    clattn_context_options_init(&options);
    options.n_devices = n;
    options.devices = devices;
    test_ok(clattn_context_create(&options, &contexts[n]));
    return contexts[n];
}

static clattn_plan_info info_of(const clattn_plan *plan)
{
    clattn_plan_info info;
    clattn_plan_info_init(&info);
    test_ok(clattn_plan_get_info(plan, &info));
    return info;
}

/* O and LSE, guards with them, as the last call left them. */
static unsigned char *outputs_of(const test_data *t)
{
    unsigned char *all = malloc(t->blocks[3].bytes + t->blocks[4].bytes);
    ck_assert_ptr_nonnull(all);
    memcpy(all, t->blocks[3].base, t->blocks[3].bytes);
    memcpy(all + t->blocks[3].bytes, t->blocks[4].base, t->blocks[4].bytes);
    return all;
}

/* On one device beside the reference, then on n, of which `used` have shares. */
static void compare(test_data *t, const test_way *way, int n, int used)
{
    char line[64];
    if (!context_of(n) || !test_way_context(way, t->p.dtype)) return;
    clattn_plan *plan = test_plan(context_of(1), &t->p, way, 0, 0, 0);
    ck_assert_int_eq(info_of(plan).n_devices, 1);
    test_reference(t);
    test_forward(t, plan);
    test_compare(t, "one device");
    clattn_plan_release(plan);
    unsigned char *alone = outputs_of(t);
    plan = test_plan(context_of(n), &t->p, way, 0, 0, 0);
    const clattn_plan_info info = info_of(plan);
    ck_assert_msg(info.n_devices == used && info.n_shares >= used && !info.zero_copy, "%s: %d devices, %d shares",
                  t->text, info.n_devices, (int)info.n_shares);
    snprintf(line, sizeof line, "devices: %d share %" PRId64 " shares\n", used, info.n_shares);
    ck_assert_msg(strstr(clattn_plan_explain(plan), line), "%s", clattn_plan_explain(plan));
    for (int i = 0; i < 2; i++) {
        test_forward(t, plan);
        unsigned char *together = outputs_of(t);
        ck_assert_msg(!memcmp(alone, together, t->blocks[3].bytes + t->blocks[4].bytes), "%s: other bits by %d devices",
                      t->text, used);
        free(together);
    }
    clattn_plan_release(plan);
    free(alone);
}

/* ---- bits: by batch entries, GQA groups, heads, rows; what names entries, heads and rows */

static const struct {
    const char *text;
    int devices, used;
} texts[] = {
    {"f32 b2 hq4 hkv2 q90 kv133 d32 causal offset=40 sinks", 2, 2},
    {"f32 b1 hq6 hkv3 q70 kv93 d20 window=9,3 softcap=7 alibi bias=1,h,q,kv:f16 mask=b,1,q,kv sinks dropout=0.2:seed=1",
     3, 3},
    {"bf16 b1 hq4 hkv1 q90 kv133 d40 causal alibi mask=b,h,q,kv dropout=0.3:seed=3", 3, 3},
    {"f32 b1 hq1 hkv1 q500 kv64 d32 mask=1,1,q,kv bias=b,h,q,kv", 3, 3},
    {"f64 b5 hq2 hkv2 q40 kv93 d24 kvlen=per-batch offset=per-batch", 2, 2},
    {"f32 hq4 hkv2 d40 varlen=83,5,67:160,9,140 causal bias=b,1,1,kv:bf16 alibi dropout=0.1:seed=9", 2, 2},
    {"f32 b1 hq1 hkv1 q16 kv64 d32", 2, 1},
};
enum { N_TEXTS = sizeof texts / sizeof *texts };

START_TEST(bits)
{
    const int n = _i / N_DEVICE_WAYS;
    test_data *t = test_data_from_text(texts[n].text, 6);
    for (int64_t b = 0; b < t->p.batch; b++) {
        if (t->kv_lengths) t->kv_lengths[b] = 20 * b;
        if (t->query_offsets) t->query_offsets[b] = 7 * b;
    }
    compare(t, &test_ways[1 + _i % N_DEVICE_WAYS], texts[n].devices, texts[n].used);
    test_data_free(t);
}
END_TEST

/* By groups, and by their keys where those are too few: partials of one device, merged by the first. */
START_TEST(decode)
{
    static const test_way lanes = {"attn_decode_lanes", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_DECODE_LANES},
                          local = {"attn_decode", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_DECODE};
    static const struct {
        const char *text;
        int devices, used;
    } cases[] = {
        {"f16 b1 hq8 hkv2 q2 kv600 d16 causal offset=598", 2, 2},
        {"f16 b1 hq8 hkv2 q2 kv600 d16 causal offset=598", 3, 3},
        {"f32 b1 hq4 hkv1 q2 kv600 d16", 3, 3},
        {"f64 b1 hq4 hkv1 q3 kv611 d20 window=300,5 offset=604 mask=b,h,q,kv sinks alibi dropout=0.2:seed=3", 3, 3},
        {"bf16 b2 hq2 hkv1 q1 kv600 d40 bias=b,1,q,kv kvlen=per-batch softcap=5", 3, 3},
        {"f32 hq4 hkv1 d16 varlen=2,1:300,400", 3, 1},
        {"f32 b1 hq4 hkv1 q2 kv16 d16", 3, 1},
        {"f32 b2 hq4 hkv2 q2 kv0 d16 sinks", 3, 3},
    };
    const int n = _i / N_DEVICE_WAYS;
    test_data *t = test_data_from_text(cases[n].text, 9);
    for (int64_t b = 0; t->kv_lengths && b < t->p.batch; b++) t->kv_lengths[b] = b ? 600 : 133;
    compare(t, _i % N_DEVICE_WAYS ? &local : &lanes, cases[n].devices, cases[n].used);
    test_data_free(t);
}
END_TEST

/* ---- what stays the first device's */

START_TEST(gradients)
{
    clattn_problem p;
    if (!context_of(2)) return;
    test_ok(clattn_problem_from_text("f32 b2 hq4 hkv2 q40 kv50 d16 causal sinks", &p));
    const test_backward_how how = {.context = context_of(2)};
    test_data *t = test_data_make(&p, 3);
    test_backward_check(t, "several devices", 4, &test_backward_ways[1], &how);
    test_data_free(t);
}
END_TEST

/* AUTO takes the host for what is small; of a device's calls the first device's cl_mem are none. */
START_TEST(small)
{
    clattn_plan *plan;
    cl_context one, first;
    if (!context_of(2)) return;
    test_data *t = test_data_from_text("f32 b2 hq2 hkv2 q20 kv30 d16", 3);
    test_ok(clattn_plan_create(context_of(2), &t->p, NULL, &plan));
    ck_assert_int_eq(info_of(plan).path, CLATTN_PATH_HOST);
    ck_assert_int_eq(info_of(plan).n_devices, 0);
    test_reference(t);
    test_forward(t, plan);
    test_compare(t, "on the host");
    clattn_plan_release(plan);
    test_data_free(t);
    test_ok(clattn_context_get_cl(context_of(1), &one, NULL));
    test_ok(clattn_context_get_cl(context_of(2), &first, NULL));
    ck_assert(one && first && one != first);
}
END_TEST

/* ---- refusals */

START_TEST(refuses)
{
    static const int twice[] = {0, 1, 0}, negative[] = {0, -1}, beyond[] = {0, 4000};
    static const struct {
        int n;
        const int *devices;
        clattn_status status;
        const char *sentence;
    } cases[] = {
        {-1, twice, CLATTN_STATUS_INVALID_ARGUMENT, "options.n_devices is -1"},
        {2, NULL, CLATTN_STATUS_INVALID_ARGUMENT, "options.n_devices is 2, options.devices is NULL"},
        {3, twice, CLATTN_STATUS_INVALID_ARGUMENT, "options.devices[0] and [2] are both 0"},
        {2, negative, CLATTN_STATUS_INVALID_ARGUMENT, "options.devices[1] is -1"},
        {2, beyond, CLATTN_STATUS_NO_DEVICE, "device index is 4000"},
    };
    clattn_context_options options;
    clattn_context *context = NULL;
    if (!context_of(1)) return;
    clattn_context_options_init(&options);
    options.n_devices = cases[_i].n;
    options.devices = cases[_i].devices;
    ck_assert_int_eq(clattn_context_create(&options, &context), cases[_i].status);
    ck_assert_ptr_null(context);
    ck_assert_msg(strstr(clattn_last_error()->message, cases[_i].sentence), "%s", clattn_last_error()->message);
}
END_TEST

/* ---- many threads, one plan */

START_TEST(one_plan)
{
    if (!context_of(2)) return;
    static const test_way few_rows = {"attn_decode_lanes", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_DECODE_LANES};
    test_data *t = test_data_from_text(
        _i ? "f32 b1 hq4 hkv1 q2 kv700 d40 causal offset=698" : "f32 b2 hq4 hkv2 q140 kv150 d40 causal", 4);
    clattn_plan *plan = test_plan(context_of(2), &t->p, _i ? &few_rows : &test_ways[1], 0, 0, 0);
    ck_assert_int_eq(info_of(plan).n_devices, 2);
    test_reference(t);
    test_forward(t, plan);
    test_compare(t, "first");
    test_call_often(plan, t);
    clattn_plan_release(plan);
    test_data_free(t);
}
END_TEST

Suite *test_suite(void)
{
    setenv("POCL_DEVICES", "pthread pthread pthread", 0);
    Suite *s = suite_create("devices");
    TCase *c = test_case(s, "bits");
    tcase_add_loop_test(c, bits, 0, N_TEXTS * N_DEVICE_WAYS);
    tcase_add_loop_test(c, decode, 0, 8 * N_DEVICE_WAYS);
    c = test_case(s, "first");
    tcase_add_test(c, gradients);
    tcase_add_test(c, small);
    c = test_case(s, "refusals");
    tcase_add_loop_test(c, refuses, 0, 5);
    c = test_case(s, "threads");
    tcase_add_loop_test(c, one_plan, 0, 2);
    return s;
}
