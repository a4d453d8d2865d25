/* Rows that see nothing, NaN and infinity seen and unseen, extremes, rounding, and what the bits may depend on. Loop index
 * problem * TEST_WAYS + way. All blocks are 32 x 32 at d = 64 where nothing else is said, so that few kernels get built. */
#include "harness.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))
enum { BLOCK = 32, DTYPES = 4, PAYLOADS = 5 };

static const clattn_dtype dtypes[DTYPES] = {CLATTN_DTYPE_F32, CLATTN_DTYPE_F16, CLATTN_DTYPE_BF16, CLATTN_DTYPE_F64};

/* Three NaN: all ones, the least signalling one, the usual one; then both infinities. */
static const uint64_t payloads[DTYPES][PAYLOADS] = {
    {0xffffffff, 0x7f800001, 0x7fc00000, 0x7f800000, 0xff800000},
    {0xffff, 0x7c01, 0x7e00, 0x7c00, 0xfc00},
    {0xffff, 0x7f81, 0x7fc0, 0x7f80, 0xff80},
    {0xffffffffffffffff, 0x7ff0000000000001, 0x7ff8000000000000, 0x7ff0000000000000, 0xfff0000000000000},
};

static const test_way *way_of(int i) { return &test_ways[i % TEST_WAYS]; }

static clattn_problem parse(clattn_dtype dtype, const char *text)
{
    char line[160];
    clattn_problem p;
    snprintf(line, sizeof line, "%s %s", clattn_dtype_name(dtype), text);
    test_ok(clattn_problem_from_text(line, &p));
    return p;
}

/* The reference is made anew, for tests change the data between runs. */
static void run_and_compare(test_data *t, const test_way *way, const char *what)
{
    test_reference(t);
    test_run(t, way, BLOCK, BLOCK);
    test_compare(t, what);
}

/* ---- rows that see no key */

static const struct {
    const char *text;
    int empty; /* rows that see nothing, of all heads and batch entries */
    bool first_length_is_0;
} empty_cases[] = {
    {"b1 hq2 hkv1 q70 kv90 d64 causal offset=-40", 80, false},
    {"b1 hq2 hkv1 q70 kv90 d64 window=3,3 offset=60", 74, false}, /* rows from 33 on look past the last key */
    {"b1 hq2 hkv1 q70 kv90 d64 causal offset=-1000", 140, false},
    {"b1 hq2 hkv1 q70 kv90 d64 window=5,-1 offset=1000", 140, false},
    {"b2 hq2 hkv1 q70 kv90 d64", 140, true},
    {"b1 hq2 hkv1 q70 kv90 d64 kvlen=10 window=2,0", 116, false},
    {"b1 hq2 hkv1 q70 kv90 d64 kvlen=0", 140, false},
};

START_TEST(empty_rows)
{
    const int n = _i / TEST_WAYS / DTYPES;
    clattn_problem p = parse(dtypes[_i / TEST_WAYS % DTYPES], empty_cases[n].text);
    if (!test_way_context(way_of(_i), p.dtype)) return;
    p.kv_length_per_batch = empty_cases[n].first_length_is_0;
    test_data *t = test_data_make(&p, 1);
    if (t->kv_lengths) t->kv_lengths[0] = 0;
    run_and_compare(t, way_of(_i), "empty rows");
    int empty = 0;
    for (int64_t b = 0; b < p.batch; b++)
        for (int64_t h = 0; h < p.n_heads_q; h++)
            for (int64_t i = 0; i < p.n_q; i++) {
                if (test_get_lse(t, b, h, i) != -INFINITY) continue;
                empty++;
                for (int64_t d = 0; d < p.head_dim_v; d++) ck_assert(test_get(t, 'o', b, h, i, d) == 0);
            }
    ck_assert_int_eq(empty, empty_cases[n].empty);
    test_data_free(t);
}
END_TEST

/* ---- NaN and infinity in keys that some rows do not see */

typedef struct key_place {
    int64_t b, h, j;
} key_place;

