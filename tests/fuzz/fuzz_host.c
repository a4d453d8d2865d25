/* A problem from a byte a number: the host path beside the reference. A finding's numbers: CLATTN_FUZZ_PRINT=1 fuzz_host FILE,
 * then `random_problems one`. */
#include "problem_numbers.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

Suite *test_suite(void) { return NULL; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const int64_t most[FIELDS] = {[DTYPE] = 4,      [WAY] = NUMBERS_HOST_WAYS,
                                         [BATCH] = 3,      [HEADS_KV] = 3,
                                         [GROUP] = 3,      [N_Q] = 80,
                                         [N_KV] = 150,     [DIM] = 70,
                                         [DIM_V] = 40,     [LEFT] = 50,
                                         [RIGHT] = 50,     [OFFSET] = 200,
                                         [KV_LENGTH] = 1,  [SCALE] = 5,
                                         [SOFTCAP] = 4,    [ALIBI] = 3,
                                         [BIAS] = 21,      [MASK] = 6,
                                         [SINKS] = 2,      [DROPOUT] = 3,
                                         [VARLEN] = 2,     [BSHD] = 2,
                                         [DATA] = 8,       [BLOCK_Q] = 80,
                                         [BLOCK_KV] = 100, [BACKWARD] = 2,
                                         [SEED] = 256};
    numbers p = {{0}};
    for (size_t i = 0; i < FIELDS && i < size; i++) p.n[i] = data[i] % most[i];
    if (FIELDS < size && !p.n[VARLEN]) p.n[KV_LENGTH] = data[FIELDS] % (p.n[N_KV] + 3);
    if (p.n[VARLEN]) p.n[BSHD] = 0;
    if (p.n[DATA]) p.n[BACKWARD] = 0;
    if (getenv("CLATTN_FUZZ_PRINT")) numbers_print(&p);
    numbers_run(&p);
    return 0;
}
