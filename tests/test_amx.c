/* The host path's code of bf16 products, for AVX512-BF16 and for AMX, on any machine: over emulated instructions
 * (emulated.h), that for AMX also as it is where the processor has it. The linker puts the test's choice in the place
 * of the library's (--wrap). Loop index check * CODES + code. */
#define _DEFAULT_SOURCE
#include "gradients.h"
#include "problem_numbers.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/backward.h"
#include "cpu/tile.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

extern const host_ops clattn__host_ops_bf16_amx_emulated, clattn__host_ops_bf16_avx512_emulated;
extern const host_ops clattn__host_ops_f32_portable;

enum { CODES = 2, AMX = 0 };
static const host_ops *const codes[CODES] = {&clattn__host_ops_bf16_amx_emulated,
                                             &clattn__host_ops_bf16_avx512_emulated};

/* What the emulation asks for. */
enum { AMX_NO_FAULT, AMX_ODD_ELEMENT_LOST, AMX_LAST_ROW_LOST, AMX_NOT_ADDED, AMX_FAULTS };
atomic_int amx_threads, amx_fault;
_Thread_local bool amx_is_configured;

static const host_ops *in_use;
const host_ops *__real_clattn__host_ops(clattn_dtype dtype);
const host_ops *__wrap_clattn__host_ops(clattn_dtype dtype);
const host_ops *__wrap_clattn__host_ops(clattn_dtype dtype)
{
    return in_use && dtype == CLATTN_DTYPE_BF16 ? in_use : __real_clattn__host_ops(dtype);
}

extern const backward_ops clattn__backward_ops_bf16_avx512_emulated;
static int gradient_plans;
const backward_ops *__wrap_clattn__backward_ops(clattn_dtype dtype);
const backward_ops *__real_clattn__backward_ops(clattn_dtype dtype);
const backward_ops *__wrap_clattn__backward_ops(clattn_dtype dtype)
{
    if (dtype != CLATTN_DTYPE_BF16) return __real_clattn__backward_ops(dtype);
    gradient_plans++;
    return &clattn__backward_ops_bf16_avx512_emulated;
}

/* Code `nth` of a loop index: the emulated one, then AMX itself if it is there; NULL past the last. */
static const host_ops *code_of(int i, int nth)
{
    const host_ops *best = __real_clattn__host_ops(CLATTN_DTYPE_BF16);
    if (nth == 0) return codes[i % CODES];
    return nth == 1 && i % CODES == AMX && !strcmp(best->name, "amx_bf16") ? best : NULL;
}

/* A plan whose code is this one, run on a context; no thread keeps tiles. */
static void run_on(clattn_context *context, test_data *t, const host_ops *code, int64_t block_q, int64_t block_kv,
                   int n_threads)
{
    in_use = code;
    clattn_plan *plan = test_plan(context, &t->p, &test_ways[0], block_q, block_kv, n_threads);
    in_use = NULL;
    clattn_plan_info info;
    clattn_plan_info_init(&info);
    test_ok(clattn_plan_get_info(plan, &info));
    ck_assert_str_eq(info.instructions, code->name);
    ck_assert_int_eq(info.products, code->products);
    test_forward(t, plan);
    clattn_plan_release(plan);
    ck_assert_int_eq(amx_threads, 0);
}

static void run_and_compare(test_data *t, int i, int64_t block_q, int64_t block_kv)
{
    const host_ops *code;
    test_reference(t);
    for (int nth = 0; (code = code_of(i, nth)); nth++) {
        run_on(test_host_context(), t, code, block_q, block_kv, 0);
        test_compare(t, code->name);
    }
}

static void run_text(const char *text, int i, int64_t block_q, int64_t block_kv)
{
    test_data *t = test_data_from_text(text, (uint64_t)i);
    run_and_compare(t, i, block_q, block_kv);
    test_data_free(t);
}

/* ---- shapes */

static const int dims[] = {1, 7, 16, 31, 40, 64, 80, 128, 200}, keys[] = {0, 1, 15, 16, 17, 31, 33, 129};

