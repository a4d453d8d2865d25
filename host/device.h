/* What the rest of the library asks of OpenCL, without its types: opencl/ implements this, and no_opencl.c says "none"
 * where clattn is built without. */
#ifndef CLATTN_DEVICE_H
#define CLATTN_DEVICE_H

#include "context.h"
#include "plan.h"

typedef struct device device;           /* an opened device, its queue and its built programs */
typedef struct device_plan device_plan; /* a built kernel and what a problem adds to it */

clattn_status clattn__device_count(int *count);
clattn_status clattn__device_describe(int index, clattn_device_info *info);

/* Opens what options select. NO_DEVICE and a sentence when it is not there. */
clattn_status clattn__device_open(const clattn_context_options *options, device **d);
void clattn__device_close(device *d);
const device_profile *clattn__device_profile(const device *d);

/* Refuses in a forked child, where drivers hang. */
clattn_status clattn__device_check_process(const device *d);

/* Builds (or finds built) the variant, runs it once on nothing, and checks that it fits. */
clattn_status clattn__device_plan_create(device *d, clattn_context *context, const problem *p,
                                         const device_choice *choice, device_plan **plan);
void clattn__device_plan_free(device_plan *plan);

/* Records of the plan's programs, as clattn_plan_get_binaries has them, and records for a device's plans to come. */
clattn_status clattn__device_plan_binaries(const device_plan *plan, void *data, size_t size, size_t *needed);
clattn_status clattn__device_add_binaries(device *d, const void *data, size_t size);

/* Shares [first, end) of a cut. partials: [workspace_bytes] on the host, NULL unless keys are cut: where the shares'
 * partials go, and no output is written; or, if it merges, where those of whole groups come from. */
typedef struct device_shares {
    const device_cut *cut;
    int64_t first, end;
    char *partials;
    bool merges;
} device_shares;

/* Host pointers in, host pointers out. args: checked, and those of `backward` unless that is NULL. copy: not in the
 * caller's memory, even where that could be. shares: what to do of a call that copies; NULL: all of it, as the plan
 * cuts it. */
clattn_status clattn__device_run(device_plan *plan, const problem *p, const clattn_forward_args *args,
                                 const clattn_backward_args *backward, bool copy, const device_shares *shares);

/* PTX as NVIDIA's driver gives it, in place: the target sm_90a, and no marks around its instructions; else
 * BUILD_FAILED. */
clattn_status clattn__ptx_for_90a(char *ptx, size_t size);

#endif
