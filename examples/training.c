/* One attention layer fitted by gradient descent, on the host and on the first OpenCL device: the same loss at each step.
 *
 * The task: each token's output is the token before it, through a matrix that is to be found. Learned are the matrices of
 * Q, K and V and an additive bias, [1, HEADS, N, N], in which the layer finds out which token to look at. */
#include <clattn/clattn.h>

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 8, N = 32, HEADS = 2, DIM = 16, WIDTH = HEADS * DIM, ROWS = BATCH * N, STEPS = 200, PRINTED = 20 };
enum { N_W = WIDTH * WIDTH, N_BIAS = HEADS * N * N };

static float x[ROWS * WIDTH], target[ROWS * WIDTH]; /* [BATCH, N, WIDTH] */

/* What is learned, and likewise its gradient and the optimiser's averages: the matrices, [WIDTH, WIDTH], and the bias. */
typedef struct layer {
    float q[N_W], k[N_W], v[N_W], bias[N_BIAS];
} layer;

static float uniform(void)
{
    static unsigned state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1;
}

/* c [rows, columns] = a [rows, inner] b [inner, columns], elements of a at a_row and a_column. */
static void product(float *c, const float *a, int a_row, int a_column, const float *b, int rows, int inner, int columns)
{
    memset(c, 0, sizeof *c * (size_t)(rows * columns));
    for (int i = 0; i < rows; i++)
        for (int l = 0; l < inner; l++)
            for (int j = 0; j < columns; j++) c[i * columns + j] += a[i * a_row + l * a_column] * b[l * columns + j];
}

/* Adam: D. Kingma, J. Ba (2015). */
static void step(float *w, const float *gradient, float *m, float *v, int n, int t)
{
    const double rate = 0.02, b1 = 0.9, b2 = 0.99;
    for (int i = 0; i < n; i++) {
        m[i] = (float)(b1 * m[i] + (1 - b1) * gradient[i]);
        v[i] = (float)(b2 * v[i] + (1 - b2) * gradient[i] * gradient[i]);
        w[i] -= (float)(rate * m[i] / (1 - pow(b1, t)) / (sqrt(v[i] / (1 - pow(b2, t))) + 1e-8));
    }
}

static int failed(void)
{
    fprintf(stderr, "%s\n", clattn_last_error()->message);
    return 1;
}

