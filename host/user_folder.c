#include "user_folder.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/auxv.h>
#endif

bool clattn__has_more_rights(void)
{
#ifdef __linux__
    if (getauxval(AT_SECURE)) return true; /* file capabilities too */
#endif
    return getuid() != geteuid() || getgid() != getegid();
}

const char *clattn__user_folder(char *folder, size_t size)
{
    const char *own = getenv("CLATTN_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    const char *base = own && *own ? own : xdg && *xdg == '/' ? xdg : home && *home == '/' ? home : NULL;
    const char *below = base == own ? "" : base == xdg ? "/clattn" : "/.cache/clattn";
    *folder = 0;
    if (!base) return "CLATTN_CACHE_DIR, XDG_CACHE_HOME, HOME are not set";
    if (clattn__has_more_rights()) return "the program runs with more rights than its user";
    if ((size_t)snprintf(folder, size, "%s%s", base, below) < size) return NULL;
    *folder = 0;
    return "the cache folder's name is too long";
}
