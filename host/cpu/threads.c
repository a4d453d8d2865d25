#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <pthreadpool.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

struct host_threads {
    int n;
    clattn_parallel_for_fn *parallel_for;
    void *user;
    pthread_mutex_t busy; /* held while the pool works */
    pthreadpool_t pool;   /* NULL until first needed */
    pid_t owner;          /* the process that has the pool's threads: a forked child has none */
};

static int available_processors(void)
{
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

host_threads *clattn__threads_create(int n, clattn_parallel_for_fn *parallel_for, void *user)
{
    host_threads *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->n = n > 0 ? n : available_processors();
    t->parallel_for = parallel_for;
    t->user = user;
    t->owner = getpid();
    pthread_mutex_init(&t->busy, NULL);
    return t;
}

void clattn__threads_free(host_threads *t)
{
    if (!t) return;
    if (t->pool && t->owner == getpid()) pthreadpool_destroy(t->pool);
    pthread_mutex_destroy(&t->busy);
    free(t);
}

int clattn__threads_count(const host_threads *t) { return t->n; }

void clattn__threads_run(host_threads *t, size_t n, void (*task)(void *, size_t), void *argument)
{
    if (n > 1 && t->parallel_for) {
        t->parallel_for(t->user, n, task, argument);
        return;
    }
    if (n > 1 && t->n > 1 && t->owner == getpid() && pthread_mutex_trylock(&t->busy) == 0) {
        if (!t->pool) t->pool = pthreadpool_create((size_t)t->n);
        const int has_pool = t->pool != NULL;
        if (has_pool) pthreadpool_parallelize_1d(t->pool, task, argument, n, 0);
        pthread_mutex_unlock(&t->busy);
        if (has_pool) return;
    }
    for (size_t i = 0; i < n; i++) task(argument, i);
}
