/* One context and one plan used from many threads, and after a fork. Loop index: the way, where there is one. */
#include "harness.h"

#if CLATTN_HAVE_OPENCL
#include <clattn/opencl.h>
#endif

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))
enum { THREADS = 8, CALLS = 200, BLOCK = 32, PROBLEMS = 20, WAIT_SECONDS = 60 };

static clattn_problem parse(const char *text)
{
    clattn_problem p;
    test_ok(clattn_problem_from_text(text, &p));
    return p;
}

/* Runs body(argument, thread) on THREADS threads that start together; the bodies count failures, for only the main thread
 * may assert. */
typedef struct crowd {
    int (*body)(void *argument, int thread);
    void *argument;
    pthread_barrier_t start;
    _Atomic int next, failures;
} crowd;

static void *crowd_member(void *argument)
{
    crowd *c = argument;
    const int thread = atomic_fetch_add(&c->next, 1);
    pthread_barrier_wait(&c->start);
    atomic_fetch_add(&c->failures, c->body(c->argument, thread));
    return NULL;
}

static int crowd_run(int (*body)(void *, int), void *argument)
{
    crowd c = {.body = body, .argument = argument};
    pthread_t threads[THREADS];
    ck_assert_int_eq(pthread_barrier_init(&c.start, NULL, THREADS), 0);
    for (int i = 0; i < THREADS; i++) ck_assert_int_eq(pthread_create(&threads[i], NULL, crowd_member, &c), 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&c.start);
    return c.failures;
}

/* ---- one plan */

typedef struct shared_plan {
    const clattn_plan *plan;
    test_data *first; /* whose O and LSE are right */
    size_t o_bytes, lse_bytes;
} shared_plan;

/* O and LSE must be dense: they are compared as memory. */
static shared_plan shared_plan_of(const clattn_plan *plan, test_data *first)
{
    const clattn_problem *p = &first->p;
    const size_t rows = (size_t)(p->batch * p->n_heads_q * p->n_q);
    const shared_plan s = {plan, first, rows * (size_t)p->head_dim_v * clattn_dtype_size(p->dtype),
                           rows * sizeof(float)};
    return s;
}

/* One call into o and lse: 0 when it gives the bits of `first`. */
static int call_plan(const shared_plan *s, void *o, float *lse)
{
    clattn_forward_args args;
    clattn_forward_args_init(&args);
    args.q = clattn_host_buffer(s->first->q);
    args.k = clattn_host_buffer(s->first->k);
    args.v = clattn_host_buffer(s->first->v);
    args.o = clattn_host_buffer(o);
    args.lse = clattn_host_buffer(lse);
    memset(o, 0xff, s->o_bytes);
    memset(lse, 0xff, s->lse_bytes);
    if (clattn_forward(s->plan, &args) != CLATTN_STATUS_SUCCESS) return 1;
    return memcmp(o, s->first->o, s->o_bytes) || memcmp(lse, s->first->lse, s->lse_bytes);
}

/* Each thread has outputs of its own and shares the inputs. */
static int call_often(void *argument, int thread)
{
    const shared_plan *s = argument;
    void *o = malloc(s->o_bytes);
    float *lse = malloc(s->lse_bytes);
    int failures = !o || !lse;
    for (int i = 0; i < CALLS && !failures; i++) failures += call_plan(s, o, lse);
    (void)thread;
    free(o);
    free(lse);
    return failures;
}

/* 1600 calls that overlap: on a device they share its queue and its kernel objects. */
START_TEST(one_plan)
{
    const clattn_problem p = parse("f32 b1 hq2 hkv2 q70 kv90 d64 causal offset=9");
    const test_way *way = &test_ways[_i];
    clattn_context *context = test_way_context(way, p.dtype);
    if (!context) return;
    test_data *t = test_data_make(&p, 1);
    clattn_plan *plan = test_plan(context, &p, way, BLOCK, BLOCK, 0);
    test_reference(t);
    test_forward(t, plan);
    test_compare(t, "first");
    shared_plan s = shared_plan_of(plan, t);
    ck_assert_int_eq(crowd_run(call_often, &s), 0);
    clattn_plan_release(plan);
    test_data_free(t);
}
END_TEST

/* On the host with a share of the work for every thread of the pool, which serves one caller at a time. */
START_TEST(one_plan_shared_work)
{
    const clattn_problem p = parse("f32 b2 hq3 hkv3 q200 kv200 d64 causal");
    test_data *t = test_data_make(&p, 2);
    clattn_context_options options;
    clattn_context *context;
    clattn_context_options_init(&options);
    options.device = CLATTN_DEVICE_NONE;
    options.n_threads = 4;
    test_ok(clattn_context_create(&options, &context));
    clattn_plan *plan = test_plan(context, &p, &test_ways[0], 0, 0, 0);
    test_reference(t);
    test_forward(t, plan);
    test_compare(t, "first");
    shared_plan s = shared_plan_of(plan, t);
    ck_assert_int_eq(crowd_run(call_often, &s), 0);
    clattn_plan_release(plan);
    clattn_context_release(context);
    test_data_free(t);
}
END_TEST

