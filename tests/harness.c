#include "harness.h"

#include <ctype.h>
#include <inttypes.h>
#include <pthread.h>

enum {
    GUARD = 512,      /* bytes */
    POISON = 0xff,    /* all ones are a NaN of every storage type */
    ROOMY = 256 << 10 /* bytes of local memory that hold every forced tile */
};

TCase *test_case(Suite *suite, const char *name)
{
    TCase *c = tcase_create(name);
    suite_add_tcase(suite, c);
    return c;
}

void test_skip(const char *test, const char *why)
{
    printf("SKIPPED: %s: %s\n", test, why);
    fflush(stdout);
}

void test_ok_at(clattn_status status, const char *call, const char *file, int line)
{
    if (status == CLATTN_STATUS_SUCCESS) return;
    ck_abort_msg("%s:%d: %s: %s: %s", file, line, call, clattn_status_name(status), clattn_last_error()->message);
}

/* ---- contexts and ways */

void test_context_options(clattn_context_options *options)
{
    clattn_context_options_init(options);
    options->device_name = getenv("CLATTN_TEST_DEVICE");
    options->device = options->device_name ? CLATTN_DEVICE_NAME : CLATTN_DEVICE_INDEX;
}

clattn_context *test_context_by(const char *engine)
{
    clattn_context_options options;
    clattn_context *context;
    test_context_options(&options);
    setenv("CLATTN_MMA", engine, 1);
    test_ok(clattn_context_create(&options, &context));
    unsetenv("CLATTN_MMA");
    return context;
}

clattn_context *test_context(void)
{
    static clattn_context *context;
    static bool tried;
    if (tried) return context;
    tried = true;
    clattn_context_options options;
    test_context_options(&options);
    const clattn_status status = clattn_context_create(&options, &context);
    if (status == CLATTN_STATUS_NO_DEVICE && !options.device_name) return NULL;
    test_ok(status);
    return context;
}

clattn_context *test_host_context(void)
{
    static clattn_context *context;
    if (context) return context;
    clattn_context_options options;
    clattn_context_options_init(&options);
    options.device = CLATTN_DEVICE_NONE;
    test_ok(clattn_context_create(&options, &context));
    return context;
}

const test_way test_ways[TEST_WAYS] = {
    {"host", CLATTN_PATH_HOST, CLATTN_KERNEL_HOST_TILE},
    {"attn_fwd_lanes", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_FWD_LANES},
    {"attn_fwd", CLATTN_PATH_DEVICE, CLATTN_KERNEL_ATTN_FWD},
};

/* In any case, as clattn_context_create looks for it. */
static bool contains(const char *text, const char *part)
{
    for (; *text; text++) {
        size_t n = 0;
        while (part[n] && tolower((unsigned char)part[n]) == tolower((unsigned char)text[n])) n++;
        if (!part[n]) return true;
    }
    return false;
}

bool test_device_info(clattn_device_info *info)
{
    const char *name = getenv("CLATTN_TEST_DEVICE");
    for (int i = 0;; i++) {
        clattn_device_info_init(info);
        if (clattn_device_get_info(i, info) != CLATTN_STATUS_SUCCESS) return false;
        if (!name || contains(info->name, name) || contains(info->platform, name) || contains(info->version, name))
            return true;
    }
}

static bool is_for_cpu_devices(clattn_kernel kernel)
{
    return kernel == CLATTN_KERNEL_ATTN_FWD_LANES || kernel == CLATTN_KERNEL_ATTN_DECODE_LANES ||
           kernel == CLATTN_KERNEL_ATTN_BWD_LANES;
}

clattn_context *test_way_context(const test_way *way, clattn_dtype dtype)
{
    if (way->path == CLATTN_PATH_HOST) return test_host_context();
    clattn_context *context = test_context();
    clattn_device_info info;
    if (!context || !test_device_info(&info)) {
        test_skip(way->name, "no OpenCL device");
        return NULL;
    }
    if (!strcmp(info.type, "gpu") && is_for_cpu_devices(way->kernel)) {
        test_skip(way->name, "a kernel for CPU devices");
        return NULL;
    }
    if (dtype == CLATTN_DTYPE_F64 && !info.has_fp64) {
        test_skip(way->name, "the device has no fp64");
        return NULL;
    }
    return context;
}

/* ---- numbers: encoded by arithmetic on doubles, on purpose unlike the library's integers */

/* A float of these widths, sign in front. */
static double small_float_decode(uint32_t bits, int exponent_bits, int mantissa_bits)
{
    const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
    const int field = (int)(bits >> mantissa_bits) & top;
    const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
    const double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
    if (field == top) return mantissa ? NAN : sign * INFINITY;
    const uint32_t whole = field ? mantissa | 1u << mantissa_bits : mantissa;
    return sign * ldexp(whole, (field ? field : 1) - bias - mantissa_bits);
}

/* Nearest even, for that is what nearbyint does. A carry out of the mantissa moves the exponent up, as it should. */
static uint32_t small_float_encode(double x, int exponent_bits, int mantissa_bits)
{
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
    const uint32_t sign = signbit(x) ? 1u << (exponent_bits + mantissa_bits) : 0;
    if (isnan(x)) return sign | infinity | 1u << (mantissa_bits - 1);
    if (fabs(x) >= ldexp(1, bias + 1)) return sign | infinity;
    const int exponent = x == 0 || ilogb(x) < 1 - bias ? 1 - bias : ilogb(x);
    const uint32_t whole = (uint32_t)nearbyint(ldexp(fabs(x), mantissa_bits - exponent));
    return sign | (whole + ((uint32_t)(exponent + bias - 1) << mantissa_bits));
}

