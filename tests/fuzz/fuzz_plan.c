/* Any problem and options: a plan or a refusal with a sentence. The device's planner, which knows no OpenCL, gets any device
 * too, and must come to an end within its limits. */
#include <stdlib.h>
#include <string.h>

#include <clattn/clattn.h>

#include "plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct input {
    const uint8_t *at;
    size_t left;
} input;

static void take(input *in, void *to, size_t size)
{
    const size_t n = size < in->left ? size : in->left;
    memcpy(to, in->at, n);
    in->at += n;
    in->left -= n;
}

/* A byte says how many of the eight that follow count: small numbers are as likely as large ones. */
static int64_t take_number(input *in)
{
    uint8_t how = 0;
    int64_t n = 0;
    take(in, &how, 1);
    take(in, &n, how % 9);
    return how & 128 ? -n : n;
}

static double take_real(input *in)
{
    double x = 0;
    take(in, &x, sizeof x);
    return x;
}

static clattn_strides take_strides(input *in)
{
    const clattn_strides s = {take_number(in), take_number(in), take_number(in)};
    return s;
}

static clattn_score_strides take_score_strides(input *in)
{
    const clattn_score_strides s = {take_number(in), take_number(in), take_number(in), take_number(in)};
    return s;
}

static clattn_problem take_problem(input *in)
{
    clattn_problem p;
    const int64_t dtype = take_number(in), batch = take_number(in), kv_heads = take_number(in), group = take_number(in);
    clattn_problem_init(&p, (clattn_dtype)(dtype % 6), batch, (int64_t)((uint64_t)kv_heads * (uint64_t)group), kv_heads,
                        take_number(in), take_number(in), take_number(in));
    uint8_t which = 0;
    take(in, &which, 1);
    if (which & 1) p.head_dim_v = take_number(in);
    if (which & 2) p.q = take_strides(in), p.k = take_strides(in), p.v = take_strides(in), p.o = take_strides(in);
    if (which & 4) p.scale = take_real(in), p.softcap = take_real(in), p.dropout = take_real(in);
    if (which & 8) p.mask.window_left = take_number(in), p.mask.window_right = take_number(in);
    if (which & 16) p.mask.boolean = 1, p.mask.strides = take_score_strides(in);
    if (which & 32) p.bias.dtype = (clattn_dtype)(take_number(in) % 6), p.bias.strides = take_score_strides(in);
    if (which & 64) p.query_offset = take_number(in), p.kv_length = take_number(in), p.sinks = (int)take_number(in);
    if (which & 128) p.varlen = 1, p.total_q = take_number(in), p.total_kv = take_number(in);
    p.alibi = (clattn_alibi)(take_number(in) % 4);
    return p;
}

static void plan_device(const problem *p, const clattn_plan_options *options, input *in)
{
    static char table[512]; /* of what is left, after a line that counts */
    const int n = sprintf(table, "tile 32 48 | attn_fwd f32 d8 full q9 kv9 | class gpu\n");
    const device_profile device = {.name = "any",
                                   .is_cpu = take_number(in) % 2,
                                   .has_fp64 = take_number(in) % 2,
                                   .local_bytes = llabs(take_number(in) >> 1),
                                   .max_alloc_bytes = llabs(take_number(in) >> 1),
                                   .max_work_group_size = llabs(take_number(in) >> 1),
                                   .copy_bytes_most = llabs(take_number(in) >> 1),
                                   .tuning = table};
    memset(table + n, 0, sizeof table - (size_t)n);
    take(in, table + n, sizeof table - (size_t)n - 1);
    bool is_last = false;
    for (int nth = 0; !is_last; nth++) {
        device_choice c;
        if (nth >= 15 * 7 + 5)
            abort(); /* 7 tiles for each of 15 pairs of sizes down to 16 x 16, a table's, and 4 kernels */
        if (clattn__plan_device(p, &device, options, nth, &c, &is_last) != CLATTN_STATUS_SUCCESS) continue;
        if (c.work_group_size < 1 || c.axes[AXIS_BLOCK_Q] < 1 || c.axes[AXIS_BLOCK_KV] < 1) abort();
        if (c.kernel == CLATTN_KERNEL_ATTN_FWD &&
            (c.local_bytes > device.local_bytes + 4 || c.work_group_size > device.max_work_group_size))
            abort();
        if (c.workspace_bytes < 0 || c.workspace_bytes > device.max_alloc_bytes) abort();
        const share last = clattn__share_of(p, &c.cut, c.cut.n_shares - 1);
        if (c.cut.n_shares < 1 || last.entry_end != p->batch || last.head_end != p->n_heads_q || last.row_end != p->n_q)
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static clattn_context *context;
    input in = {data, size};
    clattn_context_options host;
    clattn_context_options_init(&host);
    host.device = CLATTN_DEVICE_NONE;
    if (!context && clattn_context_create(&host, &context) != CLATTN_STATUS_SUCCESS) return 0;
    clattn_plan_options options;
    clattn_plan_options_init(&options);
    const int64_t how = take_number(&in);
    options.path = (clattn_path)(how % 4);
    options.kernel = (clattn_kernel)(how / 4 % 8);
    options.pass = how / 32 % 4 == 3 ? CLATTN_PASS_BACKWARD : CLATTN_PASS_FORWARD;
    if (how & 1024) options.block_q = take_number(&in), options.block_kv = take_number(&in);
    const clattn_problem given = take_problem(&in);
    clattn_plan *plan = NULL;
    const clattn_status status = clattn_plan_create(context, &given, &options, &plan);
    if (status == CLATTN_STATUS_SUCCESS) {
        clattn_plan_info info;
        clattn_plan_info_init(&info);
        if (clattn_plan_get_info(plan, &info) != CLATTN_STATUS_SUCCESS || !clattn_plan_explain(plan)[0]) abort();
        if (info.block_q < 1 || info.block_kv < 0) abort();
        clattn_plan_release(plan);
    } else if (plan || !clattn_last_error()->message[0]) {
        abort();
    }
    problem p;
    if (clattn__problem_make(&given, &p) == CLATTN_STATUS_SUCCESS &&
        clattn__plan_check_options(&options) == CLATTN_STATUS_SUCCESS && options.pass == CLATTN_PASS_FORWARD)
        plan_device(&p, &options, &in);
    return 0;
}
