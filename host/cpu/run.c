#include "run.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "../../cl/args.clh"
#include "../../cl/dropout.clh"
#include "../error.h"
#include "../plan.h"

/* Items that are handed out one by one, first to last. */
typedef struct item_range {
    _Alignas(64) _Atomic int64_t next;
    int64_t end;
} item_range;

/* One call. A unit is the rows that share a read of the keys: a query tile of one head, or of a GQA group's heads when
 * decoding. An item is a unit's share of one chunk of the keys. Worker w uses the w-th part of work. When decoding each has a
 * range of the items, so that it reads on in K, and helps with others' when its own is done; else all have one. Where the keys
 * are in chunks, items leave partials, and whoever finishes a unit's last one merges them, in the chunks' order. */
typedef struct forward_job {
    const host_plan *plan;
    const problem *p;
    const clattn_forward_args *args;
    char *work;
    size_t work_bytes; /* of one worker */
    philox_block dropout_key;
    int heads; /* of a unit */
    int tiles; /* of one head */
    int64_t n_units, n_chunks, n_items;
    int64_t together;     /* units whose keys lie side by side in K: a chunk of all, then the next chunk */
    char *partials;       /* [n_units][n_chunks][heads][block_q][partial_pitch] reals, or NULL: units have all keys */
    int64_t chunk_bytes;  /* of one unit's partials in one chunk */
    atomic_int *finished; /* [n_units] chunks */
    item_range *ranges;   /* [n_ranges] */
    int64_t n_ranges;
} forward_job;

static bool decodes(const host_plan *plan) { return plan->kernel == CLATTN_KERNEL_HOST_DECODE; }

/* Element [a, b, c, 0] of a tensor; NULL when absent. */
static void *tensor_place(const forward_job *job, tensor_name name, int64_t a, int64_t b, int64_t c)
{
    const tensor_shape *t = &job->p->tensor[name];
    char *data = clattn__args_host(job->args, name);
    return data ? data + tensor_at(t, a, b, c) * (int64_t)t->size : NULL;
}

static float number_of(const forward_job *job, tensor_name name, int64_t at)
{
    return ((const float *)clattn__args_host(job->args, name))[at];
}

/* Query tile `index` of a head, counted from the first row; the last ends with the last row. */
static host_tile tile_make(const forward_job *job, int batch, int head, int index, const problem_entry *e)
{
    const problem *p = job->p;
    const tensor_shape *t = p->tensor;
    const int block_q = job->plan->block_q, tiles = (int)((e->n_q + block_q - 1) / block_q);
    const int row_end = (int)e->n_q - (tiles - 1 - index) * block_q;
    const int kv_head = (int)(head / p->gqa_group), entry = p->varlen ? 0 : batch;
    const int64_t slope_row = p->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD ? batch * p->n_heads_q : 0;
    const host_tile tile = {
        .q = tensor_place(job, TENSOR_Q, entry, head, e->row_q),
        .k = tensor_place(job, TENSOR_K, entry, kv_head, e->row_kv),
        .v = tensor_place(job, TENSOR_V, entry, kv_head, e->row_kv),
        .o = tensor_place(job, TENSOR_O, entry, head, e->row_q),
        .lse = tensor_place(job, TENSOR_LSE, entry, head, e->row_q),
        .q_row = t[TENSOR_Q].stride[2],
        .k_row = t[TENSOR_K].stride[2],
        .v_row = t[TENSOR_V].stride[2],
        .o_row = t[TENSOR_O].stride[2],
        .lse_row = t[TENSOR_LSE].stride[2],
        .dtype = p->dtype,
        .head_dim_qk = (int)p->head_dim_qk,
        .head_dim_v = (int)p->head_dim_v,
        .row_first = max_int(0, row_end - block_q),
        .row_end = row_end,
        .block_kv = job->plan->block_kv,
        .band = mask_band_init(e->query_offset, e->kv_length, (int)e->n_kv, p->window_left, p->window_right),
        .scale = p->scale,
        .has_score = p->softcap > 0 || p->alibi || p->bias_dtype || p->score_function.host,
        .softcap = p->softcap,
        .slope = p->alibi ? (double)number_of(job, TENSOR_ALIBI, slope_row + head) : 0,
        .query_offset = e->query_offset,
        .bias = p->bias_dtype ? tensor_place(job, TENSOR_BIAS, batch, head, 0) : NULL,
        .bias_dtype = p->bias_dtype,
        .bias_q = t[TENSOR_BIAS].stride[2],
        .bias_kv = t[TENSOR_BIAS].stride[3],
        .score_function = p->score_function.host,
        .score_data = p->tensor[TENSOR_SCORE_DATA].size ? clattn__args_host(job->args, TENSOR_SCORE_DATA) : NULL,
        .mask = p->has_mask ? tensor_place(job, TENSOR_MASK, batch, head, 0) : NULL,
        .mask_q = t[TENSOR_MASK].stride[2],
        .mask_kv = t[TENSOR_MASK].stride[3],
        .has_sink = p->has_sinks,
        .sink = p->has_sinks ? (double)number_of(job, TENSOR_SINKS, head) : 0,
        .dropout = p->dropout,
        .dropout_key0 = job->dropout_key.x[0],
        .dropout_key1 = job->dropout_key.x[1],
        .batch = batch,
        .head = head,
        .n_heads_q = p->n_heads_q,
    };
    return tile;
}

