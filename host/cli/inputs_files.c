/* Files -> a problem with its data. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "convert.h"
#include "inputs.h"
#include "npy.h"

/* ---- Q, K and V */

/* A tensor's sizes, whatever the file's order. */
typedef struct sizes {
    int64_t batch, heads, seq, dim;
} sizes;

static bool is_varlen(const options *o) { return o->cu_seqlens_q || o->cu_seqlens_kv; }

/* Of packed sequences [total, heads, dim], batch is 1 and seq the total. */
static sizes sizes_of(const options *o, const npy_array *a)
{
    const sizes packed = {1, a->shape[1], a->shape[0], a->shape[2]};
    const int heads_at = o->layout == LAYOUT_BSHD ? 2 : 1, seq_at = 3 - heads_at;
    const sizes s = {a->shape[0], a->shape[heads_at], a->shape[seq_at], a->shape[3]};
    return is_varlen(o) ? packed : s;
}

static clattn_dtype dtype_of(npy_type type)
{
    return type == NPY_F2 ? CLATTN_DTYPE_F16 : type == NPY_F4 ? CLATTN_DTYPE_F32 : CLATTN_DTYPE_F64;
}

/* Reads a file whose elements are one of the types of a mask of 1 << npy_type, which `names` lists. */
static int read_typed(const char *flag, const char *path, unsigned types, const char *names, npy_array *a)
{
    const int code = npy_read(flag, path, a);
    if (code || types & 1u << a->type) return code;
    return cli_fail(CLI_USAGE, "%s %s: the elements are %s; they must be %s", flag, path, npy_type_name(a->type),
                    names);
}

