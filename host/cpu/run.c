#include "run.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "../../cl/args.clh"
#include "../error.h"

/* One call. Tiles are handed out one by one from a counter; worker w uses the w-th part of work. */
typedef struct forward_job {
    const host_plan *plan;
    const problem *p;
    const clattn_forward_args *args;
    const int64_t *kv_lengths, *query_offsets; /* [batch] or NULL */
    char *work;
    size_t work_bytes; /* of one worker */
    int tiles;         /* of one head */
    int64_t n_items;
    _Atomic int64_t next;
} forward_job;

/* Element [batch, head, 0, 0] of a tensor. */
static void *head_of(const forward_job *job, tensor_name name, int batch, int head)
{
    const clattn_buffer *b = clattn__args_buffer(job->args, name);
    const tensor_shape *t = &job->p->tensor[name];
    if (!b->host) return NULL;
    return (char *)b->host + b->offset + (batch * t->strides.batch + head * t->strides.head) * (int64_t)t->size;
}

static void tile_run(const forward_job *job, int64_t item, void *work)
{
    const problem *p = job->p;
    const attn_place at = attn_place_of(item, job->tiles, (int)p->n_heads_q, (int)p->gqa_group);
    const int block_q = job->plan->block_q, row_end = (int)p->n_q - (job->tiles - 1 - at.tile) * block_q;
    const int64_t offset = job->query_offsets ? job->query_offsets[at.batch] : p->query_offset;
    const int64_t length = job->kv_lengths ? job->kv_lengths[at.batch] : p->kv_length;
    const host_tile tile = {
        .q = head_of(job, TENSOR_Q, at.batch, at.head),
        .k = head_of(job, TENSOR_K, at.batch, at.kv_head),
        .v = head_of(job, TENSOR_V, at.batch, at.kv_head),
        .o = head_of(job, TENSOR_O, at.batch, at.head),
        .lse = head_of(job, TENSOR_LSE, at.batch, at.head),
        .q_row = p->tensor[TENSOR_Q].strides.seq,
        .k_row = p->tensor[TENSOR_K].strides.seq,
        .v_row = p->tensor[TENSOR_V].strides.seq,
        .o_row = p->tensor[TENSOR_O].strides.seq,
        .lse_row = p->tensor[TENSOR_LSE].strides.seq,
        .dtype = p->dtype,
        .head_dim_qk = (int)p->head_dim_qk,
        .head_dim_v = (int)p->head_dim_v,
        .row_first = max_int(0, row_end - block_q),
        .row_end = row_end,
        .block_kv = job->plan->block_kv,
        .band = mask_band_init(offset, length, (int)p->n_kv, p->window_left, p->window_right),
        .scale = p->scale,
    };
    job->plan->ops->tile_forward(&tile, work);
}

static void worker(void *argument, size_t w)
{
    forward_job *job = argument;
    for (;;) {
        const int64_t item = atomic_fetch_add_explicit(&job->next, 1, memory_order_relaxed);
        if (item >= job->n_items) return;
        tile_run(job, item, job->work + w * job->work_bytes);
    }
}

static const int64_t *per_batch(const clattn_buffer *b)
{
    return (const int64_t *)(const void *)((const char *)b->host + b->offset);
}

/* Below this many multiply-adds a thread costs more to wake than it saves. */
static const double least_work_of_thread = 2e6;

clattn_status clattn__host_forward(const host_plan *plan, const problem *p, host_threads *threads,
                                   const clattn_forward_args *args)
{
    _Alignas(64) char small_work[48 << 10];
    forward_job job = {.plan = plan, .p = p, .args = args};
    job.tiles = (int)((p->n_q + plan->block_q - 1) / plan->block_q);
    job.n_items = p->batch * p->n_heads_q * job.tiles;
    if (job.n_items == 0) return CLATTN_STATUS_SUCCESS;
    if (p->kv_length_per_batch) job.kv_lengths = per_batch(&args->kv_lengths);
    if (p->query_offset_per_batch) job.query_offsets = per_batch(&args->query_offsets);

    const double work = (double)p->batch * (double)p->n_heads_q * (double)p->n_q * (double)p->n_kv *
                        (double)(p->head_dim_qk + p->head_dim_v);
    int64_t n_workers = plan->n_threads;
    if (n_workers > job.n_items) n_workers = job.n_items;
    if (work < least_work_of_thread * (double)n_workers) n_workers = (int64_t)(work / least_work_of_thread);
    if (n_workers < 1) n_workers = 1;

    const size_t bytes = plan->ops->work_bytes((int)p->head_dim_qk, (int)p->head_dim_v, plan->block_kv, p->dtype);
    job.work_bytes = (bytes + 63) / 64 * 64;
    const size_t all = job.work_bytes * (size_t)n_workers;
    job.work = all <= sizeof small_work ? small_work : aligned_alloc(64, all);
    RETURN_IF(!job.work, OUT_OF_HOST_MEMORY, "no room for %zu bytes of work space", all);
    if (n_workers == 1)
        worker(&job, 0);
    else
        clattn__threads_run(threads, (size_t)n_workers, worker, &job);
    if (job.work != small_work) free(job.work);
    return CLATTN_STATUS_SUCCESS;
}
