/* main() of the Check programs. */
#include "harness.h"

int main(void)
{
    setenv("CK_DEFAULT_TIMEOUT", "0", 0); /* a cold kernel build may outlast Check's four seconds */
    setenv("CLATTN_CACHE", "0", 0);       /* a binary of before hides what was changed since */
    setenv("CLATTN_TUNING", "0", 0);      /* so does what was measured on this machine */
    SRunner *runner = srunner_create(test_suite());
    srunner_run_all(runner, CK_NORMAL);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
