/* The public functions that take OpenCL's types. */
#include <inttypes.h>
#include <stdlib.h>

#include "run.h"

clattn_status clattn_context_create_from_cl(cl_context cl, cl_device_id id, const clattn_context_options *options,
                                            clattn_context **out)
{
    RETURN_IF(!out, INVALID_ARGUMENT, "context is NULL");
    RETURN_IF(!cl || !id, INVALID_ARGUMENT, "the %s is NULL", cl ? "cl_device_id" : "cl_context");
    size_t bytes = 0;
    RETURN_IF_CL("clGetContextInfo", clGetContextInfo(cl, CL_CONTEXT_DEVICES, 0, NULL, &bytes));
    cl_device_id *devices = malloc(bytes + 1);
    RETURN_IF(!devices, OUT_OF_HOST_MEMORY, "no room for %zu bytes of devices", bytes);
    const cl_int code = clGetContextInfo(cl, CL_CONTEXT_DEVICES, bytes, devices, NULL);
    bool found = false;
    for (size_t i = 0; code == CL_SUCCESS && i < bytes / sizeof *devices; i++) found |= devices[i] == id;
    free(devices);
    RETURN_IF_CL("clGetContextInfo", code);
    RETURN_IF(!found, INVALID_ARGUMENT, "the device is not one of the cl_context's %zu", bytes / sizeof *devices);

    clattn_context *c;
    clattn_context_options own;
    if (options && options->struct_size == sizeof own) {
        own = *options;
        own.device = CLATTN_DEVICE_DEFAULT;
        own.n_devices = 0;
        options = &own;
    }
    FORWARD(clattn__context_new(options, &c));
    c->from_app = true;
    c->device_tried = true;
    const clattn_status status = clattn__device_adopt(cl, id, &c->device);
    if (status != CLATTN_STATUS_SUCCESS) {
        clattn_context_release(c);
        return status;
    }
    *out = c;
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn_context_get_cl(clattn_context *context, cl_context *cl, cl_device_id *id)
{
    struct device *d;
    if (!context) FORWARD(clattn__context_default(&context));
    FORWARD(clattn__context_device(context, &d));
    FORWARD(clattn__device_check_process(d));
    if (cl) *cl = d->cl;
    if (id) *id = d->id;
    return CLATTN_STATUS_SUCCESS;
}

/* ---- checks of what the app hands in */

static clattn_status check_queue(const struct device *d, cl_command_queue queue)
{
    cl_context cl = NULL;
    cl_device_id id = NULL;
    RETURN_IF(!queue, INVALID_ARGUMENT, "queue is NULL");
    RETURN_IF_CL("clGetCommandQueueInfo", clGetCommandQueueInfo(queue, CL_QUEUE_CONTEXT, sizeof cl, &cl, NULL));
    RETURN_IF_CL("clGetCommandQueueInfo", clGetCommandQueueInfo(queue, CL_QUEUE_DEVICE, sizeof id, &id, NULL));
    RETURN_IF(cl != d->cl, INVALID_ARGUMENT, "the queue belongs to another cl_context than the plan's");
    RETURN_IF(id != d->id, INVALID_ARGUMENT, "the queue belongs to another device than the plan's");
    return CLATTN_STATUS_SUCCESS;
}

/* Drivers differ in what they make of these. */
static clattn_status check_wait_list(const struct device *d, cl_uint n, const cl_event *events)
{
    RETURN_IF((n == 0) != (events == NULL), INVALID_ARGUMENT, "n_wait is %u and wait_list is %s", n,
              events ? "given" : "NULL");
    for (cl_uint i = 0; i < n; i++) {
        cl_context cl = NULL;
        RETURN_IF(!events[i], INVALID_ARGUMENT, "wait_list[%u] is NULL", i);
        RETURN_IF_CL("clGetEventInfo", clGetEventInfo(events[i], CL_EVENT_CONTEXT, sizeof cl, &cl, NULL));
        RETURN_IF(cl != d->cl, INVALID_ARGUMENT, "wait_list[%u] belongs to another cl_context than the plan's", i);
    }
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status check_mem(const struct device *d, const char *name, const clattn_buffer *b, int64_t bytes,
                               bool written, clattn_pass pass)
{
    cl_context cl = NULL;
    cl_mem_object_type type = 0;
    cl_mem_flags flags = 0;
    size_t size = 0;
    RETURN_IF(b->host, INVALID_ARGUMENT, "args.%s is a host pointer; clattn_enqueue_%s takes cl_mem", name,
              pass == CLATTN_PASS_BACKWARD ? "backward" : "forward");
    if (!b->mem) return CLATTN_STATUS_SUCCESS;
    const cl_mem mem = b->mem;
    RETURN_IF_CL("clGetMemObjectInfo", clGetMemObjectInfo(mem, CL_MEM_TYPE, sizeof type, &type, NULL));
    RETURN_IF_CL("clGetMemObjectInfo", clGetMemObjectInfo(mem, CL_MEM_CONTEXT, sizeof cl, &cl, NULL));
    RETURN_IF_CL("clGetMemObjectInfo", clGetMemObjectInfo(mem, CL_MEM_FLAGS, sizeof flags, &flags, NULL));
    RETURN_IF_CL("clGetMemObjectInfo", clGetMemObjectInfo(mem, CL_MEM_SIZE, sizeof size, &size, NULL));
    RETURN_IF(type != CL_MEM_OBJECT_BUFFER, INVALID_ARGUMENT, "args.%s is not a buffer object", name);
    RETURN_IF(cl != d->cl, INVALID_ARGUMENT, "args.%s belongs to another cl_context than the plan's", name);
    RETURN_IF(written ? flags & CL_MEM_READ_ONLY : flags & CL_MEM_WRITE_ONLY, INVALID_ARGUMENT,
              "args.%s is a %s buffer; the kernel must %s it", name, written ? "CL_MEM_READ_ONLY" : "CL_MEM_WRITE_ONLY",
              written ? "write" : "read");
    RETURN_IF(b->offset > size || (uint64_t)bytes > size - b->offset, INVALID_ARGUMENT,
              "args.%s has %zu bytes, %zu of them before the offset; the shape needs %" PRId64 " after it", name, size,
              b->offset, bytes);
    return CLATTN_STATUS_SUCCESS;
}

/* The plan can be enqueued for this pass, on this queue. */
static clattn_status check_plan(const clattn_plan *plan, clattn_pass pass, cl_command_queue queue, cl_uint n_wait,
                                const cl_event *wait_list)
{
    RETURN_IF(!plan, INVALID_ARGUMENT, "plan is NULL");
    FORWARD(clattn__plan_check_pass(plan, pass));
    RETURN_IF(!plan->device_plan, INVALID_ARGUMENT,
              "the plan has no device kernel: ask for path DEVICE, or make the context on your cl_context");
    const struct device *d = plan->device_plan->device;
    FORWARD(clattn__device_check_process(d));
    FORWARD(check_queue(d, queue));
    return check_wait_list(d, n_wait, wait_list);
}

static clattn_status bind(const clattn_plan *plan, launch_buffers *b, int operand, const char *name,
                          const clattn_buffer *given, const tensor_shape *t, bool written)
{
    if (!t->size) return CLATTN_STATUS_SUCCESS; /* not part of the problem */
    FORWARD(check_mem(plan->device_plan->device, name, given, t->bytes, written, plan->pass));
    b->operand[operand] = given->mem;
    b->at[operand] = (int64_t)(given->offset / t->size);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status bind_workspace(const clattn_plan *plan, launch_buffers *b, const clattn_buffer *given)
{
    const int64_t bytes = plan->choice.workspace_bytes;
    if (!bytes) return CLATTN_STATUS_SUCCESS;
    RETURN_IF(!given->mem && !given->host, INVALID_ARGUMENT,
              "args.workspace is absent; the plan needs %" PRId64 " bytes", bytes);
    RETURN_IF(given->offset, INVALID_ARGUMENT, "args.workspace.offset is %zu bytes; it must be 0", given->offset);
    FORWARD(check_mem(plan->device_plan->device, "workspace", given, bytes, true, plan->pass));
    b->workspace = given->mem;
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status enqueue(const clattn_plan *plan, cl_command_queue queue, const launch_buffers *b, cl_uint n_wait,
                             const cl_event *wait_list, cl_event *event)
{
    FORWARD(clattn__launch(plan->device_plan, &plan->problem, queue, b, NULL, n_wait, wait_list, event));
    clattn__log(plan->context, LOG_RUN, "%s: %s enqueued", plan->text, clattn_kernel_name(plan->choice.kernel));
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn_enqueue_forward(const clattn_plan *plan, cl_command_queue queue, const clattn_forward_args *args,
                                     cl_uint n_wait, const cl_event *wait_list, cl_event *event)
{
    launch_buffers b = {0};
    FORWARD(check_plan(plan, CLATTN_PASS_FORWARD, queue, n_wait, wait_list));
    const problem *p = &plan->problem;
    FORWARD(clattn__problem_check_args(p, args));
    for (tensor_name i = 0; i < TENSOR_COUNT; i++)
        FORWARD(bind(plan, &b, (int)i, clattn__tensor_names[i], clattn__args_buffer(args, i), &p->tensor[i],
                     i == TENSOR_O || i == TENSOR_LSE));
    clattn__launch_numbers(&b, plan->device_plan, p, args);
    FORWARD(bind_workspace(plan, &b, &args->workspace));
    if (p->tensor[TENSOR_O].bytes == 0) {
        RETURN_IF_CL("clEnqueueMarkerWithWaitList", clEnqueueMarkerWithWaitList(queue, n_wait, wait_list, event));
        return CLATTN_STATUS_SUCCESS;
    }
    return enqueue(plan, queue, &b, n_wait, wait_list, event);
}

clattn_status clattn_enqueue_backward(const clattn_plan *plan, cl_command_queue queue, const clattn_backward_args *args,
                                      cl_uint n_wait, const cl_event *wait_list, cl_event *event)
{
    launch_buffers b = {0};
    FORWARD(check_plan(plan, CLATTN_PASS_BACKWARD, queue, n_wait, wait_list));
    const problem *p = &plan->problem;
    FORWARD(clattn__problem_check_backward_args(p, args));
    for (tensor_name i = 0; i < TENSOR_COUNT; i++)
        FORWARD(bind(plan, &b, (int)i, clattn__tensor_names[i], clattn__args_buffer(&args->forward, i), &p->tensor[i],
                     false));
    for (gradient_name g = 0; g < GRADIENT_COUNT; g++) {
        const tensor_shape t = clattn__gradient_shape(p, g);
        FORWARD(bind(plan, &b, TENSOR_COUNT + (int)g, clattn__gradient_names[g], clattn__gradient_buffer(args, g), &t,
                     g >= GRADIENT_FIRST_OUTPUT));
    }
    clattn__launch_numbers(&b, plan->device_plan, p, &args->forward);
    FORWARD(bind_workspace(plan, &b, &args->workspace));
    return enqueue(plan, queue, &b, n_wait, wait_list, event);
}
