/* Sweeps: host, attn_fwd_lanes and attn_fwd against the reference. A check is one problem on one way, loop index
 * problem * TEST_WAYS + way. Blocks are 32 x 32 wherever the size is not the subject, so that few kernels get built. */
#include "harness.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))
enum { BLOCK = 32 };

static const test_way *way_of(int i) { return &test_ways[i % TEST_WAYS]; }

static clattn_problem parse(const char *text)
{
    clattn_problem p;
    test_ok(clattn_problem_from_text(text, &p));
    return p;
}

static void run_text(const char *text, const test_way *way, int64_t block_q, int64_t block_kv)
{
    const clattn_problem p = parse(text);
    test_problem_on(&p, way, block_q, block_kv);
}

/* ---- head dimensions and types */

static const int head_dims[] = {1, 7, 31, 46, 64, 80, 96, 128, 200, 224, 256, 257};
static const clattn_dtype dtypes[] = {CLATTN_DTYPE_F32, CLATTN_DTYPE_F16, CLATTN_DTYPE_BF16, CLATTN_DTYPE_F64};

/* 37 queries and 67 keys: two query tiles and three kv blocks, the last of each nearly empty. */
static void run_head_dim(clattn_dtype dtype, int head_dim, const test_way *way)
{
    clattn_problem p;
    clattn_problem_init(&p, dtype, 1, 2, 1, 37, 67, head_dim);
    p.mask.window_right = 40; /* some blocks are cut, some not */
    test_problem_on(&p, way, BLOCK, BLOCK);
}

START_TEST(head_dims_on_host)
{
    run_head_dim(dtypes[_i % COUNT(dtypes)], head_dims[_i / COUNT(dtypes)], &test_ways[0]);
}
END_TEST

START_TEST(head_dims_on_device) { run_head_dim(CLATTN_DTYPE_F32, head_dims[_i / 2], &test_ways[1 + _i % 2]); }
END_TEST

/* ---- instruction sets of the host, the widest first; one that the machine lacks runs the next */

static const char *const sets[] = {"amx_bf16", "avx512_bf16", "avx512", "avx2", "portable"};
static const struct {
    const char *text;
    int64_t block_q, block_kv;
} set_problems[] = {
    {"hq4 hkv2 q70 kv133 d31 dv33 window=40,5", 0, 0},
    {"b2 hq2 hkv2 q65 kv300 d64 causal offset=per-batch mask=b,1,q,kv", 0, 0},
    {"hq3 hkv1 q130 kv257 d80 dv46 softcap=3 alibi bias sinks kvlen=201", 0, 0},
    {"hq2 hkv2 q40 kv90 d16 dropout=0.3:seed=3", 0, 0},
    {"hq2 hkv1 d40 varlen=37,0,5:100,9,33", 0, 0},
    /* tiles of all their panels: bands that some panels share and some do not see, keys in chunks */
    {"hq2 hkv1 q300 kv333 d24 window=70,4 offset=30", 256, 64},
    {"hq1 q270 kv520 d40 window=400,3 offset=200 mask=b,1,q,kv", 200, 0},
    {"hq2 hkv1 q260 kv300 d33 causal offset=-100 bias", 193, 0},
    {"hq1 q280 kv1500 d16 causal offset=1220", 256, 0},
    {"hq2 hkv1 d24 varlen=300,0,193,257:310,5,200,64 causal", 256, 0},
};

START_TEST(instruction_sets)
{
    char text[128];
    const clattn_dtype dtype = dtypes[_i % COUNT(dtypes)];
    const char *set = sets[_i / COUNT(dtypes) % COUNT(sets)];
    const int nth = _i / COUNT(dtypes) / COUNT(sets);
    snprintf(text, sizeof text, "%s %s", clattn_dtype_name(dtype), set_problems[nth].text);
    test_data *t = test_data_from_text(text, (uint64_t)_i + 5);
    for (int64_t d = 0; !strstr(text, "varlen") && d < 16; d++) { /* seen by some rows of a tile only, or by none */
        test_set(t, 'v', 0, 0, 60, d, d % 2 ? (double)NAN : (double)INFINITY);
        test_set(t, 'v', 0, 0, t->p.n_kv - 1, d, d % 2 ? (double)-INFINITY : (double)NAN);
    }
    test_reference(t);
    setenv("CLATTN_CPU", set, 1);
    test_run(t, &test_ways[0], set_problems[nth].block_q, set_problems[nth].block_kv);
    unsetenv("CLATTN_CPU");
    if (!strstr(set, "_bf16") || dtype != CLATTN_DTYPE_BF16) ck_assert_int_ne(t->products, CLATTN_DTYPE_BF16);
    test_compare(t, set);
    test_data_free(t);
}
END_TEST

