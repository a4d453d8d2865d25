/* The command line: one table of flags, which commands take them, and the options that they fill. */
#ifndef CLATTN_CLI_ARGS_H
#define CLATTN_CLI_ARGS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <clattn/clattn.h>

enum { LAYOUT_BHSD, LAYOUT_BSHD };
enum { MOST_PROBLEMS = 32 };

typedef struct options {
    /* the problem, from files */
    const char *q, *k, *v;                                                  /* paths, NULL: not given */
    int dtype;                                                              /* a clattn_dtype, 0: the files' own */
    int layout;                                                             /* of Q, K, V and O */
    double scale;                                                           /* default CLATTN_SCALE_AUTO */
    int causal;                                                             /* 1: window[1] is 0 */
    int64_t window[2];                                                      /* left, right; default -1: unbounded */
    const char *q_offset, *kv_len;                                          /* a number or a path; a path */
    double softcap, dropout;                                                /* default 0: none */
    const char *bias, *mask, *alibi, *sinks, *cu_seqlens_q, *cu_seqlens_kv; /* paths */
    const char *d_o, *d_lse;                                                /* paths */
    /* the problem, from a text */
    const char *problem;
    const char *problems[MOST_PROBLEMS]; /* of a command that takes several */
    int n_problems;
    int64_t seed; /* of its data, or of dropout with files */
    /* how it runs */
    int path, kernel;   /* a clattn_path, a clattn_kernel */
    int pass;           /* a clattn_pass */
    const char *device; /* an index or a part of a name, NULL: the default one */
    int64_t threads;    /* 0: automatic, as the two below */
    int64_t block_q, block_kv;
    /* what comes out */
    const char *o, *lse; /* paths, as the next line */
    const char *dq, *dk, *dv, *dbias, *dalibi, *dsinks;
    int explain, json, cold, resident, copies, dry_run;
    const char *plot;            /* a path */
    const char *map;             /* a path */
    int64_t map_head, map_batch; /* default 0 */
    int map_step;                /* a clattn_score_step */
    double budget;               /* seconds */

    const char *file_flag; /* the first flag given that describes files, NULL: none */
} options;

typedef struct command {
    const char *name;
    unsigned bit;      /* in flag.commands */
    const char *about; /* one line */
    const char *notes; /* after the flags in its help; may be "" */
    const char *takes; /* the positional argument's name in its help, NULL: it takes none */
    bool takes_many;
    int (*run)(const options *o);
} command;

enum {
    COMMAND_DEVICES = 1,
    COMMAND_FORWARD = 2,
    COMMAND_COMPARE = 4,
    COMMAND_BENCH = 8,
    COMMAND_SELFTEST = 16,
    COMMAND_BACKWARD = 32,
    COMMAND_TUNE = 64
};

/* Fills o from the words after the command's name. *help is set when they ask for it. CLI_USAGE: it has said why. */
int args_parse(const command *c, int argc, char **argv, options *o, bool *help);

void args_print_help(const command *c, FILE *to);

/* The whole of text as a number in [least, most]; false leaves *value alone. */
bool args_parse_integer(const char *text, int64_t least, int64_t most, int64_t *value);

#endif
