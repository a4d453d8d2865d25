/* Where a user's files of clattn's lie: built programs, and tuning.txt. */
#ifndef CLATTN_USER_FOLDER_H
#define CLATTN_USER_FOLDER_H

#include <stdbool.h>
#include <stddef.h>

/* CLATTN_CACHE_DIR, else XDG_CACHE_HOME/clattn, else HOME/.cache/clattn; absolute, or as CLATTN_CACHE_DIR has it.
 * NULL; or why there is none, and folder is "". */
const char *clattn__user_folder(char *folder, size_t size);

/* The program runs with more rights than its user, whose environment names no files then. */
bool clattn__has_more_rights(void);

#endif