/* Each costs two kernels, so the other types take a spread: least, odd, common and past a power of two. */
static const struct {
    clattn_dtype dtype;
    int head_dim;
} typed_dims[] = {
    {CLATTN_DTYPE_F16, 1},  {CLATTN_DTYPE_F16, 64},  {CLATTN_DTYPE_F16, 80},   {CLATTN_DTYPE_F16, 257},
    {CLATTN_DTYPE_BF16, 7}, {CLATTN_DTYPE_BF16, 64}, {CLATTN_DTYPE_BF16, 200}, {CLATTN_DTYPE_F64, 31},
    {CLATTN_DTYPE_F64, 64}, {CLATTN_DTYPE_F64, 128},
};

START_TEST(types_on_device)
{
    run_head_dim(typed_dims[_i / 2].dtype, typed_dims[_i / 2].head_dim, &test_ways[1 + _i % 2]);
}
END_TEST

/* Narrower and wider than head_dim_qk, and where a slice of one holds all of the other. */
static const char *const value_dims[] = {
    "f32 b1 hq2 hkv2 q37 kv67 d64 dv32 causal", "f32 b1 hq2 hkv1 q37 kv67 d24 dv80",
    "f32 b1 hq1 hkv1 q37 kv67 d1 dv257",        "f32 b1 hq2 hkv2 q37 kv67 d96 dv5 window=7,9",
    "f16 b1 hq2 hkv2 q37 kv67 d40 dv72",
};

START_TEST(value_dim_differs) { run_text(value_dims[_i / TEST_WAYS], way_of(_i), BLOCK, BLOCK); }
END_TEST

/* ---- sequences around the block sizes */

/* BLOCK_Q, BLOCK_KV */
static const int64_t blocks[][2] = {{16, 16}, {16, 128}, {32, 64}, {64, 32}, {64, 64}, {128, 16}, {128, 128}};

enum { SIZES = 5 };

START_TEST(sizes_around_blocks)
{
    const int64_t *block = blocks[_i / TEST_WAYS / SIZES];
    const int64_t q = block[0], kv = block[1];
    const int64_t sizes[SIZES][2] = {
        {q - 1, kv + 1}, {q, kv}, {q + 1, 2 * kv - 1}, {2 * q + 1, 257}, {131, 2 * kv + 1}};
    const int64_t *size = sizes[_i / TEST_WAYS % SIZES];
    clattn_problem p;
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 1, 1, size[0], size[1], 16);
    if (size[1] > kv) p.mask.window_right = 3;
    p.query_offset = size[1] - size[0];
    test_problem_on(&p, way_of(_i), q, kv);
}
END_TEST

/* Each block size beyond the sequence, and one query or key. */
static const char *const tiny[] = {
    "f32 b1 hq1 hkv1 q1 kv1 d16", "f32 b3 hq2 hkv2 q1 kv257 d16", "f32 b1 hq1 hkv1 q131 kv1 d16 causal",
    "f32 b1 hq1 hkv1 q2 kv3 d16", "f16 b1 hq1 hkv1 q1 kv1 d64",
};

START_TEST(tiny_sequences) { run_text(tiny[_i / TEST_WAYS], way_of(_i), 128, 128); }
END_TEST

/* attn_fwd_lanes has its vectors of rows in panels, which a window cuts one by one. */
static const struct {
    const char *type;
    int rows;
} panels[] = {{"f64", 16},  {"f64", 32},  {"f64", 48},  {"f64", 64},  {"f64", 96},
              {"f64", 128}, {"f64", 192}, {"f64", 256}, {"f32", 96},  {"f32", 128},
              {"f32", 256}, {"f16", 96},  {"f16", 128}, {"f16", 192}, {"f16", 256}};

START_TEST(panels_of_rows)
{
    static const char *const between[] = {"window=70,4 offset=30", "causal mask=b,1,q,kv alibi dropout=0.3:seed=3",
                                          "kvlen=261"};
    char text[128];
    snprintf(text, sizeof text, "%s b1 hq2 hkv1 q259 kv300 d24 %s", panels[_i / 3].type, between[_i % 3]);
    run_text(text, &test_ways[1], panels[_i / 3].rows, 64);
}
END_TEST

