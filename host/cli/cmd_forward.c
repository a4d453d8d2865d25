/* clattn forward: files -> files */
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "convert.h"
#include "inputs.h"
#include "npy.h"
#include "output.h"
#include "progress.h"
#include "targets.h"

enum { OUTPUT_O, OUTPUT_LSE, N_OUTPUTS };

static int write_o(output *out, const inputs *in, const void *o)
{
    const clattn_problem *p = &in->problem;
    const bool bshd = in->layout == LAYOUT_BSHD, bf16 = p->dtype == CLATTN_DTYPE_BF16;
    const int64_t shape[4] = {p->batch, bshd ? p->n_q : p->n_heads_q, bshd ? p->n_heads_q : p->n_q, p->head_dim_v};
    const int64_t count = shape[0] * shape[1] * shape[2] * shape[3];
    float *wide = NULL; /* as o, for NumPy has no bf16 */
    if (bf16) {
        wide = cli_alloc("O as f4", count, sizeof *wide);
        if (!wide) return CLI_FAILED;
        convert_elements(o, p->dtype, wide, CLATTN_DTYPE_F32, count);
    }
    const npy_type type = p->dtype == CLATTN_DTYPE_F16 ? NPY_F2 : p->dtype == CLATTN_DTYPE_F64 ? NPY_F8 : NPY_F4;
    const int code = output_finish(out, npy_write(out->file, type, 4, shape, bf16 ? wide : o));
    free(wide);
    return code;
}

static int write_lse(output *out, const inputs *in, const float *lse)
{
    const clattn_problem *p = &in->problem;
    const int64_t shape[3] = {p->batch, p->n_heads_q, p->n_q};
    if (!out->file) return CLI_OK;
    return output_finish(out, npy_write(out->file, NPY_F4, 3, shape, lse));
}

static int compute(const options *opt, const inputs *in, void *o, float *lse)
{
    clattn_forward_args args;
    runner r;
    progress bar;
    int code = runner_open(opt, &in->problem, &r);
    if (code) return code;
    if (opt->explain) fputs(clattn_plan_explain(r.plan), stdout);
    inputs_fill_args(in, &args);
    args.o = clattn_host_buffer(o);
    if (opt->lse) args.lse = clattn_host_buffer(lse);
    progress_start(&bar, "forward", 0);
    const clattn_status status = clattn_forward(r.plan, &args);
    progress_stop(&bar);
    if (status) code = cli_fail_library(NULL, NULL);
    runner_close(&r);
    return code;
}

int cmd_forward(const options *opt)
{
    inputs in;
    output outputs[N_OUTPUTS];
    void *o = NULL;    /* [batch, n_heads_q, n_q, head_dim_v] in the files' layout, of problem.dtype */
    float *lse = NULL; /* [batch, n_heads_q, n_q] */
    memset(outputs, 0, sizeof outputs);
    if (!opt->o) return cli_fail(CLI_USAGE, "-o is missing");
    int code = inputs_from_files(opt, &in);
    if (code) return code;
    code = output_open(&outputs[OUTPUT_O], "-o", opt->o);
    if (!code && opt->lse) code = output_open(&outputs[OUTPUT_LSE], "--lse", opt->lse);
    if (!code && opt->lse && !strcmp(outputs[OUTPUT_O].target, outputs[OUTPUT_LSE].target))
        code = cli_fail(CLI_USAGE, "--lse %s: it is the same file as -o %s", opt->lse, opt->o);
    if (!code) code = inputs_alloc_outputs(&in, &o, &lse);
    if (!code) code = compute(opt, &in, o, lse);
    if (!code) code = write_o(&outputs[OUTPUT_O], &in, o);
    if (!code) code = write_lse(&outputs[OUTPUT_LSE], &in, lse);
    if (!code) code = output_commit(outputs, N_OUTPUTS);
    output_close(outputs, N_OUTPUTS);
    free(o);
    free(lse);
    inputs_free(&in);
    return code;
}
