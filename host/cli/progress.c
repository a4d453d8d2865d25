/* The thread sleeps on a condition, so that stopping never waits. */
#include "progress.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

enum { BAR_WIDTH = 30, REDRAW_NS = 200000000 };

static void draw(progress *p)
{
    static const char full[] = "##############################", empty[] = "..............................";
    const double seconds = cli_now() - p->start;
    if (seconds < 0.5) return; /* short work shows nothing */
    if (p->total <= 0) {
        fprintf(stderr, "\r%s %.0f s\033[K", p->label, seconds);
        return;
    }
    const double share = (double)atomic_load(&p->done) / (double)p->total;
    const int filled = share >= 1 ? BAR_WIDTH : (int)(share * BAR_WIDTH);
    fprintf(stderr, "\r%s [%.*s%.*s] %3.0f %%  %.0f s\033[K", p->label, filled, full, BAR_WIDTH - filled, empty,
            100 * share, seconds);
}

static void *draw_until_stopped(void *argument)
{
    progress *p = argument;
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += REDRAW_NS;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&p->stopped, &p->lock, &until);
        if (!p->stop) draw(p);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

void progress_start(progress *p, const char *label, int64_t total)
{
    p->label = label;
    p->total = total;
    atomic_init(&p->done, 0);
    p->start = cli_now();
    p->stop = p->running = false;
    if (!isatty(STDERR_FILENO)) return;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->stopped, NULL);
    p->running = !pthread_create(&p->thread, NULL, draw_until_stopped, p);
}

void progress_add(progress *p, int64_t n) { atomic_fetch_add(&p->done, n); }

void progress_stop(progress *p)
{
    if (!p->running) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_signal(&p->stopped);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    fputs("\r\033[K", stderr);
    p->running = false;
}