/* The host takes any size up to its tile, and blocks of one key; test_plan checks that it says so. */
static const int64_t odd_blocks[][2] = {{1, 1}, {17, 17}, {100, 100}, {1, 100}, {7, 4096}, {48, 3}};

START_TEST(odd_blocks_on_host)
{
    run_text("f32 b1 hq2 hkv2 q70 kv141 d31 window=50,3 offset=30", &test_ways[0], odd_blocks[_i][0],
             odd_blocks[_i][1]);
}
END_TEST

/* One odd pair is enough for the rounding of the device's blocks. */
START_TEST(odd_blocks_on_device)
{
    run_text("f32 b1 hq2 hkv2 q70 kv141 d31 window=50,3 offset=30", &test_ways[1 + _i], 17, 19);
}
END_TEST

/* Every fill of the vectors of rows, bottom-right causal. */
START_TEST(queries_1_to_32)
{
    clattn_problem p;
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 2, 1, 1 + _i / TEST_WAYS, 67, 64);
    p.mask.window_right = 0;
    p.query_offset = p.n_kv - p.n_q;
    test_problem_on(&p, way_of(_i), BLOCK, BLOCK);
}
END_TEST

/* Automatic blocks. */
static const char *const long_sequences[] = {
    "f32 b1 hq1 hkv1 q1025 kv1025 d64 causal",          "f32 b1 hq1 hkv1 q1025 kv1025 d64",
    "f32 b1 hq1 hkv1 q640 kv640 d64 window=100,0", /* a first block that later rows do not see at all */
    "f32 b1 hq1 hkv1 q640 kv640 d64 window=0,100",      "f32 b1 hq1 hkv1 q14 kv640 d64 causal offset=-7",
    "f16 b1 hq1 hkv1 q3 kv4099 d64 causal offset=4096", "f16 hq16 hkv1 q512 kv140 d16",
};

START_TEST(automatic_blocks) { run_text(long_sequences[_i / TEST_WAYS], way_of(_i), 0, 0); }
END_TEST

/* ---- masks, offsets, lengths, scale, heads: all d = 64 */

/* Lengths that end a block early, windows narrower than a block, rows that see none, and offsets whose sums with a
 * window leave 64 bits. */
