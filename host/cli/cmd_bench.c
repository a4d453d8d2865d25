/* clattn bench: the time of clattn_forward, or of clattn_backward, on one problem, or a plot of it over the lengths */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "cli.h"
#include "output.h"
#include "peak.h"
#include "sweep.h"

static void print_json_text(const char *key, const char *text)
{
    printf("\"%s\": \"", key);
    for (; *text; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') putchar('\\');
        if (c < 32)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    printf("\", ");
}

/* What the machine can do: for storage of this problem's type; of reading memory, 0: the calls may find K and V in a
 * cache. */
typedef struct machine {
    double gflops, gbs;
} machine;

static void print_result(const bench_result *r, machine peak, bool json)
{
    const char *path = clattn_path_name(r->path), *kernel = clattn_kernel_name(r->kernel);
    const double share = peak.gflops > 0 ? r->gflops / peak.gflops : 0;
    if (json) {
        putchar('{');
        print_json_text("problem", r->problem);
        print_json_text("path", path);
        print_json_text("device", r->device);
        print_json_text("kernel", kernel);
        print_json_text("memory", r->resident ? "device" : "host");
        printf("\"threads\": %d, \"runs\": %zu, \"median_s\": %.9g, \"min_s\": %.9g, \"gflops\": %.6g, \"gbs\": %.6g, "
               "\"peak_gflops\": %.6g, \"share\": %.4g",
               r->n_threads, r->runs, r->median_s, r->min_s, r->gflops, r->gbs, peak.gflops, share);
        if (peak.gbs > 0) printf(", \"peak_gbs\": %.6g", peak.gbs);
        fputs("}\n", stdout);
        return;
    }
    printf("%s\n%s path, %s", r->problem, path, kernel);
    if (r->path == CLATTN_PATH_HOST)
        printf(" with %s, %d thread%s\n", r->instructions, r->n_threads, r->n_threads == 1 ? "" : "s");
    else
        printf(" on %s, tensors in %s\n", r->device, r->resident ? "the device's memory" : "host memory");
    printf("median %s, least %s of %zu runs\n%.1f GFLOP/s, %.1f %% of this processor's %.0f; K and V %.1f GB/s",
           cli_time_text(r->median_s).text, cli_time_text(r->min_s).text, r->runs, r->gflops, 100 * share, peak.gflops,
           r->gbs);
    if (peak.gbs > 0) printf(", %.1f %% of this memory's %.1f", 100 * r->gbs / peak.gbs, peak.gbs);
    putchar('\n');
}

static int bench_one(const options *opt)
{
    bench_result r;
    clattn_problem p;
    progress bar;
    if (clattn_problem_from_text(opt->problem, &p)) return cli_fail_library(NULL, NULL);
    progress_start(&bar, "bench", (int64_t)(opt->budget * 1e6) + 1);
    const double before = peak_gflops(opt->threads, p.dtype);
    const int code = bench_run(opt, opt->problem, &bar, &r);
    progress_stop(&bar);
    if (code) return code;
    const double after = peak_gflops(opt->threads, p.dtype), best = before > after ? before : after;
    const machine peak = {best, opt->cold ? peak_gbs(opt->threads) : 0};
    print_result(&r, peak, opt->json);
    return CLI_OK;
}

static int bench_plot(const options *opt)
{
    sweep s;
    output file;
    memset(&s, 0, sizeof s);
    int code = output_open(&file, "--plot", opt->plot);
    if (!code) code = sweep_run(opt, &s);
    if (!code) code = output_finish(&file, sweep_plot(&s, file.file));
    if (!code) code = output_commit(&file, 1);
    const machine peak = {s.peak_gflops, opt->cold ? s.peak_gbs : 0};
    for (int i = 0; !code && i < s.n_results; i++) print_result(&s.results[i], peak, opt->json);
    output_close(&file, 1);
    sweep_free(&s);
    return code;
}

int cmd_bench(const options *opt)
{
    if (!opt->problem)
        return cli_fail(CLI_USAGE, "there is no problem: give a text such as \"f32 b1 hq8 hkv8 q512 kv512 d64\"");
    if (opt->budget <= 0 || opt->budget > 86400)
        return cli_fail(CLI_USAGE, "--budget %g: it must be above 0 and at most 86400 seconds", opt->budget);
    if (opt->resident && !CLATTN_HAVE_OPENCL)
        return cli_fail(CLI_USAGE, "--resident: this clattn is built without OpenCL: there are no devices");
    if (opt->resident && (opt->copies || opt->path == CLATTN_PATH_HOST))
        return cli_fail(CLI_USAGE, "--resident: it wants the device path and no copies, and there is %s",
                        opt->copies ? "--copies" : "--path host");
    return opt->plot ? bench_plot(opt) : bench_one(opt);
}
