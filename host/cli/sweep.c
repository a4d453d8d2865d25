/* Which lengths, which paths, and the lines that come of them. */
#include "sweep.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "peak.h"
#include "plot.h"
#include "progress.h"
#include "targets.h"

enum { LEAST_KEYS = 16, DECODE_ROWS = 16, MOST_LENGTHS = 60, MOST_PATHS = 9 };

/* Powers of two, and at last n itself. */
static int lengths_up_to(int64_t n, int64_t lengths[MOST_LENGTHS])
{
    int count = 0;
    for (int64_t x = LEAST_KEYS; x < n && count < MOST_LENGTHS - 1; x *= 2) lengths[count++] = x;
    lengths[count++] = n;
    return count;
}

/* x of a problem with n_kv keys, in step with a problem with `keys` of them. */
static int64_t in_step(int64_t x, int64_t keys, int64_t n_kv)
{
    return (int64_t)((double)x * (double)keys / (double)n_kv + 0.5);
}

/* The problem with that many keys; windows stay as they are. */
static clattn_problem problem_of_length(const clattn_problem *whole, int64_t keys, bool keeps_rows)
{
    clattn_problem p = *whole;
    if (keys == whole->n_kv) return p;
    p.n_kv = keys;
    if (!keeps_rows) p.n_q = in_step(whole->n_q, keys, whole->n_kv);
    if (p.n_q < 1) p.n_q = 1;
    if (p.kv_length != CLATTN_KV_LENGTH_ALL) p.kv_length = in_step(whole->kv_length, keys, whole->n_kv);
    /* rows that end at the last key go on doing so */
    const bool at_end = whole->query_offset == whole->n_kv - whole->n_q;
    p.query_offset = at_end ? keys - p.n_q : in_step(whole->query_offset, keys, whole->n_kv);
    return p;
}

/* ---- paths: the host, and every device that can do the problem */

static bool host_kernel(int kernel)
{
    return kernel == CLATTN_KERNEL_HOST_TILE || kernel == CLATTN_KERNEL_HOST_DECODE ||
           kernel == CLATTN_KERNEL_HOST_BACKWARD;
}

static bool device_can(int index, const clattn_problem *p, const options *o)
{
    clattn_context_options c;
    clattn_plan_options how;
    clattn_context *context = NULL;
    clattn_plan *plan = NULL;
    clattn_context_options_init(&c);
    c.device = CLATTN_DEVICE_INDEX;
    c.device_index = index;
    clattn_plan_options_init(&how);
    how.path = CLATTN_PATH_DEVICE;
    how.pass = (clattn_pass)o->pass;
    const bool can = !clattn_context_create(&c, &context) && !clattn_plan_create(context, p, &how, &plan);
    clattn_plan_release(plan);
    clattn_context_release(context);
    return can;
}

/* o for each path; names: room for the devices' indices. */
static int find_paths(const options *o, const clattn_problem *p, options paths[MOST_PATHS], char names[MOST_PATHS][16],
                      int *n)
{
    int count = 0, only = -1, code = CLI_OK;
    *n = 0;
    if (o->path != CLATTN_PATH_DEVICE && (!o->kernel || host_kernel(o->kernel))) {
        paths[*n] = *o;
        paths[*n].device = NULL;
        paths[*n].resident = 0;
        paths[(*n)++].path = CLATTN_PATH_HOST;
    }
    if (o->path == CLATTN_PATH_HOST || host_kernel(o->kernel)) return CLI_OK;
    if (clattn_device_count(&count)) return cli_fail_library(NULL, NULL);
    if (o->device) code = device_find(o->device, &only);
    for (int i = 0; !code && i < count && *n < MOST_PATHS; i++) {
        if (only >= 0 ? only != i : !device_can(i, p, o))
            continue; /* one that was asked for says itself why it cannot */
        snprintf(names[*n], sizeof names[*n], "%d", i);
        paths[*n] = *o;
        paths[*n].device = names[*n];
        paths[(*n)++].path = CLATTN_PATH_DEVICE;
    }
    if (!code && !*n) code = cli_fail(CLI_USAGE, "--plot: none of the %d devices can do this problem", count);
    return code;
}

/* ---- running */

static int run_paths(const options *paths, int n_paths, const clattn_problem *whole, sweep *s)
{
    int64_t lengths[MOST_LENGTHS];
    progress bar;
    int code = CLI_OK;
    const int n_lengths = lengths_up_to(whole->n_kv, lengths);
    s->results = cli_alloc("the times", (int64_t)n_paths * n_lengths, sizeof *s->results);
    if (!s->results) return CLI_FAILED;
    progress_start(&bar, "bench", (int64_t)(paths[0].budget * 1e6 * n_paths * n_lengths) + 1);
    s->peak_gbs = peak_gbs(paths[0].threads);
    if (!s->peak_gbs) code = cli_fail(CLI_FAILED, "there is no memory to measure the bandwidth of reading it");
    for (int i = 0; !code && i < n_paths * n_lengths; i++) {
        char text[PROBLEM_TEXT_SIZE];
        const clattn_problem p = problem_of_length(whole, lengths[i % n_lengths], s->keeps_rows);
        const double peak = peak_gflops(paths[0].threads, p.dtype);
        if (peak > s->peak_gflops) s->peak_gflops = peak;
        clattn_problem_to_text(&p, text, sizeof text);
        code = bench_run(&paths[i / n_lengths], text, &bar, &s->results[s->n_results]);
        if (!code) s->n_results++;
    }
    progress_stop(&bar);
    return code;
}

