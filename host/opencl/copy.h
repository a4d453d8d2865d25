/* Between the caller's arrays, with their strides, and buffers that hold them without gaps. */
#ifndef CLATTN_OPENCL_COPY_H
#define CLATTN_OPENCL_COPY_H

#include "../cpu/threads.h"
#include "device_cl.h"

typedef enum copy_direction { COPY_IN, COPY_OUT } copy_direction;

/* Page-locked memory that copies pass through: a device with a memory of its own reads and writes it by itself, at the
 * bus's speed. Each call at a time has its own; a device keeps a few. */
typedef struct staging staging;

staging *clattn__staging_take(struct device *d);         /* NULL: there is none to be had, and mapping does */
clattn_status clattn__staging_wait(staging *s);          /* for what is under way: the first that failed */
void clattn__staging_give(struct device *d, staging *s); /* waits too; s may be NULL */
void clattn__staging_free(struct device *d);             /* all that were given back */

/* t's elements, from or to the caller's at `caller`, to or from the start of mem. With a staging by the threads, slot by
 * slot, of which one is filled or emptied while others are on the bus; NULL: through the driver's mapping, which is mem
 * itself where host and device share memory. *done becomes the event of the last command that nothing waited for here:
 * of COPY_IN, and of COPY_OUT without a staging. */
clattn_status clattn__copy(cl_command_queue queue, staging *s, host_threads *threads, const tensor_shape *t,
                           char *caller, cl_mem mem, copy_direction direction, cl_event *done);

#endif
