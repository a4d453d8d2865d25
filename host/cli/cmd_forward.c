/* clattn forward: files -> files */
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "convert.h"
#include "inputs.h"
#include "map.h"
#include "npy.h"
#include "output.h"
#include "progress.h"
#include "targets.h"

enum { OUTPUT_O, OUTPUT_LSE, OUTPUT_MAP, N_OUTPUTS };

static int write_o(output *out, const inputs *in, const void *o)
{
    const clattn_problem *p = &in->problem;
    const bool bf16 = p->dtype == CLATTN_DTYPE_BF16;
    const storage s = inputs_storage(p);
    const int64_t rows_heads[2] = {s.n_q, p->n_heads_q};
    const bool rows_first = in->layout == LAYOUT_BSHD || p->varlen;
    /* [batch, heads, seq, dim] or [batch, seq, heads, dim]; of varlen all but the first */
    const int64_t shape[4] = {s.batch, rows_heads[!rows_first], rows_heads[rows_first], p->head_dim_v};
    const int64_t count = shape[0] * shape[1] * shape[2] * shape[3];
    const int rank = p->varlen ? 3 : 4;
    float *wide = NULL; /* as o, for NumPy has no bf16 */
    if (bf16) {
        wide = cli_alloc("O as f4", count, sizeof *wide);
        if (!wide) return CLI_FAILED;
        convert_elements(o, p->dtype, wide, CLATTN_DTYPE_F32, count);
    }
    const npy_type type = p->dtype == CLATTN_DTYPE_F16 ? NPY_F2 : p->dtype == CLATTN_DTYPE_F64 ? NPY_F8 : NPY_F4;
    const int code = output_finish(out, npy_write(out->file, type, rank, shape + 4 - rank, bf16 ? wide : o));
    free(wide);
    return code;
}

static int write_lse(output *out, const inputs *in, const float *lse)
{
    const clattn_problem *p = &in->problem;
    const storage s = inputs_storage(p);
    const int64_t shape[3] = {s.batch, p->n_heads_q, s.n_q}; /* of varlen all but the first */
    const int rank = p->varlen ? 2 : 3;
    return output_finish(out, npy_write(out->file, NPY_F4, rank, shape + 3 - rank, lse));
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

/* Opens what was asked for, each another file. */
static int open_outputs(const options *opt, output outputs[N_OUTPUTS])
{
    const struct {
        const char *flag, *path;
    } wanted[N_OUTPUTS] = {
        [OUTPUT_O] = {"-o", opt->o}, [OUTPUT_LSE] = {"--lse", opt->lse}, [OUTPUT_MAP] = {"--map", opt->map}};
    for (int i = 0; i < N_OUTPUTS; i++) {
        const int code = wanted[i].path ? output_open(&outputs[i], wanted[i].flag, wanted[i].path) : CLI_OK;
        if (code) return code;
        for (int j = 0; wanted[i].path && j < i; j++)
            if (wanted[j].path && !strcmp(outputs[i].target, outputs[j].target))
                return cli_fail(CLI_USAGE, "%s %s: it is the same file as %s %s", wanted[i].flag, wanted[i].path,
                                wanted[j].flag, wanted[j].path);
    }
    return CLI_OK;
}

int cmd_forward(const options *opt)
{
    inputs in;
    output outputs[N_OUTPUTS];
    void *o = NULL; /* [batch, n_heads_q, n_q, head_dim_v] in the files' layout, or as varlen's Q, of problem.dtype */
    float *lse = NULL; /* [batch, n_heads_q, n_q] */
    memset(outputs, 0, sizeof outputs);
    if (!opt->o) return cli_fail(CLI_USAGE, "-o is missing");
    int code = inputs_from_files(opt, &in);
    if (code) return code;
    code = opt->map ? map_check(opt, &in) : CLI_OK;
    if (!code) code = open_outputs(opt, outputs);
    if (!code) code = inputs_alloc_outputs(&in, &o, &lse);
    if (!code) code = compute(opt, &in, o, lse);
    if (!code) code = write_o(&outputs[OUTPUT_O], &in, o);
    if (!code && opt->lse) code = write_lse(&outputs[OUTPUT_LSE], &in, lse);
    if (!code && opt->map) code = map_write(opt, &in, &outputs[OUTPUT_MAP]);
    if (!code) code = output_commit(outputs, N_OUTPUTS);
    output_close(outputs, N_OUTPUTS);
    free(o);
    free(lse);
    inputs_free(&in);
    return code;
}