/* Fits `from` on a path and keeps the loss of each step. */
static int train(clattn_path path, const layer *from, double losses[STEPS])
{
    static float q[ROWS * WIDTH], k[ROWS * WIDTH], v[ROWS * WIDTH], o[ROWS * WIDTH], lse[ROWS * HEADS];
    static float d_o[ROWS * WIDTH], dq[ROWS * WIDTH], dk[ROWS * WIDTH], dv[ROWS * WIDTH];
    static layer w, gradient, m, s;
    clattn_plan *forward, *backward;
    w = *from;
    memset(&m, 0, sizeof m);
    memset(&s, 0, sizeof s);

    clattn_problem p; /* Q, K, V and O are [BATCH, N, HEADS, DIM] */
    clattn_problem_init(&p, CLATTN_DTYPE_F32, BATCH, HEADS, HEADS, N, N, DIM);
    p.q = p.k = p.v = p.o = clattn_strides_bshd(HEADS, N, DIM);
    p.mask.window_right = 0; /* causal */
    p.bias.dtype = CLATTN_DTYPE_F32;
    p.bias.strides.head = N * N;
    p.bias.strides.q = N;
    p.bias.strides.kv = 1;

    /* README: begin */
    clattn_plan_options options;
    clattn_plan_options_init(&options);
    options.path = path; /* CLATTN_PATH_AUTO, the default, CLATTN_PATH_HOST or CLATTN_PATH_DEVICE */
    if (clattn_plan_create(NULL, &p, &options, &forward)) return failed();
    options.pass = CLATTN_PASS_BACKWARD;
    if (clattn_plan_create(NULL, &p, &options, &backward)) return failed();

    clattn_backward_args args;
    clattn_backward_args_init(&args);
    args.forward.q = clattn_host_buffer(q);
    args.forward.k = clattn_host_buffer(k);
    args.forward.v = clattn_host_buffer(v);
    args.forward.o = clattn_host_buffer(o);
    args.forward.lse = clattn_host_buffer(lse);
    args.forward.bias = clattn_host_buffer(w.bias);
    args.d_o = clattn_host_buffer(d_o);
    args.dq = clattn_host_buffer(dq);
    args.dk = clattn_host_buffer(dk);
    args.dv = clattn_host_buffer(dv);
    args.dbias = clattn_host_buffer(gradient.bias);
    /* README: end */

    for (int t = 0; t < STEPS; t++) {
        product(q, x, WIDTH, 1, w.q, ROWS, WIDTH, WIDTH);
        product(k, x, WIDTH, 1, w.k, ROWS, WIDTH, WIDTH);
        product(v, x, WIDTH, 1, w.v, ROWS, WIDTH, WIDTH);
        if (clattn_forward(forward, &args.forward)) return failed();
        losses[t] = 0;
        for (int i = 0; i < ROWS * WIDTH; i++) {
            const double off = (double)o[i] - (double)target[i];
            losses[t] += off * off / (ROWS * WIDTH);
            d_o[i] = (float)(2 * off / (ROWS * WIDTH));
        }
        if (clattn_backward(backward, &args)) return failed();
        product(gradient.q, x, 1, WIDTH, dq, WIDTH, ROWS, WIDTH);
        product(gradient.k, x, 1, WIDTH, dk, WIDTH, ROWS, WIDTH);
        product(gradient.v, x, 1, WIDTH, dv, WIDTH, ROWS, WIDTH);
        step(w.q, gradient.q, m.q, s.q, N_W, t + 1);
        step(w.k, gradient.k, m.k, s.k, N_W, t + 1);
        step(w.v, gradient.v, m.v, s.v, N_W, t + 1);
        step(w.bias, gradient.bias, m.bias, s.bias, N_BIAS, t + 1);
    }
    clattn_plan_release(forward);
    clattn_plan_release(backward);
    return 0;
}

int main(void)
{
    static float to_be_found[N_W];
    static layer start;
    static double host[STEPS], device[STEPS];
    for (int i = 0; i < ROWS * WIDTH; i++) x[i] = uniform();
    for (int i = 0; i < N_W; i++) {
        to_be_found[i] = uniform() / 2;
        start.q[i] = uniform() / 8;
        start.k[i] = uniform() / 8;
        start.v[i] = uniform() / 8;
    }
    product(target, x, WIDTH, 1, to_be_found, ROWS, WIDTH, WIDTH);
    for (int row = ROWS - 1; row >= 0; row--) /* of a sequence's first token: itself */
        if (row % N) memcpy(target + row * WIDTH, target + (row - 1) * WIDTH, sizeof *target * WIDTH);

    int n_devices = 0;
    if (clattn_device_count(&n_devices)) return failed();
    if (train(CLATTN_PATH_HOST, &start, host)) return 1;
    if (n_devices && train(CLATTN_PATH_DEVICE, &start, device)) return 1;
    printf("step   loss, host%s\n", n_devices ? "   loss, device" : "   (there is no device)");
    bool same = true;
    for (int t = 0; t < STEPS; t++) {
        same = same && (!n_devices || fabs(host[t] - device[t]) <= 1e-3 * host[0]);
        if (t % PRINTED && t != STEPS - 1) continue;
        printf("%4d   %10.6f", t, host[t]);
        if (n_devices) printf("   %12.6f", device[t]);
        printf("\n");
    }
    const bool learned = host[STEPS - 1] < host[0] / 20;
    if (!learned) fprintf(stderr, "the layer did not learn\n");
    if (!same) fprintf(stderr, "host and device differ\n");
    return learned && same ? 0 : 1;
}
