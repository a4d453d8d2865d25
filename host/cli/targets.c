/* The only file of the program that opens contexts. */
#include "targets.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

/* ---- devices and runners */

static bool contains(const char *text, const char *part)
{
    for (; *text; text++) {
        size_t n = 0;
        while (part[n] && tolower((unsigned char)text[n]) == tolower((unsigned char)part[n])) n++;
        if (!part[n]) return true;
    }
    return false;
}

int device_find(const char *text, int *index)
{
    int count = 0;
    int64_t number;
    if (clattn_device_count(&count)) return cli_fail_library("--device", text);
    if (args_parse_integer(text, 0, INT64_MAX, &number)) {
        if (number < count) return *index = (int)number, CLI_OK;
        return cli_fail(CLI_USAGE, "--device %s: no such device; there are %d, counted from 0", text, count);
    }
    for (int i = 0; i < count; i++) {
        clattn_device_info info;
        clattn_device_info_init(&info);
        if (clattn_device_get_info(i, &info)) return cli_fail_library("--device", text);
        if (contains(info.name, text) || contains(info.platform, text) || contains(info.version, text))
            return *index = i, CLI_OK;
    }
    return cli_fail(CLI_USAGE, "--device %s: none of the %d devices has that name", text, count);
}

bool device_has_memory(const char *name)
{
    int count = 0;
    clattn_device_info info;
    clattn_device_info_init(&info);
    clattn_device_count(&count);
    for (int i = 0; i < count; i++)
        if (!clattn_device_get_info(i, &info) && !strcmp(info.name, name)) return !info.shares_host_memory;
    return false;
}

/* Names the flag that most likely is to blame for the library's last error. */
static int fail_plan(const options *o)
{
    if (o->kernel) return cli_fail_library("--kernel", clattn_kernel_name((clattn_kernel)o->kernel));
    if (o->path) return cli_fail_library("--path", clattn_path_name((clattn_path)o->path));
    return cli_fail_library(NULL, NULL);
}

int runner_open(const options *o, const clattn_problem *p, clattn_pass pass, runner *r)
{
    clattn_context_options c;
    clattn_plan_options plan;
    memset(r, 0, sizeof *r);
    clattn_context_options_init(&c);
    c.n_threads = (int)o->threads;
    if (o->device) {
        const int code = device_find(o->device, &c.device_index);
        if (code) return code;
        c.device = CLATTN_DEVICE_INDEX;
    }
    if (o->path == CLATTN_PATH_HOST) c.device = CLATTN_DEVICE_NONE;
    if (clattn_context_create(&c, &r->context)) return cli_fail_library(o->device ? "--device" : NULL, o->device);
    clattn_plan_options_init(&plan);
    plan.path = (clattn_path)o->path;
    plan.kernel = (clattn_kernel)o->kernel;
    plan.block_q = o->block_q;
    plan.block_kv = o->block_kv;
    plan.pass = pass;
    clattn_plan_info_init(&r->info);
    int code = CLI_OK;
    if (clattn_plan_create(r->context, p, &plan, &r->plan))
        code = fail_plan(o);
    else if (clattn_plan_get_info(r->plan, &r->info))
        code = cli_fail_library(NULL, NULL);
    if (code) runner_close(r);
    return code;
}

int runner_forward(const runner *r, const clattn_problem *p, const clattn_forward_args *args)
{
    clattn_plan_options how;
    clattn_plan *plan = NULL;
    clattn_plan_options_init(&how);
    how.path = r->info.path;
    if (r->info.kernel == CLATTN_KERNEL_ATTN_BWD)
        how.kernel = CLATTN_KERNEL_ATTN_FWD; /* which adds in the same order */
    const bool good = !clattn_plan_create(r->context, p, &how, &plan) && !clattn_forward(plan, args);
    const int code = good ? CLI_OK : cli_fail_library(NULL, NULL);
    clattn_plan_release(plan);
    return code;
}

