/* A problem as one line of text, both ways. */
#include <errno.h>
#include <inttypes.h>
#include <locale.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <clattn/clattn.h>

#include "error.h"
#include "text.h"

enum { WORD_MAX = 1024, SEQUENCES_MAX = 256 };

/* What has been read so far. */
typedef struct reading {
    clattn_problem p;
    bool causal, bshd, bias_has_dtype;
    uint64_t seed;
    int n_sequences[2]; /* of queries, of keys; 0: none listed */
    int64_t sequences[2][SEQUENCES_MAX];
} reading;

/* ---- values: what follows a word's name, to the end of the word */

static bool read_int(const char *s, int64_t *value)
{
    char *end;
    errno = 0;
    const long long x = strtoll(s, &end, 10);
    if (end == s || *end || errno || (*s != '-' && (*s < '0' || *s > '9'))) return false; /* no space, no '+' */
    *value = x;
    return true;
}

/* In the "C" locale, whatever the process's. */
static bool read_real(const char *s, double *value)
{
    char *end = NULL;
    const locale_t c = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
    if (c == (locale_t)0) return false;
    const locale_t old = uselocale(c);
    const double x = strtod(s, &end);
    uselocale(old);
    freelocale(c);
    if (end == s || *end || strchr(" \v\f", *s)) return false;
    *value = x;
    return true;
}

/* A copy of s up to `mark`, what follows in *rest ("" when mark is absent); false when it does not fit, or nothing follows
 * a mark. */
static bool split(const char *s, char mark, char first[WORD_MAX], const char **rest)
{
    const char *at = strchr(s, mark);
    const size_t n = at ? (size_t)(at - s) : strlen(s);
    if (n >= WORD_MAX || (at && !at[1])) return false;
    memcpy(first, s, n);
    first[n] = 0;
    *rest = at ? at + 1 : "";
    return true;
}

static bool read_pair(const char *s, int64_t *a, int64_t *b)
{
    char first[WORD_MAX];
    const char *rest;
    return split(s, ',', first, &rest) && read_int(first, a) && read_int(rest, b);
}

static bool read_dtype(const char *s, clattn_dtype *dtype)
{
#define READ(name, value, bytes, text)                                                                                 \
    if (!strcmp(s, text)) return *dtype = CLATTN_DTYPE_##name, true;
    CLATTN_DTYPE_MAP(READ)
#undef READ
    return false;
}

/* "3,5,0,17" */
static bool read_list(const char *s, int64_t *list, int *n)
{
    char first[WORD_MAX];
    for (*n = 0; *s; (*n)++)
        if (*n == SEQUENCES_MAX || !split(s, ',', first, &s) || !read_int(first, &list[*n]) || list[*n] < 0)
            return false;
    return *n > 0;
}

/* Which dimensions a bias or mask has: "b,1,q,kv". As strides 1 for "has", to be made real when all sizes are known. */
static bool read_dimensions(const char *s, clattn_score_strides *strides)
{
    static const char *const names[4] = {"b", "h", "q", "kv"};
    int64_t *const has[4] = {&strides->batch, &strides->head, &strides->q, &strides->kv};
    char first[WORD_MAX];
    for (int i = 0; i < 4; i++) {
        if (!split(s, ',', first, &s)) return false;
        if (strcmp(first, names[i]) && strcmp(first, "1")) return false;
        *has[i] = strcmp(first, "1") != 0;
    }
    return !*s;
}

/* ---- words */

