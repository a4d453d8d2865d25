#include "fault_alloc.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

static atomic_long calls, injected, live, fail_at;
static atomic_bool sticky;

void fault_alloc_arm(long nth, int is_sticky)
{
    atomic_store(&fail_at, nth);
    atomic_store(&sticky, is_sticky != 0);
    atomic_store(&calls, 0);
    atomic_store(&injected, 0);
}

long fault_alloc_calls(void) { return atomic_load(&calls); }
long fault_alloc_injected(void) { return atomic_load(&injected); }
long fault_alloc_live(void) { return atomic_load(&live); }

static bool fails(void)
{
    const long n = atomic_fetch_add(&calls, 1) + 1, at = atomic_load(&fail_at);
    if (!at || (atomic_load(&sticky) ? n < at : n != at)) return false;
    atomic_fetch_add(&injected, 1);
    errno = ENOMEM;
    return true;
}

static void *counted(void *at)
{
    if (at) atomic_fetch_add(&live, 1);
    return at;
}

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names */
void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *at, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
char *__real_strdup(const char *s);
void __real_free(void *at);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *at, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
char *__wrap_strdup(const char *s);
void __wrap_free(void *at);

void *__wrap_malloc(size_t size) { return fails() ? NULL : counted(__real_malloc(size)); }
void *__wrap_calloc(size_t n, size_t size) { return fails() ? NULL : counted(__real_calloc(n, size)); }
void *__wrap_aligned_alloc(size_t a, size_t size) { return fails() ? NULL : counted(__real_aligned_alloc(a, size)); }
char *__wrap_strdup(const char *s) { return fails() ? NULL : counted(__real_strdup(s)); }

void *__wrap_realloc(void *at, size_t size)
{
    if (fails()) return NULL;
    return at ? __real_realloc(at, size) : counted(__real_realloc(at, size));
}

void __wrap_free(void *at)
{
    if (at) atomic_fetch_sub(&live, 1);
    __real_free(at);
}
/* NOLINTEND(bugprone-reserved-identifier) */
