/* device.h for a build without OpenCL. */
#include "device.h"
#include "error.h"

static clattn_status none(void)
{
    return clattn__fail(CLATTN_STATUS_NO_DEVICE, 0, "this clattn is built without OpenCL");
}

clattn_status clattn__device_count(int *count)
{
    *count = 0;
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__device_describe(int index, clattn_device_info *info)
{
    (void)index, (void)info;
    return none();
}

clattn_status clattn__device_open(const clattn_context_options *options, device **d)
{
    (void)options, (void)d;
    return none();
}

void clattn__device_close(device *d) { (void)d; }

const device_profile *clattn__device_profile(const device *d)
{
    (void)d;
    return NULL;
}

clattn_status clattn__device_check_process(const device *d)
{
    (void)d;
    return none();
}

clattn_status clattn__device_plan_create(device *d, clattn_context *context, const problem *p,
                                         const device_choice *choice, device_plan **plan)
{
    (void)d, (void)context, (void)p, (void)choice, (void)plan;
    return none();
}

void clattn__device_plan_free(device_plan *plan) { (void)plan; }

clattn_status clattn__device_plan_binaries(const device_plan *plan, void *data, size_t size, size_t *needed)
{
    (void)plan, (void)data, (void)size, (void)needed;
    return none();
}

clattn_status clattn__device_add_binaries(device *d, const void *data, size_t size)
{
    (void)d, (void)data, (void)size;
    return none();
}

clattn_status clattn__device_run(device_plan *plan, const problem *p, const clattn_forward_args *args,
                                 const clattn_backward_args *backward, bool copy, const device_shares *shares)
{
    (void)plan, (void)p, (void)args, (void)backward, (void)copy, (void)shares;
    return none();
}
