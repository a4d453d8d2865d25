/* clattn compare: every path and device on one problem, beside the reference */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "inputs.h"
#include "progress.h"
#include "targets.h"
#include "verify.h"

enum { TIMED_SECONDS = 1 };

static int device_width(const target_list *list)
{
    size_t width = strlen("device");
    for (int i = 0; i < list->n; i++)
        if (strlen(list->targets[i].device) > width) width = strlen(list->targets[i].device);
    return (int)width;
}

static void print_head(const inputs *in, const answer *a, int width)
{
    char text[PROBLEM_TEXT_SIZE];
    const tolerance most = tolerance_of(&in->problem, a);
    inputs_to_text(in, text);
    printf("%s\ntolerance of max |dO| %.2g, of max |dLSE| %.2g\n\n", text, most.o, most.lse);
    printf("%-9s  %-*s  %-17s  %10s  %10s  %10s  %10s  %8s  %7s  %s\n", "path", width, "device", "kernel", "max |dO|",
           "rms dO", "max |dLSE|", "rms dLSE", "time", "x host", "verdict");
}

static void print_row(const target *t, int width, const outcome *out, double host_seconds)
{
    const difference *d = &out->distance;
    char ratio[16] = "-";
    printf("%-9s  %-*s  %-17s  ", clattn_path_name(t->path), width, t->device, clattn_kernel_name(t->kernel));
    if (out->status) {
        printf("%10s  %10s  %10s  %10s  %8s  %7s  %s: %s\n", "-", "-", "-", "-", "-", "-",
               out->status == CLATTN_STATUS_UNSUPPORTED ? "not run" : "FAILED", out->message);
        return;
    }
    if (host_seconds > 0) snprintf(ratio, sizeof ratio, "%.2f", out->seconds / host_seconds);
    printf("%10.2e  %10.2e  %10.2e  %10.2e  %8s  %7s  %s\n", d->max_o, d->rms_o, d->max_lse, d->rms_lse,
           cli_time_text(out->seconds).text, ratio, out->ok ? "ok" : "WRONG");
}

static int compare(const options *o, const inputs *in, const target_list *list)
{
    answer a;
    int n_ran = 0;
    double host_seconds = 0;
    const int width = device_width(list);
    int code = answer_make(in, "reference", &a);
    if (code) return code;
    print_head(in, &a, width);
    printf("%-9s  %-*s  %-17s  %10s  %10s  %10s  %10s  %8s  %7s  %s\n", "reference", width, "-", "float64", "-", "-",
           "-", "-", cli_time_text(a.seconds).text, "-", "-");
    for (int i = 0; i < list->n; i++) {
        const target *t = &list->targets[i];
        outcome out;
        progress bar;
        fflush(stdout);
        progress_start(&bar, clattn_kernel_name(t->kernel), 0);
        const int failed = outcome_make(t, o, in, &a, TIMED_SECONDS, &out);
        progress_stop(&bar);
        if (failed) {
            code = failed;
            break;
        }
        if (t->path == CLATTN_PATH_HOST && host_seconds == 0 && !out.status) host_seconds = out.seconds;
        print_row(t, width, &out, host_seconds);
        n_ran += !out.status;
        if (!out.ok && out.status != CLATTN_STATUS_UNSUPPORTED) code = CLI_FAILED;
    }
    answer_free(&a);
    return code || n_ran ? code : cli_fail(CLI_FAILED, "nothing was compared: none of the above could run");
}

int cmd_compare(const options *o)
{
    inputs in;
    target_list list;
    if (!o->problem && !o->file_flag) return cmd_selftest(o); /* a suite of problems, and the worst of them */
    int code = inputs_from_options(o, &in);
    if (code) return code;
    code = targets_open(o, &list);
    if (!code) {
        code = compare(o, &in, &list);
        targets_close(&list);
    }
    inputs_free(&in);
    return code;
}
