/* The time of one problem on one path. */
#ifndef CLATTN_CLI_BENCH_H
#define CLATTN_CLI_BENCH_H

#include "args.h"
#include "inputs.h"
#include "progress.h"

typedef struct bench_result {
    char problem[PROBLEM_TEXT_SIZE];
    clattn_dtype dtype;
    int64_t n_q, n_kv;
    clattn_path path;
    clattn_kernel kernel;
    char instructions[16]; /* of the host path */
    char device[128];      /* "host" on the host path */
    int n_threads;         /* of the host path, else 0 */
    bool resident;         /* the tensors were in the device's memory, else in the host's */
    size_t runs;
    double median_s, min_s;
    double gflops;    /* of the operations that the window and the lengths leave */
    double gbs;       /* K and V read once */
    double intensity; /* operations for each byte of all inputs and outputs, each moved once */
} bench_result;

/* Times the problem of the text as the options ask; adds opt->budget in microseconds to the bar, and a little. */
int bench_run(const options *opt, const char *problem, progress *bar, bench_result *r);

#endif
