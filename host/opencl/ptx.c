/* NVIDIA's sm_90a instructions, for kernels that hold them in comments (cl/tile_mma_wgmma.clh). */
#include <stdlib.h>
#include <string.h>

#include "device_cl.h"

/* Every `from` becomes `to`, of the same length. How many there were? */
static int replace(char *in, size_t size, const char *from, const char *to)
{
    const size_t length = strlen(from);
    int n = 0;
    for (size_t at = 0; at + length <= size; at++) {
        if (memcmp(in + at, from, length)) continue;
        memcpy(in + at, to, length);
        n++;
    }
    return n;
}

clattn_status clattn__ptx_for_90a(char *ptx, size_t size)
{
    const int targets = replace(ptx, size, ".target sm_90, ", ".target sm_90a,");
    const int begun = replace(ptx, size, "/*@", "   "), ended = replace(ptx, size, "@*/", "   ");
    RETURN_IF(
        targets != 1 || !begun || begun != ended, BUILD_FAILED,
        "%zu bytes of PTX have %d targets sm_90, %d marks that open instructions of sm_90a and %d that close them",
        size, targets, begun, ended);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__ptx_uncover_90a(const struct device *d, cl_program built, cl_program *program)
{
    size_t size = 0;
    RETURN_IF_CL("clGetProgramInfo", clattn__binary_get(built, d->id, &size, NULL));
    char *ptx = malloc(size ? size : 1);
    RETURN_IF(!ptx, OUT_OF_HOST_MEMORY, "no room for %zu bytes of PTX", size);
    cl_int code = clattn__binary_get(built, d->id, &size, (unsigned char *)ptx), state;
    clattn_status status =
        code == CL_SUCCESS ? clattn__ptx_for_90a(ptx, size) : clattn__cl_fail("clGetProgramInfo", code);
    if (status == CLATTN_STATUS_SUCCESS) {
        *program = clCreateProgramWithBinary(d->cl, 1, &d->id, &size, (const unsigned char *[]){(unsigned char *)ptx},
                                             &state, &code);
        if (code != CL_SUCCESS) status = clattn__cl_fail("clCreateProgramWithBinary", code);
    }
    free(ptx);
    return status;
}
