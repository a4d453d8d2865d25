/* The table of flags and its parser. A new flag is one row. */
#include "args.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

typedef enum flag_kind { KIND_SWITCH, KIND_TEXT, KIND_INTEGER, KIND_REAL, KIND_CHOICE, KIND_WINDOW } flag_kind;

typedef struct choice {
    const char *name; /* NULL ends a list */
    int value;
} choice;

typedef struct flag {
    const char *name, *value; /* value: its name in the help, NULL for a switch */
    flag_kind kind;
    size_t field;          /* where in options */
    unsigned commands;     /* that take it */
    bool of_files;         /* describes tensors in files: has no place beside a problem text */
    int64_t least, most;   /* KIND_INTEGER */
    const choice *choices; /* KIND_CHOICE */
    const char *help;
} flag;

#define DTYPE_CHOICE(name, value, bytes, text) {text, CLATTN_DTYPE_##name},
#define PATH_CHOICE(name, value, text) {text, CLATTN_PATH_##name},
#define KERNEL_CHOICE(name, value, text) {text, CLATTN_KERNEL_##name},
static const choice dtypes[] = {CLATTN_DTYPE_MAP(DTYPE_CHOICE){NULL, 0}};
static const choice paths[] = {CLATTN_PATH_MAP(PATH_CHOICE){NULL, 0}};
static const choice kernels[] = {CLATTN_KERNEL_MAP(KERNEL_CHOICE){NULL, 0}};
static const choice passes[] = {{"forward", CLATTN_PASS_FORWARD}, {"backward", CLATTN_PASS_BACKWARD}, {NULL, 0}};
static const choice layouts[] = {{"bhsd", LAYOUT_BHSD}, {"bshd", LAYOUT_BSHD}, {NULL, 0}};
static const choice steps[] = {{"scaled", CLATTN_SCORE_SCALED},
                               {"capped", CLATTN_SCORE_CAPPED},
                               {"masked", CLATTN_SCORE_MASKED},
                               {"probs", CLATTN_SCORE_PROBS},
                               {NULL, 0}};

#define FIELD(name) offsetof(options, name)
#define FILES (COMMAND_FORWARD | COMMAND_BACKWARD | COMMAND_COMPARE)
#define RUNS (FILES | COMMAND_BENCH)

