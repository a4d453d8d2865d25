/* A progress bar on stderr, drawn by a thread of its own; nothing at all when stderr is no terminal. */
#ifndef CLATTN_CLI_PROGRESS_H
#define CLATTN_CLI_PROGRESS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct progress {
    const char *label;
    int64_t total; /* 0: unknown, only the time is shown */
    _Atomic int64_t done;
    double start;
    bool running, stop;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t stopped;
} progress;

void progress_start(progress *p, const char *label, int64_t total);
void progress_add(progress *p, int64_t n); /* from any thread */
void progress_stop(progress *p);           /* and clears the line */

#endif
