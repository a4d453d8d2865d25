/* Whether a device's matrix engine may be trusted. */
#ifndef CLATTN_ENGINE_H
#define CLATTN_ENGINE_H

#include "device.h"
#include "plan.h"

extern const char *const clattn__engine_names[ENGINE_COUNT];

/* The kernel that its numbers are held against: one that the device must build, or for a CPU device the host path's. */
clattn_kernel clattn__engine_judge(matrix_engine engine);

/* What a device that fails with this one may have yet. */
matrix_engine clattn__engine_below(matrix_engine engine);

/* SUCCESS when its kernel by this engine gives the judge's numbers on a small problem of this type, else why the
 * engine is left aside. Found out once per context. */
clattn_status clattn__engine_check(clattn_context *context, device *d, matrix_engine engine, clattn_dtype dtype);

#endif
