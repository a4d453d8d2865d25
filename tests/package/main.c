/* What someone else's first program looks like: the queries are 0, so each row of O is the mean of the V rows it sees. */
#include <stdio.h>
#include <string.h>

#include <clattn/clattn.h>

int main(void)
{
    static float q[3 * 4], k[3 * 4], o[3 * 4], lse[3];
    const float v[3 * 4] = {3, 6, 9, 12, 5, 2, 1, 0, 1, 1, 2, 3}, want[3 * 4] = {3, 6, 9, 12, 4, 4, 5, 6, 3, 3, 4, 5};
    clattn_problem p;
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 1, 1, 3, 3, 4);
    p.mask.window_right = 0;
    if (clattn_attention(NULL, &p, q, k, v, o, lse) != CLATTN_STATUS_SUCCESS) {
        fprintf(stderr, "%s\n", clattn_last_error()->message);
        return 1;
    }
    for (int i = 0; i < 12; i++)
        if (o[i] - want[i] > 1e-5F || want[i] - o[i] > 1e-5F) {
            fprintf(stderr, "O[%d] is %g, not %g\n", i, (double)o[i], (double)want[i]);
            return 1;
        }
    if (strcmp(clattn_version(), "0.1.0") || clattn_last_error()->status != CLATTN_STATUS_SUCCESS) return 1;
    puts("right");
    return 0;
}
