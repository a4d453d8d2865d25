/* Files or a text -> a problem with its data. */
#include "inputs.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "convert.h"
#include "npy.h"
#include "parallel.h"

void inputs_free(inputs *in)
{
    free(in->q);
    free(in->k);
    free(in->v);
    free(in->kv_lengths);
    free(in->query_offsets);
    memset(in, 0, sizeof *in);
}

/* ---- files */

/* A tensor's sizes, whatever the file's order. */
typedef struct sizes {
    int64_t batch, heads, seq, dim;
} sizes;

static sizes sizes_of(const npy_array *a, int layout)
{
    const int heads_at = layout == LAYOUT_BSHD ? 2 : 1, seq_at = 3 - heads_at;
    const sizes s = {a->shape[0], a->shape[heads_at], a->shape[seq_at], a->shape[3]};
    return s;
}

static clattn_dtype dtype_of(npy_type type)
{
    return type == NPY_F2 ? CLATTN_DTYPE_F16 : type == NPY_F4 ? CLATTN_DTYPE_F32 : CLATTN_DTYPE_F64;
}

static int read_tensor(const char *flag, const char *path, int layout, npy_array *a)
{
    const int code = npy_read(flag, path, a);
    if (code) return code;
    if (a->type != NPY_F2 && a->type != NPY_F4 && a->type != NPY_F8)
        return cli_fail(CLI_USAGE, "%s %s: the elements are %s; they must be f2, f4 or f8", flag, path,
                        npy_type_name(a->type));
    if (a->rank != 4)
        return cli_fail(CLI_USAGE, "%s %s: the array has %d dimensions; it must have 4, %s", flag, path, a->rank,
                        layout == LAYOUT_BSHD ? "[batch, seq, heads, dim]" : "[batch, heads, seq, dim]");
    const sizes s = sizes_of(a, layout);
    if (s.batch < 1 || s.heads < 1 || s.dim < 1)
        return cli_fail(CLI_USAGE,
                        "%s %s: batch %" PRId64 ", heads %" PRId64 ", dim %" PRId64 "; each must be at least 1", flag,
                        path, s.batch, s.heads, s.dim);
    return CLI_OK;
}

static int check_equal(const char *flag, const char *path, const char *what, int64_t here, const char *other,
                       int64_t there)
{
    if (here == there) return CLI_OK;
    return cli_fail(CLI_USAGE, "%s %s: %s is %" PRId64 ", that of %s is %" PRId64, flag, path, what, here, other,
                    there);
}

static int check_agreement(const options *o, const npy_array *q, const npy_array *k, const npy_array *v)
{
    const sizes a = sizes_of(q, o->layout), b = sizes_of(k, o->layout), c = sizes_of(v, o->layout);
    int code = check_equal("--k", o->k, "batch", b.batch, o->q, a.batch);
    if (!code) code = check_equal("--k", o->k, "dim", b.dim, o->q, a.dim);
    if (!code) code = check_equal("--v", o->v, "batch", c.batch, o->q, a.batch);
    if (!code) code = check_equal("--v", o->v, "heads", c.heads, o->k, b.heads);
    if (!code) code = check_equal("--v", o->v, "seq", c.seq, o->k, b.seq);
    if (!code && a.heads % b.heads)
        code = cli_fail(CLI_USAGE, "--k %s: %" PRId64 " heads do not divide the %" PRId64 " of %s", o->k, b.heads,
                        a.heads, o->q);
    if (!code && !o->dtype && (q->type != k->type || q->type != v->type))
        code = cli_fail(CLI_USAGE, "--%c %s: the elements are %s, those of %s are %s; --dtype makes them one",
                        q->type != k->type ? 'k' : 'v', q->type != k->type ? o->k : o->v,
                        npy_type_name(q->type != k->type ? k->type : v->type), o->q, npy_type_name(q->type));
    return code;
}

/* Hands over a's data, converted where the type differs. */
static int take_data(npy_array *a, const char *path, clattn_dtype dtype, void **data)
{
    if (dtype_of(a->type) == dtype) {
        *data = a->data;
        a->data = NULL;
        return CLI_OK;
    }
    *data = cli_alloc(path, a->count, clattn_dtype_size(dtype));
    if (!*data) return CLI_FAILED;
    convert_elements(a->data, dtype_of(a->type), *data, dtype, a->count);
    free(a->data);
    a->data = NULL;
    return CLI_OK;
}

