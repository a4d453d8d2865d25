#include "copy.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    SLOTS = 4,
    STAGINGS_KEPT = 2,
    SLOT_BYTES = 4 << 20,  /* two thirds of the bus's speed by 1 MiB, all of it from here on */
    PART_BYTES = 256 << 10 /* of a thread at a time */
};

struct staging {
    staging *next;
    cl_mem mem;
    char *at;             /* its SLOTS slots, mapped */
    cl_event busy[SLOTS]; /* what still reads or writes a slot, or NULL */
    int slot;             /* the next to use */
};

/* ---- rows */

typedef struct rows {
    const tensor_shape *t;
    char *caller;
    int64_t n[4]; /* of runs */
    int64_t run;  /* bytes that lie together in both */
    int64_t bytes;
} rows;

static rows rows_of(const tensor_shape *t, char *caller)
{
    int64_t dense[4];
    rows r = {.t = t, .caller = caller, .run = (int64_t)t->size, .bytes = clattn__tensor_copy_bytes(t)};
    clattn__tensor_copy_strides(t, dense);
    for (int i = 0; i < 4; i++)
        r.n[i] = t->stride[i] ? t->count[i] : 1; /* a dimension that is broadcast has one copy */
    for (int i = 3; i >= 0 && (r.n[i] == 1 || t->stride[i] == dense[i]); i--) {
        r.run *= r.n[i];
        r.n[i] = 1;
    }
    return r;
}

/* Bytes `from` to `to` of the copy, which lie at `copy`. */
static void rows_copy(const rows *r, int64_t from, int64_t to, char *copy, copy_direction direction)
{
    int64_t at[4], run = from / r->run, skip = from % r->run;
    for (int i = 3; i >= 0; i--) {
        at[i] = run % r->n[i];
        run /= r->n[i];
    }
    while (from < to) {
        const int64_t bytes = r->run - skip < to - from ? r->run - skip : to - from;
        const int64_t element = tensor_at(r->t, at[0], at[1], at[2]) + at[3] * r->t->stride[3];
        char *x = r->caller + element * (int64_t)r->t->size + skip;
        memcpy(direction == COPY_IN ? copy : x, direction == COPY_IN ? x : copy, (size_t)bytes);
        copy += bytes;
        from += bytes;
        skip = 0;
        for (int i = 3; i >= 0 && ++at[i] == r->n[i]; i--) at[i] = 0;
    }
}

/* ---- through the driver's mapping */

static clattn_status copy_mapped(cl_command_queue queue, const rows *r, cl_mem mem, copy_direction direction,
                                 cl_event *done)
{
    cl_int code;
    cl_event unmapped;
    char *copy =
        clEnqueueMapBuffer(queue, mem, CL_TRUE, direction == COPY_IN ? CL_MAP_WRITE_INVALIDATE_REGION : CL_MAP_READ, 0,
                           (size_t)r->bytes, 0, NULL, NULL, &code);
    RETURN_IF_CL("clEnqueueMapBuffer", code);
    rows_copy(r, 0, r->bytes, copy, direction);
    RETURN_IF_CL("clEnqueueUnmapMemObject", clEnqueueUnmapMemObject(queue, mem, copy, 0, NULL, &unmapped));
    if (*done) clReleaseEvent(*done);
    *done = unmapped;
    return CLATTN_STATUS_SUCCESS;
}

/* ---- through a staging */

typedef struct part_job {
    const rows *r;
    char *slot;
    int64_t from, to;
    copy_direction direction;
    atomic_llong next;
} part_job;

static void parts_copy(void *argument, size_t nth)
{
    part_job *j = argument;
    (void)nth;
    for (;;) {
        const int64_t at = atomic_fetch_add(&j->next, PART_BYTES);
        if (at >= j->to) return;
        rows_copy(j->r, at, at + PART_BYTES < j->to ? at + PART_BYTES : j->to, j->slot + (at - j->from), j->direction);
    }
}

static void slot_copy(host_threads *threads, const rows *r, char *slot, int64_t from, int64_t to,
                      copy_direction direction)
{
    part_job j = {.r = r, .slot = slot, .from = from, .to = to, .direction = direction};
    const int64_t parts = (to - from + PART_BYTES - 1) / PART_BYTES, most = clattn__threads_count(threads);
    atomic_init(&j.next, from);
    clattn__threads_run(threads, (size_t)(parts < most ? parts : most), parts_copy, &j);
}

static clattn_status slot_wait(staging *s, int slot)
{
    if (!s->busy[slot]) return CLATTN_STATUS_SUCCESS;
    const cl_int code = clWaitForEvents(1, &s->busy[slot]);
    clReleaseEvent(s->busy[slot]);
    s->busy[slot] = NULL;
    RETURN_IF_CL("clWaitForEvents", code);
    return CLATTN_STATUS_SUCCESS;
}

static int64_t slot_end(const rows *r, int64_t from)
{
    return from + SLOT_BYTES < r->bytes ? from + SLOT_BYTES : r->bytes;
}

