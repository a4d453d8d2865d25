/* How a problem will run: pure decisions from a problem, a device's profile and the caller's options. No OpenCL
 * here. */
#ifndef CLATTN_PLAN_H
#define CLATTN_PLAN_H

#include <stdbool.h>

#include "cpu/run.h"
#include "problem.h"
#include "shares.h"
#include "text.h"
#include "tile_table.h"

/* What a device can do, as far as plans care. */
typedef struct device_profile {
    char name[128], driver[128], vendor[128];
    bool is_cpu, has_fp64, shares_host_memory; /* the last: calls with host pointers need no copies */
    int64_t local_bytes, max_alloc_bytes, max_work_group_size;
    int64_t copy_bytes_most; /* of a call's copies and work space at a time; 0: any */
    int64_t launch_work;     /* multiply-adds of a launch, so that no watchdog ends it; 0: any */
    int64_t launch_groups;   /* but so many work-groups, which keep the device busy; 0: one */
    int n_devices;           /* that a forward call is to have shares for; 0, 1: this one alone */
    matrix_engine engine;    /* that AUTO may take */
    int sub_group;           /* Intel: what attn_fwd insists on, with 256 registers a thread; 0: nothing */
    const char *tuning;      /* the user's table, NULL: none */
} device_profile;

typedef enum axis {
#define XX(name, meaning) AXIS_##name,
#include "axes.def"
#undef XX
    AXIS_COUNT
} axis;

extern const char *const clattn__axis_names[AXIS_COUNT];

#define AXIS_BIT(name) (1u << AXIS_##name)

/* One kernel of a call; its file and its name are one. */
typedef struct device_stage {
    const char *name;
    int64_t groups, work_group_size;
    int64_t launch_groups; /* of a launch, at most */
    int n_tiles;           /* attn_args.n_tiles */
    unsigned wanted;       /* backward: runs if one of these gradients is wanted, a bit for each gradient_name */
    bool in_turns;         /* backward: works on partials, which the workspace has for entries_in_turn batch entries */
    unsigned axes;         /* that it has a use for, a bit each: it is built once for all values of the others */
} device_stage;

enum { STAGES_MOST = 5, STAGE_MERGE = 1 /* of the decode kernels */ };

/* One kernel variant. */
typedef struct device_choice {
    clattn_kernel kernel;
    clattn_pass pass;
    bool is_tuned; /* its block sizes are a table's */
    int axes[AXIS_COUNT];
    device_stage stages[STAGES_MOST]; /* one after the other */
    int n_stages;
    int64_t work_group_size, local_bytes;        /* of the kernel that the choice is named after */
    int64_t workspace_bytes;                     /* 0: none */
    int64_t partial_chunk;                       /* the decode kernels: reals of one chunk's partials */
    int64_t delta_at, slopes_at, partials_at;    /* backward: in the workspace, reals */
    int n_splits, n_slope_parts;                 /* backward, see backward_args */
    int64_t entries_in_turn, partials_of_entry;  /* backward: batch entries; reals */
    const char *score_source, *score_derivative; /* the app's, or NULL; valid while the plan is made */
    device_cut cut;                              /* of calls that copy their arrays */
} device_choice;

/* A GQA group's rows are one work-group's, chunk by chunk of the keys, and a merge follows. */
static inline bool choice_splits_keys(const device_choice *c)
{
    return c->kernel == CLATTN_KERNEL_ATTN_DECODE || c->kernel == CLATTN_KERNEL_ATTN_DECODE_LANES;
}

/* P is rounded to the problem's type. */
static inline bool choice_rounds_probs(const device_choice *c)
{
    return c->axes[AXIS_MMA] != ENGINE_NONE && !choice_splits_keys(c);
}

/* Whether calls with host pointers let the kernels work in the caller's memory, but for overlaps and gaps. */
bool clattn__plan_in_place(const problem *p, const device_profile *device);

/* UNSUPPORTED and a sentence when every call with host pointers would need copies that the device may not hold; calls with
 * cl_mem run none the less. */
clattn_status clattn__plan_check_copies(const problem *p, const device_profile *device, const device_choice *choice);

/* The device's kernel for a clattn_kernel of AUTO. */
clattn_kernel clattn__plan_device_kernel(const device_profile *device, clattn_pass pass);

/* An axis of a stage's kernel: the choice's, or what stands for any. */
int clattn__plan_axis(const device_choice *choice, const device_stage *stage, axis a);

/* Shares of the keys of each kv head, each with a dQ of its own: from one batch entry's problem and the tile alone,
 * never from the machine. *entries: that may have such dQs at a time, each of dq_bytes for one kv head's share. */
int clattn__plan_backward_splits(const problem *p, int64_t block_kv, int64_t dq_bytes, int64_t *entries);

clattn_status clattn__plan_check_options(const clattn_plan_options *options);

/* Something happens to the scores before the mask: kernels get the softmax scale without log2(e). */
static inline bool problem_is_scored(const problem *p)
{
    return p->softcap > 0 || p->alibi || p->bias_dtype || p->score_function.host || p->score_function.source;
}

/* HOST, DEVICE, or AUTO: "device if there is one that can". AUTO takes the host for up to host_rows queries and
 * keys. */
clattn_path clattn__plan_wanted_path(const problem *p, const clattn_plan_options *options, int64_t host_rows,
                                     text *why);

/* UNSUPPORTED and a sentence when p is beyond the host path's reach. */
clattn_status clattn__plan_host(const problem *p, const clattn_plan_options *options, int n_threads, host_plan *plan);

/* The `nth` variant to try, best first; UNSUPPORTED and a sentence when it does not suit. *is_last: none comes
 * after. */
clattn_status clattn__plan_device(const problem *p, const device_profile *device, const clattn_plan_options *options,
                                  int nth, device_choice *choice, bool *is_last);

/* choice->cut: shares as large as fit, two sets of them, one for each device at least, where there are so many; where
 * copies go to a memory of the device's own, several even of what fits, once that is large, so that they run beside the
 * kernels. From problem, devices and kernel alone. */
void clattn__plan_cut(const problem *p, const device_profile *device, device_choice *choice);

/* status, and the sentence that says why there is no cut. */
clattn_status clattn__plan_cut_refuse(const device_cut *cut, const device_profile *device, clattn_status status);

#endif