static bool word_causal(reading *r, const char *s) { return r->causal = true, !*s; }
static bool word_bshd(reading *r, const char *s) { return r->bshd = true, !*s; }
static bool word_sinks(reading *r, const char *s) { return r->p.sinks = 1, !*s; }
static bool word_window(reading *r, const char *s)
{
    return read_pair(s, &r->p.mask.window_left, &r->p.mask.window_right);
}
static bool word_offset(reading *r, const char *s)
{
    if (!strcmp(s, "per-batch")) return r->p.query_offset_per_batch = 1, true;
    return read_int(s, &r->p.query_offset);
}
static bool word_kvlen(reading *r, const char *s)
{
    if (!strcmp(s, "per-batch")) return r->p.kv_length_per_batch = 1, true;
    return read_int(s, &r->p.kv_length);
}
static bool word_scale(reading *r, const char *s) { return read_real(s, &r->p.scale); }
static bool word_softcap(reading *r, const char *s) { return read_real(s, &r->p.softcap); }
static bool word_alibi(reading *r, const char *s)
{
    r->p.alibi = *s ? CLATTN_ALIBI_PER_BATCH_AND_HEAD : CLATTN_ALIBI_PER_HEAD;
    return !*s || !strcmp(s, "=per-batch");
}
static bool word_bias(reading *r, const char *s)
{
    char dimensions[WORD_MAX];
    const char *dtype;
    if (!split(*s ? s + 1 : "b,h,q,kv", ':', dimensions, &dtype) || (*s && *s != '=')) return false;
    r->bias_has_dtype = *dtype != 0;
    r->p.bias.dtype = CLATTN_DTYPE_F32;
    return read_dimensions(dimensions, &r->p.bias.strides) && (!*dtype || read_dtype(dtype, &r->p.bias.dtype));
}
static bool word_mask(reading *r, const char *s)
{
    r->p.mask.boolean = 1;
    return (!*s || *s == '=') && read_dimensions(*s ? s + 1 : "b,h,q,kv", &r->p.mask.strides);
}
static bool word_dropout(reading *r, const char *s)
{
    char p[WORD_MAX];
    const char *seed;
    int64_t n = 0;
    if (!split(s, ':', p, &seed) || !read_real(p, &r->p.dropout)) return false;
    if (*seed && (strncmp(seed, "seed=", 5) || !read_int(seed + 5, &n) || n < 0)) return false;
    r->seed = (uint64_t)n;
    return true;
}
static bool word_varlen(reading *r, const char *s)
{
    char queries[WORD_MAX];
    const char *keys;
    r->p.varlen = 1;
    if (!*s) return true;
    if (*s != '=' || !split(s + 1, ':', queries, &keys)) return false;
    return read_list(queries, r->sequences[0], &r->n_sequences[0]) &&
           read_list(*keys ? keys : queries, r->sequences[1], &r->n_sequences[1]) &&
           r->n_sequences[0] == r->n_sequences[1];
}
static bool word_total(reading *r, const char *s) { return read_pair(s, &r->p.total_q, &r->p.total_kv); }
static bool word_b(reading *r, const char *s) { return read_int(s, &r->p.batch); }
static bool word_hq(reading *r, const char *s) { return read_int(s, &r->p.n_heads_q); }
static bool word_hkv(reading *r, const char *s) { return read_int(s, &r->p.n_heads_kv); }
static bool word_q(reading *r, const char *s) { return read_int(s, &r->p.n_q); }
static bool word_kv(reading *r, const char *s) { return read_int(s, &r->p.n_kv); }
static bool word_dv(reading *r, const char *s) { return read_int(s, &r->p.head_dim_v); }
static bool word_d(reading *r, const char *s) { return read_int(s, &r->p.head_dim_qk); }

/* The first whose name begins the word and whose rest it can read. */
enum { WORD_HQ, WORD_HKV, WORD_Q, WORD_KV, WORD_DV, WORD_D, WORD_B, WORD_TOTAL };
static const struct {
    const char *name;
    bool (*read)(reading *r, const char *value);
} words[] = {
    [WORD_HQ] = {"hq", word_hq}, [WORD_HKV] = {"hkv", word_hkv},
    [WORD_Q] = {"q", word_q},    [WORD_KV] = {"kv", word_kv},
    [WORD_DV] = {"dv", word_dv}, [WORD_D] = {"d", word_d},
    [WORD_B] = {"b", word_b},    [WORD_TOTAL] = {"total=", word_total},
    {"causal", word_causal},     {"window=", word_window},
    {"offset=", word_offset},    {"kvlen=", word_kvlen},
    {"scale=", word_scale},      {"softcap=", word_softcap},
    {"alibi", word_alibi},       {"bias", word_bias},
    {"mask", word_mask},         {"sinks", word_sinks},
    {"dropout=", word_dropout},  {"varlen", word_varlen},
    {"total=", word_total},      {"bshd", word_bshd},
};
enum { N_WORDS = sizeof words / sizeof words[0] };