/* |O - O'| of two types of products: P rounded by 2^-9 at most, in values near 1, and O twice. */
static void check_near(const test_data *a, const test_data *b)
{
    for (int64_t h = 0; h < a->p.n_heads_q; h++)
        for (int64_t i = 0; i < a->p.n_q; i++)
            for (int64_t d = 0; d < a->p.head_dim_v; d++) {
                const double x = test_get(a, 'o', 0, h, i, d), y = test_get(b, 'o', 0, h, i, d);
                ck_assert_msg(fabs(x - y) <= 0x1p-8 * (1 + fabs(y)) + 1e-5, "%s: %g is not %g", a->text, x, y);
            }
}

/* Rows of K and V dense, apart by an odd number, with a gap, or all the same. */
START_TEST(shapes)
{
    const int n = _i / CODES, d = n % COUNT(dims), k = n / COUNT(dims);
    clattn_problem p;
    clattn_problem_init(&p, CLATTN_DTYPE_BF16, 1, 2, 1, 37, keys[k], dims[d]);
    p.head_dim_v = dims[(d + k + 1) % COUNT(dims)];
    if (n % 3) p.mask.window_right = 40;
    const int64_t gap = n % 4 == 1 ? 1 - p.head_dim_qk % 2 : n % 4 == 2 ? 6 : 0;
    const int64_t k_row = n % 4 == 3 ? 0 : p.head_dim_qk + gap, v_row = n % 4 == 3 ? 0 : p.head_dim_v + gap;
    p.k = (clattn_strides){k_row * keys[k] + 1, k_row * keys[k] + 1, k_row};
    p.v = (clattn_strides){v_row * keys[k] + 1, v_row * keys[k] + 1, v_row};
    test_data *t = test_data_make(&p, (uint64_t)n), *portable = test_data_make(&p, (uint64_t)n);
    run_and_compare(t, _i, 0, n % 2 ? 0 : 48);
    run_on(test_host_context(), portable, &clattn__host_ops_f32_portable, 0, 0, 0);
    check_near(t, portable);
    test_data_free(t);
    test_data_free(portable);
}
END_TEST

static const int64_t odd_blocks[][2] = {{1, 1}, {17, 17}, {64, 100}, {1, 100}, {7, 4096}, {48, 3}, {64, 33}};

START_TEST(blocks)
{
    const int64_t *size = odd_blocks[_i / CODES];
    run_text("bf16 b1 hq2 hkv2 q70 kv141 d31 dv50 window=50,3 offset=30", _i, size[0], size[1]);
}
END_TEST

/* ---- features */

START_TEST(pairs)
{
    clattn_problem p;
    if (!test_pair_problem(test_pair_of(_i / CODES), CLATTN_DTYPE_BF16, _i / CODES % 3, &p)) return;
    test_data *t = test_pair_data(&p, (uint64_t)_i);
    run_and_compare(t, _i, 0, 0);
    test_data_free(t);
}
END_TEST

enum { RANDOM = 150 };

START_TEST(random_problems)
{
    const host_ops *code;
    numbers n = numbers_make(1, (uint64_t)(_i / CODES), false);
    n.n[DTYPE] = 2; /* bf16 */
    n.n[WAY] = 0;   /* host_tile */
    n.n[BACKWARD] = 0;
    for (int nth = 0; (code = code_of(_i, nth)); nth++) {
        in_use = code;
        numbers_run(&n, false);
        in_use = NULL;
        ck_assert_int_eq(amx_threads, 0);
    }
}
END_TEST

/* ---- NaN, infinities, extremes */

static const char *const cut_texts[] = {
    "bf16 hq2 hkv1 q70 kv90 d64 kvlen=50",
    "bf16 hq2 hkv2 q70 kv90 d64 causal offset=20",
    "bf16 hq2 hkv1 q70 kv91 d40 dv24 window=10,5 offset=3",
    "bf16 hq2 hkv1 q70 kv90 d32 dv16 mask=1,1,q,kv",
    "bf16 hq2 hkv2 q65 kv130 d80 dv46 causal offset=65 softcap=3 alibi sinks",
};
static const uint64_t payloads[] = {0xffff, 0x7f81, 0x7fc0, 0x7f80, 0xff80};

