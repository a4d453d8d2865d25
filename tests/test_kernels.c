/* Each variant of each kernel on two shapes, every buffer the layer's own: for Oclgrind, which sees races, reads of
 * nothing and overruns, and for the guard pages of the fault layer. And kernels with planted mistakes: which one,
 * CLATTN_TEST_PLANTED says. */
#include "gradients.h"

#include <clattn/opencl.h>

/* Small: Oclgrind takes microseconds for a multiply-add. Two query tiles or more, two kv blocks or more, odd sizes. */
static const char *const shapes[] = {"b1 hq2 hkv1 q19 kv37", "b2 hq1 hkv1 q33 kv18"};
static const char *const variants[] = {
    "f32 d6",
    "f32 d20 dv9 window=7,2",
    "f32 d16 causal offset=3 kvlen=17",
    "f32 d7 softcap=3 alibi",
    "f32 d8 bias=1,h,q,kv:f16",
    "f32 d8 bias=b,1,1,kv:bf16 mask=1,1,q,1",
    "f32 d8 mask=b,1,q,kv sinks",
    "f32 d8 causal mask=1,1,1,kv dropout=0.3:seed=4",
    "f32 d33 sinks offset=per-batch kvlen=per-batch",
    "f16 d18",
    "f16 d8 causal mask=b,h,q,kv alibi",
    "bf16 d18 dv5",
    "bf16 d8 window=3,3 bias dropout=0.2 sinks",
    "f64 d6 causal",
    "f64 d9 softcap=2 alibi bias mask sinks",
};
static const char *const packed[] = {"f32 hq2 hkv1 d8 varlen=19,0,7:21,5,3 causal",
                                     "f16 hq2 hkv2 d9 varlen=3,20:0,37 mask sinks"};
static const clattn_kernel kernels[] = {CLATTN_KERNEL_ATTN_FWD_LANES, CLATTN_KERNEL_ATTN_FWD,
                                        CLATTN_KERNEL_ATTN_DECODE_LANES, CLATTN_KERNEL_ATTN_FWD_MMA,
                                        CLATTN_KERNEL_ATTN_DECODE};
static const char *const backward_variants[] = {
    "f32 d6 causal",
    "f32 d20 dv9 window=7,2 softcap=3 alibi",
    "f32 d8 bias=1,h,q,kv:f16 kvlen=17",
    "f32 d8 mask=b,1,q,kv sinks dropout=0.3:seed=4",
    "f16 d18 bias=b,1,1,kv causal",
    "bf16 d7 dv5 alibi=per-batch sinks offset=3",
    "f64 d9 softcap=2 alibi bias mask sinks",
};
enum { BACKWARD_VARIANTS = sizeof backward_variants / sizeof backward_variants[0] };
enum {
    SHAPES = 2,
    VARIANTS = sizeof variants / sizeof variants[0],
    PACKED = 2,
    TEXTS = SHAPES * VARIANTS + PACKED,
    KERNELS = 5
};

static clattn_context *copying_context(void)
{
    static clattn_context *context;
    clattn_context_options options;
    test_context_options(&options);
    options.copy_transfers = 1;
    if (!context) test_ok(clattn_context_create(&options, &context));
    return context;
}

static bool is_simulated(void)
{
    clattn_device_info info;
    ck_assert(test_device_info(&info));
    return !strcmp(info.platform, "Oclgrind"); /* whose log counts: half arithmetic gives zeros there, and more */
}

