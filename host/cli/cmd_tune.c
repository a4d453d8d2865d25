/* clattn tune: which block sizes are fastest on a device, and up to how many rows the host path is */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli.h"

#if !CLATTN_HAVE_OPENCL
int cmd_tune(const options *o)
{
    (void)o;
    return cli_fail(CLI_USAGE, "this clattn is built without OpenCL: there are no devices to tune");
}
#else

#include <clattn/opencl.h>

#include "inputs.h"
#include "output.h"
#include "progress.h"
#include "resident.h"
#include "targets.h"
#include "verify.h"

enum {
    LINE_SIZE = 512,
    MOST_CANDIDATES = 12,
    MOST_ROUNDS = 99,
    LEAST_ROUNDS = 7,
    TABLE_MOST = 64 << 10, /* bytes of a table */
    TEXT_SIZE = 80,        /* of a default problem */
    HOST_ROWS = 128,       /* that AUTO has without a table */
    HOST_LEAST = 16,       /* rows that are measured, */
    HOST_MOST = 2048       /* and most */
};
static const double margin = 1.02;      /* times faster than what is shipped, or all stays as it is */
static const double won_least = 0.75;   /* of the rounds besides: a machine that others use too has lucky medians */
static const double least_timed = 2e-3; /* seconds: shorter calls are timed several at a time */
static const char first_line[] = "clattn tuning 1\n";

typedef struct tuner {
    clattn_context *context; /* without a table */
    double end;              /* of the budget */
    char lines[MOST_PROBLEMS + 1][LINE_SIZE + 16];
    int n_lines;
} tuner;

typedef struct candidate {
    clattn_plan *plan;
    clattn_plan_info info;
    double seconds[MOST_ROUNDS], median;
    double won; /* share of the rounds in which it was faster than the first */
} candidate;

/* One problem's candidates, the first what is shipped, and what their calls take. */
typedef struct contest {
    tuner *t;
    inputs in;
    void *o; /* as the problem says */
    float *lse;
    answer a;
    resident *on;             /* NULL for calls with host pointers */
    clattn_forward_args args; /* of the timed calls */
    int64_t calls;            /* timed at a time */
    candidate all[MOST_CANDIDATES];
    int n;
    double start, end, ticked;
    progress bar;
} contest;

/* ---- the first Ctrl-C ends the search, the second the program */

static volatile sig_atomic_t stopped;
static struct sigaction before;

static void stop(int number)
{
    stopped = 1;
    sigaction(number, &before, NULL);
}

static void watch_interrupt(void)
{
    struct sigaction now = {.sa_handler = stop, .sa_flags = SA_RESTART};
    sigemptyset(&now.sa_mask);
    if (!sigaction(SIGINT, NULL, &before) && before.sa_handler != SIG_IGN) sigaction(SIGINT, &now, NULL);
}

/* ---- lines */

/* Lines of one kind that speak of the same; old has n bytes. */
static bool replaces(const char *line, const char *old, size_t n)
{
    const char *a = strchr(line, '|'), *b = memchr(old, '|', n);
    const size_t left = b ? n - (size_t)(b - old) : 0;
    return a && b && *line == *old && strlen(a) == left && !memcmp(a, b, left);
}

/* In place of an earlier one that speaks of the same. */
static void keep_line(tuner *t, const char *line)
{
    int at = 0;
    while (at < t->n_lines && !replaces(line, t->lines[at], strlen(t->lines[at]))) at++;
    snprintf(t->lines[at], sizeof t->lines[at], "%s", line);
    if (at == t->n_lines) t->n_lines++;
}

/* ---- contests */

static void tick(contest *c)
{
    const double now = cli_now();
    progress_add(&c->bar, (int64_t)((now - c->ticked) * 1e6));
    c->ticked = now;
}

static int call(contest *c, const candidate *one, int64_t calls)
{
    int code = CLI_OK;
    for (int64_t i = 0; i < calls && !code; i++)
        if (c->on)
            code = resident_enqueue_forward(c->on, one->plan, &c->args);
        else if (clattn_forward(one->plan, &c->args))
            code = cli_fail_library(NULL, NULL);
    return code || !c->on ? code : resident_finish(c->on);
}