/* What some rows see and others do not, in whole rows of K, of V, or one element of each. */
START_TEST(special_numbers)
{
    const uint64_t bits = payloads[_i / CODES % COUNT(payloads)];
    for (int tensors = 1; tensors < 4; tensors++) {
        test_data *t = test_data_from_text(cut_texts[_i / CODES / COUNT(payloads)], 2);
        const int64_t poisoned[] = {3, 33, 60, t->p.n_kv - 1};
        for (int n = 0; n < COUNT(poisoned); n++) {
            for (int64_t d = 0; tensors == 1 && d < t->p.head_dim_qk; d++)
                test_set_bits(t, 'k', 0, 0, poisoned[n], d, bits);
            for (int64_t d = 0; tensors == 2 && d < t->p.head_dim_v; d++)
                test_set_bits(t, 'v', 0, 0, poisoned[n], d, bits);
            if (tensors < 3) continue;
            test_set_bits(t, 'k', 0, 0, poisoned[n], n, bits);
            test_set_bits(t, 'v', 0, 0, poisoned[n] - 1, n, bits);
        }
        run_and_compare(t, _i, 0, tensors == 2 ? 32 : 0);
        test_data_free(t);
    }
}
END_TEST

typedef struct scaled {
    char which;
    int64_t row; /* -1: all */
    double factor;
} scaled;
static const scaled extremes[] = {{'q', -1, 30}, {'k', 2, 50}, {'v', 2, 30000}, {'v', -1, 1e-36}, {'k', -1, 1e-30}};

START_TEST(extreme_numbers)
{
    const scaled *s = &extremes[_i / CODES];
    test_data *t = test_data_from_text("bf16 hq2 hkv2 q70 kv90 d64 causal offset=20", 6);
    for (int64_t h = 0; h < 2; h++)
        for (int64_t row = 0; row < (s->which == 'q' ? 70 : 90); row++)
            for (int64_t d = 0; d < 64; d++)
                if (s->row < 0 || s->row == row)
                    test_set(t, s->which, 0, h, row, d, s->factor * test_get(t, s->which, 0, h, row, d));
    run_and_compare(t, _i, 0, 0);
    for (int64_t i = 0; s->factor == 1e-36 && i < 2 * 70 * 64; i++) { /* of numbers near 1 the comparison is too kind */
        const double got = test_get(t, 'o', 0, i / 64 / 70, i / 64 % 70, i % 64);
        ck_assert_msg(fabs(got - t->ref_o[i]) <= 0x1p-8 * 5e-36, "%g is not %g", got, t->ref_o[i]);
    }
    test_data_free(t);
}
END_TEST

/* V runs through all 65536 numbers; with one key O is V, and 0 for subnormals. */
START_TEST(one_key_is_exact)
{
    test_data *t = test_data_from_text("bf16 b32 hq32 hkv32 q1 kv1 d64", 9);
    for (int64_t n = 0; n < 65536; n++) test_set_bits(t, 'v', n / 2048, n / 64 % 32, 0, n % 64, (uint64_t)n);
    const host_ops *code;
    for (int nth = 0; (code = code_of(_i, nth)); nth++) {
        run_on(test_host_context(), t, code, 0, 0, 0);
        for (int64_t n = 0; n < 65536; n++) {
            const double v = test_get(t, 'v', n / 2048, n / 64 % 32, 0, n % 64);
            const double o = test_get(t, 'o', n / 2048, n / 64 % 32, 0, n % 64);
            const double expected = n % 0x8000 < 0x80 ? 0 : v;
            ck_assert_msg(isnan(v) ? isnan(o) : o == expected, "%s: V of bits %x, %g, became %g", code->name,
                          (unsigned)n, v, o);
        }
    }
    test_data_free(t);
}
END_TEST

/* ---- what is read: nothing past the end of Q, K and V */

/* n elements that end where a page begins that nobody may touch. */
static uint16_t *guarded(size_t n, const void *like)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (n * 2 + page - 1) / page * page;
    char *at = mmap(NULL, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(at != MAP_FAILED);
    ck_assert_int_eq(mprotect(at + bytes, page, PROT_NONE), 0);
    uint16_t *to = (uint16_t *)(void *)(at + bytes - n * 2);
    memcpy(to, like, n * 2);
    return to; /* for the rest of the process */
}

static const char *const guarded_texts[] = {"bf16 hq1 q37 kv61 d40 dv24",
                                            "bf16 hq1 q64 kv48 d64",
                                            "bf16 hq1 q64 kv41 d64",
                                            "bf16 hq1 q5 kv1 d1",
                                            "bf16 hq1 q20 kv5 d32",
                                            "bf16 hq1 q70 kv16 d32 dv17",
                                            "bf16 hq1 q70 kv129 d7 dv33 causal"};