static const flag flags[] = {
    {"--q", "Q.npy", KIND_TEXT, FIELD(q), FILES, true, 0, 0, NULL, "[batch, heads, seq, dim], f2, f4 or f8"},
    {"--k", "K.npy", KIND_TEXT, FIELD(k), FILES, true, 0, 0, NULL, "as Q; its heads divide Q's"},
    {"--v", "V.npy", KIND_TEXT, FIELD(v), FILES, true, 0, 0, NULL, "as K; its dim may differ"},
    {"--do", "DO.npy", KIND_TEXT, FIELD(d_o), COMMAND_BACKWARD, true, 0, 0, NULL, "dL/dO, laid out as O"},
    {"--dlse", "DL.npy", KIND_TEXT, FIELD(d_lse), COMMAND_BACKWARD, true, 0, 0, NULL,
     "dL/dLSE, f4 [batch, heads, seq] (default 0)"},
    {"--dq", "F.npy", KIND_TEXT, FIELD(dq), COMMAND_BACKWARD, false, 0, 0, NULL,
     "dL/dQ, an output laid out as Q; all are written whole or not at all"},
    {"--dk", "F.npy", KIND_TEXT, FIELD(dk), COMMAND_BACKWARD, false, 0, 0, NULL, "dL/dK, as K"},
    {"--dv", "F.npy", KIND_TEXT, FIELD(dv), COMMAND_BACKWARD, false, 0, 0, NULL, "dL/dV, as V"},
    {"--dbias", "F.npy", KIND_TEXT, FIELD(dbias), COMMAND_BACKWARD, false, 0, 0, NULL,
     "that of the bias, as its file; summed over what broadcasts"},
    {"--dalibi", "F.npy", KIND_TEXT, FIELD(dalibi), COMMAND_BACKWARD, false, 0, 0, NULL,
     "that of the ALiBi slopes, f4, of their shape"},
    {"--dsinks", "F.npy", KIND_TEXT, FIELD(dsinks), COMMAND_BACKWARD, false, 0, 0, NULL,
     "that of the sinks, f4 [heads]"},
    {"-o", "O.npy", KIND_TEXT, FIELD(o), COMMAND_FORWARD, false, 0, 0, NULL,
     "the output, laid out as Q; written whole or not at all"},
    {"--lse", "L.npy", KIND_TEXT, FIELD(lse), COMMAND_FORWARD, false, 0, 0, NULL,
     "each row's log-sum-exp, f4 [batch, heads, seq]"},
    {"--dtype", "TYPE", KIND_CHOICE, FIELD(dtype), FILES, true, 0, 0, dtypes,
     "storage to convert to (default: the files' own)"},
    {"--layout", "ORDER", KIND_CHOICE, FIELD(layout), FILES, true, 0, 0, layouts, "of all tensors (default bhsd)"},
    {"--scale", "X", KIND_REAL, FIELD(scale), FILES, true, 0, 0, NULL, "softmax scale (default 1/sqrt(dim))"},
    {"--causal", NULL, KIND_SWITCH, FIELD(causal), FILES, true, 0, 0, NULL,
     "no key after the query: the R of --window is 0"},
    {"--window", "L,R", KIND_WINDOW, FIELD(window), FILES, true, 0, 0, NULL,
     "keys seen before and after the query; -1 is no bound"},
    {"--q-offset", "N|FILE.npy", KIND_TEXT, FIELD(q_offset), FILES, true, 0, 0, NULL,
     "position of query row 0 (default 0), or i8 [batch]"},
    {"--kv-len", "FILE.npy", KIND_TEXT, FIELD(kv_len), FILES, true, 0, 0, NULL, "keys in use, i8 [batch]"},
    {"--softcap", "X", KIND_REAL, FIELD(softcap), FILES, true, 0, 0, NULL, "scores become X tanh(score / X)"},
    {"--bias", "B.npy", KIND_TEXT, FIELD(bias), FILES, true, 0, 0, NULL,
     "added to the scores, f2, f4 or f8; broadcasts to [batch, heads, rows, keys]"},
    {"--mask", "M.npy", KIND_TEXT, FIELD(mask), FILES, true, 0, 0, NULL,
     "b1, true where a key may be seen; broadcasts likewise"},
    {"--alibi", "S.npy", KIND_TEXT, FIELD(alibi), FILES, true, 0, 0, NULL,
     "ALiBi slopes, f4 or f8 [heads] or [batch, heads]"},
    {"--sinks", "S.npy", KIND_TEXT, FIELD(sinks), FILES, true, 0, 0, NULL,
     "one more logit in each row's denominator, f4 or f8 [heads]"},
    {"--dropout", "P", KIND_REAL, FIELD(dropout), FILES, true, 0, 0, NULL,
     "probability that a prob is dropped (default 0)"},
    {"--cu-seqlens-q", "F.npy", KIND_TEXT, FIELD(cu_seqlens_q), FILES, true, 0, 0, NULL,
     "where Q's sequences begin and the last ends, i4 or i8 [batch + 1]"},
    {"--cu-seqlens-kv", "F.npy", KIND_TEXT, FIELD(cu_seqlens_kv), FILES, true, 0, 0, NULL, "those of K and V"},
    {"--seed", "N", KIND_INTEGER, FIELD(seed), RUNS, false, 0, INT64_MAX, NULL,
     "of dropout, or of a problem text's random data (default 0)"},
    {"--path", "PATH", KIND_CHOICE, FIELD(path), RUNS, false, 0, 0, paths, "where it runs (default auto)"},
    {"--kernel", "KERNEL", KIND_CHOICE, FIELD(kernel), RUNS, false, 0, 0, kernels, "what runs it (default auto)"},
    {"--device", "INDEX|NAME", KIND_TEXT, FIELD(device), RUNS, false, 0, 0, NULL,
     "as `clattn devices` counts them, or a part of a name; --path device runs small problems there too"},
    {"--device", "INDEX|NAME", KIND_TEXT, FIELD(device), COMMAND_SELFTEST | COMMAND_TUNE, false, 0, 0, NULL,
     "as `clattn devices` counts them, or a part of a name"},
    {"--threads", "N", KIND_INTEGER, FIELD(threads), RUNS | COMMAND_SELFTEST, false, 1, 4096, NULL,
     "of the host path (default: one per processor)"},
    {"--block-q", "N", KIND_INTEGER, FIELD(block_q), RUNS, false, 1, INT64_MAX, NULL, "rows of a query tile"},
    {"--block-kv", "N", KIND_INTEGER, FIELD(block_kv), RUNS, false, 1, INT64_MAX, NULL, "keys of a kv block"},
    {"--explain", NULL, KIND_SWITCH, FIELD(explain), COMMAND_FORWARD | COMMAND_BACKWARD, false, 0, 0, NULL,
     "print what was chosen, and why"},
    {"--map", "MAP.png", KIND_TEXT, FIELD(map), COMMAND_FORWARD, false, 0, 0, NULL,
     "a picture of what each row of one head attends to"},
    {"--map-head", "H", KIND_INTEGER, FIELD(map_head), COMMAND_FORWARD, false, 0, INT64_MAX, NULL, "default 0"},
    {"--map-batch", "B", KIND_INTEGER, FIELD(map_batch), COMMAND_FORWARD, false, 0, INT64_MAX, NULL, "default 0"},
    {"--map-step", "STEP", KIND_CHOICE, FIELD(map_step), COMMAND_FORWARD, false, 0, 0, steps,
     "of the score's way (default probs)"},
    {"--pass", "PASS", KIND_CHOICE, FIELD(pass), COMMAND_BENCH, false, 0, 0, passes, "what is timed (default forward)"},
    {"--cold", NULL, KIND_SWITCH, FIELD(cold), COMMAND_BENCH, false, 0, 0, NULL,
     "walk copies of K and V that no cache holds, as decoding does"},
    {"--resident", NULL, KIND_SWITCH, FIELD(resident), COMMAND_BENCH, false, 0, 0, NULL,
     "--path device with the tensors in the device's memory, on any device"},
    {"--copies", NULL, KIND_SWITCH, FIELD(copies), COMMAND_BENCH, false, 0, 0, NULL,
     "tensors in host memory, on any device: calls take their copies along"},
    {"--budget", "S", KIND_REAL, FIELD(budget), COMMAND_BENCH, false, 0, 0, NULL,
     "seconds to measure, each point of a plot (default 1)"},
    {"--budget", "S", KIND_REAL, FIELD(budget), COMMAND_TUNE, false, 0, 0, NULL, "seconds (default 600)"},
    {"-o", "FILE", KIND_TEXT, FIELD(o), COMMAND_TUNE, false, 0, 0, NULL,
     "the table to write to (default: the one that contexts read)"},
    {"--dry-run", NULL, KIND_SWITCH, FIELD(dry_run), COMMAND_TUNE, false, 0, 0, NULL, "print the lines, write no file"},
    {"--plot", "FILE.svg", KIND_TEXT, FIELD(plot), COMMAND_BENCH, false, 0, 0, NULL,
     "a plot: share of the processor's peak over the sequence length"},
    {"--json", NULL, KIND_SWITCH, FIELD(json), COMMAND_BENCH, false, 0, 0, NULL, "print one JSON object on one line"},
};
enum { N_FLAGS = sizeof flags / sizeof flags[0] };

