/* A score function of the app's own: relative position bias from a table, as T5 has it. The device gets it as OpenCL C,
 * compiled into the kernel; the host path and the reference get the same in C. Compares it with the built-in bias. */
#include <clattn/clattn.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { HEADS = 4, N = 300, DIM = 64, SIZE = HEADS * N * DIM };

/* README: begin */
/* table: [heads, 2 N - 1] floats, one for each distance j - i from -(N - 1) to N - 1 */
static double relative_bias(double score, int64_t b, int64_t h, int64_t i, int64_t j, const void *table)
{
    (void)b;
    return (float)score + ((const float *)table)[h * (2 * N - 1) + j - i + N - 1];
}
static const char relative_bias_cl[] = "score + ((__global const float *)data)[h * 599 + j - i + 299]"; /* N is 300 */
/* README: end */

static int run(const clattn_problem *p, clattn_path path, const clattn_forward_args *args)
{
    clattn_plan_options options;
    clattn_plan *plan;
    clattn_plan_options_init(&options);
    options.path = path;
    const clattn_status status = clattn_plan_create(NULL, p, &options, &plan);
    if (status == CLATTN_STATUS_NO_DEVICE) return -1;
    if (status || clattn_forward(plan, args)) {
        fprintf(stderr, "%s\n", clattn_last_error()->message);
        exit(1);
    }
    clattn_plan_release(plan);
    return 0;
}

int main(void)
{
    static float q[SIZE], k[SIZE], v[SIZE], o[SIZE], o_builtin[SIZE], table[HEADS][2 * N - 1], bias[HEADS][N][N];
    for (int i = 0; i < SIZE; i++) {
        q[i] = (float)(i * 7919LL % 1000) / 500 - 1;
        k[i] = (float)(i * 104729LL % 1000) / 500 - 1;
        v[i] = (float)(i * 1299709LL % 1000) / 500 - 1;
    }
    for (int h = 0; h < HEADS; h++) {
        for (int d = 0; d < 2 * N - 1; d++) table[h][d] = (float)cos(d * 0.1 + h);
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) bias[h][i][j] = table[h][j - i + N - 1];
    }

    clattn_problem p, builtin;
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, HEADS, HEADS, N, N, DIM);
    builtin = p;
    p.score_function.host = relative_bias;
    p.score_function.source = relative_bias_cl;
    p.score_function.data_bytes = sizeof table;
    builtin.bias.dtype = CLATTN_DTYPE_F32;
    builtin.bias.strides = (clattn_score_strides){0, N * N, N, 1};

    clattn_forward_args args;
    clattn_forward_args_init(&args);
    args.q = clattn_host_buffer(q);
    args.k = clattn_host_buffer(k);
    args.v = clattn_host_buffer(v);
    args.bias = clattn_host_buffer(bias);
    args.score_data = clattn_host_buffer(table);
    for (int path = CLATTN_PATH_HOST; path <= CLATTN_PATH_DEVICE; path++) {
        double worst = 0;
        args.o = clattn_host_buffer(o);
        if (run(&p, (clattn_path)path, &args)) {
            printf("device: there is none\n");
            continue;
        }
        args.o = clattn_host_buffer(o_builtin);
        run(&builtin, (clattn_path)path, &args);
        for (int i = 0; i < SIZE; i++) worst = fmax(worst, fabs((double)o[i] - (double)o_builtin[i]));
        printf("%s: score function and built-in bias differ by %.2g\n", clattn_path_name((clattn_path)path), worst);
        if (worst > 0) return 1;
    }
    return 0;
}
