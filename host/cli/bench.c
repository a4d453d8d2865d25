/* Calls in turn over copies of the inputs, timed until the budget is spent. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arrays.h"
#include "cli.h"
#include "resident.h"
#include "targets.h"

enum { LEAST_RUNS = 7, MOST_COPIES = 12 };
static const double cold_bytes = 130e6; /* more than a last-level cache holds */
static const double short_call = 1e-3;  /* seconds; shorter ones are timed several at a time ... */
static const double least_timed = 2e-3; /* ... for about this long */

/* The plan and the copies that its calls take in turn. */
typedef struct bench {
    runner r;
    clattn_forward_args args[MOST_COPIES];
    void *k[MOST_COPIES], *v[MOST_COPIES];      /* copies of K and V but the first, which is the input's own */
    clattn_backward_args backward[MOST_COPIES]; /* --pass backward: args[i] in them, */
    void *d_o, *d_qkv[3];                       /* and these, the same in all */
    clattn_pass pass;
    resident *on; /* all of them are in the device's memory, NULL: in the host's */
    int n_copies;
    int64_t calls; /* so far; the next takes copy calls % n_copies */
} bench;

typedef struct timings {
    double *seconds; /* [n], of one call each */
    size_t n, room;
} timings;

static int call(bench *b)
{
    const int64_t copy = b->calls++ % b->n_copies;
    const bool backward = b->pass == CLATTN_PASS_BACKWARD;
    if (b->on)
        return backward ? resident_enqueue_backward(b->on, b->r.plan, &b->backward[copy])
                        : resident_enqueue_forward(b->on, b->r.plan, &b->args[copy]);
    return (backward ? clattn_backward(b->r.plan, &b->backward[copy]) : clattn_forward(b->r.plan, &b->args[copy]))
               ? cli_fail_library(NULL, NULL)
               : CLI_OK;
}

/* That many, one after the other, until they are done. */
static int run(bench *b, int64_t calls)
{
    int code = CLI_OK;
    for (int64_t i = 0; i < calls && !code; i++) code = call(b);
    return code || !b->on ? code : resident_finish(b->on);
}

static void *copy_of(const char *what, const void *data, int64_t bytes)
{
    void *copy = cli_alloc(what, bytes, 1);
    return copy ? memcpy(copy, data, (size_t)bytes) : NULL;
}

static int make_copies(bench *b, const inputs *in, void *o, int cold)
{
    const array_shape k = array_of_gradient(in, GRADIENT_DK), v = array_of_gradient(in, GRADIENT_DV);
    const int64_t k_bytes = array_bytes(&k), v_bytes = array_bytes(&v);
    b->n_copies = 1;
    while (cold && b->n_copies < MOST_COPIES && (double)b->n_copies * (double)(k_bytes + v_bytes) < cold_bytes)
        b->n_copies++;
    for (int i = 0; i < b->n_copies; i++) {
        inputs_fill_args(in, &b->args[i]);
        b->args[i].o = clattn_host_buffer(o);
        if (i == 0) continue;
        b->k[i] = copy_of("a copy of K", in->k, k_bytes);
        b->v[i] = b->k[i] ? copy_of("a copy of V", in->v, v_bytes) : NULL;
        if (!b->v[i]) return CLI_FAILED;
        b->args[i].k = clattn_host_buffer(b->k[i]);
        b->args[i].v = clattn_host_buffer(b->v[i]);
    }
    return CLI_OK;
}

/* O and LSE by one forward call, dO, and room for dQ, dK and dV. */
static int prepare_backward(bench *b, const options *opt, const inputs *in, float *lse)
{
    static const char *const names[] = {"dQ", "dK", "dV"};
    b->args[0].lse = clattn_host_buffer(lse);
    const int code = runner_forward(&b->r, &in->problem, &b->args[0]);
    if (code) return code;
    b->d_o = inputs_random_d_o(in, opt->seed);
    if (!b->d_o) return CLI_FAILED;
    for (int i = 0; i < 3; i++) {
        const array_shape shape = array_of_gradient(in, GRADIENT_DQ + i);
        b->d_qkv[i] = array_alloc(names[i], &shape);
        if (!b->d_qkv[i]) return CLI_FAILED;
    }
    for (int i = 0; i < b->n_copies; i++) {
        clattn_backward_args *a = &b->backward[i];
        clattn_backward_args_init(a);
        a->forward = b->args[i];
        a->forward.lse = clattn_host_buffer(lse);
        a->d_o = clattn_host_buffer(b->d_o);
        a->dq = clattn_host_buffer(b->d_qkv[0]);
        a->dk = clattn_host_buffer(b->d_qkv[1]);
        a->dv = clattn_host_buffer(b->d_qkv[2]);
    }
    return CLI_OK;
}

/* Places copies of all that calls read and write in the device's memory. */
static int make_resident(bench *b, const inputs *in)
{
    int code = resident_open(b->r.context, &b->on);
    for (int i = 0; i < b->n_copies && !code; i++)
        code = b->pass == CLATTN_PASS_BACKWARD ? resident_backward_args(b->on, in, &b->backward[i])
                                               : resident_forward_args(b->on, in, &b->args[i]);
    return code;
}

static bool add_time(timings *t, double seconds)
{
    if (t->n == t->room) {
        const size_t room = t->room ? 2 * t->room : 1024;
        double *more = realloc(t->seconds, room * sizeof *more);
        if (!more) return false;
        t->seconds = more;
        t->room = room;
    }
    t->seconds[t->n++] = seconds;
    return true;
}