static int read_tensor(const options *o, const char *flag, const char *path, npy_array *a)
{
    const int rank = is_varlen(o) ? 3 : 4;
    const int code = read_typed(flag, path, 1u << NPY_F2 | 1u << NPY_F4 | 1u << NPY_F8, "f2, f4 or f8", a);
    if (code) return code;
    if (a->rank != rank)
        return cli_fail(CLI_USAGE, "%s %s: the array has %d dimensions; it must have %d, %s", flag, path, a->rank, rank,
                        is_varlen(o)               ? "[total, heads, dim]"
                        : o->layout == LAYOUT_BSHD ? "[batch, seq, heads, dim]"
                                                   : "[batch, heads, seq, dim]");
    const sizes s = sizes_of(o, a);
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
    const sizes a = sizes_of(o, q), b = sizes_of(o, k), c = sizes_of(o, v);
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

/* ---- whole numbers */

/* i8 or i4 [n] from a file, each in [least, most]; *n 0: any number of them, which it becomes. */
static int read_integers(const char *flag, const char *path, const char *shape, int64_t *n, int64_t least, int64_t most,
                         int64_t **values)
{
    npy_array a;
    int code = read_typed(flag, path, 1u << NPY_I4 | 1u << NPY_I8, "i8 or i4", &a);
    if (!code && a.rank != 1)
        code = cli_fail(CLI_USAGE, "%s %s: the array has %d dimensions; it must have 1, %s", flag, path, a.rank, shape);
    if (!code && *n && a.shape[0] != *n)
        code = cli_fail(CLI_USAGE, "%s %s: it has %" PRId64 " numbers; it must have %" PRId64 ", %s", flag, path,
                        a.shape[0], *n, shape);
    if (!code) *n = a.shape[0];
    int64_t *out = code ? NULL : cli_alloc(path, *n, sizeof *out); /* [n] */
    if (!code && !out) code = CLI_FAILED;
    for (int64_t i = 0; !code && i < *n; i++) {
        out[i] = a.type == NPY_I8 ? ((const int64_t *)a.data)[i] : ((const int32_t *)a.data)[i];
        if (out[i] < least || out[i] > most)
            code = cli_fail(CLI_USAGE, "%s %s: number %" PRId64 " is %" PRId64 "; it must be in %" PRId64 "..%" PRId64,
                            flag, path, i, out[i], least, most);
    }
    free(a.data);
    if (code)
        free(out);
    else
        *values = out;
    return code;
}

/* Where sequences begin, [n]: from 0 to total, never decreasing. */
static int read_cu_seqlens(const char *flag, const char *path, int64_t total, int64_t *n, int64_t **cu,
                           int64_t *longest)
{
    int code = read_integers(flag, path, "[batch + 1]", n, 0, total, cu);
    if (code) return code;
    if (*n < 2 || (*cu)[0] != 0 || (*cu)[*n - 1] != total)
        return cli_fail(CLI_USAGE, "%s %s: it must have at least 2 numbers, from 0 to %" PRId64 ", the rows there are",
                        flag, path, total);
    *longest = 0;
    for (int64_t i = 1; i < *n; i++) {
        const int64_t length = (*cu)[i] - (*cu)[i - 1];
        if (length < 0)
            return cli_fail(CLI_USAGE, "%s %s: it decreases from %" PRId64 " to %" PRId64 " at number %" PRId64, flag,
                            path, (*cu)[i - 1], (*cu)[i], i);
        if (length > *longest) *longest = length;
    }
    return CLI_OK;
}

/* ---- what stands beside the scores */

/* Strides of a file [.., dims] that broadcasts, as NumPy does it, to [batch, n_heads_q, n_q, n_kv]. */
static int broadcast(const char *flag, const char *path, const clattn_problem *p, const npy_array *a,
                     clattn_score_strides *s)
{
    const int64_t n[4] = {p->batch, p->n_heads_q, p->n_q, p->n_kv};
    int64_t *const stride[4] = {&s->batch, &s->head, &s->q, &s->kv}, next = 1;
    bool fits = a->rank <= 4;
    for (int i = 1; fits && i <= a->rank; i++) {
        const int64_t size = a->shape[a->rank - i];
        *stride[4 - i] = size == 1 ? 0 : next;
        fits = size == 1 || size == n[4 - i];
        if (size) next *= size;
    }
    if (fits) return CLI_OK;
    return cli_fail(CLI_USAGE, "%s %s: shape %s does not broadcast to %s", flag, path,
                    npy_shape_text(a->rank, a->shape).text, npy_shape_text(4, n).text);
}

static int read_bias(const options *o, inputs *in)
{
    clattn_bias *bias = &in->problem.bias;
    npy_array a;
    int code = read_typed("--bias", o->bias, 1u << NPY_F2 | 1u << NPY_F4 | 1u << NPY_F8, "f2, f4 or f8", &a);
    in->bias = a.data;
    if (!code) code = broadcast("--bias", o->bias, &in->problem, &a, &bias->strides);
    if (!code) bias->dtype = dtype_of(a.type);
    in->bias_rank = a.rank;
    for (int i = 0; !code && i < a.rank; i++) in->bias_shape[i] = a.shape[i];
    return code;
}

static int read_mask(const options *o, inputs *in)
{
    clattn_mask *mask = &in->problem.mask;
    npy_array a;
    const int code = read_typed("--mask", o->mask, 1u << NPY_B1, "b1", &a);
    in->mask = a.data;
    mask->boolean = 1;
    return code ? code : broadcast("--mask", o->mask, &in->problem, &a, &mask->strides);
}

/* f4 or f8 [n_heads_q], or [batch, n_heads_q] where that may be: *per_batch becomes 1. As f32. */
static int read_per_head(const char *flag, const char *path, const clattn_problem *p, int *per_batch, float **values)
{
    const int64_t whole[2] = {p->batch, p->n_heads_q};
    npy_array a;
    void *data = NULL;
    int code = read_typed(flag, path, 1u << NPY_F4 | 1u << NPY_F8, "f4 or f8", &a);
    const bool one = a.rank == 1 && a.shape[0] == whole[1];
    const bool all = per_batch && a.rank == 2 && a.shape[0] == whole[0] && a.shape[1] == whole[1];
    if (!code && !one && !all)
        code = cli_fail(CLI_USAGE, "%s %s: shape %s; it must be %s%s%s", flag, path,
                        npy_shape_text(a.rank, a.shape).text, npy_shape_text(1, whole + 1).text,
                        per_batch ? " or " : "", per_batch ? npy_shape_text(2, whole).text : "");
    if (!code) code = take_data(&a, path, CLATTN_DTYPE_F32, &data);
    free(a.data);
    *values = data;
    if (per_batch) *per_batch = all;
    return code;
}

/* ---- what backward starts from */

static int read_d_o(const options *o, const inputs *in, void **d_o)
{
    const clattn_problem *p = &in->problem;
    const storage s = inputs_storage(p);
    npy_array a;
    int code = read_tensor(o, "--do", o->d_o, &a);
    const sizes d = sizes_of(o, &a);
    if (!code) code = check_equal("--do", o->d_o, "batch", d.batch, o->q, s.batch);
    if (!code) code = check_equal("--do", o->d_o, "heads", d.heads, o->q, p->n_heads_q);
    if (!code) code = check_equal("--do", o->d_o, "seq", d.seq, o->q, s.n_q);
    if (!code) code = check_equal("--do", o->d_o, "dim", d.dim, o->v, p->head_dim_v);
    if (!code && !o->dtype && dtype_of(a.type) != p->dtype)
        code = cli_fail(CLI_USAGE, "--do %s: the elements are %s, the problem is %s; --dtype makes them one", o->d_o,
                        npy_type_name(a.type), clattn_dtype_name(p->dtype));
    if (!code) code = take_data(&a, o->d_o, p->dtype, d_o);
    free(a.data);
    return code;
}

static int read_d_lse(const options *o, const inputs *in, float **d_lse)
{
    const clattn_problem *p = &in->problem;
    const storage s = inputs_storage(p);
    const int64_t whole[3] = {s.batch, p->n_heads_q, s.n_q};
    const int first = p->varlen ? 1 : 0; /* no batch then */
    npy_array a;
    int code = read_typed("--dlse", o->d_lse, 1u << NPY_F4, "f4", &a);
    bool same = a.rank == 3 - first;
    for (int i = 0; same && i < a.rank; i++) same = a.shape[i] == whole[first + i];
    if (!code && !same)
        code = cli_fail(CLI_USAGE, "--dlse %s: shape %s; it must be %s", o->d_lse, npy_shape_text(a.rank, a.shape).text,
                        npy_shape_text(3 - first, whole + first).text);
    if (code)
        free(a.data);
    else
        *d_lse = a.data;
    return code;
}

int inputs_gradients_from_files(const options *o, const inputs *in, void **d_o, float **d_lse)
{
    *d_o = NULL;
    *d_lse = NULL;
    int code = read_d_o(o, in, d_o);
    if (!code && o->d_lse) code = read_d_lse(o, in, d_lse);
    if (code) {
        free(*d_o);
        *d_o = NULL;
    }
    return code;
}

/* ---- all of it */

void inputs_files(const options *o, file_flag files[N_INPUT_FILES])
{
    int64_t number;
    const bool is_number = o->q_offset && args_parse_integer(o->q_offset, INT64_MIN, INT64_MAX, &number);
    const file_flag all[N_INPUT_FILES] = {{"--q", o->q},
                                          {"--k", o->k},
                                          {"--v", o->v},
                                          {"--bias", o->bias},
                                          {"--mask", o->mask},
                                          {"--alibi", o->alibi},
                                          {"--sinks", o->sinks},
                                          {"--cu-seqlens-q", o->cu_seqlens_q},
                                          {"--cu-seqlens-kv", o->cu_seqlens_kv},
                                          {"--q-offset", is_number ? NULL : o->q_offset},
                                          {"--kv-len", o->kv_len},
                                          {"--do", o->d_o},
                                          {"--dlse", o->d_lse}};
    memcpy(files, all, sizeof all);
}

static int check_flags(const options *o)
{
    if (!o->q || !o->k || !o->v) return cli_fail(CLI_USAGE, "%s is missing", !o->q ? "--q" : !o->k ? "--k" : "--v");
    if (!o->cu_seqlens_q != !o->cu_seqlens_kv)
        return cli_fail(CLI_USAGE, "%s is missing; it goes with %s",
                        o->cu_seqlens_q ? "--cu-seqlens-kv" : "--cu-seqlens-q",
                        o->cu_seqlens_q ? "--cu-seqlens-q" : "--cu-seqlens-kv");
    if (is_varlen(o) && o->kv_len)
        return cli_fail(CLI_USAGE, "--kv-len %s: it does not go with --cu-seqlens-kv, which has the lengths",
                        o->kv_len);
    if (is_varlen(o) && o->layout == LAYOUT_BSHD)
        return cli_fail(CLI_USAGE, "--layout bshd: it does not go with --cu-seqlens-q: files are [total, heads, dim]");
    if (o->softcap < 0) return cli_fail(CLI_USAGE, "--softcap %g: it must be at least 0, which is none", o->softcap);
    if (o->dropout < 0 || o->dropout >= 1) return cli_fail(CLI_USAGE, "--dropout %g: it must be in [0, 1)", o->dropout);
    return CLI_OK;
}

/* The sizes, from the files of Q, K and V and of the sequences. */
static int describe(const options *o, const npy_array *q, const npy_array *k, const npy_array *v, inputs *in)
{
    clattn_problem *p = &in->problem;
    const sizes a = sizes_of(o, q), b = sizes_of(o, k), c = sizes_of(o, v);
    int64_t n = 0; /* batch + 1 */
    clattn_problem_init(p, o->dtype ? (clattn_dtype)o->dtype : dtype_of(q->type), a.batch, a.heads, b.heads, a.seq,
                        b.seq, a.dim);
    p->head_dim_v = c.dim;
    in->layout = o->layout;
    if (o->layout == LAYOUT_BSHD) {
        p->q = clattn_strides_bshd(a.heads, a.seq, a.dim);
        p->k = clattn_strides_bshd(b.heads, b.seq, b.dim);
        p->v = clattn_strides_bshd(c.heads, c.seq, c.dim);
        p->o = clattn_strides_bshd(a.heads, a.seq, c.dim);
    }
    if (!is_varlen(o)) return CLI_OK;
    p->varlen = 1;
    p->total_q = a.seq;
    p->total_kv = b.seq;
    int code = read_cu_seqlens("--cu-seqlens-q", o->cu_seqlens_q, a.seq, &n, &in->cu_seqlens_q, &p->n_q);
    if (!code) code = read_cu_seqlens("--cu-seqlens-kv", o->cu_seqlens_kv, b.seq, &n, &in->cu_seqlens_kv, &p->n_kv);
    p->batch = n - 1;
    return code;
}

/* What changes the scores, when the sizes are known. */
static int describe_scores(const options *o, inputs *in)
{
    clattn_problem *p = &in->problem;
    int code = CLI_OK, slopes_per_batch = 0;
    p->scale = o->scale;
    p->mask.window_left = o->window[0];
    p->mask.window_right = o->causal ? 0 : o->window[1];
    p->softcap = o->softcap;
    p->dropout = o->dropout;
    in->dropout_seed = (uint64_t)o->seed;
    if (o->q_offset && !args_parse_integer(o->q_offset, INT64_MIN, INT64_MAX, &p->query_offset)) {
        p->query_offset_per_batch = 1;
        code = read_integers("--q-offset", o->q_offset, "[batch]", &p->batch, INT64_MIN, INT64_MAX, &in->query_offsets);
    }
    if (!code && o->kv_len) {
        p->kv_length_per_batch = 1;
        code = read_integers("--kv-len", o->kv_len, "[batch]", &p->batch, 0, p->n_kv, &in->kv_lengths);
    }
    if (!code && o->bias) code = read_bias(o, in);
    if (!code && o->mask) code = read_mask(o, in);
    if (!code && o->alibi) {
        code = read_per_head("--alibi", o->alibi, p, &slopes_per_batch, &in->alibi_slopes);
        p->alibi = slopes_per_batch ? CLATTN_ALIBI_PER_BATCH_AND_HEAD : CLATTN_ALIBI_PER_HEAD;
    }
    if (!code && o->sinks) {
        code = read_per_head("--sinks", o->sinks, p, NULL, &in->sinks);
        p->sinks = 1;
    }
    if (!code && clattn_problem_check(p)) code = cli_fail_library(NULL, NULL);
    return code;
}

int inputs_from_files(const options *o, inputs *in)
{
    npy_array q = {0}, k = {0}, v = {0};
    memset(in, 0, sizeof *in);
    int code = check_flags(o);
    if (!code) code = read_tensor(o, "--q", o->q, &q);
    if (!code) code = read_tensor(o, "--k", o->k, &k);
    if (!code) code = read_tensor(o, "--v", o->v, &v);
    if (!code) code = check_agreement(o, &q, &k, &v);
    if (!code) code = describe(o, &q, &k, &v, in);
    if (!code) code = describe_scores(o, in);
    if (!code) code = take_data(&q, o->q, in->problem.dtype, &in->q);
    if (!code) code = take_data(&k, o->k, in->problem.dtype, &in->k);
    if (!code) code = take_data(&v, o->v, in->problem.dtype, &in->v);
    free(q.data);
    free(k.data);
    free(v.data);
    if (code) inputs_free(in);
    return code;
}
