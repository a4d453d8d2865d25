/* The host path's threads: the app's parallel_for if it gave one, else a pool that starts when first needed. */
#ifndef CLATTN_CPU_THREADS_H
#define CLATTN_CPU_THREADS_H

#include <clattn/types.h>

typedef struct host_threads host_threads;

/* n 0: one per available processor. NULL when out of memory. */
host_threads *clattn__threads_create(int n, clattn_parallel_for_fn *parallel_for, void *user);
void clattn__threads_free(host_threads *threads);

int clattn__threads_count(const host_threads *threads);

/* Runs task(argument, i) for i in [0, n) and returns when all are done. Safe from any threads: a caller that finds the
 * pool busy, or finds itself in a forked child, runs all of it alone. */
void clattn__threads_run(host_threads *threads, size_t n, void (*task)(void *, size_t), void *argument);

#endif