bool args_parse_integer(const char *text, int64_t least, int64_t most, int64_t *value)
{
    char *end;
    const char first = text[0] == '-' ? text[1] : text[0];
    if (first < '0' || first > '9') return false; /* strtoll would skip spaces and take a '+' */
    errno = 0;
    const long long n = strtoll(text, &end, 10);
    if (errno || *end || n < least || n > most) return false;
    *value = n;
    return true;
}

static int parse_integer(const flag *f, const char *text, int64_t *value)
{
    if (args_parse_integer(text, f->least, f->most, value)) return CLI_OK;
    if (f->most == INT64_MAX)
        return cli_fail(CLI_USAGE, "%s %s: it must be a whole number, at least %" PRId64, f->name, text, f->least);
    return cli_fail(CLI_USAGE, "%s %s: it must be a whole number in %" PRId64 "..%" PRId64, f->name, text, f->least,
                    f->most);
}

static int parse_real(const flag *f, const char *text, double *value)
{
    char *end;
    const double x = strtod(text, &end);
    if (end == text || *end || strchr(" \t\n\v\f\r", text[0]) || !isfinite(x))
        return cli_fail(CLI_USAGE, "%s %s: it must be a finite number", f->name, text);
    *value = x;
    return CLI_OK;
}

static int parse_choice(const flag *f, const char *text, int *value)
{
    char all[512];
    size_t n = 0;
    for (const choice *c = f->choices; c->name; c++) {
        if (strcmp(c->name, text) == 0) return *value = c->value, CLI_OK;
        if (n < sizeof all) n += (size_t)snprintf(all + n, sizeof all - n, "%s%s", n ? ", " : "", c->name);
    }
    return cli_fail(CLI_USAGE, "%s %s: it must be one of %s", f->name, text, all);
}