/* Each in its turn, another one first in each round, until that time; then their medians. */
static int race(contest *c, candidate *const *racers, int n, double until)
{
    int rounds = 0;
    for (; rounds < MOST_ROUNDS && !stopped && (rounds < LEAST_ROUNDS || cli_now() < until); rounds++)
        for (int i = 0; i < n; i++) {
            candidate *one = racers[(rounds + i) % n];
            const double begin = cli_now();
            const int code = call(c, one, c->calls);
            if (code) return code;
            one->seconds[rounds] = (cli_now() - begin) / (double)c->calls;
            tick(c);
        }
    for (int i = n - 1; i >= 0 && rounds; i--) { /* the first last: medians sort */
        int won = 0;
        for (int r = 0; r < rounds; r++) won += racers[i]->seconds[r] < racers[0]->seconds[r];
        racers[i]->won = (double)won / rounds;
        racers[i]->median = cli_median(racers[i]->seconds, (size_t)rounds);
    }
    return CLI_OK;
}

/* Another candidate; none when it cannot be had, has another's sizes, or is wrong, and then it says so. */
static int add(contest *c, clattn_path path, int64_t block_q, int64_t block_kv)
{
    candidate *one = &c->all[c->n];
    clattn_plan_options how;
    outcome out = {.share = 0};
    if (c->n == MOST_CANDIDATES) return CLI_OK;
    clattn_plan_options_init(&how);
    clattn_plan_info_init(&one->info);
    how.path = path;
    how.kernel = block_q ? c->all[0].info.kernel : CLATTN_KERNEL_AUTO;
    how.block_q = block_q;
    how.block_kv = block_kv;
    if (clattn_plan_create(c->t->context, &c->in.problem, &how, &one->plan))
        return block_q ? CLI_OK : cli_fail_library(NULL, NULL);
    bool is_new = !clattn_plan_get_info(one->plan, &one->info);
    for (int i = 0; i < c->n && block_q; i++)
        if (c->all[i].info.block_q == one->info.block_q && c->all[i].info.block_kv == one->info.block_kv)
            is_new = false;
    if (is_new && block_q) {
        const target here = {.path = path, .kernel = how.kernel, .context = c->t->context};
        const options sizes = {.block_q = block_q, .block_kv = block_kv};
        const int code = outcome_make(&here, &sizes, &c->in, &c->a, 0, &out);
        if (code) return code;
        is_new = !out.status && out.share <= 2; /* both may err by the tolerance */
    }
    if (is_new) {
        c->n++;
    } else {
        if (out.share > 2 || out.status)
            printf("%" PRId64 " x %" PRId64 " is left out: %s, max |dO| %.3g\n", one->info.block_q, one->info.block_kv,
                   out.status ? out.message : "WRONG", out.distance.max_o);
        clattn_plan_release(one->plan);
        one->plan = NULL;
    }
    tick(c);
    return CLI_OK;
}

/* How many calls take long enough to be timed, by the first candidate's. */
static int count_calls(contest *c)
{
    double begin = 0;
    int code = CLI_OK;
    for (int i = 0; !code && i < 2; i++) {
        begin = cli_now();
        code = call(c, &c->all[0], 1);
    }
    const double one = cli_now() - begin;
    c->calls = one < least_timed ? (int64_t)(least_timed / (one > 1e-7 ? one : 1e-7)) + 1 : 1;
    return code;
}

static int to_device(contest *c)
{
    const int code = resident_open(c->t->context, &c->on);
    c->args.lse = clattn_host_buffer(NULL);
    return code ? code : resident_forward_args(c->on, &c->in, &c->args);
}

static void contest_close(contest *c)
{
    progress_stop(&c->bar);
    for (int i = 0; i < MOST_CANDIDATES; i++) clattn_plan_release(c->all[i].plan);
    resident_close(c->on);
    answer_free(&c->a);
    free(c->o);
    free(c->lse);
    inputs_free(&c->in);
}

/* With the candidate that is shipped for the device. To be closed in any case. */
static int contest_open(tuner *t, const char *text, double end, contest *c)
{
    memset(c, 0, sizeof *c);
    c->t = t;
    c->calls = 1;
    c->start = c->ticked = cli_now();
    c->end = end;
    progress_start(&c->bar, text, (int64_t)((end - c->start) * 1e6) + 1);
    int code = inputs_from_text(text, 0, &c->in);
    if (!code) code = inputs_alloc_outputs(&c->in, &c->o, &c->lse);
    if (!code) code = add(c, CLATTN_PATH_DEVICE, 0, 0);
    inputs_fill_args(&c->in, &c->args);
    c->args.o = clattn_host_buffer(c->o);
    c->args.lse = clattn_host_buffer(c->lse);
    return code ? code : call(c, &c->all[0], 1);
}

