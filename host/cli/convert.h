/* Elements of any storage type, to and from double. */
#ifndef CLATTN_CLI_CONVERT_H
#define CLATTN_CLI_CONVERT_H

#include <stdint.h>

#include <clattn/clattn.h>

double element_get(const void *data, clattn_dtype dtype, int64_t at);

/* Rounds once, to nearest even. */
void element_put(void *data, clattn_dtype dtype, int64_t at, double value);

void convert_elements(const void *from, clattn_dtype from_dtype, void *to, clattn_dtype to_dtype, int64_t count);

#endif
