/* Host arrays in, attention out, in one call. */
#include <clattn/clattn.h>

#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    const int64_t batch = 1, heads = 4, n = 300, dim = 64;
    const size_t size = (size_t)(batch * heads * n * dim);
    float *q = malloc(size * sizeof *q), *k = malloc(size * sizeof *k);
    float *v = malloc(size * sizeof *v), *o = malloc(size * sizeof *o);
    if (!q || !k || !v || !o) return 1;
    for (size_t i = 0; i < size; i++) {
        q[i] = (float)(i * 7919 % 1000) / 500 - 1;
        k[i] = (float)(i * 104729 % 1000) / 500 - 1;
        v[i] = (float)(i * 1299709 % 1000) / 500 - 1;
    }

    /* README: begin */
    clattn_problem p; /* Q, K, V and O are [batch, heads, n, dim], f32 */
    clattn_problem_init(&p, CLATTN_DTYPE_F32, batch, heads, heads, n, n, dim);
    p.mask.window_right = 0; /* causal, top-left: the first row sees the first key */
    if (clattn_attention(NULL, &p, q, k, v, o, /*lse*/ NULL) != CLATTN_STATUS_SUCCESS) {
        fprintf(stderr, "%s\n", clattn_last_error()->message);
        return 1;
    }
    /* README: end */

    printf("o[0, 0, %d, 0..3] = %.5f %.5f %.5f %.5f\n", (int)n - 1, (double)o[(n - 1) * dim],
           (double)o[(n - 1) * dim + 1], (double)o[(n - 1) * dim + 2], (double)o[(n - 1) * dim + 3]);
    free(q), free(k), free(v), free(o);
    return 0;
}