/* nan_key: a key whose first value is NaN; below 0: none. */
static void run_variant(const char *text, clattn_kernel kernel, int seed, int nan_key)
{
    test_data *t = test_data_from_text(text, (uint64_t)seed);
    for (int64_t b = 0; b < t->p.batch; b++) {
        if (t->kv_lengths) t->kv_lengths[b] = t->p.n_kv - 5 * b - 1;
        if (t->query_offsets) t->query_offsets[b] = 4 * b - 2;
    }
    if (nan_key >= 0) test_set(t, 'v', 0, 0, nan_key, 0, (double)NAN);
    clattn_plan_options options;
    clattn_plan_options_init(&options);
    options.path = CLATTN_PATH_DEVICE;
    options.kernel = kernel;
    options.block_q = options.block_kv = 16;
    clattn_plan *plan;
    test_ok(clattn_plan_create(copying_context(), &t->p, &options, &plan));
    test_forward(t, plan);
    clattn_plan_release(plan);
    if (!is_simulated()) {
        test_reference(t);
        test_compare(t, clattn_kernel_name(options.kernel));
    }
    test_data_free(t);
}

START_TEST(variant)
{
    char text[256];
    const int which = _i % TEXTS;
    if (which < SHAPES * VARIANTS)
        snprintf(text, sizeof text, "%s %s", variants[which / SHAPES], shapes[which % SHAPES]);
    else
        snprintf(text, sizeof text, "%s", packed[which - SHAPES * VARIANTS]);
    if (kernels[_i / TEXTS] == CLATTN_KERNEL_ATTN_FWD_MMA && text[0] == 'f')
        memcpy(text, "f16", 3); /* f32 and f64 too */
    run_variant(text, kernels[_i / TEXTS], _i, -1);
}
END_TEST

/* More columns than attn_decode reads of a key at once, and than a slice of attn_fwd's has. */
static const char *const wide[] = {"f32 b1 hq2 hkv1 q3 kv37 d261 dv3", "f16 b1 hq2 hkv1 q3 kv37 d520 dv3"};

START_TEST(many_columns)
{
    run_variant(wide[_i / 2], _i % 2 ? CLATTN_KERNEL_ATTN_DECODE : CLATTN_KERNEL_ATTN_FWD, _i, -1);
}
END_TEST

/* What attn_fwd_mma's cut blocks have of V is added apart where it is NaN. */
static const char *const special[] = {"f16 b1 hq2 hkv1 q33 kv37 d18 causal", "bf16 b1 hq2 hkv1 q19 kv37 d8 window=3,3"};

START_TEST(special_values) { run_variant(special[_i], CLATTN_KERNEL_ATTN_FWD_MMA, _i, 20); }
END_TEST

/* f32 slices copied ahead, by plain copies: in the tiles of a plan's own, for forced ones do without. */
static const char *const ahead[] = {"f32 b1 hq2 hkv1 q70 kv150 d6 causal offset=70",
                                    "f32 b1 hq1 hkv1 q5 kv140 d9 mask=1,1,q,kv",
                                    "f32 b1 hq1 hkv1 q66 kv70 d32 window=20,3"};
enum { AHEAD = sizeof ahead / sizeof ahead[0] };

START_TEST(slices_ahead)
{
    static clattn_context *context;
    if (!context) context = test_context_by("emulated");
    test_data *t = test_data_from_text(ahead[_i], (uint64_t)_i);
    for (int i = 0; t->mask && i < 5; i++) memset(t->mask + i * 140 + 64, 0, 64); /* a whole block */
    const test_way way = {"attn_fwd, ahead", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_FWD};
    clattn_plan *plan = test_plan(context, &t->p, &way, 0, 0, 0);
    if (strstr(clattn_plan_explain(plan), "copied one ahead")) {
        test_forward(t, plan);
        if (!is_simulated()) {
            test_reference(t);
            test_compare(t, way.name);
        }
    } else {
        test_skip(ahead[_i], "no local memory for slices ahead");
    }
    clattn_plan_release(plan);
    test_data_free(t);
}
END_TEST

START_TEST(backward_variant)
{
    const int which = _i % (SHAPES * BACKWARD_VARIANTS);
    const test_way *way = &test_backward_ways[1 + _i / (SHAPES * BACKWARD_VARIANTS)];
    const bool simulated = is_simulated();
    char text[256];
    snprintf(text, sizeof text, "%s %s", backward_variants[which / SHAPES], shapes[which % SHAPES]);
    test_data *t = test_data_from_text(text, (uint64_t)_i);
    const test_backward_how how = {.block = 16, .context = copying_context(), .runs_alone = simulated};
    test_backward_check(t, text, (uint64_t)_i, way, &how);
    test_data_free(t);
}
END_TEST

