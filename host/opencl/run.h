/* A launch: arguments, NDRange, events. */
#ifndef CLATTN_OPENCL_RUN_H
#define CLATTN_OPENCL_RUN_H

#include "../../cl/dropout.clh"
#include "device_cl.h"

/* What the kernels of a call are given: the problem's tensors, then, in backward, the gradients. */
enum { OPERANDS = TENSOR_COUNT + GRADIENT_COUNT };

/* The buffers of one call, each with the place of its first element. */
typedef struct launch_buffers {
    cl_mem operand[OPERANDS];
    int64_t at[OPERANDS]; /* elements */
    cl_mem workspace;     /* of choice.workspace_bytes, or NULL */
    u32 dropout_key[2];
} launch_buffers;

/* A call's numbers that are no buffers; and the plan's own buffer for lengths and offsets that the problem fixes. */
void clattn__launch_numbers(launch_buffers *b, const device_plan *plan, const problem *p,
                            const clattn_forward_args *args);

/* Enqueues what the buffers want of the plan's kernels on queue, one after the other, after wait_list; event as
 * OpenCL has it. p's strides are the buffers'. part: which share alone; its tensors' places are those that element
 * [0, 0, 0, 0] would have. */
clattn_status clattn__launch(struct device_plan *plan, const problem *p, cl_command_queue queue,
                             const launch_buffers *buffers, const share *part, cl_uint n_wait,
                             const cl_event *wait_list, cl_event *event);

/* A failure after kernels were enqueued is no want of memory, which promises that nothing was. */
clattn_status clattn__late(clattn_status status);

#endif