static const struct {
    const char *text;
    key_place keys[4]; /* poisoned */
    int64_t lengths[2];
} hidden_cases[] = {
    {"b1 hq2 hkv1 q70 kv90 d64 kvlen=50", {{0, 0, 50}, {0, 0, 51}, {0, 0, 64}, {0, 0, 89}}, {0, 0}},
    {"b1 hq2 hkv2 q70 kv90 d64 causal", {{0, 0, 5}, {0, 0, 40}, {0, 1, 69}, {0, 1, 89}}, {0, 0}},
    {"b1 hq2 hkv2 q70 kv90 d64 causal offset=20", {{0, 0, 47}, {0, 0, 31}, {0, 1, 32}, {0, 1, 88}}, {0, 0}},
    {"b1 hq2 hkv1 q70 kv90 d64 window=10,5 offset=3", {{0, 0, 0}, {0, 0, 33}, {0, 0, 64}, {0, 0, 80}}, {0, 0}},
    {"b1 hq2 hkv1 q70 kv90 d64 window=20,-1", {{0, 0, 0}, {0, 0, 1}, {0, 0, 12}, {0, 0, 31}}, {0, 0}},
    {"b2 hq4 hkv2 q70 kv90 d64", {{1, 0, 3}, {1, 0, 89}, {0, 1, 0}, {0, 1, 33}}, {0, 0}},
    {"b2 hq2 hkv1 q70 kv90 d64 causal offset=30", {{0, 0, 60}, {0, 0, 45}, {1, 0, 89}, {1, 0, 77}}, {45, 77}},
};

/* The contract's rule; these cases have small offsets, all in problem.query_offset. */
static bool sees(const test_data *t, int64_t b, int64_t i, int64_t j)
{
    const clattn_problem *p = &t->p;
    const int64_t at = p->query_offset + i, length = t->kv_lengths ? t->kv_lengths[b] : p->kv_length;
    if (p->mask.window_left >= 0 && j < at - p->mask.window_left) return false;
    return (p->mask.window_right < 0 || j <= at + p->mask.window_right) && (length < 0 || j < length);
}

static bool sees_any(const test_data *t, const key_place keys[4], int64_t b, int64_t h, int64_t i)
{
    const int64_t kv_head = h * t->p.n_heads_kv / t->p.n_heads_q;
    bool any = false;
    for (int n = 0; n < 4; n++) any |= keys[n].b == b && keys[n].h == kv_head && sees(t, b, i, keys[n].j);
    return any;
}

/* Whole rows of the keys in K, V or both become these bits. */
static void poison(test_data *t, const key_place keys[4], const char *tensors, uint64_t bits)
{
    for (int n = 0; n < 4; n++)
        for (const char *which = tensors; *which; which++)
            for (int64_t d = 0; d < 64; d++) test_set_bits(t, *which, keys[n].b, keys[n].h, keys[n].j, d, bits);
}

/* Rows that see none of the poisoned keys have the bits that they have with zeros there; the others agree with the
 * reference. */
static void check_hidden(int n, clattn_dtype dtype, const test_way *way, const char *tensors, uint64_t bits)
{
    clattn_problem p = parse(dtype, hidden_cases[n].text);
    const key_place *keys = hidden_cases[n].keys;
    p.kv_length_per_batch = hidden_cases[n].lengths[0] != 0;
    test_data *clean = test_data_make(&p, 2), *t = test_data_make(&p, 2);
    for (int64_t b = 0; p.kv_length_per_batch && b < p.batch; b++)
        clean->kv_lengths[b] = t->kv_lengths[b] = hidden_cases[n].lengths[b];
    poison(clean, keys, tensors, 0);
    poison(t, keys, tensors, bits);
    test_run(clean, way, BLOCK, BLOCK);
    run_and_compare(t, way, "hidden");
    int unseen = 0;
    for (int64_t b = 0; b < p.batch; b++)
        for (int64_t h = 0; h < p.n_heads_q; h++)
            for (int64_t i = 0; i < p.n_q; i++) {
                if (sees_any(t, keys, b, h, i)) continue;
                unseen++;
                const float lse = test_get_lse(t, b, h, i), clean_lse = test_get_lse(clean, b, h, i);
                ck_assert_msg(!memcmp(&lse, &clean_lse, sizeof lse), "%s: LSE of row %d is %g, not %g", t->text, (int)i,
                              lse, clean_lse);
                for (int64_t d = 0; d < p.head_dim_v; d++)
                    ck_assert_msg(test_get_bits(t, 'o', b, h, i, d) == test_get_bits(clean, 'o', b, h, i, d),
                                  "%s: %s %llx reached O[%d,%d,%d,%d]", t->text, tensors, (unsigned long long)bits,
                                  (int)b, (int)h, (int)i, (int)d);
            }
    ck_assert_int_gt(unseen, 0);
    test_data_free(t);
    test_data_free(clean);
}

