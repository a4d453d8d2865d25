#include "tuning.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <clattn/clattn.h>

#include "context.h"
#include "device.h"
#include "error.h"
#include "user_folder.h"

enum {
    LINE_SIZE = 512,
    FILE_MOST = 64 << 10, /* bytes */
    IGNORED_SAID = 8,     /* lines that the log names one by one */
    BLOCK_MOST = 4096,
    NUMBER_MOST = 999999999 /* nine digits */
};

static const char first_line[] = "clattn tuning 1";

static const char shipped[] = "clattn tuning 1\n"
                              "host 128 | class cpu\n"
                              "host 128 | class gpu\n";

/* ---- a line */

/* For whom an entry is; a later one goes first. */
typedef enum scope { SCOPE_CLASS = 1, SCOPE_VENDOR, SCOPE_DEVICE, SCOPE_DRIVER } scope;

typedef struct entry {
    clattn_kernel kernel; /* AUTO: host_rows; else the others */
    clattn_dtype dtype;
    bool has_band;
    int block_q, block_kv, head_dim, n_q, n_kv, host_rows;
    scope scope;
    char *name, *driver; /* in the line */
} entry;

/* Copies a line, cut to the room, and moves on; false at the end. */
static bool next_line(const char **at, char line[LINE_SIZE])
{
    const size_t n = strcspn(*at, "\n"), kept = n < LINE_SIZE - 1 ? n : LINE_SIZE - 1;
    if (!**at) return false;
    memcpy(line, *at, kept);
    line[kept] = 0;
    *at += n + ((*at)[n] == '\n');
    return true;
}

static char *trim(char *s)
{
    size_t n = strlen(s);
    while (n && isspace((unsigned char)s[n - 1])) s[--n] = 0;
    while (isspace((unsigned char)*s)) s++;
    return s;
}

static const char *read_tile(entry *e, const char *kernel, const char *dtype, const char *band)
{
    static const clattn_kernel tunable[] = {CLATTN_KERNEL_ATTN_FWD, CLATTN_KERNEL_ATTN_FWD_LANES,
                                            CLATTN_KERNEL_ATTN_FWD_MMA};
    for (size_t i = 0; i < sizeof tunable / sizeof *tunable; i++)
        if (!strcmp(kernel, clattn_kernel_name(tunable[i]))) e->kernel = tunable[i];
    for (int i = CLATTN_DTYPE_F32; i <= CLATTN_DTYPE_F64; i++)
        if (!strcmp(dtype, clattn_dtype_name((clattn_dtype)i))) e->dtype = (clattn_dtype)i;
    e->has_band = !strcmp(band, "band");
    return !e->kernel                                  ? "no such kernel"
           : !e->dtype                                 ? "no such type"
           : !e->has_band && strcmp(band, "full") != 0 ? "neither band nor full"
           : e->block_q < 0 || e->block_kv < 0 || e->block_q > BLOCK_MOST || e->block_kv > BLOCK_MOST
               ? "impossible sizes"
           : e->head_dim < 1 || e->n_q < 0 || e->n_kv < 0 ? "no such problem"
                                                          : NULL;
}

/* "device NAME | DRIVER", "device NAME", "vendor NAME" or "class NAME". */
static const char *read_scope(entry *e, char *whom)
{
    static const char *const words[] = {"class ", "vendor ", "device "};
    for (int i = 0; i < 3; i++)
        if (!strncmp(whom, words[i], strlen(words[i]))) {
            e->scope = SCOPE_CLASS + i;
            e->name = trim(whom + strlen(words[i]));
        }
    if (!e->scope) return "for no device, vendor or class";
    char *bar = e->scope == SCOPE_DEVICE ? strrchr(e->name, '|') : NULL;
    if (bar) {
        *bar = 0;
        e->name = trim(e->name);
        e->driver = trim(bar + 1);
        e->scope = SCOPE_DRIVER;
    }
    return *e->name ? NULL : "for no name";
}

/* NULL, or why the line is no entry. Changes the line. */
static const char *read_entry(char *line, entry *e)
{
    char kernel[32] = "", dtype[8] = "", band[8] = "";
    int end = 0;
    memset(e, 0, sizeof *e);
    if (strlen(line) == LINE_SIZE - 1) return "too long";
    line = trim(line);
    if (sscanf(line, "host %9d |%n", &e->host_rows, &end) == 1 && end) {
        if (e->host_rows < 0) return "fewer rows than none";
    } else if (sscanf(line, "tile %5d %5d | %31s %7s d%9d %7s q%9d kv%9d |%n", &e->block_q, &e->block_kv, kernel, dtype,
                      &e->head_dim, band, &e->n_q, &e->n_kv, &end) == 8 &&
               end) {
        const char *wrong = read_tile(e, kernel, dtype, band);
        if (wrong) return wrong;
    } else {
        return "neither a tile nor host rows";
    }
    return read_scope(e, trim(line + end));
}