/* The element's bits, in the low end. */
static uint64_t encode(clattn_dtype dtype, double x)
{
    const float f = (float)x;
    uint32_t u;
    uint64_t w;
    memcpy(&u, &f, sizeof u);
    memcpy(&w, &x, sizeof w);
    switch (dtype) {
    case CLATTN_DTYPE_F32: return u;
    case CLATTN_DTYPE_F16: return small_float_encode(x, 5, 10);
    case CLATTN_DTYPE_BF16: return small_float_encode(x, 8, 7);
    case CLATTN_DTYPE_F64: return w;
    }
    return 0;
}

static double decode(clattn_dtype dtype, uint64_t bits)
{
    const uint32_t u = (uint32_t)bits;
    float f;
    double x;
    memcpy(&f, &u, sizeof f);
    memcpy(&x, &bits, sizeof x);
    switch (dtype) {
    case CLATTN_DTYPE_F32: return f;
    case CLATTN_DTYPE_F16: return small_float_decode(u, 5, 10);
    case CLATTN_DTYPE_BF16: return small_float_decode(u, 8, 7);
    case CLATTN_DTYPE_F64: return x;
    }
    return NAN;
}

/* splitmix64 */
static uint64_t random_bits(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Box-Muller */
static double random_normal(uint64_t *state)
{
    const double a = ((double)(random_bits(state) >> 11) + 0.5) * 0x1p-53, b = (double)(random_bits(state) >> 11);
    return sqrt(-2 * log(a)) * cos(2 * 3.14159265358979323846 * 0x1p-53 * b);
}

/* ---- tensors */

typedef struct shape {
    int64_t heads, seq, dim;
    clattn_strides strides;
    size_t size;
    void *at; /* element [0, 0, 0, 0] */
} shape;

static const char tensor_letters[] = "qkvol"; /* l: LSE */

/* As the problem's own comments say it, strides of 0 filled in. */
/* Packed sequences are one batch entry of all rows. */
static int64_t entries(const clattn_problem *p) { return p->varlen ? 1 : p->batch; }
static int64_t rows_q(const clattn_problem *p) { return p->varlen ? p->total_q : p->n_q; }
static int64_t rows_kv(const clattn_problem *p) { return p->varlen ? p->total_kv : p->n_kv; }

static shape shape_of(const test_data *t, char which)
{
    const clattn_problem *p = &t->p;
    const bool kv = which == 'k' || which == 'v', wide = which == 'v' || which == 'o';
    const int64_t dim = which == 'l' ? 1 : wide ? p->head_dim_v : p->head_dim_qk;
    shape s = {kv ? p->n_heads_kv : p->n_heads_q, kv ? rows_kv(p) : rows_q(p), dim, {0, 0, 0}, 0, NULL};
    s.size = which == 'l' ? sizeof(float) : clattn_dtype_size(p->dtype);
    switch (which) {
    case 'q': s.strides = p->q, s.at = t->q; break;
    case 'k': s.strides = p->k, s.at = t->k; break;
    case 'v': s.strides = p->v, s.at = t->v; break;
    case 'o': s.strides = p->o, s.at = t->o; break;
    case 'l': s.strides = p->lse, s.at = t->lse; break;
    default: ck_abort_msg("no tensor %c", which);
    }
    if (!s.strides.batch && !s.strides.head && !s.strides.seq)
        s.strides = p->varlen && which != 'l' ? clattn_strides_bshd(s.heads, s.seq, s.dim)
                                              : clattn_strides_bhsd(s.heads, s.seq, s.dim);
    return s;
}

static unsigned char *element_of(const shape *s, int64_t b, int64_t h, int64_t row, int64_t d)
{
    const int64_t at = b * s->strides.batch + h * s->strides.head + row * s->strides.seq + d;
    return (unsigned char *)s->at + at * (int64_t)s->size;
}

/* [guard][elements][guard], the first element 64-aligned, then moved `shift` elements on. */
static void *block_make(test_block *block, const shape *s, int64_t batch, int shift)
{
    const int64_t last =
        (batch - 1) * s->strides.batch + (s->heads - 1) * s->strides.head + (s->seq - 1) * s->strides.seq;
    const size_t elements = s->seq ? (size_t)(last + s->dim) : 0;
    block->bytes = (2 * GUARD + (elements + (size_t)shift) * s->size + 63) / 64 * 64;
    block->base = aligned_alloc(64, block->bytes);
    block->image = malloc(block->bytes);
    ck_assert_ptr_nonnull(block->base);
    ck_assert_ptr_nonnull(block->image);
    memset(block->base, POISON, block->bytes);
    return block->base + GUARD + (size_t)shift * s->size;
}

/* Element by element in the order of the indices, so the numbers do not depend on the strides. */
static void fill_normal(test_data *t, char which, uint64_t *state)
{
    const shape s = shape_of(t, which);
    for (int64_t b = 0; b < entries(&t->p); b++)
        for (int64_t h = 0; h < s.heads; h++)
            for (int64_t i = 0; i < s.seq; i++)
                for (int64_t d = 0; d < s.dim; d++) {
                    const uint64_t bits = encode(t->p.dtype, random_normal(state));
                    memcpy(element_of(&s, b, h, i, d), &bits, s.size);
                }
}

/* What is common to the two makers. Packed, the one tensor lies in the block of q. */
int64_t test_beside(clattn_score_strides s, int64_t b, int64_t h, int64_t i, int64_t j)
{
    return b * s.batch + h * s.head + i * s.q + j * s.kv;
}

/* Elements from the first to the last of what stands beside the scores. */
static size_t beside_size(const clattn_problem *p, clattn_score_strides s)
{
    return p->n_q && p->n_kv ? (size_t)test_beside(s, p->batch - 1, p->n_heads_q - 1, p->n_q - 1, p->n_kv - 1) + 1 : 1;
}

static void beside_make(test_data *t, uint64_t *state)
{
    const clattn_problem *p = &t->p;
    const size_t heads = (size_t)p->n_heads_q,
                 slopes = heads * (p->alibi == CLATTN_ALIBI_PER_HEAD ? 1 : (size_t)p->batch);
    const size_t size = clattn_dtype_size(p->bias.dtype);
    if (p->bias.dtype) {
        const size_t n = beside_size(p, p->bias.strides);
        t->bias = malloc(n * size);
        for (size_t i = 0; i < n; i++) {
            const uint64_t bits = encode(p->bias.dtype, random_normal(state));
            memcpy((char *)t->bias + i * size, &bits, size);
        }
    }
    if (p->mask.boolean) {
        const size_t n = beside_size(p, p->mask.strides);
        t->mask = malloc(n);
        for (size_t i = 0; i < n; i++) t->mask[i] = random_bits(state) % 10 < 7;
    }
    if (p->alibi) t->alibi_slopes = malloc(slopes * sizeof(float));
    for (size_t i = 0; p->alibi && i < slopes; i++)
        t->alibi_slopes[i] = ldexpf(1.0f + 0.1f * (float)(i / heads), -(int)(i % heads) - 2);
    if (p->sinks) t->sinks = malloc(heads * sizeof(float));
    for (size_t i = 0; p->sinks && i < heads; i++) t->sinks[i] = (float)random_normal(state);
    if (p->varlen) {
        t->cu_seqlens_q = calloc((size_t)p->batch + 1, sizeof(int64_t));
        t->cu_seqlens_kv = calloc((size_t)p->batch + 1, sizeof(int64_t));
    }
}

static test_data *data_make(const clattn_problem *p, uint64_t seed, bool packed)
{
    test_data *t = calloc(1, sizeof *t);
    ck_assert_ptr_nonnull(t);
    t->p = *p;
    clattn_problem_to_text(p, t->text, sizeof t->text);
    void **const pointers[] = {&t->q, &t->k, &t->v, &t->o};
    const int64_t heads = p->n_heads_q + 2 * p->n_heads_kv;
    const int shift = (int)(seed % 4);
    if (packed) {
        ck_assert(p->n_q == p->n_kv && p->head_dim_qk == p->head_dim_v);
        t->p.q = t->p.k = t->p.v = clattn_strides_bshd(heads, p->n_q, p->head_dim_qk);
        shape all = shape_of(t, 'q');
        all.heads = heads;
        char *at = block_make(&t->blocks[0], &all, p->batch, shift);
        t->q = at;
        t->k = at + p->n_heads_q * p->head_dim_qk * (int64_t)all.size;
        t->v = at + (p->n_heads_q + p->n_heads_kv) * p->head_dim_qk * (int64_t)all.size;
    }
    for (int i = packed ? 3 : 0; i < 4; i++) {
        const shape s = shape_of(t, tensor_letters[i]);
        *pointers[i] = block_make(&t->blocks[i], &s, entries(p), shift);
    }
    const shape lse = shape_of(t, 'l');
    t->lse = block_make(&t->blocks[4], &lse, entries(p), shift);
    uint64_t state = seed * 0x2545f4914f6cdd1d + 1;
    for (int i = 0; i < 3; i++) fill_normal(t, tensor_letters[i], &state);
    if (p->kv_length_per_batch) t->kv_lengths = calloc((size_t)p->batch, sizeof *t->kv_lengths);
    if (p->query_offset_per_batch) t->query_offsets = calloc((size_t)p->batch, sizeof *t->query_offsets);
    for (int64_t b = 0; t->kv_lengths && b < p->batch; b++) t->kv_lengths[b] = p->n_kv;
    beside_make(t, &state);
    const size_t rows = (size_t)(entries(p) * p->n_heads_q * rows_q(p));
    t->ref_o = malloc((rows * (size_t)p->head_dim_v + 1) * sizeof *t->ref_o);
    t->ref_lse = malloc((rows + 1) * sizeof *t->ref_lse);
    ck_assert(t->ref_o && t->ref_lse);
    return t;
}

test_data *test_data_make(const clattn_problem *p, uint64_t seed) { return data_make(p, seed, false); }
test_data *test_data_make_packed(const clattn_problem *p, uint64_t seed) { return data_make(p, seed, true); }

void test_data_free(test_data *t)
{
    if (!t) return;
    for (int i = 0; i < 5; i++) {
        free(t->blocks[i].base);
        free(t->blocks[i].image);
    }
    free(t->kv_lengths);
    free(t->query_offsets);
    free(t->bias);
    free(t->mask);
    free(t->alibi_slopes);
    free(t->sinks);
    free(t->cu_seqlens_q);
    free(t->cu_seqlens_kv);
    free(t->ref_o);
    free(t->ref_lse);
    free(t);
}

uint64_t test_get_bits(const test_data *t, char which, int64_t b, int64_t h, int64_t row, int64_t d)
{
    const shape s = shape_of(t, which);
    uint64_t bits = 0;
    memcpy(&bits, element_of(&s, b, h, row, d), s.size);
    return bits;
}

void test_set_bits(test_data *t, char which, int64_t b, int64_t h, int64_t row, int64_t d, uint64_t bits)
{
    const shape s = shape_of(t, which);
    memcpy(element_of(&s, b, h, row, d), &bits, s.size);
}

double test_get(const test_data *t, char which, int64_t b, int64_t h, int64_t row, int64_t d)
{
    return decode(t->p.dtype, test_get_bits(t, which, b, h, row, d));
}

void test_set(test_data *t, char which, int64_t b, int64_t h, int64_t row, int64_t d, double value)
{
    test_set_bits(t, which, b, h, row, d, encode(t->p.dtype, value));
}

void test_set_row(test_data *t, char which, int64_t b, int64_t h, int64_t row, double value)
{
    const shape s = shape_of(t, which);
    for (int64_t d = 0; d < s.dim; d++) test_set(t, which, b, h, row, d, value);
}

float test_get_lse(const test_data *t, int64_t b, int64_t h, int64_t row)
{
    const shape s = shape_of(t, 'l');
    float x;
    memcpy(&x, element_of(&s, b, h, row, 0), sizeof x);
    return x;
}

clattn_forward_args test_args(const test_data *t)
{
    clattn_forward_args args;
    clattn_forward_args_init(&args);
    args.q = clattn_host_buffer(t->q);
    args.k = clattn_host_buffer(t->k);
    args.v = clattn_host_buffer(t->v);
    args.o = clattn_host_buffer(t->o);
    args.lse = clattn_host_buffer(t->lse);
    args.kv_lengths = clattn_host_buffer(t->kv_lengths);
    args.query_offsets = clattn_host_buffer(t->query_offsets);
    args.bias = clattn_host_buffer(t->bias);
    args.mask = clattn_host_buffer(t->mask);
    args.alibi_slopes = clattn_host_buffer(t->alibi_slopes);
    args.sinks = clattn_host_buffer(t->sinks);
    args.score_data = clattn_host_buffer(t->score_data);
    args.cu_seqlens_q = clattn_host_buffer(t->cu_seqlens_q);
    args.cu_seqlens_kv = clattn_host_buffer(t->cu_seqlens_kv);
    args.dropout_seed = t->dropout_seed;
    return args;
}

void test_reference(test_data *t)
{
    const clattn_forward_args args = test_args(t);
    test_ok(clattn_reference_forward(&t->p, &args, t->ref_o, t->ref_lse));
}

/* ---- running */

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

/* "Cut to the sequence, then to the nearest size that the kernel has." */
static void check_block(const char *name, int64_t got, int64_t asked, int64_t sequence, int64_t step, int64_t most)
{
    const int64_t expected = least(round_up(least(asked, sequence > 0 ? sequence : 1), step), most);
    ck_assert_msg(got >= 1, "%s is %" PRId64, name, got);
    if (asked)
        ck_assert_msg(got == expected, "%s %" PRId64 " gave %" PRId64 ", not %" PRId64, name, asked, got, expected);
}

clattn_plan *test_plan(clattn_context *context, const clattn_problem *p, const test_way *way, int64_t block_q,
                       int64_t block_kv, int n_threads)
{
    clattn_plan_options options;
    clattn_plan_options_init(&options);
    const bool backward = way->kernel == CLATTN_KERNEL_HOST_BACKWARD || way->kernel == CLATTN_KERNEL_ATTN_BWD_LANES ||
                          way->kernel == CLATTN_KERNEL_ATTN_BWD;
    options.pass = backward ? CLATTN_PASS_BACKWARD : CLATTN_PASS_FORWARD;
    options.path = way->path;
    options.kernel = way->kernel;
    options.block_q = block_q;
    options.block_kv = block_kv;
    options.n_threads = n_threads;
    clattn_plan *plan;
    test_ok(clattn_plan_create(context, p, &options, &plan));
    clattn_plan_info info;
    clattn_plan_info_init(&info);
    test_ok(clattn_plan_get_info(plan, &info));
    ck_assert_str_eq(clattn_path_name(info.path), clattn_path_name(way->path));
    ck_assert_str_eq(clattn_kernel_name(info.kernel), clattn_kernel_name(way->kernel));
    if (backward) return plan;
    if (way->kernel == CLATTN_KERNEL_HOST_TILE) {
        /* Most rows of a tile: 4 x 4 vectors of 16, by AMX 4, 4 x 3 of 8, 4 x 4 of 4; half of each for f64. */
        const int64_t rows = !strncmp(info.instructions, "avx512", 6) ? 256
                             : !strncmp(info.instructions, "amx", 3)  ? 64
                             : !strcmp(info.instructions, "avx2")     ? 96
                                                                      : 64;
        check_block("block_q", info.block_q, block_q, p->n_q, 1, p->dtype == CLATTN_DTYPE_F64 ? rows / 2 : rows);
        check_block("block_kv", info.block_kv, block_kv, p->n_kv, 1, 4096);
        if (n_threads) ck_assert_int_eq(info.n_threads, n_threads);
    } else if (way->kernel == CLATTN_KERNEL_HOST_DECODE) {
        check_block("block_kv", info.block_kv, block_kv, p->n_kv, 1, 4096);
        if (n_threads) ck_assert_int_eq(info.n_threads, n_threads);
    } else if (way->kernel == CLATTN_KERNEL_ATTN_FWD_LANES) {
        const int64_t rows = least(block_q, p->n_q);
        check_block("block_q", info.block_q, block_q, p->n_q, rows > 128 ? 64 : rows > 64 ? 32 : 16, 256);
        check_block("block_kv", info.block_kv, block_kv, p->n_kv, 4, 1024);
        ck_assert_int_eq(info.work_group_size, 1);
    } else if (way->kernel == CLATTN_KERNEL_ATTN_DECODE_LANES) {
        check_block("block_kv", info.block_kv, block_kv, p->n_kv, p->dtype == CLATTN_DTYPE_F64 ? 8 : 16, 4096);
        ck_assert_int_eq(info.work_group_size, 1);
    } else if (way->kernel == CLATTN_KERNEL_ATTN_DECODE) {
        int64_t rows = 1; /* of a pass */
        while (rows < p->n_q * (p->n_heads_q / p->n_heads_kv) && rows < 16) rows *= 2;
        check_block("block_kv", info.block_kv, block_kv, p->n_kv, 16,
                    (p->dtype == CLATTN_DTYPE_F64 ? 2048 : 4096) / rows);
        ck_assert_int_eq(info.work_group_size, 128);
    } else {
        clattn_device_info device;
        if (test_device_info(&device) && device.local_bytes >= ROOMY) {
            check_block("block_q", info.block_q, block_q, p->n_q, 16, 128);
            check_block("block_kv", info.block_kv, block_kv, p->n_kv, 16, 128);
        }
        ck_assert_int_gt(info.work_group_size, 1);
    }
    return plan;
}

/* Lets the image have the output's elements as they are now: what differs then is what should not have been written. */
static void image_take_elements(test_data *t, char which, test_block *block)
{
    const shape s = shape_of(t, which);
    for (int64_t b = 0; b < entries(&t->p); b++)
        for (int64_t h = 0; h < s.heads; h++)
            for (int64_t i = 0; i < s.seq; i++) {
                const unsigned char *row = element_of(&s, b, h, i, 0);
                memcpy(block->image + (row - block->base), row, (size_t)s.dim * s.size);
            }
}

/* Inputs, gaps and guards: byte for byte as before the run. */
static void check_only_outputs_written(test_data *t)
{
    image_take_elements(t, 'o', &t->blocks[3]);
    image_take_elements(t, 'l', &t->blocks[4]);
    for (int i = 0; i < 5; i++) {
        const test_block *block = &t->blocks[i];
        if (!block->base || !memcmp(block->base, block->image, block->bytes)) continue;
        size_t at = 0;
        while (block->base[at] == block->image[at]) at++;
        ck_abort_msg("%s: byte %zu of %c's %zu was written", t->text, at, tensor_letters[i], block->bytes);
    }
}

void test_forward(test_data *t, const clattn_plan *plan)
{
    for (int i = 0; i < 5; i++) {
        if (!t->blocks[i].base) continue;
        if (i >= 3) memset(t->blocks[i].base, POISON, t->blocks[i].bytes);
        memcpy(t->blocks[i].image, t->blocks[i].base, t->blocks[i].bytes);
    }
    clattn_plan_info info;
    clattn_plan_info_init(&info);
    test_ok(clattn_plan_get_info(plan, &info));
    t->products = info.products;
    const clattn_forward_args args = test_args(t);
    test_ok(clattn_forward(plan, &args));
    check_only_outputs_written(t);
}

void test_run(test_data *t, const test_way *way, int64_t block_q, int64_t block_kv)
{
    clattn_context *context = test_way_context(way, t->p.dtype);
    ck_assert_msg(context, "no context for %s", way->name);
    size_t n = clattn_problem_to_text(&t->p, t->text, sizeof t->text);
    if (n > sizeof t->text) n = sizeof t->text;
    snprintf(t->text + n, sizeof t->text - n, " on %s blocks %" PRId64 "x%" PRId64, way->name, block_q, block_kv);
    clattn_plan *plan = test_plan(context, &t->p, way, block_q, block_kv, 0);
    test_forward(t, plan);
    clattn_plan_release(plan);
}

/* ---- many threads, one plan */

enum { THREADS = 4, CALLS = 20 };

typedef struct crowd {
    const clattn_plan *plan;
    const test_data *first;
    size_t o_bytes, lse_bytes;
} crowd;

static void *call_often(void *argument)
{
    const crowd *c = argument;
    clattn_forward_args args = test_args(c->first);
    char *o = malloc(c->o_bytes), *lse = malloc(c->lse_bytes);
    bool good = o && lse;
    args.o = clattn_host_buffer(o);
    args.lse = clattn_host_buffer(lse);
    for (int i = 0; i < CALLS && good; i++) {
        memset(o, 0xff, c->o_bytes);
        memset(lse, 0xff, c->lse_bytes);
        good = clattn_forward(c->plan, &args) == CLATTN_STATUS_SUCCESS && !memcmp(o, c->first->o, c->o_bytes) &&
               !memcmp(lse, c->first->lse, c->lse_bytes);
    }
    free(o);
    free(lse);
    return good ? argument : NULL;
}

void test_call_often(const clattn_plan *plan, const test_data *t)
{
    pthread_t threads[THREADS];
    const size_t rows = (size_t)(t->p.batch * t->p.n_heads_q * t->p.n_q);
    crowd c = {plan, t, rows * (size_t)t->p.head_dim_v * clattn_dtype_size(t->p.dtype), rows * sizeof(float)};
    for (int i = 0; i < THREADS; i++) ck_assert_int_eq(pthread_create(&threads[i], NULL, call_often, &c), 0);
    for (int i = 0; i < THREADS; i++) {
        void *good = NULL;
        pthread_join(threads[i], &good);
        ck_assert_ptr_eq(good, &c);
    }
}

/* ---- comparing
 *
 * Sums are kept in f32 (f64 for f64), of unit roundoff u = 2^-24 (2^-53), and each rounding is a random error of
 * standard deviation near 0.4 u of the partial sum it rounds.
 *
 * A score of size S is a walk of D = head_dim products, its partial sums some S sqrt(i / D): the D roundings add up to
 * 0.3 u S sqrt(D). Of a score's error a row's output takes P (1 - P) times the distance between values, at most about 1
 * for N(0,1); the greatest of a million outputs lies five deviations out: u S sqrt(D), near enough. (Where two keys
 * share a row, the score's error and the values' distance are two normal numbers, whose product in the greatest of a
 * thousand million is 18 times their deviations', 0.3 u S sqrt(D) and 0.35: twice that.) S is what the row's leading
 * scores amount to: |LSE|, and where its products cancel what they walk through, scale |q| max |k| / sqrt(D): with few
 * columns some rows are well above the typical score scale sqrt(D) rms(Q) rms(K). ALiBi's distance may cancel products
 * of its own size, at most the largest there can be and the leading score: S has it too. The sums over n keys, of P and
 * of P V, bring 0.25 u sqrt(n), at five deviations u sqrt(n); exp2, the division, the scale and the rescaling bring a
 * few u, taken as 8:
 *
 *     e = u (S sqrt(D) + sqrt(n) + 8)
 *
 * Whatever the formula says, N(0,1) data never gets more than 5e-6 (1e-13 for f64, whose reference has the same errors
 * once more), in proportion where typical scores are larger or a bias or ALiBi's distances lift |LSE| beyond 10, which
 * N(0,1) data comes to at 16384 keys. A value is wrong past e max(1, |value|) plus half a unit in the last place of f16
 * (2^-11) or bf16 (2^-8). LSE, f32 for every type, is wrong past e with a cap of 1e-5; that of f64 by more than its
 * rounding to f32.
 *
 * A plan with bf16 products rounds P to 8 bits, by at most 2^-9 of each prob: of a row's output that is five deviations
 * of 0.4 * 2^-9 sqrt(sum P^2) times values of N(0,1), and where two keys share a row, 2^-9 times half their distance.
 * 2^-8 covers both; the greatest of a thousand million lies six deviations out, a quarter more. f16 products: 11 bits,
 * 2^-12 and 2^-11. And whatever the values, bf16 products err by no more than 2^-8 of the sum of P |v|, which is the
 * reference of |V|. */

typedef struct tolerance {
    double u, typical, cap, v_span, storage, probs;
    double columns, keys;
    double walk;        /* scale max |k| / sqrt(D): times |q|, the size of a row's products */
    double tail;        /* of scores' errors */
    double *p_absolute; /* with bf16 products the sums of P |v|, as ref_o; else NULL */
} tolerance;

/* To be freed. */
static double *reference_of_absolute_v(const test_data *t)
{
    test_data a = *t;
    const shape v = shape_of(t, 'v');
    const size_t heads = (size_t)(entries(&t->p) * v.heads),
                 rows = (size_t)(entries(&t->p) * t->p.n_heads_q * rows_q(&t->p));
    double *o = calloc(rows * (size_t)v.dim + 1, sizeof *o), *lse = calloc(rows + 1, sizeof *lse);
    a.p.v = clattn_strides_bhsd(v.heads, v.seq, v.dim);
    a.v = calloc(heads * (size_t)(v.seq * v.dim) + 1, v.size);
    for (int64_t b = 0; b < entries(&t->p); b++)
        for (int64_t h = 0; h < v.heads; h++)
            for (int64_t i = 0; i < v.seq; i++)
                for (int64_t d = 0; d < v.dim; d++) test_set(&a, 'v', b, h, i, d, fabs(test_get(t, 'v', b, h, i, d)));
    const clattn_forward_args args = test_args(&a);
    test_ok(clattn_reference_forward(&a.p, &args, o, lse));
    free(a.v);
    free(lse);
    return o;
}

/* rms and largest of a tensor's finite elements. */
static double tensor_rms(const test_data *t, char which, double *largest)
{
    const shape s = shape_of(t, which);
    double sum = 0, n = 0;
    for (int64_t b = 0; b < entries(&t->p); b++)
        for (int64_t h = 0; h < s.heads; h++)
            for (int64_t i = 0; i < s.seq; i++)
                for (int64_t d = 0; d < s.dim; d++) {
                    const double x = test_get(t, which, b, h, i, d);
                    if (!isfinite(x)) continue;
                    sum += x * x;
                    n += 1;
                    *largest = fmax(*largest, fabs(x));
                }
    return n > 0 ? sqrt(sum / n) : 0;
}

/* |x| of a row of Q or K, finite elements only. */
static double row_norm(const test_data *t, char which, int64_t b, int64_t h, int64_t i)
{
    double sum = 0;
    for (int64_t d = 0; d < t->p.head_dim_qk; d++) {
        const double x = test_get(t, which, b, h, i, d);
        if (isfinite(x)) sum += x * x;
    }
    return sqrt(sum);
}

static double largest_key_norm(const test_data *t)
{
    const shape s = shape_of(t, 'k');
    double largest = 0;
    for (int64_t b = 0; b < entries(&t->p); b++)
        for (int64_t h = 0; h < s.heads; h++)
            for (int64_t j = 0; j < s.seq; j++) largest = fmax(largest, row_norm(t, 'k', b, h, j));
    return largest;
}

static tolerance tolerance_of(const test_data *t)
{
    const clattn_problem *p = &t->p;
    const bool is_double = p->dtype == CLATTN_DTYPE_F64;
    const double scale = p->scale == CLATTN_SCALE_AUTO ? 1 / sqrt((double)p->head_dim_qk) : fabs(p->scale);
    double largest_v = 0, ignored = 0;
    tolerance e;
    e.u = is_double ? 0x1p-52 : 0x1p-24;
    e.columns = (double)p->head_dim_qk;
    e.keys = (double)p->n_kv;
    e.typical = scale * sqrt(e.columns) * tensor_rms(t, 'q', &ignored) * tensor_rms(t, 'k', &ignored);
    e.walk = scale * largest_key_norm(t) / sqrt(e.columns);
    e.cap = is_double ? 1e-13 : 5e-6;
    e.tail = t->is_of_many ? 2 : 1;
    tensor_rms(t, 'v', &largest_v);
    e.v_span = fmax(1, largest_v / 5) / (1 - p->dropout); /* five deviations of N(0,1); what dropout keeps, it scales */
    e.probs = t->products == CLATTN_DTYPE_BF16 ? 0x1p-8 : t->products == CLATTN_DTYPE_F16 ? 0x1p-11 : 0;
    e.probs *= t->is_of_many ? 1.25 : 1;
    e.p_absolute = t->products == CLATTN_DTYPE_BF16 ? reference_of_absolute_v(t) : NULL;
    e.storage = p->dtype == CLATTN_DTYPE_F16 ? 0x1p-11 : p->dtype == CLATTN_DTYPE_BF16 ? 0x1p-8 : 0;
    return e;
}

/* Of one row, before the cap and v_span. */
static double row_error(const tolerance *e, double lse, double q_norm, double alibi)
{
    const double distance = fmin(alibi, fabs(lse) + e->walk * sqrt(e->columns) * q_norm);
    const double size = fabs(lse) + distance + fmax(e->typical, e->walk * q_norm);
    return e->u * (e->tail * size * sqrt(e->columns) + sqrt(e->keys) + 8);
}

/* The slope times the distance of the farther end of the keys; 0 without ALiBi. */
static double alibi_most(const test_data *t, int64_t b, int64_t h, int64_t i)
{
    if (!t->alibi_slopes) return 0;
    const double at = (double)i + (double)(t->query_offsets ? t->query_offsets[b] : t->p.query_offset);
    const int64_t slope = t->p.alibi == CLATTN_ALIBI_PER_HEAD ? h : b * t->p.n_heads_q + h;
    return fabs((double)t->alibi_slopes[slope]) * fmax(fabs(at), fabs(at - (double)t->p.n_kv));
}

static bool same_special(double got, double expected) { return (isnan(got) && isnan(expected)) || got == expected; }

/* NaN and infinity must be just those of the reference, rounded to the storage type as O is. */
static void compare_row(const test_data *t, const tolerance *e, const char *what, int64_t b, int64_t h, int64_t i)
{
    const clattn_problem *p = &t->p;
    const int64_t row = (b * p->n_heads_q + h) * rows_q(p) + i;
    const double lse = t->ref_lse[row], got_lse = test_get_lse(t, b, h, i);
    const double error = isfinite(lse) ? row_error(e, lse, row_norm(t, 'q', b, h, i), alibi_most(t, b, h, i)) : 0;
    const double cap = e->cap * fmax(1, fmax(e->typical, fabs(lse) / 10));
    const double rounding = p->dtype == CLATTN_DTYPE_F64 ? 0x1.01p-24 : 0;
    const double lse_limit = fmax(rounding, fmin(error, 2 * cap)) * fmax(1, fabs(lse));
    ck_assert_msg(same_special(got_lse, lse) || fabs(got_lse - lse) <= lse_limit,
                  "%s %s: LSE[%" PRId64 ",%" PRId64 ",%" PRId64 "] is %.9g, not %.9g: off by %.3g of %.3g", what,
                  t->text, b, h, i, got_lse, lse, fabs(got_lse - lse), lse_limit);
    for (int64_t d = 0; d < p->head_dim_v; d++) {
        const double got = test_get(t, 'o', b, h, i, d), ref = t->ref_o[row * p->head_dim_v + d];
        const double expected = p->dtype == CLATTN_DTYPE_F64 ? ref : decode(p->dtype, encode(p->dtype, ref));
        const double span = fmax(e->v_span, fabs(ref)),
                     most = e->p_absolute ? 0x1p-8 * e->p_absolute[row * p->head_dim_v + d] : INFINITY;
        const double probs = fmin(e->probs * span, most);
        /* No row that sees no key may be near 0 only. */
        const double limit = lse == -INFINITY
                                 ? 0
                                 : fmin(error, cap) * span + probs +
                                       e->storage * fmax(p->dtype == CLATTN_DTYPE_F16 ? 0x1p-14 : 0, fabs(ref));
        ck_assert_msg(same_special(got, expected) || fabs(got - ref) <= limit,
                      "%s %s: O[%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64
                      "] is %.9g, not %.9g: off by %.3g of %.3g",
                      what, t->text, b, h, i, d, got, ref, fabs(got - ref), limit);
    }
}

void test_compare(test_data *t, const char *what)
{
    const tolerance e = tolerance_of(t);
    for (int64_t b = 0; b < entries(&t->p); b++)
        for (int64_t h = 0; h < t->p.n_heads_q; h++)
            for (int64_t i = 0; i < rows_q(&t->p); i++) compare_row(t, &e, what, b, h, i);
    free(e.p_absolute);
}

void test_errors(const test_data *t, double *max, double *rms)
{
    const clattn_problem *p = &t->p;
    double sum = 0, most = 0;
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t h = 0; h < p->n_heads_q; h++)
            for (int64_t i = 0; i < p->n_q; i++)
                for (int64_t d = 0; d < p->head_dim_v; d++) {
                    const int64_t row = (b * p->n_heads_q + h) * p->n_q + i;
                    const double error = fabs(test_get(t, 'o', b, h, i, d) - t->ref_o[row * p->head_dim_v + d]);
                    most = fmax(most, error);
                    sum += error * error;
                }
    *max = most;
    *rms = sqrt(sum / (double)(p->batch * p->n_heads_q * p->n_q * p->head_dim_v));
}

