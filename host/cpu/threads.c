#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* A call publishes its task and opens the gate. A pool thread that sees it goes in, works, and comes out; the caller works
 * too, then closes the gate, which it can only when nobody is inside. So a thread that has not come, because another
 * process has its core, is never waited for. A pool thread that has nothing to do watches for SPIN_NANOSECONDS, then sleeps. */
enum {
    GATE_CLOSED = 0,
    GATE_OPEN = 1, /* GATE_OPEN + k: k pool threads are inside */
    SPIN_NANOSECONDS = 50000,
};

struct host_threads {
    int n;
    clattn_parallel_for_fn *parallel_for;
    void *user;
    pid_t owner;          /* the process that has the pool's threads: a forked child has none */
    pthread_mutex_t busy; /* held by the caller whose task the pool has */

    pthread_t *pool; /* [n_pool], NULL until first needed */
    atomic_int n_pool;
    void (*task)(void *, size_t);
    void *argument;
    size_t n_tasks;
    atomic_size_t next_task;
    atomic_int gate;
    atomic_uint epoch; /* changes with each task and at the end */
    atomic_bool stop;
    atomic_int sleepers;      /* pool threads on `wake`, or about to be */
    atomic_llong last_use;    /* nanoseconds of the clock when clattn__threads_are_near was last asked */
    atomic_bool caller_waits; /* for those inside, on `left` */
    pthread_mutex_t lock;
    pthread_cond_t wake, left;
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

static inline void pause_processor(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static long long nanoseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static bool spin_until(const host_threads *t, bool (*done)(const host_threads *, unsigned), unsigned argument)
{
    const long long end = nanoseconds() + SPIN_NANOSECONDS;
    do
        for (int i = 0; i < 64; i++) {
            if (done(t, argument)) return true;
            pause_processor();
        }
    while (nanoseconds() < end);
    return done(t, argument);
}

/* ---- a pool thread */

static bool epoch_differs(const host_threads *t, unsigned seen) { return atomic_load(&t->epoch) != seen; }

static void wait_for_epoch(host_threads *t, unsigned seen)
{
    if (spin_until(t, epoch_differs, seen)) return;
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->sleepers, 1); /* before the look at the epoch, as publish looks at this after changing that */
    while (!epoch_differs(t, seen)) pthread_cond_wait(&t->wake, &t->lock);
    atomic_fetch_sub(&t->sleepers, 1);
    pthread_mutex_unlock(&t->lock);
}

static bool gate_enter(host_threads *t)
{
    int gate = atomic_load(&t->gate);
    while (gate != GATE_CLOSED)
        if (atomic_compare_exchange_weak(&t->gate, &gate, gate + 1)) return true;
    return false;
}

static void gate_leave(host_threads *t)
{
    if (atomic_fetch_sub(&t->gate, 1) != GATE_OPEN + 1 || !atomic_load(&t->caller_waits)) return;
    pthread_mutex_lock(&t->lock);
    pthread_cond_signal(&t->left);
    pthread_mutex_unlock(&t->lock);
}

static void *pool_thread(void *argument)
{
    host_threads *t = argument;
    unsigned seen = 0;
    for (;;) {
        wait_for_epoch(t, seen);
        seen = atomic_load(&t->epoch);
        if (atomic_load(&t->stop)) return NULL;
        if (!gate_enter(t)) continue;
        const size_t i = atomic_fetch_add(&t->next_task, 1);
        if (i < t->n_tasks) t->task(t->argument, i);
        gate_leave(t);
    }
}

/* As many threads as the system gives, n - 1 at most; those of the app take its signals. */
static void pool_start(host_threads *t)
{
    sigset_t all, before;
    t->pool = calloc((size_t)t->n, sizeof *t->pool);
    if (!t->pool) return;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int n = 0;
    while (n < t->n - 1 && pthread_create(&t->pool[n], NULL, pool_thread, t) == 0) n++;
    atomic_store(&t->n_pool, n);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* ---- the caller */

static void publish(host_threads *t)
{
    atomic_fetch_add(&t->epoch, 1);
    if (atomic_load(&t->sleepers) == 0) return;
    pthread_mutex_lock(&t->lock);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->lock);
}

static bool gate_close(host_threads *t)
{
    int expected = GATE_OPEN;
    return atomic_compare_exchange_strong(&t->gate, &expected, GATE_CLOSED);
}

static bool nobody_inside(const host_threads *t, unsigned unused)
{
    (void)unused;
    return atomic_load(&t->gate) == GATE_OPEN;
}

static void wait_for_those_inside(host_threads *t)
{
    while (!gate_close(t)) {
        if (spin_until(t, nobody_inside, 0)) continue;
        pthread_mutex_lock(&t->lock);
        atomic_store(&t->caller_waits, true); /* before the look at the gate, as gate_leave looks at this after it */
        while (!nobody_inside(t, 0)) pthread_cond_wait(&t->left, &t->lock);
        atomic_store(&t->caller_waits, false);
        pthread_mutex_unlock(&t->lock);
    }
}

static void run_on_pool(host_threads *t, size_t n, void (*task)(void *, size_t), void *argument)
{
    t->task = task;
    t->argument = argument;
    t->n_tasks = n;
    atomic_store(&t->next_task, 1);
    atomic_store(&t->gate, GATE_OPEN);
    publish(t);
    task(argument, 0);
    wait_for_those_inside(t);
}

void clattn__threads_run(host_threads *t, size_t n, void (*task)(void *, size_t), void *argument)
{
    if (n > 1 && t->parallel_for) {
        t->parallel_for(t->user, n, task, argument);
        return;
    }
    if (n > 1 && t->n > 1 && t->owner == getpid() && pthread_mutex_trylock(&t->busy) == 0) {
        if (!t->pool) pool_start(t);
        run_on_pool(t, n, task, argument);
        pthread_mutex_unlock(&t->busy);
        return;
    }
    task(argument, 0);
}

int clattn__threads_count(const host_threads *t) { return t->n; }

bool clattn__threads_are_near(host_threads *t)
{
    const long long now = nanoseconds(), last = atomic_exchange(&t->last_use, now);
    return t->parallel_for || now - last < 4 * SPIN_NANOSECONDS ||
           (atomic_load(&t->n_pool) > 0 && atomic_load(&t->sleepers) == 0);
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
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wake, NULL);
    pthread_cond_init(&t->left, NULL);
    return t;
}

void clattn__threads_free(host_threads *t)
{
    if (!t) return;
    if (t->pool && t->owner == getpid()) {
        atomic_store(&t->stop, true);
        publish(t);
        for (int i = 0; i < t->n_pool; i++) pthread_join(t->pool[i], NULL);
        pthread_cond_destroy(&t->wake);
        pthread_cond_destroy(&t->left);
        pthread_mutex_destroy(&t->lock);
        pthread_mutex_destroy(&t->busy);
    }
    free(t->pool);
    free(t);
}
