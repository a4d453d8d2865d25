/* One problem at growing sequence lengths, on the host and on devices, beside what the machine can do. */
#ifndef CLATTN_CLI_SWEEP_H
#define CLATTN_CLI_SWEEP_H

#include <stdbool.h>
#include <stdio.h>

#include "args.h"
#include "bench.h"

typedef struct sweep {
    char title[PROBLEM_TEXT_SIZE];
    clattn_pass pass;
    bool keeps_rows;       /* n_q is the problem's own at every length */
    double peak_gflops;    /* of the processor, for the problem's type */
    double peak_gbs;       /* of reading memory */
    bench_result *results; /* path by path, of growing length */
    int n_results;
} sweep;

/* Times every length as the options ask. CLI_USAGE: the problem has no lengths to change, or nothing can run it. */
int sweep_run(const options *o, sweep *s);

/* Writes it as SVG; false when that failed. */
bool sweep_plot(const sweep *s, FILE *to);

void sweep_free(sweep *s);

#endif