/* ---- block sizes */

/* Sizes along one axis, then along the other: those that join, and the best of them beside the best so far. */
static int search(contest *c, candidate **best)
{
    static const int64_t sizes[2][6] = {{256, 64, 512, 32, 128}, {32, 64, 16, 128, 256, 48}}; /* of keys; of rows */
    static const double join_until[2] = {0.45, 0.85}, race_until[2] = {0.55, 0.9};            /* shares of the time */
    const double start = c->start, time = c->end - start;
    int code = CLI_OK;
    for (int axis = 0; axis < 2; axis++) {
        candidate *racers[MOST_CANDIDATES] = {*best};
        int n = 1;
        for (int i = 0; i < 6 && sizes[axis][i] && !code && !stopped; i++) {
            const int first = c->n;
            if (first > 1 && cli_now() > start + join_until[axis] * time) break;
            code = axis ? add(c, CLATTN_PATH_DEVICE, sizes[1][i], (*best)->info.block_kv)
                        : add(c, CLATTN_PATH_DEVICE, (*best)->info.block_q, sizes[0][i]);
            if (c->n > first) racers[n++] = &c->all[first];
        }
        if (code || stopped) return code;
        if (n > 1) code = race(c, racers, n, start + race_until[axis] * time);
        for (int i = 0; i < n && n > 1; i++)
            if (racers[i]->median < (*best)->median) *best = racers[i];
    }
    candidate *const last[2] = {&c->all[0], *best};
    if (code || stopped || *best == &c->all[0]) return code;
    code = race(c, last, 2, c->end);
    if (c->all[0].median < margin * (*best)->median || (*best)->won < won_least) *best = &c->all[0];
    return code;
}

static int tune_sizes(tuner *t, const char *text, double end)
{
    contest c;
    char line[LINE_SIZE];
    int code = contest_open(t, text, end, &c);
    candidate *shipped = &c.all[0], *best = shipped;
    if (!code && clattn_plan_get_tuning(shipped->plan, line, sizeof line)) code = cli_fail_library(NULL, NULL);
    if (!code) code = answer_from(&c.in, c.o, c.lse, &c.a);
    if (!code) code = to_device(&c);
    if (!code) code = count_calls(&c);
    if (!code) code = search(&c, &best);
    progress_stop(&c.bar);
    if (!code && !stopped && c.n > 1 && !clattn_plan_get_tuning(best->plan, line, sizeof line)) {
        const char *about = best == shipped ? strchr(line, '|') : NULL; /* no sizes: whatever clattn ships */
        char kept[LINE_SIZE + 16];
        snprintf(kept, sizeof kept, "%s%s", about ? "tile 0 0 " : "", about ? about : line);
        keep_line(t, kept);
        printf("%-42s  %-14s  %3" PRId64 " x %-3" PRId64 "  %8s  %3" PRId64 " x %-3" PRId64 "  %8s  %5.2f  of %d\n",
               text, clattn_kernel_name(best->info.kernel), shipped->info.block_q, shipped->info.block_kv,
               cli_time_text(shipped->median).text, best->info.block_q, best->info.block_kv,
               cli_time_text(best->median).text, shipped->median / best->median, c.n);
        fflush(stdout);
    }
    contest_close(&c);
    return code;
}

/* ---- the host path's share */

/* *ratio: the device's time to the host's. *line lets AUTO take the host for so many rows. */
static int race_host(tuner *t, int64_t rows, double end, double *ratio, char line[LINE_SIZE])
{
    contest c;
    char text[TEXT_SIZE];
    snprintf(text, sizeof text, "f32 b1 hq8 hkv8 q%" PRId64 " kv%" PRId64 " d64", rows, rows);
    int code = contest_open(t, text, end, &c);
    if (!code) code = add(&c, CLATTN_PATH_HOST, 0, 0);
    candidate *const both[2] = {&c.all[0], &c.all[1]};
    if (!code && rows) code = count_calls(&c);
    if (!code && rows) code = race(&c, both, 2, end);
    if (!code && clattn_plan_get_tuning(both[1]->plan, line, LINE_SIZE)) code = cli_fail_library(NULL, NULL);
    *ratio = code ? 0 : both[0]->median / both[1]->median;
    contest_close(&c);
    return code;
}