START_TEST(hidden_keys)
{
    const int payload = _i / TEST_WAYS % PAYLOADS, dtype = _i / TEST_WAYS / PAYLOADS;
    if (!test_way_context(way_of(_i), dtypes[dtype])) return;
    for (int n = 0; n < COUNT(hidden_cases); n++) {
        check_hidden(n, dtypes[dtype], way_of(_i), "k", payloads[dtype][payload]);
        check_hidden(n, dtypes[dtype], way_of(_i), "v", payloads[dtype][payload]);
        check_hidden(n, dtypes[dtype], way_of(_i), "kv", payloads[dtype][payload]);
    }
}
END_TEST

/* ---- NaN that is seen: exactly the rows, and for V the columns, that see it */

static const char *const seen_texts[] = {
    "b1 hq4 hkv2 q70 kv90 d64",
    "b1 hq4 hkv2 q70 kv90 d64 causal offset=3",
    "b1 hq4 hkv2 q70 kv90 d64 window=9,9",
};

/* Rows of head h whose O is NaN in this column. */
static int count_nan_rows(const test_data *t, int64_t h, int64_t column)
{
    int n = 0;
    for (int64_t i = 0; i < t->p.n_q; i++) n += isnan(test_get(t, 'o', 0, h, i, column));
    return n;
}

/* kv head 0 has a NaN in one element of V, kv head 1 one in K, query head 1 one in Q. Two query heads read each kv head,
 * so heads 0 and 1 show V's and Q's, heads 2 and 3 show K's. */
static void check_seen(const char *text, int dtype, int payload, const test_way *way)
{
    const clattn_problem p = parse(dtypes[dtype], text);
    test_data *t = test_data_make(&p, 3);
    test_set_bits(t, 'v', 0, 0, 20, 17, payloads[dtype][payload]);
    test_set_bits(t, 'k', 0, 1, 44, 63, payloads[dtype][payload]);
    test_set_bits(t, 'q', 0, 1, 33, 5, payloads[dtype][payload]);
    run_and_compare(t, way, "seen");
    int of_key = 0, of_value = 0;
    for (int64_t i = 0; i < p.n_q; i++) {
        of_key += sees(t, 0, i, 44);
        of_value += sees(t, 0, i, 20);
    }
    ck_assert_int_eq(count_nan_rows(t, 0, 17), of_value);
    ck_assert_int_eq(count_nan_rows(t, 0, 16), 0);
    ck_assert_int_eq(count_nan_rows(t, 1, 16), 1);
    ck_assert_int_eq(count_nan_rows(t, 2, 0), of_key);
    ck_assert_int_eq(count_nan_rows(t, 3, 63), of_key);
    test_data_free(t);
}

START_TEST(seen_nan)
{
    const int payload = _i / TEST_WAYS % 3, dtype = _i / TEST_WAYS / 3;
    if (!test_way_context(way_of(_i), dtypes[dtype])) return;
    for (int n = 0; n < COUNT(seen_texts); n++) check_seen(seen_texts[n], dtype, payload, way_of(_i));
}
END_TEST

/* Column 0 of Q is 1, so that of K is a summand of every score: -inf hides keys 0..39, the whole first block, and all
 * keys of the second head; +inf ends in NaN. */
static const char *const infinity_texts[] = {
    "b1 hq2 hkv2 q70 kv90 d64",
    "b1 hq2 hkv2 q70 kv90 d64 causal",
    "b1 hq2 hkv2 q70 kv90 d64 window=8,8",
};