/* ---- plans made at once: four kernels among eight threads, of which all must work */

typedef struct plan_makers {
    clattn_context *context;
    const test_way *way;
    clattn_problem p[4];
    test_data *right[4];
} plan_makers;

/* Every thread begins with another of the four. */
static int make_plans(void *argument, int thread)
{
    const plan_makers *m = argument;
    int failures = 0;
    for (int i = 0; i < 4; i++) {
        const int n = (i + thread) % 4;
        clattn_plan_options options;
        clattn_plan_options_init(&options);
        options.path = m->way->path;
        options.kernel = m->way->kernel;
        options.block_q = options.block_kv = BLOCK;
        clattn_plan *plan;
        if (clattn_plan_create(m->context, &m->p[n], &options, &plan) != CLATTN_STATUS_SUCCESS) return 1;
        const shared_plan s = shared_plan_of(plan, m->right[n]);
        void *o = malloc(s.o_bytes);
        float *lse = malloc(s.lse_bytes);
        failures += !o || !lse || call_plan(&s, o, lse);
        free(o);
        free(lse);
        clattn_plan_release(plan);
    }
    return failures;
}

START_TEST(plans_at_once)
{
    static const char *const texts[] = {
        "f32 b1 hq2 hkv2 q70 kv90 d64 causal",
        "f32 b1 hq2 hkv1 q40 kv67 d46",
        "f16 b1 hq2 hkv2 q70 kv90 d64 window=9,9",
        "bf16 b1 hq2 hkv2 q33 kv90 d64 kvlen=50",
    };
    plan_makers m = {.way = &test_ways[_i]}, fresh;
    if (!test_way_context(m.way, CLATTN_DTYPE_F32)) return;
    for (int n = 0; n < 4; n++) {
        m.p[n] = parse(texts[n]);
        m.right[n] = test_data_make(&m.p[n], 3);
        test_reference(m.right[n]);
        test_run(m.right[n], m.way, BLOCK, BLOCK);
        test_compare(m.right[n], "alone");
    }
    /* A context in which nothing has been built, nor the device been opened. */
    clattn_context_options options;
    test_context_options(&options);
    if (m.way->path == CLATTN_PATH_HOST) options.device = CLATTN_DEVICE_NONE;
    fresh = m;
    test_ok(clattn_context_create(&options, &fresh.context));
    ck_assert_int_eq(crowd_run(make_plans, &fresh), 0);
    clattn_context_release(fresh.context);
    for (int n = 0; n < 4; n++) test_data_free(m.right[n]);
}
END_TEST

/* ---- clattn_attention: more problems than it keeps plans for */

typedef struct helper_calls {
    clattn_context *context;
    test_data *right[PROBLEMS];
} helper_calls;

/* 7 and 3 share no factor with 20: all problems come up, in another order on each thread. */
static int call_helper(void *argument, int thread)
{
    const helper_calls *c = argument;
    int failures = 0;
    for (int i = 0; i < CALLS; i++) {
        const test_data *t = c->right[(i * 7 + thread * 3) % PROBLEMS];
        const shared_plan s = shared_plan_of(NULL, (test_data *)(uintptr_t)t);
        void *o = malloc(s.o_bytes);
        float *lse = malloc(s.lse_bytes);
        if (!o || !lse || clattn_attention(c->context, &t->p, t->q, t->k, t->v, o, lse) != CLATTN_STATUS_SUCCESS ||
            memcmp(o, t->o, s.o_bytes) || memcmp(lse, t->lse, s.lse_bytes))
            failures++;
        free(o);
        free(lse);
    }
    return failures;
}

/* 0: on the host; 1: where AUTO takes the device, with n_kv past the host's share. */
START_TEST(helper_from_threads)
{
    const bool on_device = _i == 1;
    helper_calls c;
    c.context = on_device ? test_way_context(&test_ways[1], CLATTN_DTYPE_F32) : test_host_context();
    if (!c.context) return;
    for (int n = 0; n < PROBLEMS; n++) {
        clattn_problem p = parse("f32 b1 hq2 hkv1 q20 kv90 d64");
        p.n_q = 20 + n % 3;
        p.mask.window_right = n;
        if (on_device) p.n_kv = 150;
        test_data *t = c.right[n] = test_data_make(&p, (uint64_t)n);
        test_ok(clattn_attention(c.context, &p, t->q, t->k, t->v, t->o, t->lse));
        test_reference(t);
        test_compare(t, "alone");
    }
    ck_assert_int_eq(crowd_run(call_helper, &c), 0);
    for (int n = 0; n < PROBLEMS; n++) test_data_free(c.right[n]);
}
END_TEST

