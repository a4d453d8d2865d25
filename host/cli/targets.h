/* Where a problem can run: devices by index or name, contexts and plans from the options, and the list of all paths
 * and kernels that compare and selftest walk. */
#ifndef CLATTN_CLI_TARGETS_H
#define CLATTN_CLI_TARGETS_H

#include <clattn/clattn.h>

#include "args.h"

/* The index of --device's value. CLI_USAGE: no device has that index or name, and it has said so. */
int device_find(const char *text, int *index);

/* Whether the device of that name, as a plan tells it, has a memory that is not the host's. */
bool device_has_memory(const char *name);

/* A context and a plan for one pass of one problem, as the options ask; it has said why when it fails. */
typedef struct runner {
    clattn_context *context;
    clattn_plan *plan;
    clattn_plan_info info;
} runner;
int runner_open(const options *o, const clattn_problem *p, clattn_pass pass, runner *r);

/* One forward call, on the path that a runner of the other pass took. */
int runner_forward(const runner *r, const clattn_problem *p, const clattn_forward_args *args);
void runner_close(runner *r);

/* One row of compare: a path and, on a device, a kernel. */
typedef struct target {
    clattn_path path;
    clattn_kernel kernel;
    int index;               /* of the device, -1: the host */
    char device[128];        /* its name, "-": the host */
    clattn_context *context; /* one reference of its own; NULL when it cannot be opened */
    clattn_status status;    /* then why: UNSUPPORTED for a device that clattn cannot use */
    char why[512];
} target;

typedef struct target_list {
    target *targets;
    int n;
} target_list;

/* The host, and the kernels of every device; those with lanes on CPU devices only. o->path, o->kernel and o->device
 * leave out rows, o->device never the host. CLI_USAGE when none is left. */
int targets_open(const options *o, target_list *list);
void targets_close(target_list *list);

#endif