START_TEST(infinite_scores)
{
    const clattn_problem p = parse(dtypes[_i / TEST_WAYS % DTYPES], infinity_texts[_i / TEST_WAYS / DTYPES]);
    if (!test_way_context(way_of(_i), p.dtype)) return;
    test_data *t = test_data_make(&p, 4);
    for (int64_t i = 0; i < p.n_q; i++)
        for (int64_t h = 0; h < 2; h++) test_set(t, 'q', 0, h, i, 0, 1);
    for (int64_t j = 0; j < p.n_kv; j++) {
        if (j < 40) test_set(t, 'k', 0, 0, j, 0, -INFINITY);
        test_set(t, 'k', 0, 1, j, 0, -INFINITY);
    }
    run_and_compare(t, way_of(_i), "-infinity");
    for (int64_t i = 0; i < p.n_q; i++) ck_assert(test_get_lse(t, 0, 1, i) == -INFINITY);
    test_set(t, 'k', 0, 0, 60, 0, INFINITY);
    run_and_compare(t, way_of(_i), "+infinity");
    ck_assert(isnan(test_get(t, 'o', 0, 0, 66, 3)));
    for (int64_t d = 0; d < 64; d++)
        test_set(t, 'q', 0, 0, 68, d, d == 0 ? -1 : 0); /* hers are the keys that were hidden */
    run_and_compare(t, way_of(_i), "-1 times -infinity");
    test_data_free(t);
}
END_TEST

/* ---- extremes */

/* Scores of standard deviation 30: one key takes nearly all. */
START_TEST(large_logits)
{
    const clattn_problem p = parse(dtypes[_i / TEST_WAYS], "b1 hq2 hkv2 q70 kv90 d64 causal offset=20");
    if (!test_way_context(way_of(_i), p.dtype)) return;
    test_data *t = test_data_make(&p, 5);
    for (int64_t h = 0; h < 2; h++)
        for (int64_t i = 0; i < p.n_q; i++)
            for (int64_t d = 0; d < 64; d++) test_set(t, 'q', 0, h, i, d, 30 * test_get(t, 'q', 0, h, i, d));
    run_and_compare(t, way_of(_i), "large logits");
    test_data_free(t);
}
END_TEST

/* One key far from the others, first before and then after the blocks that it outweighs; one large value. */
START_TEST(one_outlier)
{
    const clattn_problem p = parse(dtypes[_i / TEST_WAYS], "b1 hq2 hkv2 q70 kv90 d64");
    if (!test_way_context(way_of(_i), p.dtype)) return;
    test_data *t = test_data_make(&p, 6);
    for (int64_t d = 0; d < 64; d++) {
        test_set(t, 'k', 0, 0, 2, d, 50 * test_get(t, 'k', 0, 0, 2, d));
        test_set(t, 'k', 0, 1, 88, d, 50 * test_get(t, 'k', 0, 1, 88, d));
    }
    run_and_compare(t, way_of(_i), "outlier key");
    test_set(t, 'v', 0, 0, 2, 9, 60000);
    run_and_compare(t, way_of(_i), "outlier value");
    test_data_free(t);
}
END_TEST

/* V of `factor` times N(0,1), where f16 and bf16 are subnormal, and where the sums of f32 are. */
static void check_small(const test_way *way, clattn_dtype dtype, double factor, double resolution)
{
    const clattn_problem p = parse(dtype, "b1 hq2 hkv2 q70 kv90 d64 causal offset=20");
    test_data *t = test_data_make(&p, 7);
    for (int64_t h = 0; h < 2; h++)
        for (int64_t j = 0; j < p.n_kv; j++)
            for (int64_t d = 0; d < 64; d++) test_set(t, 'v', 0, h, j, d, factor * test_get(t, 'v', 0, h, j, d));
    run_and_compare(t, way, "small values");
    /* The comparison allows the errors of values near 1; these are held to some steps of the type's least number. */
    for (int64_t h = 0; h < 2; h++)
        for (int64_t i = 0; i < p.n_q; i++)
            for (int64_t d = 0; d < 64; d++) {
                const double got = test_get(t, 'o', 0, h, i, d), ref = t->ref_o[(h * p.n_q + i) * 64 + d];
                ck_assert_msg(fabs(got - ref) <= resolution, "%s: %g is not %g", t->text, got, ref);
            }
    test_data_free(t);
}