/* i8 or i4 [batch] from a file, each in [least, most]. */
static int read_per_batch(const char *flag, const char *path, int64_t batch, int64_t least, int64_t most,
                          int64_t **values)
{
    npy_array a;
    int code = npy_read(flag, path, &a);
    if (code) return code;
    if (a.type != NPY_I8 && a.type != NPY_I4)
        code =
            cli_fail(CLI_USAGE, "%s %s: the elements are %s; they must be i8 or i4", flag, path, npy_type_name(a.type));
    else if (a.rank != 1)
        code = cli_fail(CLI_USAGE, "%s %s: the array has %d dimensions; it must have 1, [batch]", flag, path, a.rank);
    else if (a.shape[0] != batch)
        code = cli_fail(CLI_USAGE, "%s %s: it has %" PRId64 " numbers for a batch of %" PRId64, flag, path, a.shape[0],
                        batch);
    int64_t *out = code ? NULL : cli_alloc(path, batch, sizeof *out); /* [batch] */
    if (!code && !out) code = CLI_FAILED;
    for (int64_t b = 0; !code && b < batch; b++) {
        out[b] = a.type == NPY_I8 ? ((const int64_t *)a.data)[b] : ((const int32_t *)a.data)[b];
        if (out[b] < least || out[b] > most)
            code = cli_fail(CLI_USAGE, "%s %s: number %" PRId64 " is %" PRId64 "; it must be in %" PRId64 "..%" PRId64,
                            flag, path, b, out[b], least, most);
    }
    free(a.data);
    if (code)
        free(out);
    else
        *values = out;
    return code;
}

/* Everything of the problem but the data. */
static int describe(const options *o, const npy_array *q, const npy_array *k, const npy_array *v, inputs *in)
{
    clattn_problem *p = &in->problem;
    const sizes a = sizes_of(q, o->layout), b = sizes_of(k, o->layout), c = sizes_of(v, o->layout);
    int code = CLI_OK;
    clattn_problem_init(p, o->dtype ? (clattn_dtype)o->dtype : dtype_of(q->type), a.batch, a.heads, b.heads, a.seq,
                        b.seq, a.dim);
    p->head_dim_v = c.dim;
    p->scale = o->scale;
    p->mask.window_left = o->window[0];
    p->mask.window_right = o->causal ? 0 : o->window[1];
    in->layout = o->layout;
    if (o->layout == LAYOUT_BSHD) {
        p->q = clattn_strides_bshd(a.heads, a.seq, a.dim);
        p->k = clattn_strides_bshd(b.heads, b.seq, b.dim);
        p->v = clattn_strides_bshd(c.heads, c.seq, c.dim);
        p->o = clattn_strides_bshd(a.heads, a.seq, c.dim);
    }
    if (o->q_offset && !args_parse_integer(o->q_offset, INT64_MIN, INT64_MAX, &p->query_offset)) {
        p->query_offset_per_batch = 1;
        code = read_per_batch("--q-offset", o->q_offset, a.batch, INT64_MIN, INT64_MAX, &in->query_offsets);
    }
    if (!code && o->kv_len) {
        p->kv_length_per_batch = 1;
        code = read_per_batch("--kv-len", o->kv_len, a.batch, 0, b.seq, &in->kv_lengths);
    }
    if (!code && clattn_problem_check(p)) code = cli_fail_library(NULL, NULL);
    return code;
}

int inputs_from_files(const options *o, inputs *in)
{
    npy_array q = {0}, k = {0}, v = {0};
    memset(in, 0, sizeof *in);
    if (!o->q || !o->k || !o->v) return cli_fail(CLI_USAGE, "%s is missing", !o->q ? "--q" : !o->k ? "--k" : "--v");
    int code = read_tensor("--q", o->q, o->layout, &q);
    if (!code) code = read_tensor("--k", o->k, o->layout, &k);
    if (!code) code = read_tensor("--v", o->v, o->layout, &v);
    if (!code) code = check_agreement(o, &q, &k, &v);
    if (!code) code = describe(o, &q, &k, &v, in);
    if (!code) code = take_data(&q, o->q, in->problem.dtype, &in->q);
    if (!code) code = take_data(&k, o->k, in->problem.dtype, &in->k);
    if (!code) code = take_data(&v, o->v, in->problem.dtype, &in->v);
    free(q.data);
    free(k.data);
    free(v.data);
    if (code) inputs_free(in);
    return code;
}

/* ---- random */

