/* What every command of the program shares: exit codes, the one-line error, memory, the clock. */
#ifndef CLATTN_CLI_H
#define CLATTN_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <clattn/clattn.h>

#include "args.h"

/* What main returns, and every function here that can fail. */
enum {
    CLI_OK = 0,
    CLI_FAILED = 1, /* the answer is wrong, or the work failed */
    CLI_USAGE = 2   /* bad usage or bad input */
};

/* Prints "clattn: " and the sentence on stderr, one line, and returns code. */
int cli_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same for the library's last error of this thread, after the flag and its value (NULL: none). What the caller
 * asked for, and cannot have, is CLI_USAGE. */
int cli_fail_library(const char *flag, const char *value);

/* count elements of size bytes, aligned to 64 bytes, never NULL for 0; free with free(). NULL: it has said so. */
void *cli_alloc(const char *what, int64_t count, size_t size);

/* Seconds of a steady clock. */
double cli_now(void);

/* The middle one of n times, n at least 1; sorts them. */
double cli_median(double *times, size_t n);

/* "12.3 us", "4.56 ms", "1.23 s" */
typedef struct time_text {
    char text[16];
} time_text;
time_text cli_time_text(double seconds);

int cmd_devices(const options *o);
int cmd_forward(const options *o);
int cmd_backward(const options *o);
int cmd_compare(const options *o);
int cmd_bench(const options *o);
int cmd_selftest(const options *o);
int cmd_tune(const options *o);

#endif