START_TEST(small_values)
{
    const int dtype = _i / TEST_WAYS;
    if (!test_way_context(way_of(_i), dtypes[dtype])) return;
    switch (dtypes[dtype]) {
    case CLATTN_DTYPE_F32: check_small(way_of(_i), dtypes[dtype], 1e-36, 5e-42); break; /* 1e-36 times 5e-6 */
    case CLATTN_DTYPE_F16: check_small(way_of(_i), dtypes[dtype], 1e-6, 0x1p-25 + 1e-11); break;
    case CLATTN_DTYPE_BF16: check_small(way_of(_i), dtypes[dtype], 1e-36, 0x1p-8 * 5e-36); break;
    case CLATTN_DTYPE_F64: check_small(way_of(_i), dtypes[dtype], 1e-300, 1e-313); break;
    }
}
END_TEST

/* ---- real data, scores -70 .. 79 */

enum { MINILM_HEADS = 12, MINILM_ROWS = 512, MINILM_DIM = 32, MINILM_COUNT = MINILM_HEADS * MINILM_ROWS * MINILM_DIM };

/* The numbers of an f32 .npy file, which are its last bytes. */
static float *minilm_read(const char *name)
{
    char path[1024];
    const char *slash = strrchr(__FILE__, '/');
    snprintf(path, sizeof path, "%.*sdata/minilm/l0_%s.npy", slash ? (int)(slash - __FILE__ + 1) : 0, __FILE__, name);
    FILE *file = fopen(path, "rb");
    ck_assert_msg(file, "%s is missing", path);
    float *x = malloc(MINILM_COUNT * sizeof *x);
    ck_assert_ptr_nonnull(x);
    ck_assert_int_eq(fseek(file, -(long)(MINILM_COUNT * sizeof *x), SEEK_END), 0);
    ck_assert_uint_eq(fread(x, sizeof *x, MINILM_COUNT, file), MINILM_COUNT);
    fclose(file);
    return x;
}

/* From [heads, rows, dim], rounded to the problem's type. */
static void minilm_fill(test_data *t, char which, const char *name)
{
    float *x = minilm_read(name);
    for (int i = 0; i < MINILM_COUNT; i++)
        test_set(t, which, 0, i / MINILM_DIM / MINILM_ROWS, i / MINILM_DIM % MINILM_ROWS, i % MINILM_DIM, x[i]);
    free(x);
}

START_TEST(real_data)
{
    const clattn_problem p = parse(dtypes[_i / TEST_WAYS], "b1 hq12 hkv12 q512 kv512 d32");
    if (!test_way_context(way_of(_i), p.dtype)) return;
    test_data *t = test_data_make(&p, 8);
    minilm_fill(t, 'q', "q");
    minilm_fill(t, 'k', "k");
    minilm_fill(t, 'v', "v");
    test_reference(t);
    test_run(t, way_of(_i), 0, 0);
    test_compare(t, "minilm");
    if (p.dtype == CLATTN_DTYPE_F32 || p.dtype == CLATTN_DTYPE_F64) {
        /* Someone else's float64. It differs by as much as Q and K rounded to f32 move scores of 79 do: some 79 u = 5e-6 in
         * the exponent at most, a tenth of it in the mean of such rows. */
        float *o = minilm_read("o");
        for (int i = 0; i < MINILM_COUNT; i++) ck_assert_double_eq_tol(t->ref_o[i], o[i], 1e-6);
        free(o);
    }
    test_data_free(t);
}
END_TEST

/* ---- rounding */

enum { SMALLEST_NORMAL = 0x80 }; /* bf16's bits */

/* V runs through all 65536 numbers; with one key O is V, and 0 for the subnormals of bf16 products. The sign of 0 is
 * free. */
START_TEST(one_key_is_exact)
{
    const clattn_problem p = parse(dtypes[1 + _i / TEST_WAYS], "b32 hq32 hkv32 q1 kv1 d64");
    if (!test_way_context(way_of(_i), p.dtype)) return;
    test_data *t = test_data_make(&p, 9);
    for (int64_t n = 0; n < 65536; n++) test_set_bits(t, 'v', n / 2048, n / 64 % 32, 0, n % 64, (uint64_t)n);
    test_run(t, way_of(_i), BLOCK, BLOCK);
    for (int64_t n = 0; n < 65536; n++) {
        const double v = test_get(t, 'v', n / 2048, n / 64 % 32, 0, n % 64);
        const double o = test_get(t, 'o', n / 2048, n / 64 % 32, 0, n % 64);
        const bool vanishes = t->products == CLATTN_DTYPE_BF16 && n % 0x8000 < SMALLEST_NORMAL;
        const double expected = vanishes ? 0 : v;
        ck_assert_msg(isnan(v) ? isnan(o) : o == expected, "%s: V of bits %x, %g, became %g", t->text, (unsigned)n, v,
                      o);
    }
    test_data_free(t);
}
END_TEST