static const char *const masks[] = {
    "b1 hq1 hkv1 q70 kv90 d64 causal",
    "b1 hq1 hkv1 q90 kv70 d64 causal",
    "b1 hq1 hkv1 q70 kv90 d64 causal offset=20", /* n_kv - n_q */
    "b1 hq1 hkv1 q90 kv70 d64 causal offset=-20",
    "b1 hq1 hkv1 q70 kv90 d64 causal offset=7",
    "b1 hq1 hkv1 q70 kv90 d64 causal offset=-40",
    "b1 hq1 hkv1 q70 kv90 d64 causal offset=-69",
    "b1 hq1 hkv1 q70 kv90 d64 causal offset=-70",
    "b1 hq1 hkv1 q70 kv90 d64 causal offset=89",
    "b1 hq1 hkv1 q70 kv90 d64 causal offset=4611686018427387904",
    "b1 hq1 hkv1 q70 kv90 d64 causal offset=-4611686018427387904",
    "b1 hq1 hkv1 q70 kv90 d64 window=4611686018427387904,4611686018427387904 offset=4611686018427387904",
    "b1 hq1 hkv1 q70 kv90 d64 window=4611686018427387904,4611686018427387904 offset=-4611686018427387904",
    "b1 hq1 hkv1 q70 kv90 d64 window=9223372036854775807,-1 offset=9223372036854775807",
    "b1 hq1 hkv1 q70 kv90 d64 window=-1,9223372036854775807 offset=-9223372036854775808",
    "b1 hq1 hkv1 q70 kv90 d64 window=9223372036854775807,9223372036854775807 offset=-9223372036854775808",
    "b1 hq1 hkv1 q70 kv90 d64 window=9223372036854775807,9223372036854775807 offset=9223372036854775807",
    "b1 hq1 hkv1 q70 kv90 d64 window=0,0",
    "b1 hq1 hkv1 q70 kv90 d64 window=0,0 offset=40",
    "b1 hq1 hkv1 q70 kv90 d64 window=10,-1",
    "b1 hq1 hkv1 q70 kv90 d64 window=0,-1",
    "b1 hq1 hkv1 q70 kv90 d64 window=-1,10",
    "b1 hq1 hkv1 q70 kv90 d64 window=31,0",
    "b1 hq1 hkv1 q70 kv90 d64 window=32,31",
    "b1 hq1 hkv1 q70 kv90 d64 window=1,1 offset=-2",
    "b1 hq1 hkv1 q70 kv90 d64 window=5,6 offset=33",
    "b1 hq1 hkv1 q70 kv90 d64 window=5,6 offset=88",
    "b1 hq1 hkv1 q70 kv90 d64 window=200,200",
    "b1 hq1 hkv1 q200 kv333 d64 window=64,64 offset=70",
    "b1 hq1 hkv1 q70 kv90 d64 kvlen=0",
    "b1 hq1 hkv1 q70 kv90 d64 kvlen=1",
    "b1 hq1 hkv1 q70 kv90 d64 kvlen=32",
    "b1 hq1 hkv1 q70 kv90 d64 kvlen=33",
    "b1 hq1 hkv1 q70 kv90 d64 kvlen=89",
    "b1 hq1 hkv1 q70 kv90 d64 kvlen=50 causal offset=-5",
    "b1 hq1 hkv1 q70 kv90 d64 kvlen=50 window=20,-1",
    "b1 hq1 hkv1 q70 kv90 d64 kvlen=50 window=20,3 offset=10",
    "b2 hq2 hkv2 q70 kv0 d64",
    "b2 hq2 hkv2 q0 kv90 d64",
    "b2 hq2 hkv2 q0 kv0 d64",
    "b1 hq1 hkv1 q70 kv90 d64 scale=0",
    "b1 hq1 hkv1 q70 kv90 d64 scale=0 causal",
    "b1 hq1 hkv1 q70 kv90 d64 scale=-0.125",
    "b1 hq1 hkv1 q70 kv90 d64 scale=3.7 causal",
    "b1 hq1 hkv1 q70 kv90 d64 scale=-3.7",
    "b1 hq1 hkv1 q70 kv90 d64 scale=0.001",
    "b2 hq4 hkv4 q33 kv35 d64 causal",
    "b2 hq6 hkv2 q33 kv35 d64 causal offset=2",
    "b3 hq5 hkv1 q33 kv35 d64 window=9,9",
    "b1 hq8 hkv4 q33 kv35 d64",
};

static void run_typed(const char *dtype, const char *text, const test_way *way)
{
    char line[160];
    snprintf(line, sizeof line, "%s %s", dtype, text);
    run_text(line, way, BLOCK, BLOCK);
}

START_TEST(masks_f32) { run_typed("f32", masks[_i / TEST_WAYS], way_of(_i)); }
END_TEST

START_TEST(masks_f16) { run_typed("f16", masks[_i / TEST_WAYS], way_of(_i)); }
END_TEST

/* Every fourth, for bf16 and f64. */
START_TEST(masks_bf16) { run_typed("bf16", masks[_i / TEST_WAYS * 4], way_of(_i)); }
END_TEST

START_TEST(masks_f64) { run_typed("f64", masks[_i / TEST_WAYS * 4 + 1], way_of(_i)); }
END_TEST

/* What the arguments say for each batch entry; entries of one launch see very different keys. */
static const struct {
    const char *text;
    int64_t lengths[3], offsets[3];
    bool has_lengths, has_offsets;
} batches[] = {
    {"f32 b3 hq2 hkv1 q40 kv90 d64", {0, 33, 90}, {0}, true, false},
    {"f32 b3 hq2 hkv1 q40 kv90 d64 causal", {1, 64, 77}, {0}, true, false},
    {"f32 b3 hq2 hkv1 q40 kv90 d64 causal", {0}, {50, -20, 3}, false, true},
    {"f32 b3 hq2 hkv1 q40 kv90 d64 window=12,4", {0}, {(int64_t)1 << 62, -((int64_t)1 << 62), 33}, false, true},
    {"f32 b3 hq2 hkv1 q40 kv90 d64 causal", {60, 90, 41}, {20, 50, 1}, true, true},
    {"f16 b3 hq2 hkv1 q40 kv90 d64 window=30,0", {60, 0, 41}, {20, -9, 1}, true, true},
    {"f32 b3 hq2 hkv1 q40 kv90 d64 offset=17 kvlen=5 causal", {90, 88, 1}, {0, 1, 2}, true, true}, /* fields unused */
};