static void same_element(const test_data *a, const test_data *b, char which, const char *what, const int64_t at[4])
{
    const uint64_t x = test_get_bits(a, which, at[0], at[1], at[2], at[3]);
    const uint64_t y = test_get_bits(b, which, at[0], at[1], at[2], at[3]);
    ck_assert_msg(x == y,
                  "%s %s: %s[%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64 "] has the bits %" PRIx64 " and %" PRIx64,
                  what, b->text, which == 'o' ? "O" : "LSE", at[0], at[1], at[2], at[3], x, y);
}

void test_same_bits(const test_data *a, const test_data *b, const char *what)
{
    const clattn_problem *p = &a->p;
    ck_assert(p->batch == b->p.batch && p->n_heads_q == b->p.n_heads_q && p->n_q == b->p.n_q &&
              p->head_dim_v == b->p.head_dim_v);
    for (int64_t i = 0; i < p->batch; i++)
        for (int64_t h = 0; h < p->n_heads_q; h++)
            for (int64_t row = 0; row < p->n_q; row++) {
                for (int64_t d = 0; d < p->head_dim_v; d++)
                    same_element(a, b, 'o', what, (const int64_t[]){i, h, row, d});
                same_element(a, b, 'l', what, (const int64_t[]){i, h, row, 0});
            }
}