static size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

static size_t heads_bytes(int heads) { return whole_lines((size_t)heads * sizeof(host_tile)); }

static int64_t partial_row_bytes(const problem *p)
{
    return partial_pitch((int)p->head_dim_v) * (p->dtype == CLATTN_DTYPE_F64 ? 8 : 4);
}

typedef struct item_place {
    int64_t unit, chunk;
    attn_place at; /* `head` counts units' heads */
} item_place;

static item_place item_place_of(const forward_job *job, int64_t item)
{
    item_place p = {.chunk = item / job->together % job->n_chunks};
    p.unit = item / job->together / job->n_chunks * job->together + item % job->together;
    p.at = attn_place_of(p.unit, job->tiles, (int)job->p->n_heads_q / job->heads, 1);
    return p;
}

/* K's first row of the item after this one, as if its query rows were this one's; NULL where they see none of its keys, where
 * it is of another batch entry, or not before `end`. */
static const void *k_after(const forward_job *job, int64_t item, int64_t end, const host_tile *tile,
                           const problem_entry *e)
{
    if (item + 1 >= end) return NULL;
    const item_place next = item_place_of(job, item + 1);
    const int64_t begin = next.chunk * job->plan->chunk, first = mask_first(tile->band, tile->row_first);
    const int64_t seen = mask_end(tile->band, tile->row_end - 1), row = begin > first ? begin : first;
    if (next.at.batch != tile->batch || row >= seen || row >= begin + job->plan->chunk) return NULL;
    return tensor_place(job, TENSOR_K, job->p->varlen ? 0 : tile->batch, next.at.head, e->row_kv + row);
}

/* The chunk's keys and where its partials go. */
static void chunk_cut(const forward_job *job, host_tile *tile, int64_t chunk, char *partials)
{
    tile->key_first = (int)(chunk * job->plan->chunk);
    tile->band.length = min_int(tile->band.length, tile->key_first + job->plan->chunk);
    tile->partial = partials;
}

/* own_end: the worker is likely to do the items up to it next. work: the unit's heads, then the kernel's. */
static void item_run(const forward_job *job, int64_t item, int64_t own_end, char *work)
{
    const host_plan *plan = job->plan;
    const item_place place = item_place_of(job, item);
    const attn_place at = place.at;
    const problem_entry entry = clattn__problem_entry(job->p, job->args, at.batch);
    if ((int64_t)at.tile * plan->block_q >= entry.n_q) return; /* a shorter sequence than the longest */
    host_tile *heads = (host_tile *)work;
    char *partials = job->partials ? job->partials + place.unit * job->n_chunks * job->chunk_bytes : NULL;
    for (int h = 0; h < job->heads; h++) heads[h] = tile_make(job, at.batch, at.head * job->heads + h, at.tile, &entry);
    if (decodes(plan)) heads->k_next = k_after(job, item, own_end, heads, &entry);
    for (int h = 0; partials && h < job->heads; h++)
        chunk_cut(job, &heads[h], place.chunk, partials + place.chunk * job->chunk_bytes);
    if (decodes(plan))
        plan->decode->decode_chunk(heads, job->heads, work + heads_bytes(job->heads));
    else
        plan->ops->tile_forward(heads, work + heads_bytes(job->heads));
    if (!partials || atomic_fetch_add(&job->finished[place.unit], 1) + 1 < job->n_chunks) return;
    const int64_t head_bytes = (heads->row_end - heads->row_first) * partial_row_bytes(job->p);
    for (int h = 0; h < job->heads; h++)
        plan->decode->partials_merge(&heads[h], partials + h * head_bytes, job->chunk_bytes, job->n_chunks);
}

