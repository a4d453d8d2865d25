/* The files of cl/, in the library. */
#ifndef CLATTN_EMBEDDED_H
#define CLATTN_EMBEDDED_H

#include <stddef.h>

typedef struct embedded_file {
    const char *name, *text; /* text ends with a 0 */
    size_t size;             /* without it */
} embedded_file;

extern const embedded_file clattn__embedded[]; /* the last has no name */

#endif
