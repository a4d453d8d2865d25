#include "engine.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <clattn/clattn.h>

#include "error.h"
#include "half.h"

/* A GQA group of two, two query tiles or more, kv blocks that the mask cuts and others; columns that fill no step, of the
 * head dims that have tiles of their own; a NaN in V that the last row alone sees; in f16 a column of V that is
 * subnormal, for some engines (AMD's MI200) take such numbers for 0. The lanes kernels' has no mask. */
enum {
    HEADS = 2,
    N_Q = 134,
    N_KV = 397,
    DIM_MOST = 72,
    O_SIZE = HEADS * N_Q * DIM_MOST,
    LSE_SIZE = HEADS * N_Q,
    SMALL_COLUMN = 3
};

typedef struct trial {
    uint16_t q[HEADS * N_Q * DIM_MOST], k[N_KV * DIM_MOST], v[N_KV * DIM_MOST], o[O_SIZE];
    float lse[LSE_SIZE];
} trial;

/* Numbers in [-2, 2] that every type has. */
static void fill(uint16_t *to, int n, uint32_t seed, clattn_dtype dtype)
{
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        const float x = (float)((int)(seed >> 24) - 128) / 64;
        to[i] = dtype == CLATTN_DTYPE_F16 ? f16_of_f32(x) : bf16_of_f32(x);
    }
}

const char *const clattn__engine_names[ENGINE_COUNT] = {
    [ENGINE_NONE] = "none",
    [ENGINE_EMULATED] = "emulated",
    [ENGINE_MMA_SYNC] = "mma_sync",
    [ENGINE_WGMMA] = "wgmma",
    [ENGINE_EMULATED_MFMA] = "emulated_mfma",
    [ENGINE_MFMA] = "mfma",
    [ENGINE_EMULATED_DPAS] = "emulated_dpas",
    [ENGINE_DPAS] = "dpas",
    [ENGINE_EMULATED_WMMA_GFX11] = "emulated_wmma_gfx11",
    [ENGINE_WMMA_GFX11] = "wmma_gfx11",
    [ENGINE_EMULATED_WMMA_GFX12] = "emulated_wmma_gfx12",
    [ENGINE_WMMA_GFX12] = "wmma_gfx12",
    [ENGINE_EMULATED_PAIRS] = "emulated_pairs",
    [ENGINE_VDPBF16PS] = "vdpbf16ps",
};

/* The forward kernel that it serves. */
static clattn_kernel engine_kernel(matrix_engine engine)
{
    return engine_is_lanes(engine) ? CLATTN_KERNEL_ATTN_FWD_LANES : CLATTN_KERNEL_ATTN_FWD_MMA;
}

clattn_kernel clattn__engine_judge(matrix_engine engine)
{
    return engine_is_lanes(engine) ? CLATTN_KERNEL_HOST_TILE : CLATTN_KERNEL_ATTN_FWD;
}

matrix_engine clattn__engine_below(matrix_engine engine)
{
    return engine == ENGINE_WGMMA ? ENGINE_MMA_SYNC : ENGINE_NONE;
}

/* The trial's problem on the device with this engine, or on the host path. */
static clattn_status run(clattn_context *context, device *d, matrix_engine engine, clattn_dtype dtype, int dim,
                         clattn_kernel kernel, trial *t)
{
    clattn_problem given;
    clattn_plan_options options;
    clattn_forward_args args;
    problem p;
    device_choice choice;
    device_plan *plan;
    bool is_last;
    clattn_problem_init(&given, dtype, 1, HEADS, 1, N_Q, N_KV, dim);
    clattn_plan_options_init(&options);
    options.kernel = kernel;
    if (engine_is_lanes(engine)) {
        options.block_q = 16; /* no window and one vector of rows: on CPUs kernels take long to build */
    } else {
        given.mask.window_right = 0;
        given.query_offset = N_KV - N_Q;
    }
    FORWARD(clattn__problem_make(&given, &p));
    fill(t->q, HEADS * N_Q * dim, 1, dtype);
    fill(t->k, N_KV * dim, 2, dtype);
    fill(t->v, N_KV * dim, 3, dtype);
    t->v[(N_KV - 1) * dim] = 0x7fff; /* NaN in both types */
    for (int j = 0; dtype == CLATTN_DTYPE_F16 && j < N_KV; j++) t->v[j * dim + SMALL_COLUMN] = (uint16_t)(500 + j);
    clattn_forward_args_init(&args);
    args.q = clattn_host_buffer(t->q);
    args.k = clattn_host_buffer(t->k);
    args.v = clattn_host_buffer(t->v);
    args.o = clattn_host_buffer(t->o);
    args.lse = clattn_host_buffer(t->lse);
    if (kernel == CLATTN_KERNEL_HOST_TILE) {
        host_plan host;
        FORWARD(clattn__plan_host(&p, &options, 1, &host));
        return clattn__host_forward(&host, &p, context->threads, &args);
    }
    device_profile profile = *clattn__device_profile(d);
    profile.engine = engine;
    FORWARD(clattn__plan_device(&p, &profile, &options, 0, &choice, &is_last));
    FORWARD(clattn__device_plan_create(d, context, &p, &choice, &plan));
    const clattn_status status = clattn__device_run(plan, &p, &args, NULL, true, NULL);
    clattn__device_plan_free(plan);
    return status;
}

