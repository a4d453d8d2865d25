/* The threads of the host path and of copies to and from devices: the app's parallel_for if it gave one, else a pool that
 * starts when first needed. */
#ifndef CLATTN_CPU_THREADS_H
#define CLATTN_CPU_THREADS_H

#include <stdbool.h>

#include <clattn/types.h>

typedef struct host_threads host_threads;

/* n 0: one per available processor. NULL when out of memory. */
host_threads *clattn__threads_create(int n, clattn_parallel_for_fn *parallel_for, void *user);
void clattn__threads_free(host_threads *threads);

int clattn__threads_count(const host_threads *threads);

/* Runs task(argument, 0) here and task(argument, i), 0 < i < n, on other threads, and returns when all that began are done.
 * A pool thread that comes too late does not begin: tasks draw what they do from shared counters, and any one of them
 * can do it all. Safe from any threads: a caller that finds the pool busy, or finds itself in a forked child, works alone. */
void clattn__threads_run(host_threads *threads, size_t n, void (*task)(void *, size_t), void *argument);

/* Are the other threads awake, or worth waking for a short task, as this was asked a moment ago and may soon be again? */
bool clattn__threads_are_near(host_threads *threads);

#endif