/* Four keys of equal weight, `upper` of them holding the next number after the others': the mean lies that many
 * quarters of a step up, exactly in f32, so O is it rounded once, ties to even. */
START_TEST(ties_go_to_even)
{
    const int upper = _i / TEST_WAYS % 3 + 1;
    const clattn_problem p = parse(dtypes[1 + _i / TEST_WAYS / 3], "b16 hq32 hkv32 q1 kv4 d64 scale=0");
    if (!test_way_context(way_of(_i), p.dtype)) return;
    const int64_t largest = p.dtype == CLATTN_DTYPE_F16 ? 0x7bff : 0x7e00; /* four must add up in f32 */
    test_data *t = test_data_make(&p, 10);
    for (int64_t n = 0; n < 32768; n++)
        for (int64_t j = 0; j < 4; j++)
            test_set_bits(t, 'v', n / 2048, n / 64 % 32, j, n % 64, (uint64_t)(n < largest ? n + (j < upper) : 0));
    test_run(t, way_of(_i), BLOCK, BLOCK);
    for (int64_t n = t->products == CLATTN_DTYPE_BF16 ? SMALLEST_NORMAL : 0; n < largest; n++) {
        const uint64_t expected = (uint64_t)n + (upper == 3 || (upper == 2 && n % 2));
        const uint64_t got = test_get_bits(t, 'o', n / 2048, n / 64 % 32, 0, n % 64);
        ck_assert_msg(got == expected, "%s: %d quarters above %x became %x", t->text, upper, (unsigned)n,
                      (unsigned)got);
    }
    test_data_free(t);
}
END_TEST

/* The largest finite number of a type stays finite among its like and becomes infinite beside an infinity. */
START_TEST(largest_numbers)
{
    const clattn_problem p = parse(CLATTN_DTYPE_F16, "b1 hq2 hkv2 q70 kv90 d64 causal");
    if (!test_way_context(way_of(_i), p.dtype)) return;
    test_data *t = test_data_make(&p, 11);
    for (int64_t j = 0; j < p.n_kv; j++) {
        test_set_row(t, 'v', 0, 0, j, 65504);
        test_set_row(t, 'v', 0, 1, j, -65504);
    }
    run_and_compare(t, way_of(_i), "65504");
    test_set_row(t, 'v', 0, 0, 45, INFINITY);
    run_and_compare(t, way_of(_i), "infinity");
    ck_assert(test_get(t, 'o', 0, 0, 44, 7) == 65504);
    ck_assert(test_get(t, 'o', 0, 0, 45, 7) == INFINITY);
    ck_assert(test_get(t, 'o', 0, 1, 45, 7) == -65504);
    test_data_free(t);
}
END_TEST

/* ---- accuracy */

/* Targets measured for an f32 kernel that sums each block from 0: they catch lost digits that tolerances let pass. */
START_TEST(accuracy)
{
    const clattn_problem p = parse(CLATTN_DTYPE_F32, "b1 hq4 hkv4 q1024 kv1024 d64 causal");
    double max, rms;
    if (!test_way_context(way_of(_i), p.dtype)) return;
    test_data *t = test_data_make(&p, 12);
    test_reference(t);
    test_run(t, way_of(_i), 0, 0);
    test_errors(t, &max, &rms);
    ck_assert_msg(max <= 9.6e-7 && rms <= 3.4e-8, "%s: max error %.3g, of 9.6e-7; RMS %.3g, of 3.4e-8", t->text, max,
                  rms);
    test_compare(t, "accuracy");
    test_data_free(t);
}
END_TEST

/* ---- what the bits do not depend on */