/* The output of the splitmix64 generator after `counter` steps from state 0. */
static uint64_t splitmix64(uint64_t counter)
{
    uint64_t z = counter * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

typedef struct fill {
    void *data;
    clattn_dtype dtype;
    int64_t count;
    uint64_t key;
} fill;

enum { FILL_PIECE = 1 << 16 };

/* Box-Muller: numbers 2 j and 2 j + 1 come from counters key + 2 j and key + 2 j + 1. */
static void fill_piece(void *argument, int64_t piece)
{
    const fill *f = argument;
    const double two_pi = 6.283185307179586;
    const int64_t end = f->count - piece * FILL_PIECE < FILL_PIECE ? f->count : (piece + 1) * FILL_PIECE;
    for (int64_t i = piece * FILL_PIECE; i < end; i += 2) {
        const uint64_t counter = f->key + (uint64_t)i;
        const double u = (double)((splitmix64(counter) >> 11) + 1) * 0x1p-53; /* (0, 1] */
        const double angle = two_pi * (double)(splitmix64(counter + 1) >> 11) * 0x1p-53, radius = sqrt(-2 * log(u));
        element_put(f->data, f->dtype, i, radius * cos(angle));
        if (i + 1 < end) element_put(f->data, f->dtype, i + 1, radius * sin(angle));
    }
}

static int random_tensor(const char *what, const sizes *s, clattn_dtype dtype, uint64_t key, void **data)
{
    fill f = {NULL, dtype, s->batch, key};
    if (__builtin_mul_overflow(f.count, s->heads, &f.count) || __builtin_mul_overflow(f.count, s->seq, &f.count) ||
        __builtin_mul_overflow(f.count, s->dim, &f.count))
        return cli_fail(CLI_FAILED, "%s has more elements than any memory", what);
    f.data = *data = cli_alloc(what, f.count, clattn_dtype_size(dtype));
    if (!f.data) return CLI_FAILED;
    parallel_for(0, f.count / FILL_PIECE + (f.count % FILL_PIECE != 0), fill_piece, &f);
    return CLI_OK;
}

int inputs_from_text(const char *text, int64_t seed, inputs *in)
{
    clattn_problem *p = &in->problem;
    memset(in, 0, sizeof *in);
    if (clattn_problem_from_text(text, p)) return cli_fail_library(NULL, NULL);
    if (clattn_problem_check(p)) return cli_fail_library(NULL, NULL);
    in->layout = p->o.head && p->o.head < p->o.seq ? LAYOUT_BSHD : LAYOUT_BHSD;
    const sizes q = {p->batch, p->n_heads_q, p->n_q, p->head_dim_qk};
    const sizes k = {p->batch, p->n_heads_kv, p->n_kv, p->head_dim_qk};
    const sizes v = {p->batch, p->n_heads_kv, p->n_kv, p->head_dim_v};
    const uint64_t key = splitmix64((uint64_t)seed + 1);
    int code = random_tensor("Q", &q, p->dtype, splitmix64(key + 1), &in->q);
    if (!code) code = random_tensor("K", &k, p->dtype, splitmix64(key + 2), &in->k);
    if (!code) code = random_tensor("V", &v, p->dtype, splitmix64(key + 3), &in->v);
    if (code) inputs_free(in);
    return code;
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

/* ---- outputs and arguments */

clattn_strides inputs_strides(clattn_strides given, int64_t heads, int64_t seq, int64_t dim)
{
    return given.batch || given.head || given.seq ? given : clattn_strides_bhsd(heads, seq, dim);
}

int inputs_alloc_outputs(const inputs *in, void **o, float **lse)
{
    const clattn_problem *p = &in->problem;
    int64_t rows = 0, elements = 0;
    const bool fits = !__builtin_mul_overflow(p->batch, p->n_heads_q, &rows) &&
                      !__builtin_mul_overflow(rows, p->n_q, &rows) &&
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
    args->kv_lengths = clattn_host_buffer(in->kv_lengths);
    args->query_offsets = clattn_host_buffer(in->query_offsets);
}

/* ---- the mask */

__extension__ typedef __int128 wide; /* an offset may be any int64 */

static int64_t keys_in_use(const inputs *in, int64_t batch)
{
    const clattn_problem *p = &in->problem;
    if (in->kv_lengths) return in->kv_lengths[batch];
    return p->kv_length == CLATTN_KV_LENGTH_ALL ? p->n_kv : p->kv_length;
}

/* Keys that rows first_row to last_row see. */
static key_range visible_to_rows(const inputs *in, int64_t batch, int64_t first_row, int64_t last_row)
{
    const clattn_problem *p = &in->problem;
    const int64_t length = keys_in_use(in, batch);
    const wide offset = in->query_offsets ? in->query_offsets[batch] : p->query_offset;
    wide first = p->mask.window_left < 0 ? 0 : offset + first_row - p->mask.window_left;
    wide end = p->mask.window_right < 0 ? length : offset + last_row + p->mask.window_right + 1;
    if (first < 0) first = 0;
    if (end > length) end = length;
    if (end < first) first = end = 0;
    const key_range r = {(int64_t)first, (int64_t)end};
    return r;
}

key_range inputs_visible(const inputs *in, int64_t batch, int64_t i) { return visible_to_rows(in, batch, i, i); }

key_range inputs_visible_to_any(const inputs *in, int64_t batch)
{
    const key_range none = {0, 0};
    return in->problem.n_q ? visible_to_rows(in, batch, 0, in->problem.n_q - 1) : none;
}