/* ---- finding */

/* Drivers put space around their names. */
static bool is_named(const char *name, const char *own)
{
    size_t n = strlen(own);
    while (n && isspace((unsigned char)own[n - 1])) n--;
    while (n && isspace((unsigned char)*own)) own++, n--;
    return strlen(name) == n && !memcmp(name, own, n);
}

static int rank_of(const entry *e, const device_profile *d)
{
    const char *own = e->scope == SCOPE_CLASS    ? (d->is_cpu ? "cpu" : "gpu")
                      : e->scope == SCOPE_VENDOR ? d->vendor
                                                 : d->name;
    return is_named(e->name, own) && (!e->driver || is_named(e->driver, d->driver)) ? (int)e->scope : 0;
}

static int64_t head_dim_of(const problem *p) { return p->head_dim_qk > p->head_dim_v ? p->head_dim_qk : p->head_dim_v; }
static bool has_band(const problem *p) { return p->window_left >= 0 || p->window_right >= 0; }

/* What was measured on n serves from half as many on, with fewer there may be too few tiles, up to four times as
 * many. */
static bool is_near(int64_t n, int64_t rows) { return n / 2 <= rows && rows / 4 <= n; }

static bool serves(const entry *e, const problem *p)
{
    return e->dtype == p->dtype && e->head_dim == head_dim_of(p) && e->has_band == has_band(p) &&
           is_near(e->n_q, p->n_q) && is_near(e->n_kv, p->n_kv);
}

/* Of the lines that are for d and p those of the highest rank, of those the one measured on most rows, of those the
 * last. p NULL: host rows. *best: its names are gone. */
static bool find(const char *table, const device_profile *d, const problem *p, clattn_kernel kernel, entry *best)
{
    char line[LINE_SIZE];
    entry e;
    int most = 0;
    while (table && next_line(&table, line)) {
        if (read_entry(line, &e) || e.kernel != kernel || (p && !serves(&e, p))) continue;
        const int rank = rank_of(&e, d);
        if (!rank || rank < most || (rank == most && e.n_q < best->n_q)) continue;
        most = rank;
        *best = e;
    }
    return most > 0;
}

bool clattn__tuning_tile(const device_profile *d, const problem *p, clattn_kernel kernel, int64_t *block_q,
                         int64_t *block_kv)
{
    entry e;
    if (!find(d->tuning, d, p, kernel, &e) && !find(shipped, d, p, kernel, &e)) return false;
    *block_q = e.block_q;
    *block_kv = e.block_kv;
    return e.block_q || e.block_kv;
}

int64_t clattn__tuning_host_rows(const device_profile *d)
{
    entry e = {.host_rows = 0};
    if (!find(d->tuning, d, NULL, CLATTN_KERNEL_AUTO, &e)) find(shipped, d, NULL, CLATTN_KERNEL_AUTO, &e);
    return e.host_rows;
}

void clattn__tuning_host_range(const char *table, int64_t *least, int64_t *most)
{
    const char *const tables[] = {table, shipped};
    char line[LINE_SIZE];
    entry e;
    *least = INT64_MAX;
    *most = 0;
    for (int i = 0; i < 2; i++)
        for (const char *at = tables[i]; at && next_line(&at, line);) {
            if (read_entry(line, &e) || e.kernel != CLATTN_KERNEL_AUTO) continue;
            if (e.host_rows < *least) *least = e.host_rows;
            if (e.host_rows > *most) *most = e.host_rows;
        }
}

/* ---- the user's table */

size_t clattn_tuning_file(char *path, size_t size)
{
    const char *named = getenv("CLATTN_TUNING");
    char folder[1024];
    text t = {path, path ? size : 0, 0};
    text_add(&t, "%s", "");
    if (named && *named && !clattn__has_more_rights()) {
        if (strcmp(named, "0") != 0) text_add(&t, "%s", named);
    } else if (!clattn__user_folder(folder, sizeof folder)) {
        text_add(&t, "%s/tuning.txt", folder);
    }
    return t.length;
}