START_TEST(lengths_and_offsets_per_batch)
{
    const int n = _i / TEST_WAYS;
    clattn_problem p = parse(batches[n].text);
    if (!test_way_context(way_of(_i), p.dtype)) return;
    p.kv_length_per_batch = batches[n].has_lengths;
    p.query_offset_per_batch = batches[n].has_offsets;
    test_data *t = test_data_make(&p, (uint64_t)n);
    if (t->kv_lengths) memcpy(t->kv_lengths, batches[n].lengths, sizeof batches[n].lengths);
    if (t->query_offsets) memcpy(t->query_offsets, batches[n].offsets, sizeof batches[n].offsets);
    test_reference(t);
    test_run(t, way_of(_i), BLOCK, BLOCK);
    test_compare(t, "per batch");
    test_data_free(t);
}
END_TEST

/* ---- layouts */

typedef enum layout {
    LAYOUT_BHSD,           /* said by strides, not by their absence */
    LAYOUT_BSHD,           /* [batch, seq, heads, dim] */
    LAYOUT_GAPS,           /* rows, heads and batch entries with room between them */
    LAYOUT_BSHD_GAPS,      /* the same, in that order */
    LAYOUT_SBHD,           /* [seq, batch, heads, dim] */
    LAYOUT_ONE_KV_HEAD,    /* K and V: head stride 0 */
    LAYOUT_ONE_KV_BATCH,   /* K and V: batch stride 0 */
    LAYOUT_ONE_KEY,        /* K: seq stride 0 */
    LAYOUT_ONE_QUERY,      /* Q: seq stride 0 */
    LAYOUT_LSE_TRANSPOSED, /* LSE [batch, seq, heads] with a gap */
    LAYOUT_PACKED,         /* Q, K, V in one tensor */
    LAYOUT_COUNT
} layout;

/* K and V are the inputs whose heads or batch entries may share memory. */
static clattn_strides strides_for(layout l, const clattn_problem *p, int64_t heads, int64_t seq, int64_t dim,
                                  bool input)
{
    clattn_strides s = clattn_strides_bhsd(heads, seq, dim);
    switch (l) {
    case LAYOUT_BSHD: return clattn_strides_bshd(heads, seq, dim);
    case LAYOUT_GAPS:
        s.seq = dim + 3;
        s.head = s.seq * seq + 7;
        s.batch = s.head * heads + 13;
        break;
    case LAYOUT_BSHD_GAPS:
        s.head = dim + 1;
        s.seq = s.head * heads + 2;
        s.batch = s.seq * seq + 64;
        break;
    case LAYOUT_SBHD:
        s.head = dim;
        s.batch = dim * heads;
        s.seq = s.batch * p->batch;
        break;
    case LAYOUT_ONE_KV_HEAD:
        if (input) s.head = 0;
        break;
    case LAYOUT_ONE_KV_BATCH:
        if (input) s.batch = 0;
        break;
    default: break;
    }
    return s;
}

static void set_layout(clattn_problem *p, layout l)
{
    p->q = strides_for(l, p, p->n_heads_q, p->n_q, p->head_dim_qk, false);
    p->k = strides_for(l, p, p->n_heads_kv, p->n_kv, p->head_dim_qk, true);
    p->v = strides_for(l, p, p->n_heads_kv, p->n_kv, p->head_dim_v, true);
    p->o = strides_for(l, p, p->n_heads_q, p->n_q, p->head_dim_v, false);
    p->lse = strides_for(l == LAYOUT_BSHD ? LAYOUT_BHSD : l, p, p->n_heads_q, p->n_q, 1, false);
    if (l == LAYOUT_ONE_KEY) p->k.seq = 0;
    if (l == LAYOUT_ONE_QUERY) p->q.seq = 0;
    if (l == LAYOUT_LSE_TRANSPOSED) p->lse = (clattn_strides){(p->n_heads_q + 1) * p->n_q, 1, p->n_heads_q + 1};
}

/* The packed tensor needs n_kv = n_q and writes O as [batch, seq, heads, dim], as such callers do. */
static test_data *layout_data(const char *text, layout l, uint64_t seed)
{
    clattn_problem p = parse(text);
    if (l == LAYOUT_PACKED) {
        p.n_kv = p.n_q;
        p.o = clattn_strides_bshd(p.n_heads_q, p.n_q, p.head_dim_v);
        return test_data_make_packed(&p, seed);
    }
    set_layout(&p, l);
    return test_data_make(&p, seed);
}