/* In other memory, in memory of another alignment, in the same memory, and from a plan made again. */
START_TEST(twice_the_same)
{
    const clattn_problem p = parse(dtypes[_i / TEST_WAYS], "b2 hq4 hkv2 q70 kv90 d64 causal offset=9");
    clattn_context *context = test_way_context(way_of(_i), p.dtype);
    if (!context) return;
    test_data *first = test_data_make(&p, 13), *t = test_data_make(&p, 13 + 4); /* another seed, the same alignment */
    test_data *moved = test_data_make(&p, 14);                                  /* by an element */
    clattn_plan *plan = test_plan(context, &p, way_of(_i), BLOCK, BLOCK, 0);
    test_data *const others[] = {t, moved};
    test_forward(first, plan);
    for (int k = 0; k < 2; k++) {
        for (const char *which = "qkv"; *which; which++)
            for (int64_t n = 0; n < 2 * (*which == 'q' ? 4 * 70 : 2 * 90) * 64; n++) {
                const int64_t heads = *which == 'q' ? 4 : 2, rows = *which == 'q' ? 70 : 90;
                const int64_t b = n / 64 / rows / heads, h = n / 64 / rows % heads, row = n / 64 % rows;
                test_set_bits(others[k], *which, b, h, row, n % 64, test_get_bits(first, *which, b, h, row, n % 64));
            }
        test_forward(others[k], plan);
        test_same_bits(first, others[k], "another run");
    }
    test_forward(first, plan);
    test_same_bits(first, t, "the same memory again");
    clattn_plan_release(plan);
    test_run(t, way_of(_i), BLOCK, BLOCK);
    test_same_bits(first, t, "another plan");
    test_data_free(first);
    test_data_free(t);
    test_data_free(moved);
}
END_TEST

/* Large enough that the work is shared: 30 M multiply-adds. */
START_TEST(threads_do_not_matter)
{
    static const int counts[] = {2, 3, 8};
    const clattn_problem p = parse(dtypes[_i], "b2 hq3 hkv3 q200 kv200 d64 causal");
    test_data *one = test_data_make(&p, 15), *t = test_data_make(&p, 15);
    clattn_plan *plan = test_plan(test_host_context(), &p, &test_ways[0], 0, 0, 1);
    test_forward(one, plan);
    clattn_plan_release(plan);
    for (int n = 0; n < COUNT(counts); n++) {
        clattn_context_options options;
        clattn_context *context;
        clattn_context_options_init(&options);
        options.device = CLATTN_DEVICE_NONE;
        options.n_threads = counts[n];
        test_ok(clattn_context_create(&options, &context));
        plan = test_plan(context, &p, &test_ways[0], 0, 0, counts[n]);
        test_forward(t, plan);
        test_same_bits(one, t, "threads");
        clattn_plan_release(plan);
        clattn_context_release(context);
    }
    test_data_free(one);
    test_data_free(t);
}
END_TEST

/* Batch entry b of `from` becomes the only one of `to`. */
static void copy_entry(test_data *to, const test_data *from, int64_t b)
{
    const clattn_problem *p = &to->p;
    for (const char *which = "qkv"; *which; which++) {
        const int64_t heads = *which == 'q' ? p->n_heads_q : p->n_heads_kv, rows = *which == 'q' ? p->n_q : p->n_kv;
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < rows; i++)
                for (int64_t d = 0; d < p->head_dim_qk; d++)
                    test_set_bits(to, *which, 0, h, i, d, test_get_bits(from, *which, b, h, i, d));
    }
}

