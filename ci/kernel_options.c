/* The kernels that a made-up GPU would run a problem with, and their -D lists, a line each, for ci/offline:
 *   kernel_options KERNEL|ENGINE "PROBLEM" KIB           an engine: attn_fwd_mma by it, else by mma_sync
 * The GPU has so much local memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <clattn/clattn.h>

#include "engine.h"
#include "plan.h"

int main(int argc, char **argv)
{
    matrix_engine engine = ENGINE_NONE;
    for (int i = ENGINE_COUNT - 1; argc == 4 && i > ENGINE_NONE; i--)
        if (!strcmp(argv[1], clattn__engine_names[i])) engine = (matrix_engine)i;
    const device_profile gpu = {.name = "a made-up GPU",
                                .has_fp64 = true,
                                .local_bytes = argc == 4 ? strtol(argv[3], NULL, 10) << 10 : 0,
                                .max_alloc_bytes = INT64_C(1) << 33,
                                .max_work_group_size = 1024,
                                .engine = engine ? engine : ENGINE_MMA_SYNC};
    clattn_plan_options options;
    clattn_problem given;
    problem p;
    device_choice c;
    bool is_last;
    clattn_plan_options_init(&options);
    if (engine) options.kernel = CLATTN_KERNEL_ATTN_FWD_MMA;
    for (int k = 1; argc == 4 && k < 32; k++)
        if (!strcmp(argv[1], clattn_kernel_name((clattn_kernel)k))) options.kernel = (clattn_kernel)k;
    if (options.kernel == CLATTN_KERNEL_ATTN_BWD) options.pass = CLATTN_PASS_BACKWARD;
    if (argc != 4 || clattn_problem_from_text(argv[2], &given) || clattn__problem_make(&given, &p) ||
        clattn__plan_device(&p, &gpu, &options, 0, &c, &is_last)) {
        fprintf(stderr, "kernel_options: %s\n", argc == 4 ? clattn_last_error()->message : "KERNEL PROBLEM KIB");
        return 1;
    }
    for (int s = 0; s < c.n_stages; s++) {
        printf("%s", c.stages[s].name);
        for (axis a = 0; a < AXIS_COUNT; a++)
            printf(" -D%s=%d", clattn__axis_names[a], clattn__plan_axis(&c, &c.stages[s], a));
        printf("\n");
    }
    return 0;
}
