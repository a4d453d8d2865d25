/* An app with its own OpenCL: its cl_context, an out-of-order queue, its buffers, events. Prints the first numbers of O,
 * and how far they are from the host path's. Without an OpenCL platform it runs on the host path and says so. */
#include <clattn/opencl.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { BATCH = 2, HEADS_Q = 4, HEADS_KV = 2, N_Q = 200, N_KV = 333, DIM = 64 };
enum { SIZE_Q = BATCH * HEADS_Q * N_Q * DIM, SIZE_KV = BATCH * HEADS_KV * N_KV * DIM };

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, clattn_last_error()->message);
    return 1;
}

static int run_on_host(const clattn_problem *p, const float *q, const float *k, const float *v, float *o)
{
    clattn_context_options options;
    clattn_context_options_init(&options);
    options.device = CLATTN_DEVICE_NONE;
    clattn_context *host;
    if (clattn_context_create(&options, &host)) return fail("context");
    const clattn_status status = clattn_attention(host, p, q, k, v, o, NULL);
    clattn_context_release(host);
    return status ? fail("attention") : 0;
}

/* The first device of any platform; NULL when there is none. */
static cl_device_id first_device(void)
{
    cl_platform_id platforms[8];
    cl_uint n = 0;
    cl_device_id device;
    if (clGetPlatformIDs(8, platforms, &n) != CL_SUCCESS) return NULL;
    for (cl_uint i = 0; i < n && i < 8; i++)
        if (clGetDeviceIDs(platforms[i], CL_DEVICE_TYPE_ALL, 1, &device, NULL) == CL_SUCCESS) return device;
    return NULL;
}

static int run_on_device(cl_device_id device, const clattn_problem *p, const float *q, const float *k, const float *v,
                         float *o)
{
    cl_int code;
    cl_context cl = clCreateContext(NULL, 1, &device, NULL, NULL, &code);
    if (code) return fprintf(stderr, "clCreateContext: %d\n", code), 1;
    cl_command_queue queue = clCreateCommandQueue(cl, device, CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE, &code);
    if (code) return fprintf(stderr, "clCreateCommandQueue: %d\n", code), 1;

    const cl_mem_flags in = CL_MEM_READ_ONLY;
    cl_mem q_mem = clCreateBuffer(cl, in, sizeof(float) * SIZE_Q, NULL, &code);
    cl_mem k_mem = clCreateBuffer(cl, in, sizeof(float) * SIZE_KV, NULL, &code);
    cl_mem v_mem = clCreateBuffer(cl, in, sizeof(float) * SIZE_KV, NULL, &code);
    cl_mem o_mem = clCreateBuffer(cl, CL_MEM_WRITE_ONLY, sizeof(float) * SIZE_Q, NULL, &code);
    if (code) return fprintf(stderr, "clCreateBuffer: %d\n", code), 1;

    clattn_context *context;
    clattn_plan *plan;
    if (clattn_context_create_from_cl(cl, device, NULL, &context)) return fail("context");
    if (clattn_plan_create(context, p, NULL, &plan)) return fail("plan");
    printf("%s", clattn_plan_explain(plan));

    clattn_forward_args args;
    clattn_forward_args_init(&args);
    args.q = clattn_cl_buffer(q_mem, 0);
    args.k = clattn_cl_buffer(k_mem, 0);
    args.v = clattn_cl_buffer(v_mem, 0);
    args.o = clattn_cl_buffer(o_mem, 0);

    /* Nothing waits but what must: the uploads run in any order, the kernel after all three, the download after it. */
    cl_event uploaded[3], computed;
    clEnqueueWriteBuffer(queue, q_mem, CL_FALSE, 0, sizeof(float) * SIZE_Q, q, 0, NULL, &uploaded[0]);
    clEnqueueWriteBuffer(queue, k_mem, CL_FALSE, 0, sizeof(float) * SIZE_KV, k, 0, NULL, &uploaded[1]);
    clEnqueueWriteBuffer(queue, v_mem, CL_FALSE, 0, sizeof(float) * SIZE_KV, v, 0, NULL, &uploaded[2]);
    if (clattn_enqueue_forward(plan, queue, &args, 3, uploaded, &computed)) return fail("enqueue");
    code = clEnqueueReadBuffer(queue, o_mem, CL_TRUE, 0, sizeof(float) * SIZE_Q, o, 1, &computed, NULL);

    for (int i = 0; i < 3; i++) clReleaseEvent(uploaded[i]);
    clReleaseEvent(computed);
    clattn_plan_release(plan);
    clattn_context_release(context);
    clReleaseMemObject(q_mem);
    clReleaseMemObject(k_mem);
    clReleaseMemObject(v_mem);
    clReleaseMemObject(o_mem);
    clReleaseCommandQueue(queue);
    clReleaseContext(cl);
    return code ? fprintf(stderr, "clEnqueueReadBuffer: %d\n", code), 1 : 0;
}

int main(void)
{
    static float q[SIZE_Q], k[SIZE_KV], v[SIZE_KV], host[SIZE_Q], o[SIZE_Q];
    for (int i = 0; i < SIZE_Q; i++) q[i] = (float)(i * 7919LL % 1000) / 500 - 1;
    for (int i = 0; i < SIZE_KV; i++) k[i] = (float)(i * 104729LL % 1000) / 500 - 1;
    for (int i = 0; i < SIZE_KV; i++) v[i] = (float)(i * 1299709LL % 1000) / 500 - 1;

    clattn_problem p;
    clattn_problem_init(&p, CLATTN_DTYPE_F32, BATCH, HEADS_Q, HEADS_KV, N_Q, N_KV, DIM);
    p.mask.window_right = 0;     /* causal, */
    p.query_offset = N_KV - N_Q; /* the queries at the end of the keys */
    if (run_on_host(&p, q, k, v, host)) return 1;

    cl_device_id device = first_device();
    if (!device) {
        printf("no OpenCL platform: ran on the host path\n");
        printf("o = %.6f %.6f %.6f %.6f\n", (double)host[0], (double)host[1], (double)host[2], (double)host[3]);
        return 0;
    }
    if (run_on_device(device, &p, q, k, v, o)) return 1;
    double worst = 0;
    for (int i = 0; i < SIZE_Q; i++) worst = fmax(worst, fabs((double)o[i] - (double)host[i]));
    printf("o = %.6f %.6f %.6f %.6f\n", (double)o[0], (double)o[1], (double)o[2], (double)o[3]);
    printf("host path: %.6f %.6f %.6f %.6f\n", (double)host[0], (double)host[1], (double)host[2], (double)host[3]);
    printf("largest difference from the host path: %.2g\n", worst);
    return worst > 5e-6;
}
