#include "context.h"

#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <clattn/clattn.h>

#include "device.h"
#include "devices.h"
#include "error.h"
#include "tuning.h"

void clattn_context_options_init(clattn_context_options *options)
{
    if (!options) return;
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
}

static clattn_status check_options(const clattn_context_options *o)
{
    RETURN_IF(o->struct_size != sizeof *o, INVALID_ARGUMENT,
              "options.struct_size is %zu; this library knows %zu: call clattn_context_options_init", o->struct_size,
              sizeof *o);
    RETURN_IF(o->device < CLATTN_DEVICE_DEFAULT || o->device > CLATTN_DEVICE_NONE, INVALID_ARGUMENT,
              "options.device is %d; it must be one of clattn_device_select", (int)o->device);
    RETURN_IF(o->device == CLATTN_DEVICE_INDEX && o->device_index < 0, INVALID_ARGUMENT,
              "options.device_index is %d; it must be at least 0", o->device_index);
    RETURN_IF(o->device == CLATTN_DEVICE_NAME && !o->device_name, INVALID_ARGUMENT, "options.device_name is NULL");
    RETURN_IF(o->n_devices < 0, INVALID_ARGUMENT, "options.n_devices is %d; it must be at least 0", o->n_devices);
    RETURN_IF(o->n_devices && !o->devices, INVALID_ARGUMENT, "options.n_devices is %d, options.devices is NULL",
              o->n_devices);
    for (int i = 0; i < o->n_devices; i++) {
        RETURN_IF(o->devices[i] < 0, INVALID_ARGUMENT, "options.devices[%d] is %d; it must be at least 0", i,
                  o->devices[i]);
        for (int k = 0; k < i; k++)
            RETURN_IF(o->devices[k] == o->devices[i], INVALID_ARGUMENT, "options.devices[%d] and [%d] are both %d", k,
                      i, o->devices[i]);
    }
    RETURN_IF(o->n_threads < 0, INVALID_ARGUMENT, "options.n_threads is %d; it must be at least 0", o->n_threads);
    RETURN_IF(o->copy_transfers != 0 && o->copy_transfers != 1, INVALID_ARGUMENT,
              "options.copy_transfers is %d; it must be 0 or 1", o->copy_transfers);
    RETURN_IF(o->copy_bytes_most < 0, INVALID_ARGUMENT, "options.copy_bytes_most is %" PRId64 "; it must be at least 0",
              o->copy_bytes_most);
    RETURN_IF(o->program_cache != CLATTN_PROGRAM_CACHE_DEFAULT && o->program_cache != CLATTN_PROGRAM_CACHE_OFF,
              INVALID_ARGUMENT, "options.program_cache is %d; it must be one of clattn_program_cache",
              (int)o->program_cache);
    return CLATTN_STATUS_SUCCESS;
}

/* ---- log */

static const char *const kind_names[LOG_KINDS] = {"plan", "build", "run"};

static unsigned verbose_kinds(void)
{
    const char *verbose = getenv("CLATTN_VERBOSE");
    unsigned kinds = 0;
    for (const char *s = verbose; s && *s; s += strcspn(s, ","), s += *s == ',')
        for (int kind = 0; kind < LOG_KINDS; kind++) {
            const size_t n = strlen(kind_names[kind]);
            if (!strncmp(s, kind_names[kind], n) && (s[n] == ',' || !s[n])) kinds |= 1u << kind;
            if (!strcmp(s, "all") || !strcmp(s, "1")) kinds |= 1u << kind;
        }
    return kinds;
}

void clattn__log(const clattn_context *c, log_kind kind, const char *format, ...)
{
    char line[4096];
    if (!clattn__log_wants(c, kind)) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (c->options.log) c->options.log(kind_names[kind], line, c->options.log_user);
    if (c->verbose >> kind & 1) fprintf(stderr, "clattn: %s: %s\n", kind_names[kind], line);
}