static void worker(void *argument, size_t w)
{
    forward_job *job = argument;
    for (int64_t i = 0; i < job->n_ranges; i++) {
        item_range *range = &job->ranges[((int64_t)w + i) % job->n_ranges];
        while (atomic_load_explicit(&range->next, memory_order_relaxed) < range->end) {
            const int64_t item = atomic_fetch_add_explicit(&range->next, 1, memory_order_relaxed);
            if (item < range->end) item_run(job, item, i == 0 ? range->end : 0, job->work + w * job->work_bytes);
        }
    }
}

static void ranges_place(forward_job *job, char *at)
{
    job->ranges = (item_range *)at;
    for (int64_t i = 0; i < job->n_ranges; i++) {
        atomic_init(&job->ranges[i].next, job->n_items * i / job->n_ranges);
        job->ranges[i].end = job->n_items * (i + 1) / job->n_ranges;
    }
}

static philox_block dropout_key(uint64_t seed, uint64_t offset)
{
    return philox((u32)offset, (u32)(offset >> 32), 0, 0, (u32)seed, (u32)(seed >> 32));
}

/* Of one worker. */
static size_t work_bytes_of(const host_plan *plan, const problem *p, int heads)
{
    const int dim_qk = (int)p->head_dim_qk;
    const size_t bytes =
        decodes(plan) ? plan->decode->work_bytes(dim_qk, heads * plan->block_q, plan->chunk)
                      : plan->ops->work_bytes(dim_qk, (int)p->head_dim_v, plan->block_q, plan->block_kv, p->dtype);
    return heads_bytes(heads) + whole_lines(bytes);
}

/* Multiply-adds of the keys that the band shows, about: a thread that would get fewer than the least costs more than it
 * saves. It costs some microseconds when it must be woken, and half of one when it watches. */
static const double least_work_to_wake = 2e6, least_work_when_near = 2e5;

static int64_t workers_for(const host_plan *plan, const problem *p, host_threads *threads, int64_t n_items)
{
    const bool triangle = p->window_right == 0 && p->window_left < 0 && p->query_offset == 0 && p->n_q == p->n_kv;
    const double work = (double)p->batch * (double)p->n_heads_q * (double)p->n_q * (double)p->n_kv *
                        (double)(p->head_dim_qk + p->head_dim_v) * (triangle ? 0.5 : 1);
    int64_t n = plan->n_threads < n_items ? plan->n_threads : n_items;
    if (n > 1 && work < 2 * least_work_when_near) return 1;
    if (n > 1 && work < least_work_to_wake * (double)n) {
        const double least = clattn__threads_are_near(threads) ? least_work_when_near : least_work_to_wake;
        if (work < least * (double)n) n = (int64_t)(work / least);
    }
    return n > 1 ? n : 1;
}

/* Partials and their counters; no more than PTRDIFF_MAX in all. */
static size_t partials_bytes(forward_job *job)
{
    if (!job->plan->chunk) return 0;
    const size_t finished = whole_lines((size_t)job->n_units * sizeof *job->finished);
    job->chunk_bytes = (int64_t)job->heads * job->plan->block_q * partial_row_bytes(job->p);
    const double bytes = (double)job->n_items * (double)job->chunk_bytes + (double)finished;
    return bytes < 0x1p60 ? (size_t)(job->n_items * job->chunk_bytes) + finished : PTRDIFF_MAX;
}

static void partials_place(forward_job *job, char *at)
{
    job->partials = at;
    job->finished = (atomic_int *)(at + job->n_items * job->chunk_bytes);
    for (int64_t i = 0; i < job->n_units; i++) atomic_init(&job->finished[i], 0);
}

