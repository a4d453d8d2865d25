/* clattn backward: files -> gradients in files */
#include <stdlib.h>
#include <string.h>

#include "arrays.h"
#include "cli.h"
#include "inputs.h"
#include "output.h"
#include "progress.h"
#include "targets.h"

/* What is in memory beside the inputs. */
typedef struct gradients {
    void *o, *d_o;                  /* laid out as the files */
    float *lse, *d_lse;             /* d_lse: NULL, 0 */
    void *out[N_GRADIENTS];         /* NULL: not wanted */
    array_shape shape[N_GRADIENTS]; /* of those */
} gradients;

static int check_flags(const options *opt, const file_flag wanted[N_GRADIENTS])
{
    int n = 0;
    const file_flag of[N_GRADIENTS] = {[GRADIENT_DBIAS] = {"--bias", opt->bias},
                                       [GRADIENT_DALIBI] = {"--alibi", opt->alibi},
                                       [GRADIENT_DSINKS] = {"--sinks", opt->sinks}};
    if (!opt->d_o) return cli_fail(CLI_USAGE, "--do is missing");
    for (int i = 0; i < N_GRADIENTS; i++) {
        if (!wanted[i].path) continue;
        if (of[i].flag && !of[i].path)
            return cli_fail(CLI_USAGE, "%s %s: it goes with %s, which is missing", wanted[i].flag, wanted[i].path,
                            of[i].flag);
        n++;
    }
    if (!n)
        return cli_fail(CLI_USAGE,
                        "an output is missing: at least one of --dq, --dk, --dv, --dbias, --dalibi, --dsinks");
    return CLI_OK;
}

static int open_outputs(const options *opt, const file_flag wanted[N_GRADIENTS], output outputs[N_GRADIENTS])
{
    file_flag files[N_INPUT_FILES];
    inputs_files(opt, files);
    return output_open_all(outputs, wanted, N_GRADIENTS, files, N_INPUT_FILES);
}

static int allocate(const inputs *in, const file_flag wanted[N_GRADIENTS], gradients *g)
{
    int code = inputs_alloc_outputs(in, &g->o, &g->lse);
    for (int i = 0; !code && i < N_GRADIENTS; i++) {
        if (!wanted[i].path) continue;
        g->shape[i] = array_of_gradient(in, i);
        g->out[i] = array_alloc(wanted[i].flag, &g->shape[i]);
        if (!g->out[i]) code = CLI_FAILED;
    }
    return code;
}

static int compute(const options *opt, const inputs *in, const gradients *g)
{
    clattn_backward_args args;
    runner r;
    progress bar;
    int code = runner_open(opt, &in->problem, CLATTN_PASS_BACKWARD, &r);
    if (code) return code;
    if (opt->explain) fputs(clattn_plan_explain(r.plan), stdout);
    clattn_backward_args_init(&args);
    inputs_fill_args(in, &args.forward);
    args.forward.o = clattn_host_buffer(g->o);
    args.forward.lse = clattn_host_buffer(g->lse);
    args.d_o = clattn_host_buffer(g->d_o);
    args.d_lse = clattn_host_buffer(g->d_lse);
    args.dq = clattn_host_buffer(g->out[GRADIENT_DQ]);
    args.dk = clattn_host_buffer(g->out[GRADIENT_DK]);
    args.dv = clattn_host_buffer(g->out[GRADIENT_DV]);
    args.dbias = clattn_host_buffer(g->out[GRADIENT_DBIAS]);
    args.dalibi_slopes = clattn_host_buffer(g->out[GRADIENT_DALIBI]);
    args.dsinks = clattn_host_buffer(g->out[GRADIENT_DSINKS]);
    progress_start(&bar, "backward", 0);
    code = runner_forward(&r, &in->problem, &args.forward);
    const bool failed = !code && clattn_backward(r.plan, &args);
    progress_stop(&bar);
    if (failed) code = cli_fail_library(NULL, NULL);
    runner_close(&r);
    return code;
}

static void gradients_free(gradients *g)
{
    free(g->o);
    free(g->d_o);
    free(g->lse);
    free(g->d_lse);
    for (int i = 0; i < N_GRADIENTS; i++) free(g->out[i]);
}

int cmd_backward(const options *opt)
{
    const file_flag wanted[N_GRADIENTS] = {[GRADIENT_DQ] = {"--dq", opt->dq},
                                           [GRADIENT_DK] = {"--dk", opt->dk},
                                           [GRADIENT_DV] = {"--dv", opt->dv},
                                           [GRADIENT_DBIAS] = {"--dbias", opt->dbias},
                                           [GRADIENT_DALIBI] = {"--dalibi", opt->dalibi},
                                           [GRADIENT_DSINKS] = {"--dsinks", opt->dsinks}};
    inputs in;
    output outputs[N_GRADIENTS];
    gradients g;
    memset(outputs, 0, sizeof outputs);
    memset(&g, 0, sizeof g);
    int code = check_flags(opt, wanted);
    if (!code) code = inputs_from_files(opt, &in);
    if (code) return code;
    code = inputs_gradients_from_files(opt, &in, &g.d_o, &g.d_lse);
    if (!code) code = open_outputs(opt, wanted, outputs);
    if (!code) code = allocate(&in, wanted, &g);
    if (!code) code = compute(opt, &in, &g);
    for (int i = 0; !code && i < N_GRADIENTS; i++)
        if (g.out[i]) code = write_array(&outputs[i], &g.shape[i], g.out[i]);
    if (!code) code = output_commit(outputs, N_GRADIENTS);
    output_close(outputs, N_GRADIENTS);
    gradients_free(&g);
    inputs_free(&in);
    return code;
}