/* Each entry alone has the bits that it has among others, of other lengths and one of them all NaN. */
START_TEST(batch_does_not_matter)
{
    static const int64_t lengths[] = {90, 33, 0, 64}, block_sizes[] = {BLOCK, 0};
    const int64_t block = block_sizes[_i / TEST_WAYS / 2];
    clattn_problem p = parse(dtypes[_i / TEST_WAYS % 2], "b4 hq4 hkv2 q70 kv90 d64 causal offset=20");
    if (!test_way_context(way_of(_i), p.dtype)) return;
    p.kv_length_per_batch = 1;
    test_data *all = test_data_make(&p, 16);
    memcpy(all->kv_lengths, lengths, sizeof lengths);
    test_set_row(all, 'k', 3, 0, 0, NAN);
    test_set_row(all, 'v', 3, 1, 1, INFINITY);
    test_run(all, way_of(_i), block, block);
    p.batch = 1;
    for (int64_t b = 0; b < 4; b++) {
        test_data *alone = test_data_make(&p, 16);
        alone->kv_lengths[0] = lengths[b];
        copy_entry(alone, all, b);
        test_run(alone, way_of(_i), block, block);
        for (int64_t h = 0; h < p.n_heads_q; h++)
            for (int64_t i = 0; i < p.n_q; i++) {
                const float x = test_get_lse(all, b, h, i), y = test_get_lse(alone, 0, h, i);
                ck_assert(!memcmp(&x, &y, sizeof x));
                for (int64_t d = 0; d < 64; d++)
                    ck_assert_uint_eq(test_get_bits(all, 'o', b, h, i, d), test_get_bits(alone, 'o', 0, h, i, d));
            }
        test_data_free(alone);
    }
    test_data_free(all);
}
END_TEST

/* Block sizes change the order of the sums and nothing else. */
START_TEST(blocks_change_little)
{
    static const int64_t sizes[][2] = {{16, 16}, {64, 64}, {128, 128}};
    const clattn_problem p = parse(CLATTN_DTYPE_F32, "b1 hq2 hkv2 q131 kv257 d16 window=70,9 offset=60");
    if (!test_way_context(way_of(_i), p.dtype)) return;
    test_data *t = test_data_make(&p, 17), *first = test_data_make(&p, 17);
    test_reference(t);
    for (int n = 0; n < COUNT(sizes); n++) {
        test_run(n ? t : first, way_of(_i), sizes[n][0], sizes[n][1]);
        if (!n) continue;
        test_compare(t, "blocks");
        for (int64_t h = 0; h < 2; h++)
            for (int64_t i = 0; i < p.n_q; i++)
                for (int64_t d = 0; d < 16; d++)
                    ck_assert_double_eq_tol(test_get(t, 'o', 0, h, i, d), test_get(first, 'o', 0, h, i, d), 2e-6);
    }
    test_data_free(t);
    test_data_free(first);
}
END_TEST

Suite *test_suite(void)
{
    Suite *suite = suite_create("numerics");
    TCase *hidden = test_case(suite, "seen and unseen");
    tcase_add_loop_test(hidden, empty_rows, 0, COUNT(empty_cases) * DTYPES * TEST_WAYS);
    tcase_add_loop_test(hidden, hidden_keys, 0, DTYPES * PAYLOADS * TEST_WAYS);
    tcase_add_loop_test(hidden, seen_nan, 0, DTYPES * 3 * TEST_WAYS);
    tcase_add_loop_test(hidden, infinite_scores, 0, COUNT(infinity_texts) * DTYPES * TEST_WAYS);
    TCase *extremes = test_case(suite, "extremes");
    tcase_add_loop_test(extremes, large_logits, 0, DTYPES * TEST_WAYS);
    tcase_add_loop_test(extremes, one_outlier, 0, DTYPES * TEST_WAYS);
    tcase_add_loop_test(extremes, small_values, 0, DTYPES * TEST_WAYS);
    tcase_add_loop_test(extremes, real_data, 0, DTYPES * TEST_WAYS);
    TCase *rounding = test_case(suite, "rounding");
    tcase_add_loop_test(rounding, one_key_is_exact, 0, 2 * TEST_WAYS);
    tcase_add_loop_test(rounding, ties_go_to_even, 0, 2 * 3 * TEST_WAYS);
    tcase_add_loop_test(rounding, largest_numbers, 0, TEST_WAYS);
    tcase_add_loop_test(rounding, accuracy, 0, TEST_WAYS);
    TCase *bits = test_case(suite, "bits");
    tcase_add_loop_test(bits, twice_the_same, 0, DTYPES * TEST_WAYS);
    tcase_add_loop_test(bits, threads_do_not_matter, 0, DTYPES);
    tcase_add_loop_test(bits, batch_does_not_matter, 0, 2 * 2 * TEST_WAYS);
    tcase_add_loop_test(bits, blocks_change_little, 0, TEST_WAYS);
    return suite;
}
