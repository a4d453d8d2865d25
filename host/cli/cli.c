/* Errors, memory, time. */
#include "cli.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int cli_fail(int code, const char *format, ...)
{
    va_list arguments;
    fflush(stdout);
    va_start(arguments, format);
    fputs("clattn: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    return code;
}

int cli_fail_library(const char *flag, const char *value)
{
    const clattn_error *e = clattn_last_error();
    const bool asked = e->status == CLATTN_STATUS_INVALID_ARGUMENT || e->status == CLATTN_STATUS_UNSUPPORTED ||
                       e->status == CLATTN_STATUS_NO_DEVICE;
    return cli_fail(asked ? CLI_USAGE : CLI_FAILED, "%s%s%s%s%s", flag ? flag : "", flag ? " " : "", flag ? value : "",
                    flag ? ": " : "", e->message);
}

void *cli_alloc(const char *what, int64_t count, size_t size)
{
    int64_t bytes;
    void *p = NULL;
    if (__builtin_mul_overflow(count, (int64_t)size, &bytes) || bytes > INT64_MAX - 64) {
        cli_fail(CLI_FAILED, "%s: %" PRId64 " elements of %zu bytes are more than any memory", what, count, size);
        return NULL;
    }
    p = aligned_alloc(64, ((size_t)bytes / 64 + 1) * 64);
    if (!p) cli_fail(CLI_FAILED, "%s: there is no memory for %" PRId64 " bytes", what, bytes);
    return p;
}

double cli_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double cli_median(double *times, size_t n)
{
    qsort(times, n, sizeof *times, compare_doubles);
    return 0.5 * (times[(n - 1) / 2] + times[n / 2]);
}

time_text cli_time_text(double seconds)
{
    time_text t;
    if (seconds < 1e-3)
        snprintf(t.text, sizeof t.text, "%.3g us", seconds * 1e6);
    else if (seconds < 1)
        snprintf(t.text, sizeof t.text, "%.3g ms", seconds * 1e3);
    else
        snprintf(t.text, sizeof t.text, "%.2f s", seconds);
    return t;
}
