/* Threads for the program's own long loops: filling tensors, the reference. */
#ifndef CLATTN_CLI_PARALLEL_H
#define CLATTN_CLI_PARALLEL_H

#include <stdint.h>

/* Runs task(argument, i) for every i in [0, n) on about `threads` threads (0: one per processor); all are done when it
 * returns. */
void parallel_for(int64_t threads, int64_t n, void (*task)(void *argument, int64_t i), void *argument);

#endif
