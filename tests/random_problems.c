/* Random problems, each way beside the float64 reference. A problem is a list of small numbers, so that one that fails can be
 * made smaller number by number; it is printed as one line of problem text and as that list.
 *
 *   random_problems host|device COUNT [SEED [FIRST]]   problems FIRST (default 0) to COUNT - 1 of SEED (default 1)
 *   random_problems one NUMBERS                        the problem of a list, "1,0,2,..."
 *
 * With CLATTN_TEST_SHRINK=0 one that fails stays as it is.
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
    const bool is_of_many = task.count >= 50000;
    if (task.only_one) numbers_run(&shared->one, is_of_many);
    for (uint64_t i = shared->done; !task.only_one && i < task.count; i++) {
        shared->one = numbers_make(task.seed, i, task.device);
        shared->done = i;
        numbers_run(&shared->one, is_of_many);
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
        free(results);
        fflush(stdout);
        exit(failed); /* what counts and checks at the end has its turn */
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
                if (tries[k] >= n || tries[k] < 0) continue;
                shared->one.n[i] = tries[k];
                if (numbers_make_sense(&shared->one) && !child_runs(false)) {
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
        fprintf(stderr, "usage: random_problems host|device COUNT [SEED [FIRST]] | one NUMBERS\n");
        return 2;
    }
    task.device = !strcmp(argv[1], "device");
    task.count = strtoull(argv[2], NULL, 10);
    task.seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    const uint64_t first = shared->done = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;
    printf("random problems: %" PRIu64 " to %" PRIu64 " on the %s, seed %" PRIu64 "\n", first, task.count, argv[1],
           task.seed);
    if (child_runs(true)) {
        printf("%" PRIu64 " passed, 0 failed\n", task.count - first);
        return 0;
    }
    printf("problem %" PRIu64 " of seed %" PRIu64 ": ", shared->done, task.seed);
    numbers_print(&shared->one);
    const char *shrinks = getenv("CLATTN_TEST_SHRINK");
    if (!shrinks || strcmp(shrinks, "0")) shrink();
    printf("%" PRIu64 " passed, 1 failed\n", shared->done - first);
    return 1;
}
