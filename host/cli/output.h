/* A file that is written whole or not at all: a temporary one in the same folder takes the name at the end. */
#ifndef CLATTN_CLI_OUTPUT_H
#define CLATTN_CLI_OUTPUT_H

#include <stdio.h>

typedef struct output {
    const char *flag, *path; /* as given, for messages */
    char *target;            /* absolute, links followed: equal for two paths to one file */
    char *temporary;         /* NULL: none is there */
    FILE *file;              /* write here, then output_finish */
    int was_there;           /* 1: target was there before */
} output;

/* A file and the flag that names it. */
typedef struct file_flag {
    const char *flag, *path; /* path NULL: not given */
} file_flag;

/* Makes the temporary file, which shows that the target can be written. All zero: an output that was not asked for,
 * which the functions below pass over. Each function that fails has said why. */
int output_open(output *o, const char *flag, const char *path);

/* Opens the wanted outputs, n of them, each another file and none of the n_inputs files. */
int output_open_all(output *outputs, const file_flag *wanted, int n, const file_flag *inputs, int n_inputs);

/* Closes the temporary file; `written` says whether all writes went well. */
int output_finish(output *o, int written);

/* Gives all n finished outputs their names, or none as far as the system allows. */
int output_commit(output *outputs, int n);

/* Removes what is still temporary and frees; to be called at the end in any case. */
void output_close(output *outputs, int n);

#endif
