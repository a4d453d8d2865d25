/* How a problem will run: pure decisions from a problem, a device's profile and the caller's options. No OpenCL here. */
#ifndef CLATTN_PLAN_H
#define CLATTN_PLAN_H

#include <stdbool.h>

#include "cpu/run.h"
#include "problem.h"
#include "text.h"

/* What a device can do, as far as plans care. */
typedef struct device_profile {
    char name[128];
    bool is_cpu, has_fp64, shares_host_memory;
    int64_t local_bytes, max_alloc_bytes, max_work_group_size;
} device_profile;

typedef enum axis {
#define XX(name, meaning) AXIS_##name,
#include "axes.def"
#undef XX
    AXIS_COUNT
} axis;

extern const char *const clattn__axis_names[AXIS_COUNT];

/* One kernel variant. */
typedef struct device_choice {
    clattn_kernel kernel;
    int axes[AXIS_COUNT];
    int64_t work_group_size, local_bytes;
    int chunks;               /* ATTN_DECODE_LANES: of the keys; then a second kernel merges them */
    int64_t partial_chunk;    /* reals of one chunk's partials */
    int64_t workspace_bytes;  /* 0: none */
    const char *score_source; /* the app's score function, or NULL; the app's, valid while the plan is made */
} device_choice;

/* The kernel that runs after this one on its partials, or NULL; its own name is clattn_kernel_name's. */
const char *clattn__plan_merge_kernel(clattn_kernel kernel);

/* The device's kernel for a clattn_kernel of AUTO. */
clattn_kernel clattn__plan_device_kernel(const device_profile *device);

clattn_status clattn__plan_check_options(const clattn_plan_options *options);

/* Something happens to the scores before the mask: kernels get the softmax scale without log2(e). */
static inline bool problem_is_scored(const problem *p)
{
    return p->softcap > 0 || p->alibi || p->bias_dtype || p->score_function.host || p->score_function.source;
}

/* HOST, DEVICE, or AUTO: "device if there is one that can". */
clattn_path clattn__plan_wanted_path(const problem *p, const clattn_plan_options *options, text *why);

/* UNSUPPORTED and a sentence when p is beyond the host path's reach. */
clattn_status clattn__plan_host(const problem *p, const clattn_plan_options *options, int n_threads, host_plan *plan);

/* The `nth` variant to try, best first; UNSUPPORTED and a sentence when it does not suit. *is_last: none comes after. */
clattn_status clattn__plan_device(const problem *p, const device_profile *device, const clattn_plan_options *options,
                                  int nth, device_choice *choice, bool *is_last);

#endif