static clattn_status copy_in(cl_command_queue queue, staging *s, host_threads *threads, const rows *r, cl_mem mem,
                             cl_event *done)
{
    int last = 0;
    for (int64_t from = 0; from < r->bytes; from = slot_end(r, from), s->slot = (s->slot + 1) % SLOTS) {
        char *slot = s->at + (int64_t)s->slot * SLOT_BYTES;
        const int64_t to = slot_end(r, from);
        last = s->slot;
        FORWARD(slot_wait(s, last));
        slot_copy(threads, r, slot, from, to, COPY_IN);
        RETURN_IF_CL("clEnqueueWriteBuffer", clEnqueueWriteBuffer(queue, mem, CL_FALSE, (size_t)from,
                                                                  (size_t)(to - from), slot, 0, NULL, &s->busy[last]));
        RETURN_IF_CL("clFlush", clFlush(queue));
    }
    RETURN_IF_CL("clRetainEvent", clRetainEvent(s->busy[last]));
    if (*done) clReleaseEvent(*done);
    *done = s->busy[last];
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status copy_out(cl_command_queue queue, staging *s, host_threads *threads, const rows *r, cl_mem mem)
{
    int64_t asked = 0;
    int next = s->slot; /* to be asked for */
    for (int64_t from = 0; from < r->bytes; from = slot_end(r, from), s->slot = (s->slot + 1) % SLOTS) {
        for (; asked < r->bytes && asked - from < (int64_t)SLOTS * SLOT_BYTES;
             asked = slot_end(r, asked), next = (next + 1) % SLOTS) {
            FORWARD(slot_wait(s, next));
            RETURN_IF_CL("clEnqueueReadBuffer",
                         clEnqueueReadBuffer(queue, mem, CL_FALSE, (size_t)asked, (size_t)(slot_end(r, asked) - asked),
                                             s->at + (int64_t)next * SLOT_BYTES, 0, NULL, &s->busy[next]));
            RETURN_IF_CL("clFlush", clFlush(queue));
        }
        FORWARD(slot_wait(s, s->slot));
        slot_copy(threads, r, s->at + (int64_t)s->slot * SLOT_BYTES, from, slot_end(r, from), COPY_OUT);
    }
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__copy(cl_command_queue queue, staging *s, host_threads *threads, const tensor_shape *t,
                           char *caller, cl_mem mem, copy_direction direction, cl_event *done)
{
    const rows r = rows_of(t, caller);
    if (!s) return copy_mapped(queue, &r, mem, direction, done);
    return direction == COPY_IN ? copy_in(queue, s, threads, &r, mem, done) : copy_out(queue, s, threads, &r, mem);
}

/* ---- the device's stagings */

static void staging_drop(struct device *d, staging *s)
{
    if (s->at) clEnqueueUnmapMemObject(d->queue, s->mem, s->at, 0, NULL, NULL);
    if (s->mem) clReleaseMemObject(s->mem);
    free(s);
}

staging *clattn__staging_take(struct device *d)
{
    cl_int code;
    pthread_mutex_lock(&d->stagings_lock);
    staging *s = d->stagings;
    if (s) d->stagings = s->next, d->n_stagings--;
    pthread_mutex_unlock(&d->stagings_lock);
    if (s) return s;
    s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->mem = clCreateBuffer(d->cl, CL_MEM_READ_WRITE | CL_MEM_ALLOC_HOST_PTR, (size_t)SLOTS * SLOT_BYTES, NULL, &code);
    if (code == CL_SUCCESS)
        s->at = clEnqueueMapBuffer(d->queue, s->mem, CL_TRUE, CL_MAP_READ | CL_MAP_WRITE, 0, (size_t)SLOTS * SLOT_BYTES,
                                   0, NULL, NULL, &code);
    if (code == CL_SUCCESS) return s;
    s->at = NULL;
    staging_drop(d, s);
    return NULL;
}

clattn_status clattn__staging_wait(staging *s)
{
    for (int i = 0; i < SLOTS; i++) FORWARD(slot_wait(s, i));
    return CLATTN_STATUS_SUCCESS;
}

void clattn__staging_give(struct device *d, staging *s)
{
    if (!s) return;
    for (int i = 0; i < SLOTS; i++) {
        if (s->busy[i]) clWaitForEvents(1, &s->busy[i]); /* the call has failed already */
        if (s->busy[i]) clReleaseEvent(s->busy[i]);
        s->busy[i] = NULL;
    }
    pthread_mutex_lock(&d->stagings_lock);
    const bool keeps = d->n_stagings < STAGINGS_KEPT;
    if (keeps) s->next = d->stagings, d->stagings = s, d->n_stagings++;
    pthread_mutex_unlock(&d->stagings_lock);
    if (!keeps) staging_drop(d, s);
}

void clattn__staging_free(struct device *d)
{
    for (staging *s = d->stagings, *next; s; s = next) {
        next = s->next;
        staging_drop(d, s);
    }
}
