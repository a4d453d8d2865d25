/* A context: a device (opened when first needed), the host path's threads, the log. And the plans made on it. */
#ifndef CLATTN_CONTEXT_H
#define CLATTN_CONTEXT_H

#include <pthread.h>
#include <stdatomic.h>

#include "plan.h"

struct device;
struct device_plan;

enum { CACHED_PLANS = 8 };

typedef enum log_kind { LOG_PLAN, LOG_BUILD, LOG_RUN, LOG_KINDS } log_kind;

/* What became of a matrix engine's trial in one type. */
typedef struct engine_trial {
    bool is_over;
    char refused[512]; /* "": it passed */
} engine_trial;

struct clattn_context {
    atomic_int references;
    clattn_context_options options;
    char *device_name; /* what options.device_name points to */
    char *tuning;      /* the user's table, NULL: none; options.tuning points to it */
    int *devices;      /* what options.devices points to */
    int n_further;     /* of them beyond the first; see devices.h */
    clattn_context **further;
    host_threads *threads;
    unsigned verbose;      /* a bit for each log_kind that CLATTN_VERBOSE named when the context was made */
    bool from_app;         /* made on the app's own cl_context */
    atomic_int process;    /* whose lock it is; see clattn__context_lock */
    pthread_mutex_t lock;  /* guards what follows */
    struct device *device; /* NULL until opened */
    bool device_tried;
    char device_why[256];              /* why there is none */
    clattn_plan *cached[CACHED_PLANS]; /* of clattn_attention, latest first; they hold no reference to the context */
    engine_trial engine_trials[ENGINE_COUNT][2]; /* f16, bf16 */
};

struct clattn_plan {
    atomic_int references;
    clattn_context *context;
    bool holds_context;
    problem problem;
    clattn_pass pass;
    clattn_path path;                /* HOST or DEVICE */
    host_plan host;                  /* for path HOST */
    device_choice choice;            /* for a device kernel */
    struct device_plan *device_plan; /* NULL: none */
    int n_parts;                     /* on further devices, see devices.h */
    clattn_plan **parts;
    char device_name[128];
    char text[256]; /* the problem */
    char explain[4096];
};

/* A context with no device yet. */
clattn_status clattn__context_new(const clattn_context_options *options, clattn_context **context);

/* The process's own context, made at first use and kept. */
clattn_status clattn__context_default(clattn_context **context);

/* Takes context->lock. In a child of fork() the first call makes the lock anew, for whoever held it may not be there, and
 * forgets the cached plans, whose kernels do not run there. */
void clattn__context_lock(clattn_context *context);

/* The context's device, opened if need be; NO_DEVICE and a sentence when there is none. */
clattn_status clattn__context_device(clattn_context *context, struct device **d);

/* One line to the log callback, and to stderr where CLATTN_VERBOSE names the kind. */
void clattn__log(const clattn_context *context, log_kind kind, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static inline bool clattn__log_wants(const clattn_context *c, log_kind kind)
{
    return c->options.log || c->verbose >> kind & 1;
}

/* A plan, made and built. text: the problem, for the log. hold: the plan keeps the context alive. */
clattn_status clattn__plan_make(clattn_context *context, const problem *p, const clattn_problem *text,
                                const clattn_plan_options *options, bool hold, clattn_plan **plan);
void clattn__plan_drop(clattn_plan *plan); /* one reference less */

/* INVALID_ARGUMENT and a sentence when the plan was made for the other. */
clattn_status clattn__plan_check_pass(const clattn_plan *plan, clattn_pass pass);

/* The context's cached plan for p with automatic options, made if need be; the caller drops it. */
clattn_status clattn__plan_find(clattn_context *context, const problem *p, const clattn_problem *text,
                                clattn_plan **plan);

#endif