static const char *const layout_texts[] = {
    "f32 b2 hq4 hkv2 q37 kv67 d64 causal offset=9",
    "f16 b2 hq4 hkv2 q37 kv67 d64 window=20,5",
    "f32 b2 hq4 hkv2 q37 kv67 d31 window=40,40",
    "f64 b2 hq4 hkv2 q37 kv67 d31 causal",
};

START_TEST(layouts)
{
    const int n = _i / TEST_WAYS;
    const char *text = layout_texts[n / LAYOUT_COUNT];
    if (!test_way_context(way_of(_i), parse(text).dtype)) return;
    test_data *t = layout_data(text, (layout)(n % LAYOUT_COUNT), (uint64_t)n);
    test_reference(t);
    test_run(t, way_of(_i), BLOCK, BLOCK);
    test_compare(t, "layout");
    test_data_free(t);
}
END_TEST

/* A device that does not share the host's memory is given copies. */
START_TEST(layouts_copied)
{
    const test_way *way = &test_ways[1 + _i % 2];
    const int n = _i / 2;
    if (!test_way_context(way, CLATTN_DTYPE_F32)) return;
    clattn_context_options options;
    clattn_context *context;
    test_context_options(&options);
    options.copy_transfers = 1;
    test_ok(clattn_context_create(&options, &context));
    test_data *t = layout_data(layout_texts[n / LAYOUT_COUNT], (layout)(n % LAYOUT_COUNT), (uint64_t)n);
    clattn_plan *plan = test_plan(context, &t->p, way, BLOCK, BLOCK, 0);
    clattn_plan_info info;
    clattn_plan_info_init(&info);
    test_ok(clattn_plan_get_info(plan, &info));
    ck_assert_int_eq(info.zero_copy, 0);
    test_reference(t);
    test_forward(t, plan);
    test_compare(t, "copied");
    clattn_plan_release(plan);
    test_data_free(t);
    clattn_context_release(context);
}
END_TEST

/* The same with nothing to copy, and with per-batch numbers. */
START_TEST(copied_corners)
{
    static const char *const texts[] = {"f32 b2 hq2 hkv2 q37 kv0 d64", "f32 b2 hq2 hkv2 q0 kv67 d64",
                                        "f32 b3 hq2 hkv2 q37 kv67 d64 causal"};
    const test_way *way = &test_ways[1 + _i % 2];
    clattn_problem p = parse(texts[_i / 2]);
    if (!test_way_context(way, p.dtype)) return;
    clattn_context_options options;
    clattn_context *context;
    test_context_options(&options);
    options.copy_transfers = 1;
    test_ok(clattn_context_create(&options, &context));
    p.kv_length_per_batch = p.query_offset_per_batch = p.batch == 3;
    test_data *t = test_data_make(&p, 5);
    for (int64_t b = 0; t->kv_lengths && b < p.batch; b++) {
        t->kv_lengths[b] = 67 - 30 * b;
        t->query_offsets[b] = 20 * b - 10;
    }
    clattn_plan *plan = test_plan(context, &p, way, BLOCK, BLOCK, 0);
    test_reference(t);
    test_forward(t, plan);
    test_compare(t, "copied");
    clattn_plan_release(plan);
    test_data_free(t);
    clattn_context_release(context);
}
END_TEST

/* ---- drawn problems: everything at once */

/* 0 .. n - 1, from the upper bits of a linear congruence: quite another generator than the data's. */
static int64_t draw(uint64_t *state, int64_t n)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)(*state >> 33) % n;
}

enum { DRAWN = 80 };