static int parse_window(const flag *f, const char *text, int64_t window[2])
{
    char left[32];
    const char *comma = strchr(text, ',');
    const size_t n = comma ? (size_t)(comma - text) : 0;
    if (comma && n < sizeof left) {
        memcpy(left, text, n);
        left[n] = 0;
        if (args_parse_integer(left, -1, INT64_MAX, &window[0]) &&
            args_parse_integer(comma + 1, -1, INT64_MAX, &window[1]))
            return CLI_OK;
    }
    return cli_fail(CLI_USAGE, "%s %s: it must be two whole numbers L,R, each at least -1", f->name, text);
}

static int set_flag(const flag *f, const char *text, options *o)
{
    void *field = (char *)o + f->field;
    if (f->of_files && !o->file_flag) o->file_flag = f->name;
    switch (f->kind) {
    case KIND_SWITCH: *(int *)field = 1; return CLI_OK;
    case KIND_TEXT: *(const char **)field = text; return CLI_OK;
    case KIND_INTEGER: return parse_integer(f, text, field);
    case KIND_REAL: return parse_real(f, text, field);
    case KIND_CHOICE: return parse_choice(f, text, field);
    case KIND_WINDOW: return parse_window(f, text, field);
    }
    return CLI_FAILED;
}

/* The flag that a word names, alone or before '='. */
static const flag *find_flag(const command *c, const char *word, size_t length)
{
    for (int i = 0; i < N_FLAGS; i++)
        if (flags[i].commands & c->bit && strlen(flags[i].name) == length && !strncmp(flags[i].name, word, length))
            return &flags[i];
    return NULL;
}

int args_parse(const command *c, int argc, char **argv, options *o, bool *help)
{
    memset(o, 0, sizeof *o);
    o->scale = CLATTN_SCALE_AUTO;
    o->window[0] = o->window[1] = CLATTN_WINDOW_UNBOUNDED;
    o->map_step = CLATTN_SCORE_PROBS;
    o->budget = c->bit == COMMAND_TUNE ? 600 : 1;
    *help = false;
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i], *text = NULL, *equals = strchr(word, '=');
        const size_t length = equals ? (size_t)(equals - word) : strlen(word);
        if (!strcmp(word, "--help") || !strcmp(word, "-h")) return *help = true, CLI_OK;
        if (word[0] != '-') {
            if (!c->takes) return cli_fail(CLI_USAGE, "%s: `%s` takes flags only", word, c->name);
            if (c->takes_many) {
                if (o->n_problems == MOST_PROBLEMS)
                    return cli_fail(CLI_USAGE, "%s: there are %d of %s already", word, MOST_PROBLEMS, c->takes);
                o->problems[o->n_problems++] = word;
                continue;
            }
            if (o->problem) return cli_fail(CLI_USAGE, "%s: there is one %s already, '%s'", word, c->takes, o->problem);
            o->problem = word;
            continue;
        }
        const flag *f = find_flag(c, word, length);
        if (!f)
            return cli_fail(CLI_USAGE, "%.*s: `%s` has no such flag; see clattn %s --help", (int)length, word, c->name,
                            c->name);
        if (f->kind == KIND_SWITCH && equals) return cli_fail(CLI_USAGE, "%s takes no value", f->name);
        if (f->kind != KIND_SWITCH) {
            const char *next = i + 1 < argc ? argv[i + 1] : NULL;
            if (!equals && (!next || !strncmp(next, "--", 2)))
                return cli_fail(CLI_USAGE, "%s needs a value, %s", f->name, f->value);
            text = equals ? equals + 1 : argv[++i];
            if (!*text) return cli_fail(CLI_USAGE, "%s needs a value, %s", f->name, f->value);
        }
        if (set_flag(f, text, o)) return CLI_USAGE;
    }
    return CLI_OK;
}

void args_print_help(const command *c, FILE *to)
{
    fprintf(to, "usage: clattn %s%s%s%s%s\n\n%s\n", c->name, c->takes ? " [\"" : "", c->takes ? c->takes : "",
            c->takes ? "\"]" : "", c->takes_many ? "..." : "", c->about);
    for (int i = 0, first = 1; i < N_FLAGS; i++) {
        const flag *f = &flags[i];
        char left[64];
        if (!(f->commands & c->bit)) continue;
        snprintf(left, sizeof left, "%s %s", f->name, f->value ? f->value : "");
        fprintf(to, "%s    %-24s%s", first ? "\n" : "", left, f->help);
        for (const choice *x = f->choices; x && x->name; x++)
            fprintf(to, "%s%s", x == f->choices ? ": " : ", ", x->name);
        fputc('\n', to);
        first = 0;
    }
    fputs(c->notes, to);
}