void test_problem_on(const clattn_problem *p, const test_way *way, int64_t block_q, int64_t block_kv)
{
    if (!test_way_context(way, p->dtype)) return;
    test_data *t = test_data_make(p, (uint64_t)(p->n_q * 7 + p->n_kv * 3 + p->head_dim_qk));
    test_reference(t);
    test_run(t, way, block_q, block_kv);
    test_compare(t, "problem");
    test_data_free(t);
}

void test_problem(const char *text)
{
    clattn_problem p;
    test_ok(clattn_problem_from_text(text, &p));
    for (int i = 0; i < TEST_WAYS; i++) test_problem_on(&p, &test_ways[i], 0, 0);
}

test_data *test_data_from_text(const char *text, uint64_t seed)
{
    clattn_problem p;
    test_ok(clattn_problem_from_text(text, &p));
    test_data *t = test_data_make(&p, seed);
    test_ok(clattn_problem_text_args(text, &t->dropout_seed, t->cu_seqlens_q, t->cu_seqlens_kv));
    return t;
}

/* ---- pairs */

enum { GQA = 10, VARLEN = 12, SCORE_FUNCTION = 13 };

/* In words of the problem text; %V% words need more than the text. */
static const char *const feature_words[TEST_FEATURES] = {
    "causal",
    "window=20,9",
    "offset=per-batch",
    "kvlen=per-batch",
    "bias=1,h,q,kv:f16",
    "mask=b,1,q,kv",
    "alibi",
    "softcap=2.5",
    "sinks",
    "dropout=0.2:seed=42",
    "" /* GQA: hkv */,
    "dv24",
    "varlen",
    "" /* score function */,
};
static const int64_t pair_shapes[3][2] = {{70, 93}, {33, 200}, {130, 47}}; /* n_q, n_kv */