/* ---- kernels with a mistake each */

static const char *const mistakes[][2] = {
    {"race", "__kernel void k(__global int *x) { __local int a[8]; const int i = get_local_id(0); a[i] = 0;"
             " barrier(CLK_LOCAL_MEM_FENCE); a[(i + 1) % 8] = i; x[i] = a[i]; }"},
    {"local", "__kernel void k(__global int *x) { __local int a[8]; const int i = get_local_id(0); a[i] = i;"
              " barrier(CLK_LOCAL_MEM_FENCE); x[i] = a[i + 1]; }"},
    {"global", "__kernel void k(__global int *x) { const int i = get_local_id(0); x[i] = x[i + 8]; }"},
    {"uninitialised", "__kernel void k(__global int *x) { __local int a[8]; const int i = get_local_id(0);"
                      " if (i == 0) a[0] = 1; barrier(CLK_LOCAL_MEM_FENCE); if (a[i] > 0) x[i] = 3; }"},
};
enum { MISTAKES = 4 };

START_TEST(planted)
{
    const char *name = getenv("CLATTN_TEST_PLANTED"), *source = NULL;
    cl_device_id id;
    cl_context cl;
    cl_int code;
    for (int i = 0; name && i < MISTAKES; i++)
        if (!strcmp(name, mistakes[i][0])) source = mistakes[i][1];
    if (!source) return;
    test_ok(clattn_context_get_cl(test_context(), &cl, &id));
    const int zeros[8] = {0};
    cl_command_queue queue = clCreateCommandQueue(cl, id, 0, &code);
    cl_mem mem = clCreateBuffer(cl, CL_MEM_COPY_HOST_PTR, sizeof zeros, (void *)(uintptr_t)zeros, &code);
    cl_program program = clCreateProgramWithSource(cl, 1, &source, NULL, &code);
    ck_assert_int_eq(clBuildProgram(program, 1, &id, NULL, NULL, NULL), CL_SUCCESS);
    cl_kernel kernel = clCreateKernel(program, "k", &code);
    const size_t eight = 8;
    ck_assert_int_eq(clSetKernelArg(kernel, 0, sizeof mem, &mem), CL_SUCCESS);
    ck_assert_int_eq(clEnqueueNDRangeKernel(queue, kernel, 1, NULL, &eight, &eight, 0, NULL, NULL), CL_SUCCESS);
    ck_assert_int_eq(clFinish(queue), CL_SUCCESS);
    clReleaseKernel(kernel);
    clReleaseProgram(program);
    clReleaseMemObject(mem);
    clReleaseCommandQueue(queue);
}
END_TEST

Suite *test_suite(void)
{
    Suite *suite = suite_create("kernels");
    TCase *all[KERNELS];
    for (int k = 0; k < KERNELS; k++) {
        all[k] = test_case(suite, clattn_kernel_name(kernels[k]));
        tcase_add_loop_test(all[k], variant, k * TEXTS, (k + 1) * TEXTS);
        if (kernels[k] == CLATTN_KERNEL_ATTN_FWD_MMA) tcase_add_loop_test(all[k], special_values, 0, 2);
    }
    for (int k = 0; k < 2; k++)
        tcase_add_loop_test(test_case(suite, clattn_kernel_name(test_backward_ways[1 + k].kernel)), backward_variant,
                            k * SHAPES * BACKWARD_VARIANTS, (k + 1) * SHAPES * BACKWARD_VARIANTS);
    tcase_add_loop_test(test_case(suite, "many_columns"), many_columns, 0, 4);
    tcase_add_loop_test(test_case(suite, "ahead"), slices_ahead, 0, AHEAD);
    tcase_add_test(test_case(suite, "planted"), planted);
    return suite;
}
