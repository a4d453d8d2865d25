/* NVIDIA's sm_90a instructions, for kernels that hold them in comments (cl/tile_mma_wgmma.clh). */
#include <stdlib.h>
#include <string.h>

#include "device_cl.h"

/* Every `from` becomes `to`, of the same length. How many there were? */
static int replace(char *in, size_t size, const char *from, const char *to)
{
    const size_t length = strlen(from);
    int n = 0;
    for (char *at = in; at + length <= in + size; at++) {
        if (memcmp(at, from, length)) continue;
        memcpy(at, to, length);
        n++;
    }
    return n;
}

clattn_status clattn__ptx_uncover_90a(const struct device *d, const char *name, cl_program built, cl_program *program)
{
    size_t size = 0;
    RETURN_IF_CL("clGetProgramInfo", clGetProgramInfo(built, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, NULL));
    char *ptx = malloc(size ? size : 1);
    RETURN_IF(!ptx, OUT_OF_HOST_MEMORY, "no room for %zu bytes of PTX", size);
    cl_int code = clGetProgramInfo(built, CL_PROGRAM_BINARIES, sizeof ptx, &ptx, NULL), state;
    if (code == CL_SUCCESS) {
        const bool is_ptx = replace(ptx, size, ".target sm_90, ", ".target sm_90a,") == 1;
        const int begun = replace(ptx, size, "/*@", "   "), ended = replace(ptx, size, "@*/", "   ");
        if (!is_ptx || !begun || begun != ended) {
            free(ptx);
            return clattn__fail(CLATTN_STATUS_BUILD_FAILED, 0,
                                "%s: what %s built is not PTX for sm_90 with %d instructions of sm_90a in comments",
                                name, d->profile.name, begun);
        }
        *program = clCreateProgramWithBinary(d->cl, 1, &d->id, &size, (const unsigned char *[]){(unsigned char *)ptx},
                                             &state, &code);
    }
    free(ptx);
    RETURN_IF_CL("clCreateProgramWithBinary", code);
    return CLATTN_STATUS_SUCCESS;
}