clattn_status clattn__context_new(const clattn_context_options *given, clattn_context **context)
{
    clattn_context_options defaults;
    clattn_context_options_init(&defaults);
    const clattn_context_options *o = given ? given : &defaults;
    FORWARD(check_options(o));

    clattn_context *c = calloc(1, sizeof *c);
    char *name = o->device == CLATTN_DEVICE_NAME ? strdup(o->device_name) : NULL;
    int *devices = o->n_devices ? malloc(sizeof *devices * (size_t)o->n_devices) : NULL;
    host_threads *threads = clattn__threads_create(o->n_threads, o->parallel_for, o->parallel_for_user);
    if (!c || (o->device == CLATTN_DEVICE_NAME && !name) || (o->n_devices && !devices) || !threads) {
        free(c);
        free(name);
        free(devices);
        clattn__threads_free(threads);
        clattn__fail(CLATTN_STATUS_OUT_OF_HOST_MEMORY, 0, "no room for a context");
        return CLATTN_STATUS_OUT_OF_HOST_MEMORY;
    }
    atomic_init(&c->references, 1);
    c->options = *o;
    c->options.device_name = c->device_name = name;
    c->options.devices = c->devices = devices;
    if (devices) {
        memcpy(devices, o->devices, sizeof *devices * (size_t)o->n_devices);
        c->options.device = CLATTN_DEVICE_INDEX;
        c->options.device_index = devices[0];
        if (o->n_devices > 1) c->options.copy_transfers = 1;
    }
    c->threads = threads;
    c->verbose = verbose_kinds();
    atomic_init(&c->process, (int)getpid());
    pthread_mutex_init(&c->lock, NULL);
    const clattn_status status = clattn__tuning_open(c);
    c->options.tuning = c->tuning;
    if (status != CLATTN_STATUS_SUCCESS)
        clattn_context_release(c);
    else
        *context = c;
    return status;
}

clattn_status clattn_context_create(const clattn_context_options *options, clattn_context **context)
{
    RETURN_IF(!context, INVALID_ARGUMENT, "context is NULL");
    clattn_context *c;
    FORWARD(clattn__context_new(options, &c));
    if (c->options.device == CLATTN_DEVICE_INDEX || c->options.device == CLATTN_DEVICE_NAME) {
        struct device *d;
        clattn_status status = clattn__context_device(c, &d);
        if (status == CLATTN_STATUS_SUCCESS) status = clattn__devices_open(c);
        if (status != CLATTN_STATUS_SUCCESS) {
            clattn_context_release(c);
            return status;
        }
    }
    *context = c;
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn_context_retain(clattn_context *c)
{
    if (c) atomic_fetch_add(&c->references, 1);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn_context_release(clattn_context *c)
{
    if (!c || atomic_fetch_sub(&c->references, 1) != 1) return CLATTN_STATUS_SUCCESS;
    clattn__context_lock(c); /* for what it does in a child */
    pthread_mutex_unlock(&c->lock);
    for (int i = 0; i < CACHED_PLANS; i++) clattn__plan_drop(c->cached[i]);
    clattn__devices_close(c);
    clattn__device_close(c->device);
    clattn__threads_free(c->threads);
    pthread_mutex_destroy(&c->lock);
    free(c->device_name);
    free(c->devices);
    free(c->tuning);
    free(c);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__context_default(clattn_context **context)
{
    static _Atomic(clattn_context *) the_default;
    clattn_context *made, *there = atomic_load(&the_default);
    if (!there) {
        FORWARD(clattn__context_new(NULL, &made));
        if (atomic_compare_exchange_strong(&the_default, &there, made))
            there = made;
        else
            clattn_context_release(made); /* another thread was first */
    }
    *context = there;
    return CLATTN_STATUS_SUCCESS;
}

void clattn__context_lock(clattn_context *c)
{
    const int self = (int)getpid();
    for (int owner = atomic_load(&c->process); owner != self; owner = atomic_load(&c->process)) {
        if (owner == -self || !atomic_compare_exchange_strong(&c->process, &owner, -self)) {
            sched_yield(); /* another thread of the child is at it */
            continue;
        }
        pthread_mutex_init(&c->lock, NULL);
        memset(c->cached, 0, sizeof c->cached);
        atomic_store(&c->process, self);
    }
    pthread_mutex_lock(&c->lock);
}

clattn_status clattn__context_device(clattn_context *c, struct device **d)
{
    clattn_status status = CLATTN_STATUS_SUCCESS;
    clattn__context_lock(c);
    if (!c->device && !c->device_tried) {
        status = clattn__device_open(&c->options, &c->device);
        c->device_tried = status == CLATTN_STATUS_SUCCESS || status == CLATTN_STATUS_NO_DEVICE; /* others may pass */
        if (status != CLATTN_STATUS_SUCCESS)
            snprintf(c->device_why, sizeof c->device_why, "%s", clattn_last_error()->message);
    }
    *d = c->device;
    pthread_mutex_unlock(&c->lock);
    if (*d || status != CLATTN_STATUS_SUCCESS) return status;
    return clattn__fail(CLATTN_STATUS_NO_DEVICE, 0, "%s", c->device_why);
}
