/* A problem from a byte a number: the host path beside the reference. A finding is printed for
 * `random_problems one`. */
#include "problem_numbers.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

Suite *test_suite(void) { return NULL; }

static numbers problem;

START_TEST(run) { numbers_run(&problem, true); }
END_TEST

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
    problem = p;
    Suite *suite = suite_create("fuzz"); /* Check's assertions work in its tests alone */
    tcase_add_test(test_case(suite, "one"), run);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_SILENT);
    if (srunner_ntests_failed(runner)) {
        TestResult **failures = srunner_failures(runner);
        printf("%s\n", tr_msg(failures[0]));
        numbers_print(&p);
        abort();
    }
    srunner_free(runner);
    return 0;
}