START_TEST(nothing_past_the_end)
{
    const host_ops *code;
    clattn_problem p;
    test_ok(clattn_problem_from_text(guarded_texts[_i / CODES], &p));
    test_data *expected = test_data_make(&p, 8), *t = test_data_make(&p, 8);
    t->q = guarded((size_t)(p.n_q * p.head_dim_qk), t->q);
    t->k = guarded((size_t)(p.n_kv * p.head_dim_qk), t->k);
    t->v = guarded((size_t)(p.n_kv * p.head_dim_v), t->v);
    for (int nth = 0; (code = code_of(_i, nth)); nth++) {
        run_on(test_host_context(), expected, code, 0, 0, 0);
        run_on(test_host_context(), t, code, 0, 0, 0);
        test_same_bits(expected, t, code->name);
    }
    test_data_free(expected);
    test_data_free(t);
}
END_TEST

/* ---- the tiles' state is a thread's */

typedef struct app_thread {
    pthread_t thread;
    void (*task)(void *, size_t);
    void *argument;
    size_t i;
    bool keeps_tiles;
} app_thread;

static void *app_main(void *given)
{
    app_thread *a = given;
    a->task(a->argument, a->i);
    a->keeps_tiles = amx_is_configured;
    return NULL;
}

static void app_parallel_for(void *user, size_t n, void (*task)(void *, size_t), void *argument)
{
    app_thread threads[8];
    ck_assert_uint_le(n, COUNT(threads));
    for (size_t i = 0; i < n; i++) {
        threads[i] = (app_thread){.task = task, .argument = argument, .i = i};
        ck_assert_int_eq(pthread_create(&threads[i].thread, NULL, app_main, &threads[i]), 0);
    }
    for (size_t i = 0; i < n; i++) {
        ck_assert_int_eq(pthread_join(threads[i].thread, NULL), 0);
        ck_assert(!threads[i].keeps_tiles);
    }
    ++*(int *)user;
}

/* The same bits on any number of threads, the app's among them. */
START_TEST(threads)
{
    const host_ops *code;
    test_data *one = test_data_from_text("bf16 b2 hq3 hkv3 q200 kv200 d64 causal", 15);
    test_data *t = test_data_from_text("bf16 b2 hq3 hkv3 q200 kv200 d64 causal", 15);
    for (int nth = 0; (code = code_of(_i, nth)); nth++) {
        int calls = 0;
        run_on(test_host_context(), one, code, 0, 0, 1);
        for (int is_the_apps = 0; is_the_apps < 2; is_the_apps++) {
            clattn_context_options options;
            clattn_context *context;
            clattn_context_options_init(&options);
            options.device = CLATTN_DEVICE_NONE;
            options.n_threads = 4;
            if (is_the_apps) {
                options.parallel_for = app_parallel_for;
                options.parallel_for_user = &calls;
            }
            test_ok(clattn_context_create(&options, &context));
            run_on(context, t, code, 0, 0, 4);
            test_same_bits(one, t, code->name);
            clattn_context_release(context);
        }
        ck_assert_int_eq(calls, 1);
    }
    test_data_free(one);
    test_data_free(t);
}
END_TEST

/* A score function that works with tiles itself, and leaves the thread without. */
static double without_tiles(double score, int64_t b, int64_t h, int64_t i, int64_t j, const void *data)
{
    (void)b, (void)h, (void)data;
    atomic_fetch_sub(&amx_threads, amx_is_configured);
    amx_is_configured = false;
    return score + 0.25 * (double)((i + j) % 5);
}

START_TEST(score_function_takes_tiles)
{
    clattn_problem p;
    test_ok(clattn_problem_from_text("bf16 hq2 hkv1 q37 kv150 d40 causal offset=100", &p));
    p.score_function.host = without_tiles;
    test_data *t = test_data_make(&p, 3);
    run_and_compare(t, _i, 0, 0);
    test_data_free(t);
}
END_TEST

/* ---- scores, and the trial */