/* Upwards from twice HOST_ROWS while the host is faster, else downwards from HOST_ROWS while the device is. */
static int tune_host(tuner *t)
{
    char line[LINE_SIZE] = "", tried[LINE_SIZE];
    const double share = (t->end - cli_now()) / 4;
    double ratio = 0;
    int64_t rows = 2 * HOST_ROWS;
    int code = CLI_OK;
    for (; !code && !stopped && rows <= HOST_MOST && cli_now() < t->end; rows *= 2) {
        code = race_host(t, rows, cli_now() + share, &ratio, tried);
        if (code || ratio < margin || stopped) break;
        memcpy(line, tried, sizeof line);
    }
    for (rows = HOST_ROWS; !code && !stopped && !*line; rows = rows > HOST_LEAST ? rows / 2 : 0) {
        if (cli_now() > t->end) return CLI_OK;
        code = race_host(t, rows, cli_now() + share, &ratio, tried);
        if (!stopped && (!rows || ratio * margin >= 1)) memcpy(line, tried, sizeof line);
    }
    if (code || !*line) return code;
    keep_line(t, line);
    printf("AUTO takes the host for up to %.*s queries and keys, with host pointers\n", (int)strcspn(line + 5, " "),
           line + 5);
    return CLI_OK;
}

/* ---- the table */

/* What the file holds, "" when it is not there; it must be a table. */
static int table_read(const char *path, char old[TABLE_MOST + 2])
{
    FILE *file = fopen(path, "r");
    *old = 0;
    if (!file) return errno == ENOENT ? CLI_OK : cli_fail(CLI_FAILED, "%s: %s", path, strerror(errno));
    const size_t n = fread(old, 1, TABLE_MOST + 1, file), line = strlen(first_line) - 1;
    const bool failed = ferror(file);
    fclose(file);
    old[n] = 0;
    if (failed) return cli_fail(CLI_FAILED, "%s: it cannot be read", path);
    if (n > TABLE_MOST) return cli_fail(CLI_USAGE, "%s: it is beyond the %d bytes of a table", path, TABLE_MOST);
    if (n && (strncmp(old, first_line, line) != 0 || old[line + strspn(old + line, " \t\r")] > '\n'))
        return cli_fail(CLI_USAGE, "%s: it is there, and no tuning table", path);
    return CLI_OK;
}

static int write_table(const tuner *t, const char *old, FILE *to)
{
    if (!*old) {
        fputs(first_line, to);
        fputs("# tile BLOCK_Q BLOCK_KV (0: automatic) | kernel, type, head dim, band or full mask, rows, keys | for "
              "whom\n"
              "# host ROWS that AUTO leaves to the host path | for whom\n",
              to);
    }
    while (*old) {
        const size_t n = strcspn(old, "\n");
        bool stays = true;
        for (int i = 0; i < t->n_lines; i++) stays = stays && !replaces(t->lines[i], old, n);
        if (stays) fprintf(to, "%.*s\n", (int)n, old);
        old += n + (old[n] == '\n');
    }
    for (int i = 0; i < t->n_lines; i++) fprintf(to, "%s\n", t->lines[i]);
    if (ftell(to) > TABLE_MOST)
        return cli_fail(CLI_FAILED, "the table would have %ld bytes, and may have %d: old lines must go", ftell(to),
                        TABLE_MOST);
    return CLI_OK;
}

/* Makes the folders that a path goes through; what cannot be made cannot be written. */
static void make_folders(char *path)
{
    for (char *at = strchr(path + 1, '/'); at; at = strchr(at + 1, '/')) {
        *at = 0;
        mkdir(path, 0700);
        *at = '/';
    }
}

/* The file, which must be a table if it is there. */
static int table_open(const options *o, char *path, size_t size, char *old, output *file)
{
    const size_t n = o->o ? (size_t)snprintf(path, size, "%s", o->o) : clattn_tuning_file(path, size);
    if (!n)
        return cli_fail(CLI_USAGE,
                        "there is no place for the table: CLATTN_TUNING is 0, or HOME is not set; give -o FILE");
    if (n >= size) return cli_fail(CLI_USAGE, "the table's path has %zu bytes, and may have %zu", n, size - 1);
    if (!o->o) make_folders(path);
    const int code = output_open(file, o->o ? "-o" : "the table", path);
    return code ? code : table_read(path, old);
}

/* ---- the command */