START_TEST(drawn_problems)
{
    const test_way *way = way_of(_i);
    uint64_t state = (uint64_t)(_i / TEST_WAYS) * 7919 + 17;
    for (int i = 0; i < 8; i++) draw(&state, 2);
    const int64_t group = 1 + draw(&state, 3), heads = 1 + draw(&state, 3);
    clattn_problem p;
    clattn_problem_init(&p, dtypes[draw(&state, 3)], 1 + draw(&state, 3), group * heads, heads, 33 + draw(&state, 60),
                        33 + draw(&state, 120), 64);
    if (draw(&state, 2)) p.mask.window_right = draw(&state, 40);
    if (draw(&state, 2)) p.mask.window_left = draw(&state, 40);
    if (draw(&state, 2)) p.query_offset = draw(&state, 2 * p.n_kv) - p.n_kv;
    if (draw(&state, 2)) p.kv_length = draw(&state, p.n_kv + 1);
    if (draw(&state, 3) == 0) p.scale = (double)draw(&state, 9) / 8 - 0.5;
    p.kv_length_per_batch = draw(&state, 3) == 0;
    p.query_offset_per_batch = draw(&state, 3) == 0;
    set_layout(&p, (layout)draw(&state, LAYOUT_PACKED));
    /* The host takes any size without a build. */
    int64_t block_q = BLOCK, block_kv = BLOCK;
    if (way->path == CLATTN_PATH_HOST) {
        block_q = draw(&state, 70);
        block_kv = draw(&state, 70);
    }
    if (!test_way_context(way, p.dtype)) return;
    test_data *t = test_data_make(&p, (uint64_t)_i);
    for (int64_t b = 0; b < p.batch; b++) {
        if (t->kv_lengths) t->kv_lengths[b] = draw(&state, p.n_kv + 1);
        if (t->query_offsets) t->query_offsets[b] = draw(&state, 2 * p.n_kv) - p.n_kv;
    }
    test_reference(t);
    test_run(t, way, block_q, block_kv);
    test_compare(t, "drawn");
    test_data_free(t);
}
END_TEST

/* ---- the reference itself, against its definition written once more, from the elements that the harness finds */

__extension__ typedef __int128 wide;

/* p - window_left <= j <= p + window_right and j < kv_length. */
static bool definition_sees(const test_data *t, int64_t b, int64_t i, int64_t j)
{
    const clattn_problem *p = &t->p;
    const wide at = (wide)(t->query_offsets ? t->query_offsets[b] : p->query_offset) + i;
    const int64_t length = t->kv_lengths ? t->kv_lengths[b] : p->kv_length < 0 ? p->n_kv : p->kv_length;
    const bool left = p->mask.window_left < 0 || j >= at - p->mask.window_left;
    return left && (p->mask.window_right < 0 || j <= at + p->mask.window_right) && j < length;
}

/* exp(s) unshifted: for scores of N(0,1) data. O in o [head_dim_v]; LSE returned. */
static double definition_row(const test_data *t, int64_t b, int64_t h, int64_t i, double *o)
{
    const clattn_problem *p = &t->p;
    const int64_t kv_head = h * p->n_heads_kv / p->n_heads_q;
    double l = 0;
    for (int64_t d = 0; d < p->head_dim_v; d++) o[d] = 0;
    for (int64_t j = 0; j < p->n_kv; j++) {
        if (!definition_sees(t, b, i, j)) continue;
        double s = 0;
        for (int64_t d = 0; d < p->head_dim_qk; d++)
            s += test_get(t, 'q', b, h, i, d) * test_get(t, 'k', b, kv_head, j, d);
        const double weight = exp(p->scale == CLATTN_SCALE_AUTO ? s / sqrt((double)p->head_dim_qk) : s * p->scale);
        l += weight;
        for (int64_t d = 0; d < p->head_dim_v; d++) o[d] += weight * test_get(t, 'v', b, kv_head, j, d);
    }
    for (int64_t d = 0; d < p->head_dim_v && l > 0; d++) o[d] /= l;
    return log(l);
}

/* Two doubles summed in different order: 1e-12 is thousands of their roundings. */
static void check_reference(const test_data *t)
{
    const clattn_problem *p = &t->p;
    double o[257];
    ck_assert_int_le(p->head_dim_v, 257);
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t h = 0; h < p->n_heads_q; h++)
            for (int64_t i = 0; i < p->n_q; i++) {
                const int64_t row = (b * p->n_heads_q + h) * p->n_q + i;
                const double lse = definition_row(t, b, h, i, o), got = t->ref_lse[row];
                ck_assert_msg(got == lse || fabs(got - lse) < 1e-12, "%s: LSE of row %d is %g, not %g", t->text,
                              (int)row, got, lse);
                for (int64_t d = 0; d < p->head_dim_v; d++)
                    ck_assert_double_eq_tol(t->ref_o[row * p->head_dim_v + d], o[d], 1e-12);
            }
}

START_TEST(reference_masks)
{
    char line[160];
    snprintf(line, sizeof line, "%s %s", clattn_dtype_name(dtypes[_i % COUNT(dtypes)]), masks[_i]);
    const clattn_problem p = parse(line);
    test_data *t = test_data_make(&p, (uint64_t)_i);
    test_reference(t);
    check_reference(t);
    test_data_free(t);
}
END_TEST

