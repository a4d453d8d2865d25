/* Tuning tables: the block sizes that a device's kernels take, and up to how many rows AUTO takes the host. A table
 * is text, a line an entry (docs/tuning.md): the user's, then the one that clattn ships. Finding is pure. */
#ifndef CLATTN_TUNING_H
#define CLATTN_TUNING_H

#include "plan.h"

struct clattn_context;

/* The user's table, for a new context: options.tuning, else the file's. What cannot be read, and lines that are no
 * entries, are left out and in the log. */
clattn_status clattn__tuning_open(struct clattn_context *context);

/* Block sizes for p on d, 0: automatic; false: both are. */
bool clattn__tuning_tile(const device_profile *d, const problem *p, clattn_kernel kernel, int64_t *block_q,
                         int64_t *block_kv);

/* AUTO takes the host on d for up to so many queries and keys. */
int64_t clattn__tuning_host_rows(const device_profile *d);

/* The least and the most that it takes on any device, of a user's table (NULL: none) and the shipped one. */
void clattn__tuning_host_range(const char *table, int64_t *least, int64_t *most);

#endif
