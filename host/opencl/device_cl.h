/* What opencl/ shares among its files. */
#ifndef CLATTN_DEVICE_CL_H
#define CLATTN_DEVICE_CL_H

#include <stdatomic.h>
#include <sys/types.h>

#include <clattn/opencl.h>

#include "../device.h"
#include "../error.h"
#include "cache.h"

/* A built variant. A cl_kernel's arguments are set and enqueued under its lock: OpenCL gives one cl_kernel to one
 * thread at a time. */
typedef struct device_kernel {
    struct device_kernel *next;
    char *key; /* kernel name, -D list, the app's score function and its derivative */
    char *cache_key;
    program_origin origin;
    atomic_bool is_kept; /* on disk, or was tried */
    cl_program program;
    cl_kernel kernel;
    pthread_mutex_t lock;
} device_kernel;

struct device {
    cl_context cl;
    cl_device_id id;
    cl_command_queue queue; /* in-order; clattn's own */
    pid_t owner;            /* drivers do not survive a fork */
    device_profile profile;
    program_cache cache;
    pthread_mutex_t lock;     /* guards kernels and the cache */
    device_kernel *kernels;   /* built so far; freed with the device */
    device_kernel *retired;   /* likewise: from binaries that did not run */
    struct staging *stagings; /* that no call has now */
    int n_stagings;
    pthread_mutex_t stagings_lock; /* of its own: lock is held while programs are built */
    bool has_bad_binaries;         /* then every further kernel is made from source */
};

struct device_plan {
    struct device *device;
    struct host_threads *threads; /* for copies */
    device_choice choice;
    device_kernel *kernels[STAGES_MOST]; /* of choice.stages */
    cl_mem fixed; /* int64 [2][batch]: kv lengths, then query offsets, of a problem that fixes them */
};

/* Keeps "CALL failed: NAME (code)" and returns the status that fits the code. */
clattn_status clattn__cl_fail(const char *call, cl_int code);

#define RETURN_IF_CL(call_name, code)                                                                                  \
    do {                                                                                                               \
        const cl_int cl_code_ = (code);                                                                                \
        if (cl_code_ != CL_SUCCESS) return clattn__cl_fail(call_name, cl_code_);                                       \
    } while (0)

/* A device on the app's context. */
clattn_status clattn__device_adopt(cl_context cl, cl_device_id id, struct device **d);

/* The built variant of a stage's kernel, from the device's own or made now: of a binary of the app's, of one on
 * disk, or of the source. */
clattn_status clattn__device_kernel(struct device *d, clattn_context *context, const device_stage *stage,
                                    const device_choice *choice, device_kernel **kernel);
void clattn__device_kernel_free(device_kernel *kernel);

/* *program, to be built: what was built for sm_90, for sm_90a and with the instructions that stood in comments. */
clattn_status clattn__ptx_uncover_90a(const struct device *d, cl_program built, cl_program *program);

/* Takes those of the kernels that were made from binaries out of use, for one of them does not run. Were there any? */
bool clattn__device_kernels_retire(struct device *d, device_kernel *const *kernels, int n);

/* Puts a kernel that was built from source and has run on disk. Some drivers compile when it runs, and have the
 * whole binary only then. */
void clattn__device_kernel_keep(const struct device *d, const clattn_context *context, const device_stage *stage,
                                device_kernel *kernel);

#endif