static int check_problem(const char *text)
{
    clattn_problem p;
    if (clattn_problem_from_text(text, &p)) return cli_fail_library(NULL, NULL);
    if (p.bias.dtype || p.mask.boolean || p.alibi || p.sinks || p.varlen || p.dropout > 0 || p.kv_length_per_batch ||
        p.query_offset_per_batch)
        return cli_fail(CLI_USAGE, "%s: tune takes problems of Q, K and V alone", text);
    if (!p.n_q || !p.n_kv) return cli_fail(CLI_USAGE, "%s: there is nothing to time", text);
    return CLI_OK;
}

static int tuner_open(const options *o, tuner *t, bool *is_cpu)
{
    clattn_context_options c;
    cl_device_id id;
    cl_device_type type = 0;
    char name[128] = "";
    clattn_context_options_init(&c);
    c.tuning = "";                              /* what is shipped */
    c.program_cache = CLATTN_PROGRAM_CACHE_OFF; /* most of the programs are run once */
    c.device = o->device ? CLATTN_DEVICE_INDEX : CLATTN_DEVICE_DEFAULT;
    if (o->device && device_find(o->device, &c.device_index)) return CLI_USAGE;
    if (clattn_context_create(&c, &t->context) || clattn_context_get_cl(t->context, NULL, &id))
        return cli_fail_library(o->device ? "--device" : NULL, o->device);
    clGetDeviceInfo(id, CL_DEVICE_TYPE, sizeof type, &type, NULL);
    clGetDeviceInfo(id, CL_DEVICE_NAME, sizeof name, name, NULL);
    *is_cpu = type & CL_DEVICE_TYPE_CPU;
    printf("%s\n%-42s  %-14s  %-9s  %8s  %-9s  %8s  %5s  %s\n", name, "problem", "kernel", "shipped", "time", "best",
           "time", "ratio", "sizes");
    fflush(stdout);
    return CLI_OK;
}

/* Eight: of two types, two head dims, full and causal, long enough for the device. */
static void default_problem(int i, bool is_cpu, char text[TEXT_SIZE])
{
    const int rows = is_cpu ? 1024 : 4096, heads = is_cpu ? 8 : 16;
    snprintf(text, TEXT_SIZE, "%s b1 hq%d hkv%d q%d kv%d d%d%s", i & 4 ? "f16" : "f32", heads, heads, rows, rows,
             i & 2 ? 128 : 64, i & 1 ? " causal" : "");
}

static int tune(const options *o, tuner *t)
{
    bool is_cpu = true;
    char text[TEXT_SIZE];
    const int n = o->n_problems ? o->n_problems : 8;
    int code = tuner_open(o, t, &is_cpu);
    t->end = cli_now() + o->budget;
    const double end = t->end - 0.1 * o->budget; /* the rest is the host's */
    for (int i = 0; !code && !stopped && i < n && (i == 0 || cli_now() < end); i++) {
        default_problem(i, is_cpu, text);
        const double now = cli_now(), share = (end - now) / (n - i);
        code = tune_sizes(t, o->n_problems ? o->problems[i] : text, now + share);
    }
    return code || stopped || cli_now() > t->end ? code : tune_host(t);
}

int cmd_tune(const options *o)
{
    static tuner t;
    static char old[TABLE_MOST + 2];
    output file = {.flag = NULL};
    char path[4096] = "";
    int code = CLI_OK;
    if (o->budget <= 0 || o->budget > 86400)
        return cli_fail(CLI_USAGE, "--budget %g: it must be above 0 and at most 86400 seconds", o->budget);
    if (o->o && o->dry_run) return cli_fail(CLI_USAGE, "-o: --dry-run writes no file");
    for (int i = 0; !code && i < o->n_problems; i++) code = check_problem(o->problems[i]);
    if (!code && !o->dry_run) code = table_open(o, path, sizeof path, old, &file);
    watch_interrupt();
    if (!code) code = tune(o, &t);
    if (file.file && t.n_lines) { /* what was finished before a failure too */
        int written = table_read(path, old);
        if (!written) written = write_table(&t, old, file.file);
        if (!written) written = output_finish(&file, !ferror(file.file));
        if (!written) written = output_commit(&file, 1);
        if (!written) printf("%d line%s in %s\n", t.n_lines, t.n_lines == 1 ? "" : "s", path);
        code = code ? code : written;
    } else if (!code && !t.n_lines) {
        printf("nothing was finished, and nothing written\n");
    }
    for (int i = 0; o->dry_run && i < t.n_lines; i++) printf("%s\n", t.lines[i]);
    output_close(&file, 1);
    clattn_context_release(t.context);
    return code;
}
#endif