unsigned test_pair_of(int n)
{
    if (n == 0) return 0;
    for (int a = 0, at = 1; a < TEST_FEATURES; a++)
        for (int b = a; b < TEST_FEATURES; b++, at++)
            if (at == n) return 1u << a | 1u << b;
    ck_abort_msg("no pair %d", n);
}

double test_table_function(double score, int64_t b, int64_t h, int64_t i, int64_t j, const void *data)
{
    (void)b;
    return score + ((const float *)data)[h * 64 + ((i - j) & 63)];
}
const char test_table_source[] = "score + ((__global const float *)data)[h * 64 + ((i - j) & 63)]";
float test_table[4 * 64];

bool test_pair_problem(unsigned features, clattn_dtype dtype, int nth_shape, clattn_problem *p)
{
    char text[400];
    const bool varlen = features >> VARLEN & 1;
    if (varlen && (features >> 3 & 1)) return false; /* sequences bring their own lengths */
    size_t n =
        (size_t)snprintf(text, sizeof text, "%s b2 hq4 hkv%d q%" PRId64 " kv%" PRId64 " d40", clattn_dtype_name(dtype),
                         features >> GQA & 1 ? 2 : 4, pair_shapes[nth_shape][0], pair_shapes[nth_shape][1]);
    for (int f = 0; f < TEST_FEATURES; f++)
        if (features >> f & 1) n += (size_t)snprintf(text + n, sizeof text - n, " %s", feature_words[f]);
    if (varlen)
        snprintf(text + n, sizeof text - n, " total=%" PRId64 ",%" PRId64, pair_shapes[nth_shape][0] + 21,
                 pair_shapes[nth_shape][1] + 34);
    test_ok(clattn_problem_from_text(text, p));
    if (features >> SCORE_FUNCTION & 1) {
        p->score_function.host = test_table_function;
        p->score_function.source = test_table_source;
        p->score_function.data_bytes = sizeof test_table;
    }
    return true;
}

test_data *test_pair_data(const clattn_problem *p, uint64_t seed)
{
    test_data *t = test_data_make(p, seed);
    for (int i = 0; i < 4 * 64; i++) test_table[i] = sinf((float)i);
    t->score_data = test_table;
    t->dropout_seed = seed;
    if (t->kv_lengths) t->kv_lengths[0] = p->n_kv / 2, t->kv_lengths[1] = p->n_kv;
    if (t->query_offsets) t->query_offsets[0] = p->n_kv - p->n_q, t->query_offsets[1] = -7;
    if (p->varlen) {
        const int64_t q[3] = {0, 21, p->total_q}, kv[3] = {0, p->n_kv, p->total_kv};
        memcpy(t->cu_seqlens_q, q, sizeof q);
        memcpy(t->cu_seqlens_kv, kv, sizeof kv);
    }
    for (int64_t b = 0; t->mask && b < p->batch; b++)
        for (int64_t i = 0; i < p->n_q; i++)
            for (int64_t j = 0; j < p->n_kv; j++)
                if (i < 3 || (j >= 16 && j < 36)) t->mask[test_beside(p->mask.strides, b, 0, i, j)] = 0;
    return t;
}