/* The default context, made by whichever thread comes first. */
START_TEST(default_context_from_threads)
{
    helper_calls c;
    for (int n = 0; n < PROBLEMS; n++) {
        clattn_problem p = parse("f32 b1 hq2 hkv1 q20 kv90 d64");
        p.mask.window_right = n;
        test_data *t = c.right[n] = test_data_make(&p, (uint64_t)n);
        test_run(t, &test_ways[0], 0, 0);
    }
    c.context = NULL;
    ck_assert_int_eq(crowd_run(call_helper, &c), 0);
    for (int n = 0; n < PROBLEMS; n++) test_data_free(c.right[n]);
}
END_TEST

/* ---- errors are the thread's own */

/* The message has the thread's own number in it. */
static int fail_and_look(void *argument, int thread)
{
    int failures = 0;
    char own[32];
    snprintf(own, sizeof own, "n_q is -%d", thread + 1);
    for (int i = 0; i < CALLS; i++) {
        clattn_problem p;
        clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 1, 1, -1 - thread, 1, 1);
        failures += clattn_problem_check(&p) != CLATTN_STATUS_INVALID_ARGUMENT;
        failures += strncmp(clattn_last_error()->message, own, strlen(own)) != 0;
    }
    (void)argument;
    return failures;
}

START_TEST(errors_per_thread)
{
    ck_assert_int_eq(crowd_run(fail_and_look, NULL), 0);
    ck_assert_int_eq(clattn_last_error()->status, CLATTN_STATUS_SUCCESS);
}
END_TEST

/* ---- the app's own threads */

typedef struct app_pool {
    int calls;
    size_t tasks;
} app_pool;

typedef struct app_part {
    void (*task)(void *, size_t);
    void *argument;
    size_t i;
} app_part;

static void *app_part_run(void *argument)
{
    const app_part *part = argument;
    part->task(part->argument, part->i);
    return NULL;
}

/* A thread for each task, the last task first. */
static void app_parallel_for(void *user, size_t n, void (*task)(void *, size_t), void *argument)
{
    app_pool *pool = user;
    pthread_t threads[64];
    app_part parts[64];
    pool->calls++;
    pool->tasks += n;
    ck_assert_uint_le(n, 64);
    for (size_t i = n; i-- > 0;) {
        parts[i] = (app_part){task, argument, i};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, app_part_run, &parts[i]), 0);
    }
    for (size_t i = 0; i < n; i++) pthread_join(threads[i], NULL);
}

/* One call of the app's function, with a task for each of the five threads asked for. */
START_TEST(app_threads)
{
    const clattn_problem p = parse("f32 b2 hq3 hkv3 q200 kv200 d64 causal");
    test_data *own = test_data_make(&p, 4), *t = test_data_make(&p, 4);
    app_pool pool = {0};
    clattn_context_options options;
    clattn_context *context;
    clattn_context_options_init(&options);
    options.device = CLATTN_DEVICE_NONE;
    options.n_threads = 5;
    options.parallel_for = app_parallel_for;
    options.parallel_for_user = &pool;
    test_ok(clattn_context_create(&options, &context));
    test_run(own, &test_ways[0], 0, 0);
    clattn_plan *plan = test_plan(context, &p, &test_ways[0], 0, 0, 0);
    test_forward(t, plan);
    test_same_bits(own, t, "the app's threads");
    ck_assert_int_eq(pool.calls, 1);
    ck_assert_uint_eq(pool.tasks, 5);
    clattn_plan_release(plan);
    clattn_context_release(context);
    test_data_free(own);
    test_data_free(t);
}
END_TEST

/* ---- fork */

/* Ends the process with 0 when the plan, made before the fork, still gives the bits of `first`; and a new one. */
static void child_run(const shared_plan *s)
{
    void *o = malloc(s->o_bytes);
    float *lse = malloc(s->lse_bytes);
    int failures = !o || !lse || call_plan(s, o, lse);
    clattn_context_options options;
    clattn_context *context;
    clattn_context_options_init(&options);
    options.device = CLATTN_DEVICE_NONE;
    options.n_threads = 4;
    failures += clattn_context_create(&options, &context) != CLATTN_STATUS_SUCCESS;
    for (int i = 0; i < 2 && !failures; i++) {
        memset(o, 0xff, s->o_bytes);
        const test_data *t = s->first;
        failures += clattn_attention(context, &t->p, t->q, t->k, t->v, o, lse) != CLATTN_STATUS_SUCCESS ||
                    memcmp(o, t->o, s->o_bytes);
    }
    clattn_context_release(context);
    _exit(failures != 0);
}