/* Reads into a copy: a word that fails leaves nothing behind. */
static bool read_word(reading *r, const char *w, bool seen[N_WORDS])
{
    for (int i = 0; i < N_WORDS; i++) {
        const size_t n = strlen(words[i].name);
        reading attempt = *r;
        if (seen[i] || strncmp(w, words[i].name, n) || !words[i].read(&attempt, w + n)) continue;
        *r = attempt;
        return seen[i] = true;
    }
    return false;
}

/* Dense strides for the dimensions that are there. */
static void strides_make(clattn_score_strides *s, const clattn_problem *p)
{
    const int64_t n[4] = {p->batch, p->n_heads_q, p->n_q, p->n_kv};
    int64_t *const stride[4] = {&s->batch, &s->head, &s->q, &s->kv}, next = 1;
    for (int i = 3; i >= 0; i--) {
        if (!*stride[i]) continue;
        *stride[i] = next;
        if (__builtin_mul_overflow(next, n[i], &next)) next = INT64_MAX;
        if (next == 0) next = 1;
    }
}

static void sequences_make(reading *r)
{
    int64_t *const longest[2] = {&r->p.n_q, &r->p.n_kv}, *const total[2] = {&r->p.total_q, &r->p.total_kv};
    r->p.batch = r->n_sequences[0];
    for (int side = 0; side < 2; side++) {
        *longest[side] = *total[side] = 0;
        for (int i = 0; i < r->n_sequences[side]; i++) {
            const int64_t n = r->sequences[side][i];
            if (n > *longest[side]) *longest[side] = n;
            if (__builtin_add_overflow(*total[side], n, total[side])) *total[side] = INT64_MAX;
        }
    }
}

static clattn_status read_text(const char *given, reading *r)
{
    static const char blanks[] = " \t\r\n";
    bool seen[N_WORDS] = {false}, has_dtype = false;
    RETURN_IF(!given, INVALID_ARGUMENT, "the text is NULL");
    memset(r, 0, sizeof *r);
    clattn_problem_init(&r->p, CLATTN_DTYPE_F32, 1, 0, 0, 0, 0, 0);
    for (const char *s = given; *(s += strspn(s, blanks));) {
        const size_t n = strcspn(s, blanks);
        char w[WORD_MAX];
        RETURN_IF(n >= sizeof w, INVALID_ARGUMENT, "problem text: a word of %zu characters: %.20s...", n, s);
        memcpy(w, s, n);
        w[n] = 0;
        s += n;
        if (!has_dtype && read_dtype(w, &r->p.dtype))
            has_dtype = true;
        else
            RETURN_IF(!read_word(r, w, seen), INVALID_ARGUMENT,
                      "problem text: cannot read '%.80s': an unknown word, a value it does not take, or given twice",
                      w);
    }
    clattn_problem *p = &r->p;
    const bool listed = r->n_sequences[0] > 0; /* lengths of sequences stand for b, q, kv and total */
    RETURN_IF(listed && (seen[WORD_Q] || seen[WORD_KV] || seen[WORD_B] || seen[WORD_TOTAL]), INVALID_ARGUMENT,
              "problem text: b, q, kv and total follow from the lengths that varlen lists; they cannot be given too");
    RETURN_IF(seen[WORD_TOTAL] && !p->varlen, INVALID_ARGUMENT, "problem text: total without varlen");
    RETURN_IF(!has_dtype, INVALID_ARGUMENT, "problem text: no storage type (f32, f16, bf16 or f64)");
    RETURN_IF(!seen[WORD_HQ] || !seen[WORD_D] || (!listed && (!seen[WORD_Q] || !seen[WORD_KV])), INVALID_ARGUMENT,
              "problem text: hq, q, kv and d must be given");
    if (listed) sequences_make(r);
    if (!seen[WORD_HKV]) p->n_heads_kv = p->n_heads_q;
    if (!seen[WORD_DV]) p->head_dim_v = p->head_dim_qk;
    if (r->causal) p->mask.window_right = 0;
    if (p->bias.dtype && !r->bias_has_dtype) p->bias.dtype = p->dtype;
    strides_make(&p->bias.strides, p);
    strides_make(&p->mask.strides, p);
    FORWARD(clattn_problem_check(p));
    if (r->bshd) {
        p->q = clattn_strides_bshd(p->n_heads_q, p->n_q, p->head_dim_qk);
        p->k = clattn_strides_bshd(p->n_heads_kv, p->n_kv, p->head_dim_qk);
        p->v = clattn_strides_bshd(p->n_heads_kv, p->n_kv, p->head_dim_v);
        p->o = clattn_strides_bshd(p->n_heads_q, p->n_q, p->head_dim_v);
    }
    return clattn_problem_check(p);
}

