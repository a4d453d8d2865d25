/* A problem as one line of text, both ways. */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <clattn/clattn.h>

#include "error.h"
#include "text.h"

static bool read_int(const char *s, int64_t *value)
{
    char *end;
    errno = 0;
    const long long x = strtoll(s, &end, 10);
    if (end == s || *end || errno || (*s != '-' && (*s < '0' || *s > '9'))) return false; /* no space, no '+' */
    *value = x;
    return true;
}

/* "hq8" after "hq", "dv64" after "dv" */
static bool read_field(const char *s, const char *name, int64_t *value)
{
    const size_t n = strlen(name);
    return !strncmp(s, name, n) && read_int(s + n, value);
}

static bool read_window(const char *s, clattn_mask *mask)
{
    char left[32];
    const char *comma = strchr(s, ',');
    if (!comma || (size_t)(comma - s) >= sizeof left) return false;
    memcpy(left, s, (size_t)(comma - s));
    left[comma - s] = 0;
    return read_int(left, &mask->window_left) && read_int(comma + 1, &mask->window_right);
}

static bool read_scale(const char *s, double *scale)
{
    char *end;
    const double x = strtod(s, &end);
    if (end == s || *end || strchr(" \v\f", *s)) return false;
    *scale = x;
    return true;
}

static bool read_dtype(const char *s, clattn_dtype *dtype)
{
#define READ(name, value, bytes, text)                                                                                 \
    if (!strcmp(s, text)) return *dtype = CLATTN_DTYPE_##name, true;
    CLATTN_DTYPE_MAP(READ)
#undef READ
    return false;
}

static const char blanks[] = " \t\r\n";

clattn_status clattn_problem_from_text(const char *given, clattn_problem *out)
{
    RETURN_IF(!given || !out, INVALID_ARGUMENT, "the text or the problem is NULL");
    clattn_problem p;
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 0, 0, 0, 0, 0);
    enum { HQ, HKV, Q, KV, D, DV, REST };
    struct {
        const char *name;
        int64_t *value;
        bool given;
    } fields[] = {
        [HQ] = {"hq", &p.n_heads_q, false}, [HKV] = {"hkv", &p.n_heads_kv, false}, [Q] = {"q", &p.n_q, false},
        [KV] = {"kv", &p.n_kv, false},      [D] = {"d", &p.head_dim_qk, false},    [DV] = {"dv", &p.head_dim_v, false},
        [REST] = {"b", &p.batch, false},    {"offset=", &p.query_offset, false},   {"kvlen=", &p.kv_length, false}};
    const size_t n_fields = sizeof fields / sizeof fields[0];
    bool causal = false, bshd = false, has_dtype = false, has_window = false, has_scale = false;

    for (const char *s = given; *(s += strspn(s, blanks));) {
        const size_t n = strcspn(s, blanks);
        char w[64];
        size_t i = 0;
        RETURN_IF(n >= sizeof w, INVALID_ARGUMENT, "problem text: a word of %zu characters: %.20s...", n, s);
        memcpy(w, s, n);
        w[n] = 0;
        s += n;
        while (i < n_fields && (fields[i].given || !read_field(w, fields[i].name, fields[i].value))) i++;
        if (i < n_fields)
            fields[i].given = true;
        else if (!has_dtype && read_dtype(w, &p.dtype))
            has_dtype = true;
        else if (!causal && !strcmp(w, "causal"))
            causal = true;
        else if (!bshd && !strcmp(w, "bshd"))
            bshd = true;
        else if (!has_window && !strncmp(w, "window=", 7) && read_window(w + 7, &p.mask))
            has_window = true;
        else if (!has_scale && !strncmp(w, "scale=", 6) && read_scale(w + 6, &p.scale))
            has_scale = true;
        else
            return clattn__fail(CLATTN_STATUS_INVALID_ARGUMENT, 0, "problem text: cannot read '%s', or not twice", w);
    }
    RETURN_IF(!has_dtype, INVALID_ARGUMENT, "problem text: no storage type (f32, f16, bf16 or f64)");
    RETURN_IF(!fields[HQ].given || !fields[Q].given || !fields[KV].given || !fields[D].given, INVALID_ARGUMENT,
              "problem text: hq, q, kv and d must be given");
    if (!fields[HKV].given) p.n_heads_kv = p.n_heads_q;
    if (!fields[DV].given) p.head_dim_v = p.head_dim_qk;
    if (causal) p.mask.window_right = 0;
    FORWARD(clattn_problem_check(&p));
    if (bshd) {
        p.q = clattn_strides_bshd(p.n_heads_q, p.n_q, p.head_dim_qk);
        p.k = clattn_strides_bshd(p.n_heads_kv, p.n_kv, p.head_dim_qk);
        p.v = clattn_strides_bshd(p.n_heads_kv, p.n_kv, p.head_dim_v);
        p.o = clattn_strides_bshd(p.n_heads_q, p.n_q, p.head_dim_v);
    }
    FORWARD(clattn_problem_check(&p));
    *out = p;
    return CLATTN_STATUS_SUCCESS;
}

static bool is_bshd(const clattn_problem *p)
{
    const clattn_strides s = clattn_strides_bshd(p->n_heads_q, p->n_q, p->head_dim_qk);
    return p->n_heads_q > 1 && p->q.batch == s.batch && p->q.head == s.head && p->q.seq == s.seq;
}

size_t clattn_problem_to_text(const clattn_problem *p, char *data, size_t size)
{
    text t = {data, size, 0};
    if (!p) return 0;
    text_add(&t, "%s b%" PRId64 " hq%" PRId64 " hkv%" PRId64 " q%" PRId64 " kv%" PRId64 " d%" PRId64,
             clattn_dtype_name(p->dtype), p->batch, p->n_heads_q, p->n_heads_kv, p->n_q, p->n_kv, p->head_dim_qk);
    if (p->head_dim_v != p->head_dim_qk) text_add(&t, " dv%" PRId64, p->head_dim_v);
    if (p->mask.window_right == 0 && p->mask.window_left < 0)
        text_add(&t, " causal");
    else if (p->mask.window_left >= 0 || p->mask.window_right >= 0)
        text_add(&t, " window=%" PRId64 ",%" PRId64, p->mask.window_left, p->mask.window_right);
    if (p->query_offset_per_batch)
        text_add(&t, " offset=per-batch");
    else if (p->query_offset)
        text_add(&t, " offset=%" PRId64, p->query_offset);
    if (p->kv_length_per_batch)
        text_add(&t, " kvlen=per-batch");
    else if (p->kv_length != CLATTN_KV_LENGTH_ALL)
        text_add(&t, " kvlen=%" PRId64, p->kv_length);
    if (p->scale != CLATTN_SCALE_AUTO) text_add(&t, " scale=%.17g", p->scale);
    if (is_bshd(p)) text_add(&t, " bshd");
    return t.length;
}