/* A child that waits for threads which it does not have would wait forever. */
static int wait_for(pid_t child)
{
    int status = -1;
    for (int i = 0; i < WAIT_SECONDS * 100; i++) {
        if (waitpid(child, &status, WNOHANG) == child) return status;
        const struct timespec pause = {0, 10000000};
        nanosleep(&pause, NULL);
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return -1;
}

/* The child has the pool's memory but none of its threads. */
START_TEST(fork_after_host_use)
{
    const clattn_problem p = parse("f32 b2 hq3 hkv3 q200 kv200 d64 causal");
    test_data *t = test_data_make(&p, 5);
    clattn_context_options options;
    clattn_context *context;
    clattn_context_options_init(&options);
    options.device = CLATTN_DEVICE_NONE;
    options.n_threads = 4;
    test_ok(clattn_context_create(&options, &context));
    clattn_plan *plan = test_plan(context, &p, &test_ways[0], 0, 0, 0);
    test_reference(t);
    test_forward(t, plan); /* the pool has threads now */
    test_compare(t, "before the fork");
    const shared_plan s = shared_plan_of(plan, t);
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) child_run(&s);
    ck_assert_int_eq(wait_for(child), 0);
    test_forward(t, plan);
    test_compare(t, "after the fork");
    clattn_plan_release(plan);
    clattn_context_release(context);
    test_data_free(t);
}
END_TEST

/* Ends the process with 0 when it is told that OpenCL does not work there, and the host path does. */
static void child_of_device(const shared_plan *s, clattn_context *context)
{
    int count = 7;
    clattn_plan_options options;
    clattn_plan *plan;
    void *o = malloc(s->o_bytes);
    float *lse = malloc(s->lse_bytes);
    const test_data *t = s->first;
    clattn_plan_options_init(&options);
    options.path = CLATTN_PATH_DEVICE;
    int failures = !o || !lse || clattn_device_count(&count) != CLATTN_STATUS_OPENCL_ERROR || count != 7;
    failures += clattn_plan_create(context, &t->p, &options, &plan) != CLATTN_STATUS_OPENCL_ERROR;
#if CLATTN_HAVE_OPENCL
    failures += clattn_context_get_cl(context, NULL, NULL) != CLATTN_STATUS_OPENCL_ERROR;
#endif
    failures += call_plan(s, o, lse) == 0 || clattn_last_error()->status != CLATTN_STATUS_OPENCL_ERROR;
    for (int i = 0; i < 2 && !failures; i++) {
        clattn_context *const c = i ? NULL : context;
        memset(o, 0xff, s->o_bytes);
        failures += clattn_attention(c, &t->p, t->q, t->k, t->v, o, lse) != CLATTN_STATUS_SUCCESS;
        for (size_t at = 0; at < s->o_bytes / sizeof(float) && !failures; at++)
            failures += !(fabsf(((float *)o)[at] - ((const float *)t->o)[at]) < 1e-4F);
    }
    _exit(failures != 0);
}

/* The child has the context and its plans, but no OpenCL. */
START_TEST(fork_after_device_use)
{
    const clattn_problem p = parse("f32 b2 hq3 hkv3 q200 kv200 d64 causal");
    const test_way *way = &test_ways[1 + _i];
    clattn_context *context = test_way_context(way, CLATTN_DTYPE_F32);
    if (!context) return;
    test_data *t = test_data_make(&p, 5);
    clattn_plan *plan = test_plan(context, &p, way, 0, 0, 0);
    test_reference(t);
    test_forward(t, plan);
    test_compare(t, "before the fork");
    test_ok(clattn_attention(context, &p, t->q, t->k, t->v, t->o, NULL)); /* a cached plan */
    const shared_plan s = shared_plan_of(plan, t);
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) child_of_device(&s, context);
    ck_assert_int_eq(wait_for(child), 0);
    test_forward(t, plan);
    test_compare(t, "after the fork");
    clattn_plan_release(plan);
    test_data_free(t);
}
END_TEST

Suite *test_suite(void)
{
    Suite *suite = suite_create("threads");
    TCase *many = test_case(suite, "many threads");
    tcase_add_loop_test(many, one_plan, 0, TEST_WAYS);
    tcase_add_test(many, one_plan_shared_work);
    tcase_add_loop_test(many, plans_at_once, 0, TEST_WAYS);
    tcase_add_loop_test(many, helper_from_threads, 0, 2);
    tcase_add_test(many, default_context_from_threads);
    tcase_add_test(many, errors_per_thread);
    TCase *own = test_case(suite, "the app's processes and threads");
    tcase_add_test(own, app_threads);
    tcase_add_test(own, fork_after_host_use);
    tcase_add_loop_test(own, fork_after_device_use, 0, 2);
    return suite;
}