clattn_status clattn_problem_from_text(const char *given, clattn_problem *out)
{
    reading r;
    RETURN_IF(!out, INVALID_ARGUMENT, "the problem is NULL");
    FORWARD(read_text(given, &r));
    *out = r.p;
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn_problem_text_args(const char *given, uint64_t *seed, int64_t *cu_seqlens_q, int64_t *cu_seqlens_kv)
{
    reading r;
    FORWARD(read_text(given, &r));
    int64_t *const cu[2] = {cu_seqlens_q, cu_seqlens_kv};
    RETURN_IF(r.p.varlen && r.n_sequences[0] == 0 && (cu_seqlens_q || cu_seqlens_kv), INVALID_ARGUMENT,
              "problem text: varlen does not list its sequences");
    if (seed) *seed = r.seed;
    if (!r.p.varlen || r.n_sequences[0] == 0) return CLATTN_STATUS_SUCCESS;
    for (int side = 0; side < 2; side++)
        for (int i = 0; cu[side] && i <= r.n_sequences[side]; i++)
            cu[side][i] = i ? cu[side][i - 1] + r.sequences[side][i - 1] : 0;
    return CLATTN_STATUS_SUCCESS;
}

/* ---- to text */

static void real_to_text(text *t, const char *name, double x)
{
    char number[64];
    size_t n = 0;
    snprintf(number, sizeof number, "%.17g", x);
    for (const char *c = number; *c; c++) /* the locale's point, of one byte or several, becomes one */
        if (strchr("+-0123456789aefin", *c))
            number[n++] = *c;
        else if (n && number[n - 1] != '.')
            number[n++] = '.';
    number[n] = 0;
    text_add(t, " %s=%s", name, number);
}

static void dimensions_to_text(text *t, const char *name, const clattn_score_strides *s)
{
    text_add(t, " %s=%s,%s,%s,%s", name, s->batch ? "b" : "1", s->head ? "h" : "1", s->q ? "q" : "1",
             s->kv ? "kv" : "1");
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
    if (p->scale != CLATTN_SCALE_AUTO) real_to_text(&t, "scale", p->scale);
    if (p->softcap != 0) real_to_text(&t, "softcap", p->softcap);
    if (p->alibi) text_add(&t, " alibi%s", p->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD ? "=per-batch" : "");
    if (p->bias.dtype) {
        dimensions_to_text(&t, "bias", &p->bias.strides);
        text_add(&t, ":%s", clattn_dtype_name(p->bias.dtype));
    }
    if (p->mask.boolean) dimensions_to_text(&t, "mask", &p->mask.strides);
    if (p->score_function.host || p->score_function.source) text_add(&t, " score_function");
    if (p->sinks) text_add(&t, " sinks");
    if (p->dropout != 0) real_to_text(&t, "dropout", p->dropout);
    if (p->varlen) text_add(&t, " varlen total=%" PRId64 ",%" PRId64, p->total_q, p->total_kv);
    if (is_bshd(p)) text_add(&t, " bshd");
    return t.length;
}
