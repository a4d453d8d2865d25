/* A launch: arguments, NDRange, events. */
#ifndef CLATTN_OPENCL_RUN_H
#define CLATTN_OPENCL_RUN_H

#include "device_cl.h"

/* The buffers of one launch, each with the place of its first element. */
typedef struct launch_buffers {
    cl_mem tensor[TENSOR_COUNT];
    int64_t at[TENSOR_COUNT]; /* elements */
    cl_mem kv_lengths, query_offsets;
    int64_t kv_lengths_at, query_offsets_at; /* int64 elements */
} launch_buffers;

/* Enqueues p on queue after wait_list; event as OpenCL has it. p's strides are the buffers'. */
clattn_status clattn__launch(struct device_plan *plan, const problem *p, cl_command_queue queue,
                             const launch_buffers *buffers, cl_uint n_wait, const cl_event *wait_list, cl_event *event);

#endif
