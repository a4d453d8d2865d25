/* Tensors in a device's memory, and plans enqueued on them. */
#ifndef CLATTN_CLI_RESIDENT_H
#define CLATTN_CLI_RESIDENT_H

#include <clattn/clattn.h>

#include "inputs.h"

/* A queue of a context's device, and what was copied there. Every function that fails has said why. */
typedef struct resident resident;

/* To be closed, if it succeeded. */
int resident_open(clattn_context *context, resident **r);
void resident_close(resident *r);

/* Copies what args hold for this problem, and places the copies there; host memory that args have in common with
 * earlier ones is copied once. workspace is left alone. Of gradients: dO, dQ, dK and dV. */
int resident_forward_args(resident *r, const inputs *in, clattn_forward_args *args);
int resident_backward_args(resident *r, const inputs *in, clattn_backward_args *args);

/* One call, with the work space that it needs. */
int resident_enqueue_forward(resident *r, const clattn_plan *plan, const clattn_forward_args *args);
int resident_enqueue_backward(resident *r, const clattn_plan *plan, const clattn_backward_args *args);

/* Waits for all of them. */
int resident_finish(resident *r);

#endif