/* What the file holds, to be freed; NULL and why, "" when there is no such file. */
static char *read_file(const char *path, char *why, size_t why_size)
{
    struct stat s;
    size_t n = 0;
    char *table = NULL;
    const int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    *why = 0;
    if (file < 0 && errno == ENOENT) {
        const char *named = getenv("CLATTN_TUNING");
        if (named && *named) snprintf(why, why_size, "not there");
        return NULL;
    }
    if (file < 0 || fstat(file, &s) || !S_ISREG(s.st_mode))
        snprintf(why, why_size, "no file that can be read");
    else if (s.st_size > FILE_MOST)
        snprintf(why, why_size, "%lld bytes long; it may have %d", (long long)s.st_size, FILE_MOST);
    else if (!(table = calloc(1, (size_t)s.st_size + 1)))
        snprintf(why, why_size, "too much for the memory that is left");
    while (table && n != (size_t)s.st_size) {
        const ssize_t got = read(file, table + n, (size_t)s.st_size - n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        n += (size_t)got;
    }
    if (file >= 0) close(file);
    if (table && n != (size_t)s.st_size) {
        snprintf(why, why_size, "not read to its end");
        free(table);
        table = NULL;
    }
    return table;
}

/* False: it is no table. */
static bool report(const clattn_context *c, const char *table, const char *name)
{
    char line[LINE_SIZE];
    entry e;
    int ignored = 0;
    for (int n = 1; next_line(&table, line); n++) {
        const char *start = trim(line), *wrong;
        if (n == 1 && strcmp(start, first_line) != 0) {
            clattn__log(c, LOG_PLAN, "tuning: %s is no table: its first line is not '%s'", name, first_line);
            return false;
        }
        if (n == 1 || !*start || *start == '#' || !(wrong = read_entry(line, &e))) continue;
        if (ignored++ < IGNORED_SAID) clattn__log(c, LOG_PLAN, "tuning: line %d of %s is ignored: %s", n, name, wrong);
    }
    if (ignored > IGNORED_SAID) clattn__log(c, LOG_PLAN, "tuning: %d lines of %s are ignored", ignored, name);
    return true;
}

clattn_status clattn__tuning_open(clattn_context *c)
{
    char path[2048] = "options.tuning", why[80] = "";
    const char *given = c->options.tuning;
    if (c->options.device == CLATTN_DEVICE_NONE) return CLATTN_STATUS_SUCCESS;
    if (given) {
        c->tuning = strdup(given);
        RETURN_IF(!c->tuning, OUT_OF_HOST_MEMORY, "no room for options.tuning");
    } else {
        const size_t n = clattn_tuning_file(path, sizeof path);
        if (n && n < sizeof path) c->tuning = read_file(path, why, sizeof why);
        if (n >= sizeof path) snprintf(why, sizeof why, "too long a path, of %zu bytes", n);
    }
    if (*why) clattn__log(c, LOG_PLAN, "tuning: %s is %s", path, why);
    if (c->tuning && *c->tuning && report(c, c->tuning, path)) return CLATTN_STATUS_SUCCESS;
    free(c->tuning);
    c->tuning = NULL;
    return CLATTN_STATUS_SUCCESS;
}

/* ---- an entry's text */

clattn_status clattn_plan_get_tuning(const clattn_plan *plan, char *line, size_t size)
{
    struct device *d;
    char own[LINE_SIZE];
    text t = {own, sizeof own, 0};
    RETURN_IF(!plan, INVALID_ARGUMENT, "plan is NULL");
    RETURN_IF(!line, INVALID_ARGUMENT, "line is NULL");
    RETURN_IF(plan->pass == CLATTN_PASS_BACKWARD, UNSUPPORTED, "plan is backward's; tables speak of forward calls");
    FORWARD(clattn__context_device(plan->context, &d));
    const problem *p = &plan->problem;
    const device_choice *c = &plan->choice;
    const device_profile *profile = clattn__device_profile(d);
    const bool is_tile = c->kernel == CLATTN_KERNEL_ATTN_FWD || c->kernel == CLATTN_KERNEL_ATTN_FWD_LANES ||
                         c->kernel == CLATTN_KERNEL_ATTN_FWD_MMA;
    const int64_t rows = p->n_q > p->n_kv ? p->n_q : p->n_kv;
    const int block_q = c->axes[AXIS_BLOCK_Q], block_kv = c->axes[AXIS_BLOCK_KV]; /* all rows: any larger size too */
    RETURN_IF(plan->path == CLATTN_PATH_DEVICE && !is_tile, UNSUPPORTED, "%s takes its block sizes from no table",
              clattn_kernel_name(c->kernel));
    RETURN_IF(rows > NUMBER_MOST, UNSUPPORTED, "n_q is %" PRId64 " and n_kv %" PRId64 "; a table has up to %d", p->n_q,
              p->n_kv, NUMBER_MOST);
    if (plan->path == CLATTN_PATH_HOST)
        text_add(&t, "host %" PRId64, rows);
    else
        text_add(&t, "tile %d %d | %s %s d%" PRId64 " %s q%" PRId64 " kv%" PRId64, block_q < p->n_q ? block_q : 0,
                 block_kv < p->n_kv ? block_kv : 0, clattn_kernel_name(c->kernel), clattn_dtype_name(p->dtype),
                 head_dim_of(p), has_band(p) ? "band" : "full", p->n_q, p->n_kv);
    text_add(&t, " | device %s | %s", profile->name, profile->driver);
    RETURN_IF(t.length >= size, INVALID_ARGUMENT, "size is %zu; the line takes %zu bytes", size, t.length + 1);
    memcpy(line, own, t.length + 1);
    return CLATTN_STATUS_SUCCESS;
}
