/* Allocations of the static library and the tests, made to fail: link with fault_alloc_wrap of CMakeLists.txt, which has the
 * linker put these functions in malloc's place. */
#ifndef CLATTN_TEST_FAULT_ALLOC_H
#define CLATTN_TEST_FAULT_ALLOC_H

/* The nth allocation from now on fails, counted from 1, and with sticky each after it; 0: none. */
void fault_alloc_arm(long nth, int sticky);

long fault_alloc_calls(void);    /* since the last arm */
long fault_alloc_injected(void); /* of those, failed */
long fault_alloc_live(void);     /* allocated and not freed since the program began */

#endif
