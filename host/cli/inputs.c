/* A problem's data: owning it, describing it, and which keys a query sees. */
#include "inputs.h"

#include <stdlib.h>
#include <string.h>

#include "cli.h"

void inputs_free(inputs *in)
{
    void *const all[] = {in->q,
                         in->k,
                         in->v,
                         in->bias,
                         in->mask,
                         in->alibi_slopes,
                         in->sinks,
                         in->kv_lengths,
                         in->query_offsets,
                         in->cu_seqlens_q,
                         in->cu_seqlens_kv};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    memset(in, 0, sizeof *in);
}

int inputs_from_options(const options *o, inputs *in)
{
    if (o->problem && o->file_flag)
        return cli_fail(CLI_USAGE, "%s: it goes with files, and there is a problem text, '%s'", o->file_flag,
                        o->problem);
    if (!o->problem && !o->file_flag)
        return cli_fail(CLI_USAGE, "there is no problem: give a text, or --q, --k and --v");
    return o->problem ? inputs_from_text(o->problem, o->seed, in) : inputs_from_files(o, in);
}

void inputs_to_text(const inputs *in, char text[PROBLEM_TEXT_SIZE])
{
    const bool says_more = in->problem.varlen || in->problem.dropout > 0; /* of the call: sequences, seed */
    if (in->text && says_more)
        snprintf(text, PROBLEM_TEXT_SIZE, "%s", in->text);
    else
        clattn_problem_to_text(&in->problem, text, PROBLEM_TEXT_SIZE);
}

/* ---- tensors */

storage inputs_storage(const clattn_problem *p)
{
    const storage s = {p->varlen ? 1 : p->batch, p->varlen ? p->total_q : p->n_q, p->varlen ? p->total_kv : p->n_kv};
    return s;
}

clattn_strides inputs_strides(const clattn_problem *p, clattn_strides given, int64_t heads, int64_t seq, int64_t dim)
{
    if (given.batch || given.head || given.seq) return given;
    return p->varlen ? clattn_strides_bshd(heads, seq, dim) : clattn_strides_bhsd(heads, seq, dim);
}

int inputs_alloc_outputs(const inputs *in, void **o, float **lse)
{
    const clattn_problem *p = &in->problem;
    const storage s = inputs_storage(p);
    int64_t rows = 0, elements = 0;
    const bool fits = !__builtin_mul_overflow(s.batch, p->n_heads_q, &rows) &&
                      !__builtin_mul_overflow(rows, s.n_q, &rows) &&
                      !__builtin_mul_overflow(rows, p->head_dim_v, &elements);
    *lse = NULL;
    *o = cli_alloc("O", fits ? elements : INT64_MAX, clattn_dtype_size(p->dtype));
    if (*o) *lse = cli_alloc("LSE", rows, sizeof **lse);
    if (!*lse) {
        free(*o);
        *o = NULL;
        return CLI_FAILED;
    }
    memset(*o, 0xff, (size_t)elements * clattn_dtype_size(p->dtype));
    memset(*lse, 0xff, (size_t)rows * sizeof **lse);
    return CLI_OK;
}

void inputs_fill_args(const inputs *in, clattn_forward_args *args)
{
    clattn_forward_args_init(args);
    args->q = clattn_host_buffer(in->q);
    args->k = clattn_host_buffer(in->k);
    args->v = clattn_host_buffer(in->v);
    args->bias = clattn_host_buffer(in->bias);
    args->mask = clattn_host_buffer(in->mask);
    args->alibi_slopes = clattn_host_buffer(in->alibi_slopes);
    args->sinks = clattn_host_buffer(in->sinks);
    args->kv_lengths = clattn_host_buffer(in->kv_lengths);
    args->query_offsets = clattn_host_buffer(in->query_offsets);
    args->cu_seqlens_q = clattn_host_buffer(in->cu_seqlens_q);
    args->cu_seqlens_kv = clattn_host_buffer(in->cu_seqlens_kv);
    args->dropout_seed = in->dropout_seed;
}

/* ---- entries and what they see */

entry inputs_entry(const inputs *in, int64_t index)
{
    const clattn_problem *p = &in->problem;
    entry e = {.batch = index, .n_q = p->n_q, .n_kv = p->n_kv, .query_offset = p->query_offset, .index = index};
    if (p->varlen) {
        e.batch = 0;
        e.first_q = in->cu_seqlens_q[index];
        e.n_q = in->cu_seqlens_q[index + 1] - e.first_q;
        e.first_kv = in->cu_seqlens_kv[index];
        e.n_kv = in->cu_seqlens_kv[index + 1] - e.first_kv;
    }
    e.kv_length = p->kv_length == CLATTN_KV_LENGTH_ALL ? e.n_kv : p->kv_length;
    if (in->kv_lengths) e.kv_length = in->kv_lengths[index];
    if (in->query_offsets) e.query_offset = in->query_offsets[index];
    return e;
}

__extension__ typedef __int128 wide; /* an offset may be any int64 */

/* Keys that rows first_row to last_row see. */
static key_range visible_to_rows(const inputs *in, const entry *e, int64_t first_row, int64_t last_row)
{
    const clattn_mask *mask = &in->problem.mask;
    const wide offset = e->query_offset;
    wide first = mask->window_left < 0 ? 0 : offset + first_row - mask->window_left;
    wide end = mask->window_right < 0 ? e->kv_length : offset + last_row + mask->window_right + 1;
    if (first < 0) first = 0;
    if (end > e->kv_length) end = e->kv_length;
    if (end < first) first = end = 0;
    const key_range r = {(int64_t)first, (int64_t)end};
    return r;
}

key_range inputs_visible(const inputs *in, const entry *e, int64_t i) { return visible_to_rows(in, e, i, i); }

key_range inputs_visible_to_any(const inputs *in, const entry *e)
{
    const key_range none = {0, 0};
    return e->n_q ? visible_to_rows(in, e, 0, e->n_q - 1) : none;
}