/* The automatic scale is of head_dim_qk; every way shares it with the reference, so only this can tell. */
START_TEST(reference_value_dims)
{
    const clattn_problem p = parse(value_dims[_i]);
    test_data *t = test_data_make(&p, (uint64_t)_i);
    test_reference(t);
    check_reference(t);
    test_data_free(t);
}
END_TEST

START_TEST(reference_layouts)
{
    test_data *t = layout_data(layout_texts[_i / LAYOUT_COUNT], (layout)(_i % LAYOUT_COUNT), (uint64_t)_i);
    test_reference(t);
    check_reference(t);
    test_data_free(t);
}
END_TEST

START_TEST(reference_batches)
{
    clattn_problem p = parse(batches[_i].text);
    p.kv_length_per_batch = batches[_i].has_lengths;
    p.query_offset_per_batch = batches[_i].has_offsets;
    test_data *t = test_data_make(&p, (uint64_t)_i);
    if (t->kv_lengths) memcpy(t->kv_lengths, batches[_i].lengths, sizeof batches[_i].lengths);
    if (t->query_offsets) memcpy(t->query_offsets, batches[_i].offsets, sizeof batches[_i].offsets);
    test_reference(t);
    check_reference(t);
    test_data_free(t);
}
END_TEST

Suite *test_suite(void)
{
    Suite *suite = suite_create("parity");
    TCase *dims = test_case(suite, "head dimensions");
    tcase_add_loop_test(dims, head_dims_on_host, 0, COUNT(head_dims) * COUNT(dtypes));
    tcase_add_loop_test(dims, instruction_sets, 0, COUNT(set_problems) * COUNT(sets) * COUNT(dtypes));
    tcase_add_loop_test(dims, head_dims_on_device, 0, COUNT(head_dims) * 2);
    tcase_add_loop_test(dims, types_on_device, 0, COUNT(typed_dims) * 2);
    tcase_add_loop_test(dims, value_dim_differs, 0, COUNT(value_dims) * TEST_WAYS);
    TCase *sizes = test_case(suite, "sizes");
    tcase_add_loop_test(sizes, sizes_around_blocks, 0, COUNT(blocks) * SIZES * TEST_WAYS);
    tcase_add_loop_test(sizes, tiny_sequences, 0, COUNT(tiny) * TEST_WAYS);
    tcase_add_loop_test(sizes, odd_blocks_on_host, 0, COUNT(odd_blocks));
    tcase_add_loop_test(sizes, panels_of_rows, 0, COUNT(panels) * 3);
    tcase_add_loop_test(sizes, odd_blocks_on_device, 0, 2);
    tcase_add_loop_test(sizes, queries_1_to_32, 0, 32 * TEST_WAYS);
    tcase_add_loop_test(sizes, automatic_blocks, 0, COUNT(long_sequences) * TEST_WAYS);
    TCase *visible = test_case(suite, "masks");
    tcase_add_loop_test(visible, masks_f32, 0, COUNT(masks) * TEST_WAYS);
    tcase_add_loop_test(visible, masks_f16, 0, COUNT(masks) * TEST_WAYS);
    tcase_add_loop_test(visible, masks_bf16, 0, COUNT(masks) / 4 * TEST_WAYS);
    tcase_add_loop_test(visible, masks_f64, 0, COUNT(masks) / 4 * TEST_WAYS);
    tcase_add_loop_test(visible, lengths_and_offsets_per_batch, 0, COUNT(batches) * TEST_WAYS);
    TCase *strides = test_case(suite, "layouts");
    tcase_add_loop_test(strides, layouts, 0, COUNT(layout_texts) * LAYOUT_COUNT * TEST_WAYS);
    tcase_add_loop_test(strides, layouts_copied, 0, 2 * LAYOUT_COUNT * 2);
    tcase_add_loop_test(strides, copied_corners, 0, 3 * 2);
    tcase_add_loop_test(strides, drawn_problems, 0, DRAWN * TEST_WAYS);
    TCase *reference = test_case(suite, "reference");
    tcase_add_loop_test(reference, reference_masks, 0, COUNT(masks));
    tcase_add_loop_test(reference, reference_value_dims, 0, COUNT(value_dims));
    tcase_add_loop_test(reference, reference_layouts, 0, COUNT(layout_texts) * LAYOUT_COUNT);
    tcase_add_loop_test(reference, reference_batches, 0, COUNT(batches));
    return suite;
}