/* Every copy once, a quarter of the budget to warm up, then the budget. */
static int measure(bench *b, double budget, timings *t, progress *bar)
{
    int code = run(b, b->n_copies);
    double start = cli_now(), before = start;
    if (!code) code = run(b, 1);
    const double one = cli_now() - before;
    const int64_t inner = one < short_call ? (int64_t)(least_timed / (one > 1e-7 ? one : 1e-7)) : 1;
    while (!code && cli_now() - start < budget / 4) code = run(b, inner);
    for (start = cli_now(); !code && (t->n < LEAST_RUNS || cli_now() - start < budget);) {
        before = cli_now();
        code = run(b, inner);
        const double seconds = cli_now() - before;
        if (!code && !add_time(t, seconds / (double)inner))
            code = cli_fail(CLI_FAILED, "there is no memory for the times");
        progress_add(bar, (int64_t)(seconds * 1e6));
    }
    return code;
}

/* 2 (d + dv) operations for each key that the window and the length let a query row see; backward 2.5 times as many. */
static double operations(const inputs *in, clattn_pass pass)
{
    const clattn_problem *p = &in->problem;
    double pairs = 0; /* of a query row and a key that it sees, in one head of all entries */
    for (int64_t b = 0; b < p->batch; b++) {
        const entry e = inputs_entry(in, b);
        for (int64_t i = 0; i < e.n_q; i++) {
            const key_range r = inputs_visible(in, &e, i);
            pairs += (double)(r.end - r.first);
        }
    }
    return (pass == CLATTN_PASS_BACKWARD ? 5.0 : 2.0) * (double)(p->head_dim_qk + p->head_dim_v) *
           (double)p->n_heads_q * pairs;
}

/* Bytes of K and V, each key that any row sees once. */
static double bytes_read(const inputs *in)
{
    const clattn_problem *p = &in->problem;
    double keys = 0; /* of one head of all entries */
    for (int64_t b = 0; b < p->batch; b++) {
        const entry e = inputs_entry(in, b);
        const key_range r = inputs_visible_to_any(in, &e);
        keys += (double)(r.end - r.first);
    }
    return keys * (double)p->n_heads_kv * (double)(p->head_dim_qk + p->head_dim_v) *
           (double)clattn_dtype_size(p->dtype);
}

/* Bytes of Q, K, V and O, each once; backward reads those and dO, and writes dQ, dK and dV. */
static double bytes_moved(const inputs *in, clattn_pass pass)
{
    const clattn_problem *p = &in->problem;
    const storage s = inputs_storage(p);
    const double rows = (double)s.batch * (double)p->n_heads_q * (double)s.n_q;
    const double q = rows * (double)(p->head_dim_qk * (int64_t)clattn_dtype_size(p->dtype));
    const double o = rows * (double)(p->head_dim_v * (int64_t)clattn_dtype_size(p->dtype));
    const double kv = bytes_read(in);
    return pass == CLATTN_PASS_BACKWARD ? 2 * (q + kv + o) : q + kv + o;
}

static void fill_result(const inputs *in, const bench *b, const timings *t, bench_result *r)
{
    const clattn_plan_info *info = &b->r.info;
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): measure took LEAST_RUNS times */
    const double median = cli_median(t->seconds, t->n), least = t->seconds[0], flop = operations(in, b->pass);
    inputs_to_text(in, r->problem);
    r->dtype = in->problem.dtype;
    r->n_q = in->problem.n_q;
    r->n_kv = in->problem.n_kv;
    r->path = info->path;
    r->kernel = info->kernel;
    snprintf(r->instructions, sizeof r->instructions, "%s", info->instructions);
    snprintf(r->device, sizeof r->device, "%s", info->path == CLATTN_PATH_HOST ? "host" : info->device);
    r->n_threads = info->n_threads;
    r->resident = b->on != NULL;
    r->runs = t->n;
    r->median_s = median;
    r->min_s = least;
    r->gflops = flop / median * 1e-9;
    r->gbs = bytes_read(in) / median * 1e-9;
    r->intensity = flop / bytes_moved(in, b->pass);
}

static int bench_inputs(const options *opt, const inputs *in, void *o, float *lse, progress *bar, bench_result *r)
{
    bench b;
    timings t = {NULL, 0, 0};
    options how = *opt;
    if (opt->resident) how.path = CLATTN_PATH_DEVICE;
    memset(&b, 0, sizeof b);
    b.pass = (clattn_pass)opt->pass;
    int code = runner_open(&how, &in->problem, b.pass, &b.r);
    if (code) return code;
    code = make_copies(&b, in, o, opt->cold);
    if (!code && b.pass == CLATTN_PASS_BACKWARD) code = prepare_backward(&b, opt, in, lse);
    if (!code && (opt->resident || (!opt->copies && device_has_memory(b.r.info.device)))) code = make_resident(&b, in);
    if (!code) code = measure(&b, opt->budget, &t, bar);
    if (!code) fill_result(in, &b, &t, r);
    resident_close(b.on);
    for (int i = 1; i < MOST_COPIES; i++) {
        free(b.k[i]);
        free(b.v[i]);
    }
    free(b.d_o);
    for (int i = 0; i < 3; i++) free(b.d_qkv[i]);
    free(t.seconds);
    runner_close(&b.r);
    return code;
}

int bench_run(const options *opt, const char *problem, progress *bar, bench_result *r)
{
    inputs in;
    void *o = NULL;    /* as the problem says */
    float *lse = NULL; /* of forward not asked for: the peers' calls give O alone */
    int code = inputs_from_text(problem, opt->seed, &in);
    if (code) return code;
    code = inputs_alloc_outputs(&in, &o, &lse);
    if (!code) code = bench_inputs(opt, &in, o, lse, bar, r);
    free(o);
    free(lse);
    inputs_free(&in);
    return code;
}
