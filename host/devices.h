/* Several devices in one context: each call that copies its arrays is cut into shares, which they divide among them.
 * The first is the context's own device; each further one is a context of its own, and its part of a plan a plan there.
 */
#ifndef CLATTN_DEVICES_H
#define CLATTN_DEVICES_H

#include "context.h"

/* Opens the further devices that the context's options name; the context has opened its own. */
clattn_status clattn__devices_open(clattn_context *context);
void clattn__devices_close(clattn_context *context);

/* No more copies at a time, and no larger buffers, than every device takes. */
void clattn__devices_limit(const clattn_context *context, device_profile *profile);

/* The plan's parts on the further devices, when its cut has shares for them; a device that cannot run the problem is
 * left out, and `why` says so. OUT_OF_HOST_MEMORY is the only failure. */
clattn_status clattn__devices_plan(clattn_plan *plan, const clattn_problem *text_of, const clattn_plan_options *options,
                                   text *why);
void clattn__devices_drop(clattn_plan *plan);

/* A checked forward call on all of the plan's devices at once. */
clattn_status clattn__devices_run(const clattn_plan *plan, const clattn_forward_args *args);

#endif
