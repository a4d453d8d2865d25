/* Random problems, each way beside the float64 reference. A problem is a list of small numbers, so that one that fails can be
 * made smaller number by number; it is printed as one line of problem text and as that list.
 *
 *   random_problems host|device COUNT [SEED]   COUNT problems; SEED is printed and default 1
 *   random_problems one NUMBERS                the problem of a list, "1,0,2,..."
 *
 * A child process runs the problems, so that one that crashes is found and shrunk like one that is wrong. */
#define _DEFAULT_SOURCE
#include "problem_numbers.h"

#include <inttypes.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int64_t rarely(uint64_t *state, int64_t one_in, int64_t n)
{
    return numbers_below(state, one_in) ? 0 : 1 + numbers_below(state, n);
}

/* Small as a rule. */
static int64_t size_of(uint64_t *state, int64_t most)
{
    const int64_t r = numbers_below(state, 16);
    return numbers_below(state, r == 0 ? most : r < 6 ? most / 4 + 2 : most / 16 + 2);
}

/* Problem i of a seed. Those of a device come in twenties with the same kernel, which takes long to build. */
static numbers problem_make(uint64_t seed, uint64_t i, bool device)
{
    uint64_t v = seed * 1000003 + (device ? i / 20 * 7919 + 500 : i), s = seed * 77777 + i * 31 + 5;
    numbers p = {{0}};
    for (int k = 0; k < 4; k++) numbers_next(&v), numbers_next(&s);
    p.n[DTYPE] = numbers_below(&v, 5) % 4; /* f32 twice */
    p.n[WAY] = device ? NUMBERS_HOST_WAYS + numbers_below(&v, NUMBERS_WAYS - NUMBERS_HOST_WAYS)
                      : numbers_below(&v, NUMBERS_HOST_WAYS);
    if (p.n[WAY] == NUMBERS_MMA) p.n[DTYPE] = 1 + p.n[DTYPE] % 2; /* f16 and bf16 */
    p.n[DIM] = size_of(&v, p.n[WAY] == NUMBERS_MMA ? 128 : 280);
    p.n[DIM_V] = rarely(&v, 3, 90);
    p.n[SOFTCAP] = rarely(&v, 5, 3);
    p.n[ALIBI] = rarely(&v, 5, 2);
    p.n[BIAS] = rarely(&v, 4, 20);
    p.n[MASK] = rarely(&v, 4, 5);
    p.n[SINKS] = rarely(&v, 5, 1);
    p.n[DROPOUT] = rarely(&v, 6, 2);
    p.n[VARLEN] = rarely(&v, 8, 1);
    const bool windows = numbers_below(&v, 2);
    p.n[BLOCK_Q] = device ? 16 << numbers_below(&v, 3) : rarely(&s, 3, 70);
    p.n[BLOCK_KV] = device ? 16 << numbers_below(&v, 3) : rarely(&s, 3, 300);
    p.n[BATCH] = size_of(&s, 4);
    p.n[HEADS_KV] = size_of(&s, 6);
    p.n[GROUP] = rarely(&s, 2, 5);
    p.n[N_Q] = p.n[WAY] == 1 || p.n[WAY] == 4 ? size_of(&s, 24) : size_of(&s, 200);
    p.n[N_KV] = size_of(&s, numbers_below(&s, 12) ? 300 : 2500);
    p.n[LEFT] = windows ? rarely(&s, 2, 60) : 0;
    p.n[RIGHT] =
        windows && !(p.n[LEFT] && numbers_below(&s, 2)) ? 1 + (numbers_below(&s, 2) ? 0 : numbers_below(&s, 30)) : 0;
    p.n[OFFSET] = rarely(&s, 3, 200);
    p.n[KV_LENGTH] = p.n[VARLEN] ? 0 : rarely(&s, 4, p.n[N_KV] + 2);
    p.n[SCALE] = rarely(&s, 5, 4);
    p.n[BSHD] = p.n[VARLEN] ? 0 : rarely(&s, 4, 1);
    p.n[DATA] = rarely(&s, 3, 7);
    p.n[BACKWARD] = p.n[DATA] == 0 ? rarely(&s, 4, 1) : 0;
    p.n[SEED] = numbers_below(&s, 1000);
    return p;
}

/* ---- running in a child */

/* What parent and child share. */
static struct {
    numbers one; /* the problem at work */
    uint64_t done;
} * shared;

static struct {
    uint64_t seed, count;
    bool device, only_one;
} task;

START_TEST(run)
{
    if (task.only_one) numbers_run(&shared->one);
    for (uint64_t i = shared->done; !task.only_one && i < task.count; i++) {
        shared->one = problem_make(task.seed, i, task.device);
        shared->done = i;
        numbers_run(&shared->one);
    }
}
END_TEST

/* Whether all was well; loud: with what Check prints. */
static bool child_runs(bool loud)
{
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        Suite *suite = suite_create("random problems");
        tcase_add_test(test_case(suite, "all"), run);
        SRunner *runner = srunner_create(suite);
        srunner_set_fork_status(runner, CK_NOFORK);
        srunner_run_all(runner, CK_SILENT);
        TestResult **results = srunner_failures(runner);
        const int failed = srunner_ntests_failed(runner);
        if (failed && loud) printf("%s\n", tr_msg(results[0]));
        fflush(stdout);
        _exit(failed);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (loud && WIFSIGNALED(status)) printf("signal %d\n", WTERMSIG(status));
    return status == 0;
}

/* Each number to 0, else halved, else one less, as long as it still fails. */
static void shrink(void)
{
    task.only_one = true;
    for (bool smaller = true; smaller;) {
        smaller = false;
        for (int i = 0; i < FIELDS; i++) {
            const numbers before = shared->one;
            const int64_t n = before.n[i], tries[3] = {0, n / 2, n - 1};
            for (int k = 0; k < 3 && i != WAY; k++) {
                shared->one = before;
                if (tries[k] >= n) continue;
                shared->one.n[i] = tries[k];
                if (!child_runs(false)) {
                    smaller = true;
                    break;
                }
                shared->one = before;
            }
        }
    }
    numbers_print(&shared->one);
    child_runs(true);
}

Suite *test_suite(void) { return NULL; }

int main(int argc, char **argv)
{
    setenv("CLATTN_CACHE", "0", 0); /* as in main.c */
    setenv("CLATTN_TUNING", "0", 0);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (argc == 3 && !strcmp(argv[1], "one")) {
        const char *s = argv[2];
        char *end;
        for (int i = 0; i < FIELDS; i++, s = *end ? end + 1 : end) shared->one.n[i] = strtoll(s, &end, 10);
        task.only_one = true;
        numbers_print(&shared->one);
        return !child_runs(true);
    }
    if (argc < 3 || (strcmp(argv[1], "host") && strcmp(argv[1], "device"))) {
        fprintf(stderr, "usage: random_problems host|device COUNT [SEED] | one NUMBERS\n");
        return 2;
    }
    task.device = !strcmp(argv[1], "device");
    task.count = strtoull(argv[2], NULL, 10);
    task.seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    printf("random problems: %" PRIu64 " on the %s, seed %" PRIu64 "\n", task.count, argv[1], task.seed);
    if (child_runs(true)) {
        printf("%" PRIu64 " passed, 0 failed\n", task.count);
        return 0;
    }
    printf("problem %" PRIu64 " of seed %" PRIu64 ": ", shared->done, task.seed);
    numbers_print(&shared->one);
    shrink();
    printf("%" PRIu64 " passed, 1 failed\n", shared->done);
    return 1;
}