START_TEST(scores)
{
    const host_ops *code;
    test_data *t = test_data_from_text("bf16 hq2 hkv1 q70 kv93 d40 causal offset=20 softcap=2 alibi", 6);
    const clattn_forward_args args = test_args(t);
    static float s[70 * 93];
    static double ref[70 * 93];
    for (int nth = 0; (code = code_of(_i, nth)); nth++)
        for (int step = 0; step < 4; step++) {
            in_use = code;
            test_ok(clattn_scores(&t->p, &args, (clattn_score_step)step, 0, 1, s));
            in_use = NULL;
            test_ok(clattn_reference_scores(&t->p, &args, (clattn_score_step)step, 0, 1, ref));
            for (int i = 0; i < COUNT(s); i++)
                ck_assert_msg((isinf(ref[i]) && (double)s[i] == ref[i]) ||
                                  fabs((double)s[i] - ref[i]) <= 4e-6 * fmax(1, fabs(ref[i])),
                              "%s, step %d, element %d: %g is not %g", code->name, step, i, (double)s[i], ref[i]);
            ck_assert_int_eq(amx_threads, 0);
        }
    test_data_free(t);
}
END_TEST

/* The emulations agree; one with a planted fault does not. */
START_TEST(trial)
{
    amx_fault = _i;
    ck_assert_int_eq(clattn__host_ops_agree(codes[0], codes[1]), _i == AMX_NO_FAULT);
    amx_fault = AMX_NO_FAULT;
    ck_assert_int_eq(amx_threads, 0);
}
END_TEST

/* S and dP from pairs: each feature whose derivative the pairs have, and head dims that leave half a word. */
enum { GRADIENTS = TEST_FEATURES - 1 };
static const char *const gradient_texts[] = {"bf16 b1 hq2 hkv1 q70 kv131 d1 dv7 window=9,40",
                                             "bf16 b1 hq2 hkv1 q70 kv131 d31 dv33 causal offset=60",
                                             "bf16 b1 hq2 hkv2 q130 kv70 d64 dv128 scale=-0.7"};

START_TEST(gradients)
{
    const test_backward_how as_usual = {.block = 0};
    const bool is_feature = _i <= GRADIENTS;
    clattn_problem p;
    test_data *t;
    if (is_feature) {
        ck_assert(test_pair_problem(_i < GRADIENTS ? 1u << _i : 0, CLATTN_DTYPE_BF16, _i % 3, &p));
        t = test_pair_data(&p, (uint64_t)_i);
    } else {
        t = test_data_from_text(gradient_texts[_i - GRADIENTS - 1], (uint64_t)_i);
    }
    gradient_plans = 0;
    test_backward_check(t, t->text, (uint64_t)_i, &test_backward_ways[0], &as_usual);
    ck_assert_int_gt(gradient_plans, 0);
    test_data_free(t);
}
END_TEST

Suite *test_suite(void)
{
    Suite *suite = suite_create("bf16 products");
    TCase *shape = test_case(suite, "shapes");
    tcase_add_loop_test(shape, shapes, 0, COUNT(dims) * COUNT(keys) * CODES);
    tcase_add_loop_test(shape, blocks, 0, COUNT(odd_blocks) * CODES);
    TCase *features = test_case(suite, "features");
    tcase_add_loop_test(features, pairs, 0, TEST_PAIRS * CODES);
    tcase_add_loop_test(features, random_problems, 0, RANDOM * CODES);
    TCase *values = test_case(suite, "numbers");
    tcase_add_loop_test(values, special_numbers, 0, COUNT(cut_texts) * COUNT(payloads) * CODES);
    tcase_add_loop_test(values, extreme_numbers, 0, COUNT(extremes) * CODES);
    tcase_add_loop_test(values, one_key_is_exact, 0, CODES);
    TCase *tiles = test_case(suite, "tiles");
    tcase_add_loop_test(tiles, nothing_past_the_end, 0, COUNT(guarded_texts) * CODES);
    tcase_add_loop_test(tiles, threads, 0, CODES);
    tcase_add_loop_test(tiles, score_function_takes_tiles, 0, CODES);
    tcase_add_loop_test(tiles, scores, 0, CODES);
    tcase_add_loop_test(tiles, trial, 0, AMX_FAULTS);
    TCase *backward = test_case(suite, "gradients");
    tcase_add_loop_test(backward, gradients, 0, GRADIENTS + 1 + COUNT(gradient_texts));
    return suite;
}