static clattn_status check(clattn_context *context, device *d, matrix_engine engine, clattn_dtype dtype, int dim,
                           trial *a, trial *b)
{
    const float o_most = dtype == CLATTN_DTYPE_F16 ? 0x1p-8F : 0x1p-5F, small_most = 0x1p-21F,
                lse_most = 1e-4F; /* |O| is at most 2 */
    const clattn_kernel kernel = engine_kernel(engine), known = clattn__engine_judge(engine);
    const char *name = clattn_kernel_name(kernel), *known_name = clattn_kernel_name(known);
    FORWARD(run(context, d, engine, dtype, dim, known, a));
    FORWARD(run(context, d, engine, dtype, dim, kernel, b));
    for (int i = 0; i < HEADS * N_Q * dim; i++) {
        const float x = dtype == CLATTN_DTYPE_F16 ? f32_of_f16(a->o[i]) : f32_of_bf16(a->o[i]);
        const float y = dtype == CLATTN_DTYPE_F16 ? f32_of_f16(b->o[i]) : f32_of_bf16(b->o[i]);
        const bool is_small = dtype == CLATTN_DTYPE_F16 && i % dim == SMALL_COLUMN;
        RETURN_IF(!(fabsf(x - y) <= (is_small ? small_most : o_most)) && !(isnan(x) && isnan(y)), UNSUPPORTED,
                  "%s by %s is left aside on %s: in %s it gives O %g where %s gives %g", name,
                  clattn__engine_names[engine], clattn__device_profile(d)->name, clattn_dtype_name(dtype), (double)y,
                  known_name, (double)x);
    }
    for (int i = 0; i < LSE_SIZE; i++)
        RETURN_IF(!(fabsf(a->lse[i] - b->lse[i]) <= lse_most), UNSUPPORTED,
                  "%s by %s is left aside on %s: in %s it gives LSE %g where %s gives %g", name,
                  clattn__engine_names[engine], clattn__device_profile(d)->name, clattn_dtype_name(dtype),
                  (double)b->lse[i], known_name, (double)a->lse[i]);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__engine_check(clattn_context *context, device *d, matrix_engine engine, clattn_dtype dtype)
{
    engine_trial *kept = &context->engine_trials[engine][dtype == CLATTN_DTYPE_BF16], seen;
    clattn__context_lock(context);
    seen = *kept;
    pthread_mutex_unlock(&context->lock);
    if (!seen.is_over) { /* without the lock, for it logs; two threads may try at once */
        trial *t = malloc(2 * sizeof *t);
        RETURN_IF(!t, OUT_OF_HOST_MEMORY, "no room for %zu bytes of a matrix engine's trial", 2 * sizeof *t);
        clattn_status status = CLATTN_STATUS_SUCCESS;
        if (!engine_is_lanes(engine)) status = check(context, d, engine, dtype, DIM_MOST, t, t + 1);
        if (status == CLATTN_STATUS_SUCCESS) status = check(context, d, engine, dtype, DIM_MOST / 2, t, t + 1);
        free(t);
        if (status == CLATTN_STATUS_OUT_OF_HOST_MEMORY || status == CLATTN_STATUS_OUT_OF_DEVICE_MEMORY) return status;
        seen.is_over = true;
        if (status != CLATTN_STATUS_SUCCESS)
            snprintf(seen.refused, sizeof seen.refused, "%.*s", (int)sizeof seen.refused - 1,
                     clattn_last_error()->message);
        clattn__context_lock(context);
        *kept = seen;
        pthread_mutex_unlock(&context->lock);
    }
    RETURN_IF(seen.refused[0], UNSUPPORTED, "%s", seen.refused);
    return CLATTN_STATUS_SUCCESS;
}
