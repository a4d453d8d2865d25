/* clattn devices */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "targets.h"

static void print_size(const char *what, int64_t bytes)
{
    const double kib = (double)bytes / 1024;
    if (kib < 1024)
        printf(", %s %.0f KiB", what, kib);
    else if (kib < 1024 * 1024)
        printf(", %s %.0f MiB", what, kib / 1024);
    else
        printf(", %s %.1f GiB", what, kib / (1024 * 1024));
}

/* What the host path is made of, a small plan tells. */
static int print_host(void)
{
    const options host = {.path = CLATTN_PATH_HOST};
    clattn_problem p;
    runner r;
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 1, 1, 1024, 1024, 64);
    const int code = runner_open(&host, &p, CLATTN_PASS_FORWARD, &r);
    if (code) return code;
    printf("host      instructions %s, %d thread%s\n          kernel %s\n", r.info.instructions, r.info.n_threads,
           r.info.n_threads == 1 ? "" : "s", clattn_kernel_name(r.info.kernel));
    runner_close(&r);
    return CLI_OK;
}

/* Whether its matrix engine passed in a type, a plan tells. */
static int print_engine(int index, clattn_dtype dtype)
{
    char number[16];
    const options device = {.path = CLATTN_PATH_DEVICE, .device = number};
    clattn_problem p;
    runner r;
    snprintf(number, sizeof number, "%d", index);
    clattn_problem_init(&p, dtype, 1, 1, 1, 1024, 1024, 64);
    const int code = runner_open(&device, &p, CLATTN_PASS_FORWARD, &r);
    if (code) return code;
    const char *refused = strstr(clattn_plan_explain(r.plan), "refused: attn_fwd_mma");
    printf("          %s: kernel %s", clattn_dtype_name(dtype), clattn_kernel_name(r.info.kernel));
    if (refused) printf(": %.*s", (int)strcspn(refused + 9, "\n"), refused + 9);
    printf("\n");
    runner_close(&r);
    return CLI_OK;
}

static int print_device(int index)
{
    clattn_device_info d;
    clattn_device_info_init(&d);
    if (clattn_device_get_info(index, &d)) return cli_fail_library(NULL, NULL);
    printf("device %-2d %s\n          platform %s, driver %s, %s\n          %s, %d units", d.index, d.name, d.platform,
           d.driver, d.version, d.type, d.compute_units);
    print_size("memory", d.global_bytes);
    print_size("largest buffer", d.max_alloc_bytes);
    print_size("local memory", d.local_bytes);
    printf(", f64 %s%s\n", d.has_fp64 ? "yes" : "no", d.shares_host_memory ? ", shares the host's memory" : "");
    if (d.usable)
        printf("          kernel %s%s%s\n", clattn_kernel_name(d.kernel), d.why[0] ? ": " : "", d.why);
    else
        printf("          not usable: %s\n", d.why);
    int code = CLI_OK;
    if (d.usable && d.matrix_engine) code = print_engine(index, CLATTN_DTYPE_F16);
    if (d.usable && d.matrix_engine && !code) code = print_engine(index, CLATTN_DTYPE_BF16);
    return code;
}

int cmd_devices(const options *o)
{
    int count = 0;
    (void)o;
    int code = print_host();
    if (code) return code;
    if (clattn_device_count(&count)) return cli_fail_library(NULL, NULL);
    if (!count) printf("There is no OpenCL device here: everything runs on the host path.\n");
    for (int i = 0; !code && i < count; i++) code = print_device(i);
    return code;
}