int sweep_run(const options *o, sweep *s)
{
    clattn_problem whole;
    options paths[MOST_PATHS] = {*o};
    char names[MOST_PATHS][16];
    int n_paths;
    memset(s, 0, sizeof *s);
    if (clattn_problem_from_text(o->problem, &whole)) return cli_fail_library(NULL, NULL);
    if (whole.varlen) return cli_fail(CLI_USAGE, "--plot: varlen lists its lengths; give a problem with q and kv");
    if (whole.n_kv < 1 || whole.n_q < 1)
        return cli_fail(CLI_USAGE, "--plot: n_q is %" PRId64 " and n_kv %" PRId64 ": both must be at least 1",
                        whole.n_q, whole.n_kv);
    clattn_problem_to_text(&whole, s->title, sizeof s->title);
    s->pass = (clattn_pass)o->pass;
    s->keeps_rows = whole.n_q <= DECODE_ROWS;
    const int code = find_paths(o, &whole, paths, names, &n_paths);
    return code ? code : run_paths(paths, n_paths, &whole, s);
}

void sweep_free(sweep *s)
{
    free(s->results);
    s->results = NULL;
}

/* ---- the plot */

/* The processor's name, as far as the system tells. */
static void processor_name(char *name, size_t size)
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    snprintf(name, size, "this processor");
    while (file && fgets(line, sizeof line, file)) {
        const char *colon = strchr(line, ':');
        if (!colon || strncmp(line, "model name", 10)) continue;
        snprintf(name, size, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        break;
    }
    if (file) fclose(file);
}

/* The line that a result belongs to: one for the host, one for each kernel of each device. NULL: there are too many. */
static plot_line *line_of(plot *p, const bench_result *r)
{
    static const char host[] = "host path: ";
    const bool on_host = r->path == CLATTN_PATH_HOST;
    char label[sizeof p->lines[0].label];
    if (on_host)
        snprintf(label, sizeof label, "%s%s with %s, %d thread%s", host, clattn_kernel_name(r->kernel), r->instructions,
                 r->n_threads, r->n_threads == 1 ? "" : "s");
    else
        snprintf(label, sizeof label, "device path: %s on %s, tensors in %s memory", clattn_kernel_name(r->kernel),
                 r->device, r->resident ? "its" : "host");
    plot_line *l = NULL;
    for (int i = 0; i < p->n_lines && !l; i++) {
        const bool same =
            on_host ? !strncmp(p->lines[i].label, host, sizeof host - 1) : !strcmp(p->lines[i].label, label);
        const int n = p->lines[i].n; /* lengths grow: at a smaller one a device of the same name begins */
        if (same && n && p->lines[i].x[n - 1] < (double)r->n_kv) l = &p->lines[i];
    }
    if (!l && p->n_lines < PLOT_MOST_LINES) l = &p->lines[p->n_lines++];
    if (l) snprintf(l->label, sizeof l->label, "%s", label); /* the host's: what the longest length takes */
    return l;
}

static void add_point(plot_line *l, double x, double y)
{
    if (!l || l->n == PLOT_MOST_POINTS) return;
    l->x[l->n] = x;
    l->y[l->n++] = y;
}

bool sweep_plot(const sweep *s, FILE *to)
{
    char processor[128], subtitle[512], x_label[128], y_label[128];
    plot p = {.title = s->title, .subtitle = subtitle, .x_label = x_label, .y_label = y_label};
    plot_line *peak = &p.lines[p.n_lines++], *roof = &p.lines[p.n_lines++];
    processor_name(processor, sizeof processor);
    snprintf(subtitle, sizeof subtitle, "%s on %s, clattn %s", s->pass == CLATTN_PASS_BACKWARD ? "backward" : "forward",
             processor, clattn_version());
    snprintf(x_label, sizeof x_label,
             s->keeps_rows ? "keys, n_kv (n_q = %" PRId64 ")" : "sequence length, n_kv (n_q in step)",
             s->results[0].n_q);
    snprintf(y_label, sizeof y_label, "share of the processor's peak, %%");
    snprintf(peak->label, sizeof peak->label, "peak: multiply-adds of %s in registers, %.0f GFLOP/s",
             s->results[0].dtype == CLATTN_DTYPE_F64 ? "f64" : "f32", s->peak_gflops);
    peak->style = PLOT_PEAK;
    snprintf(roof->label, sizeof roof->label,
             "roofline: operations a byte x %.1f GB/s of reading memory, at most the peak", s->peak_gbs);
    roof->style = PLOT_ROOF;
    for (int i = 0; i < s->n_results; i++) {
        const bench_result *r = &s->results[i];
        const double x = (double)r->n_kv, bound = r->intensity * s->peak_gbs / s->peak_gflops;
        add_point(line_of(&p, r), x, 100 * r->gflops / s->peak_gflops);
        if (p.n_x_ticks && x <= p.x_ticks[p.n_x_ticks - 1]) continue; /* an earlier path had this length */
        p.x_ticks[p.n_x_ticks++] = x;
        add_point(peak, x, 100);
        add_point(roof, x, bound < 1 ? 100 * bound : 100);
    }
    return plot_write(&p, to);
}
