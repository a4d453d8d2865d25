/* clattn forward: files -> files */
#include <stdlib.h>
#include <string.h>

#include "arrays.h"
#include "cli.h"
#include "inputs.h"
#include "map.h"
#include "output.h"
#include "progress.h"
#include "targets.h"

enum { OUTPUT_O, OUTPUT_LSE, OUTPUT_MAP, N_OUTPUTS };

static int compute(const options *opt, const inputs *in, void *o, float *lse)
{
    clattn_forward_args args;
    runner r;
    progress bar;
    int code = runner_open(opt, &in->problem, CLATTN_PASS_FORWARD, &r);
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

/* Opens what was asked for, each another file and no input. */
static int open_outputs(const options *opt, output outputs[N_OUTPUTS])
{
    const file_flag wanted[N_OUTPUTS] = {
        [OUTPUT_O] = {"-o", opt->o}, [OUTPUT_LSE] = {"--lse", opt->lse}, [OUTPUT_MAP] = {"--map", opt->map}};
    file_flag files[N_INPUT_FILES];
    inputs_files(opt, files);
    return output_open_all(outputs, wanted, N_OUTPUTS, files, N_INPUT_FILES);
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
    const array_shape o_shape = array_of_o(&in), lse_shape = array_of_lse(&in);
    code = opt->map ? map_check(opt, &in) : CLI_OK;
    if (!code) code = open_outputs(opt, outputs);
    if (!code) code = inputs_alloc_outputs(&in, &o, &lse);
    if (!code) code = compute(opt, &in, o, lse);
    if (!code) code = write_array(&outputs[OUTPUT_O], &o_shape, o);
    if (!code && opt->lse) code = write_array(&outputs[OUTPUT_LSE], &lse_shape, lse);
    if (!code && opt->map) code = map_write(opt, &in, &outputs[OUTPUT_MAP]);
    if (!code) code = output_commit(outputs, N_OUTPUTS);
    output_close(outputs, N_OUTPUTS);
    free(o);
    free(lse);
    inputs_free(&in);
    return code;
}