clattn_status clattn__host_forward(const host_plan *plan, const problem *p, host_threads *threads,
                                   const clattn_forward_args *args)
{
    _Alignas(64) char small_work[52 << 10];
    forward_job job = {.plan = plan, .p = p, .args = args};
    job.heads = decodes(plan) ? (int)p->gqa_group : 1;
    job.tiles = (int)((p->n_q + plan->block_q - 1) / plan->block_q);
    job.n_units = p->batch * (p->n_heads_q / job.heads) * job.tiles;
    job.n_chunks = plan->chunk && p->kv_length > plan->chunk ? (p->kv_length + plan->chunk - 1) / plan->chunk : 1;
    job.n_items = job.n_units * job.n_chunks;
    if (job.n_items == 0) return CLATTN_STATUS_SUCCESS;
    const int64_t *k = p->tensor[TENSOR_K].stride;
    job.together = decodes(plan) && k[1] < k[2] ? job.n_units / p->batch : 1;
    job.dropout_key = dropout_key(args->dropout_seed, args->dropout_offset);

    const int64_t n_workers = workers_for(plan, p, threads, job.n_items);
    job.work_bytes = work_bytes_of(plan, p, job.heads);
    const size_t workers_bytes = job.work_bytes * (size_t)n_workers;
    job.n_ranges = decodes(plan) ? n_workers : 1;
    const size_t ranges_bytes = sizeof *job.ranges * (size_t)job.n_ranges;
    const size_t all = ranges_bytes + workers_bytes + partials_bytes(&job);
    char *room = all <= sizeof small_work ? small_work : all < PTRDIFF_MAX ? aligned_alloc(64, all) : NULL;
    RETURN_IF(!room, OUT_OF_HOST_MEMORY, "no room for %zu bytes of work space", all);
    ranges_place(&job, room);
    job.work = room + ranges_bytes;
    if (plan->chunk) partials_place(&job, job.work + workers_bytes);
    if (n_workers == 1)
        worker(&job, 0);
    else
        clattn__threads_run(threads, (size_t)n_workers, worker, &job);
    if (room != small_work) free(room);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__host_scores(const problem *p, const clattn_forward_args *args, clattn_score_step step,
                                  int64_t batch, int64_t head, float *scores)
{
    host_plan plan;
    clattn_plan_options options;
    clattn_plan_options_init(&options);
    options.kernel = CLATTN_KERNEL_HOST_TILE;
    FORWARD(clattn__plan_host(p, &options, 1, &plan));
    forward_job job = {.plan = &plan, .p = p, .args = args, .work_bytes = work_bytes_of(&plan, p, 1)};
    const problem_entry entry = clattn__problem_entry(p, args, batch);
    const size_t o_bytes = (size_t)(entry.n_q * p->head_dim_v) * clattn_dtype_size(p->dtype);
    float *lse = malloc(sizeof *lse * (size_t)entry.n_q + 1); /* [n_q] */
    void *o = malloc(o_bytes + 1);                            /* [n_q, head_dim_v] */
    job.work = aligned_alloc(64, job.work_bytes);
    for (int64_t i = 0; lse && o && job.work && i * plan.block_q < entry.n_q; i++) {
        host_tile tile = tile_make(&job, (int)batch, (int)head, (int)i, &entry);
        tile.o = o;
        tile.o_row = p->head_dim_v;
        tile.lse = lse;
        tile.lse_row = 1;
        if (step == CLATTN_SCORE_PROBS) plan.ops->tile_forward(&tile, job.work);
        plan.ops->tile_scores(&tile, job.work, step, (int)entry.n_kv, scores);
    }
    const bool done = lse && o && job.work;
    for (int64_t i = 0; done && step == CLATTN_SCORE_PROBS && i < entry.n_q; i++)
        for (int64_t j = 0; j < entry.n_kv; j++) {
            float *s = &scores[i * entry.n_kv + j];
            *s = *s == -INFINITY ? 0 : expf(*s - lse[i]);
        }
    free(job.work);
    free(lse);
    free(o);
    RETURN_IF(!done, OUT_OF_HOST_MEMORY, "no room for %zu bytes of work space", job.work_bytes + o_bytes);
    return CLATTN_STATUS_SUCCESS;
}

void clattn__host_dropout_mask(const problem *p, uint64_t seed, uint64_t offset, uint8_t *keep)
{
    const philox_block key = dropout_key(seed, offset);
    const u32 threshold = (u32)(p->dropout * 4294967296.0);
    for (int64_t row = 0; row < p->batch * p->n_heads_q * p->n_q; row++)
        for (int64_t j = 0; j < p->n_kv; j++) {
            const u64 batch_head = (u64)(row / p->n_q);
            const philox_block block = dropout_block(key.x[0], key.x[1], batch_head, (int)(row % p->n_q), (int)j);
            keep[row * p->n_kv + j] = (uint8_t)dropout_keeps(block, (int)j, threshold);
        }
}