void runner_close(runner *r)
{
    clattn_plan_release(r->plan);
    clattn_context_release(r->context);
    r->plan = NULL;
    r->context = NULL;
}

/* ---- targets */

/* Fills context, or status and why. */
static void open_context(const options *o, target *t)
{
    clattn_context_options c;
    clattn_context_options_init(&c);
    c.n_threads = (int)o->threads;
    c.device = t->index < 0 ? CLATTN_DEVICE_NONE : CLATTN_DEVICE_INDEX;
    c.program_cache = CLATTN_PROGRAM_CACHE_OFF; /* every problem is another program, run once */
    c.device_index = t->index;
    t->status = clattn_context_create(&c, &t->context);
    if (!t->status) return;
    t->context = NULL;
    snprintf(t->why, sizeof t->why, "%s", clattn_last_error()->message);
}

static void add(target_list *list, const options *o, const target *t)
{
    const bool wanted = (!o->path || o->path == (int)t->path) && (!o->kernel || o->kernel == (int)t->kernel);
    if (!wanted) return;
    if (t->context) clattn_context_retain(t->context);
    list->targets[list->n++] = *t;
}

static int add_device(target_list *list, const options *o, int index)
{
    clattn_device_info info;
    target t = {.path = CLATTN_PATH_DEVICE, .index = index};
    clattn_device_info_init(&info);
    if (clattn_device_get_info(index, &info)) return cli_fail_library(NULL, NULL);
    snprintf(t.device, sizeof t.device, "%s", info.name);
    if (info.usable) {
        open_context(o, &t);
    } else {
        t.status = CLATTN_STATUS_UNSUPPORTED;
        snprintf(t.why, sizeof t.why, "%s", info.why);
    }
    if (!strcmp(info.type, "cpu")) {
        t.kernel = CLATTN_KERNEL_ATTN_FWD_LANES;
        add(list, o, &t);
        t.kernel = CLATTN_KERNEL_ATTN_DECODE_LANES;
        add(list, o, &t);
    }
    t.kernel = CLATTN_KERNEL_ATTN_DECODE; /* on a CPU device, which has its own, where asked for */
    if (strcmp(info.type, "cpu") || o->kernel == (int)t.kernel) add(list, o, &t);
    t.kernel = CLATTN_KERNEL_ATTN_FWD;
    add(list, o, &t);
    t.kernel = CLATTN_KERNEL_ATTN_FWD_MMA; /* emulated where asked for */
    if (info.matrix_engine || o->kernel == (int)t.kernel) add(list, o, &t);
    clattn_context_release(t.context);
    return CLI_OK;
}

int targets_open(const options *o, target_list *list)
{
    int count = 0, only = -1, code = CLI_OK;
    memset(list, 0, sizeof *list);
    if (o->path != CLATTN_PATH_HOST) {
        if (clattn_device_count(&count)) return cli_fail_library(NULL, NULL);
        if (o->device) code = device_find(o->device, &only);
        if (code) return code;
    }
    list->targets = cli_alloc("the list of devices", 5 * (int64_t)count + 2, sizeof *list->targets);
    if (!list->targets) return CLI_FAILED;
    target host = {.path = CLATTN_PATH_HOST, .kernel = CLATTN_KERNEL_HOST_TILE, .index = -1, .device = "-"};
    open_context(o, &host);
    add(list, o, &host);
    host.kernel = CLATTN_KERNEL_HOST_DECODE;
    add(list, o, &host);
    clattn_context_release(host.context);
    for (int i = 0; !code && i < count; i++)
        if (only < 0 || only == i) code = add_device(list, o, i);
    if (!code && list->n == 0)
        code = cli_fail(CLI_USAGE, "no path, device and kernel is left to run; there are %d devices", count);
    if (code) targets_close(list);
    return code;
}

void targets_close(target_list *list)
{
    for (int i = 0; i < list->n; i++) clattn_context_release(list->targets[i].context);
    free(list->targets);
    memset(list, 0, sizeof *list);
}
