/* Threads that take the next index until there is none. */
#include "parallel.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { MOST_THREADS = 1024 };

typedef struct work {
    void (*task)(void *argument, int64_t i);
    void *argument;
    int64_t n;
    _Atomic int64_t next;
} work;

static void *work_run(void *argument)
{
    work *w = argument;
    for (int64_t i; (i = atomic_fetch_add(&w->next, 1)) < w->n;) w->task(w->argument, i);
    return NULL;
}

void parallel_for(int64_t threads, int64_t n, void (*task)(void *argument, int64_t i), void *argument)
{
    pthread_t others[MOST_THREADS];
    int n_others = 0;
    work w = {task, argument, n, 0};
    if (threads <= 0) threads = sysconf(_SC_NPROCESSORS_ONLN);
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    /* A thread that cannot be had is no error: the others do its share. */
    while (n_others + 1 < threads && n_others + 1 < n && !pthread_create(&others[n_others], NULL, work_run, &w))
        n_others++;
    work_run(&w);
    while (n_others > 0) pthread_join(others[--n_others], NULL);
}
