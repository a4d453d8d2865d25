/* The calls that take OpenCL's own types. */
#ifndef CLATTN_OPENCL_H
#define CLATTN_OPENCL_H

#ifndef CL_TARGET_OPENCL_VERSION
#define CL_TARGET_OPENCL_VERSION 120
#endif
#ifdef __APPLE__
#include <OpenCL/cl.h>
#else
#include <CL/cl.h>
#endif

#include <clattn/clattn.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A context on the app's own cl_context and one of its devices, both retained. options NULL: the defaults; its device
 * fields are not used. INVALID_ARGUMENT when the device is not one of the context's. */
CLATTN_API clattn_status clattn_context_create_from_cl(cl_context cl, cl_device_id device,
                                                       const clattn_context_options *options, clattn_context **context);

/* The cl_context and device that a context runs on, opening them if need be; not retained. NO_DEVICE when it is
 * host-only. Either pointer may be NULL. */
CLATTN_API clattn_status clattn_context_get_cl(clattn_context *context, cl_context *cl, cl_device_id *device);

/* offset: bytes to element [0, 0, 0, 0]. */
static inline clattn_buffer clattn_cl_buffer(cl_mem mem, size_t offset)
{
    clattn_buffer b;
    b.host = NULL;
    b.mem = (void *)mem;
    b.offset = offset;
    return b;
}

/* Enqueues the plan on the app's queue (in-order or out-of-order, of the context's cl_context and device) and returns
 * without waiting. It runs on the device always: a plan made with path HOST is refused, and an AUTO plan that takes the
 * host for clattn_forward has a device kernel beside it (clattn_plan_info.cl_kernel) when its context was made by
 * clattn_context_create_from_cl, or when the host is taken because copies would not fit. Every buffer must be a cl_mem of the context, large enough; the call retains none of
 * them beyond what OpenCL does. event may be NULL, else the caller owns *event; it is set on success only. */
CLATTN_API clattn_status clattn_enqueue_forward(const clattn_plan *plan, cl_command_queue queue,
                                                const clattn_forward_args *args, cl_uint n_wait,
                                                const cl_event *wait_list, cl_event *event);

/* The same for a plan made with options.pass = CLATTN_PASS_BACKWARD: several kernels, one after the other on any queue;
 * event is the last one's. args.workspace must hold clattn_plan_workspace_size bytes; args.forward.workspace is not used. */
CLATTN_API clattn_status clattn_enqueue_backward(const clattn_plan *plan, cl_command_queue queue,
                                                 const clattn_backward_args *args, cl_uint n_wait,
                                                 const cl_event *wait_list, cl_event *event);

#ifdef __cplusplus
}
#endif
#endif
