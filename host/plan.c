#include "plan.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include <clattn/clattn.h>

#include "cpu/backward.h"
#include "error.h"
#include "tile_table.h"
#include "tuning.h"

const char *const clattn__axis_names[AXIS_COUNT] = {
#define XX(name, meaning) #name,
#include "axes.def"
#undef XX
};

enum {
    HOST_DECODE_N_Q = 4,        /* host_decode beats host_tile up to so many query rows */
    HOST_DECODE_ROWS = 64,      /* its rows that share a read of the keys, unless the GQA group alone has more */
    HOST_DECODE_CHUNK = 512,    /* least of its keys of an item */
    HOST_DECODE_SCORES = 16384, /* most of an item, rows times keys, that longer chunks are worth */
    HOST_TILES_MANY = 32,       /* host_tile: of 16 bits, tiles of all panels where a batch entry has as many; ... */
    HOST_TILES_FEW = 6,         /* ... else of half of them, and of one where it has fewer than these */
    HOST_TILE_ROWS_FEW = 2048,  /* host_tile: fewer rows in a batch entry than this leave threads idle, so ... */
    HOST_TILE_CHUNK = 1024,     /* ... the keys are split, whatever the machine and the batch */
    ROWS_MAX = 1 << 30,         /* the kernels count rows and keys in 32 bits */
    HEAD_DIM_MAX = 1 << 24,     /* and columns */
    LAUNCH_ITEMS = INT32_MAX,   /* AMD's and NVIDIA's drivers count a launch's work-items in 32 bits */
    ENGINE_SPEED = 16,          /* a matrix engine's, beside a multiply-add a lane */
    LANES_ROWS = 16,            /* attn_fwd_lanes: rows of a vector */
    LANES_TILE = 64,            /* its rows of a tile; half of them where causal rows are fewer than ... */
    LANES_ROWS_MANY = 512,      /* ... this, for tiles enough for the threads; from here on, where ... */
    LANES_TILES_MANY = 32,      /* ... a batch entry has as many, of 16 bits, ... */
    LANES_TILE_MOST = 256,      /* ... these or half of them, for which K and V are decoded once */
    LANES_KEY_STEP = 4,         /* kv blocks are a multiple */
    LANES_PRIVATE_BEST = 260 << 10,  /* bytes of private memory that stay in a core's cache, */
    LANES_PRIVATE_LARGE = 464 << 10, /* those that the largest tile is worth, measured where the cache has 1 MiB, */
    LANES_PRIVATE_MOST = 512 << 10,  /* and that any driver's thread has on its stack */
    DECODE_ROWS = 4,                 /* attn_decode_lanes: rows of a pass over a chunk */
    DECODE_ROWS_MOST = 16,           /* AUTO: rows that share a kv head */
    DECODE_KEYS_LEAST = 512,         /* AUTO: keys */
    DECODE_CHUNK = 256,              /* least of its keys of a chunk, and the only ones where several passes read it */
    DECODE_CHUNK_MOST = 2048,        /* on the host too, ... */
    DECODE_CHUNKS = 32,              /* ... where as many are left of a batch entry */
    DECODE_GPU_ROWS = 16,            /* attn_decode: most rows of a pass over a chunk */
    DECODE_GPU_SCORES = 4096,        /* most of them in local memory: rows times keys, half as many f64 */
    DECODE_GPU_CHUNK_LEAST = 128,    /* keys */
    DECODE_GPU_CHUNK_MOST = 512,
    DECODE_GPU_GROUPS = 512, /* work-groups wanted of a batch entry: four for each unit of a large GPU */
    DECODE_GPU_WG = 128,
    DECODE_GPU_LOCAL_MOST = 40 << 10, /* bytes */
    ATTN_FWD_PRIVATE_MOST = 1024,     /* bytes of O that a work-item of attn_fwd keeps: a GPU's registers */
    SPLITS_WANTED = 8,                /* backward: shares of the work that keep a machine busy */
    SPLITS_BYTES_MOST = 64 << 20,     /* of their partial sums of dQ, all together */
    BACKWARD_LANES_BLOCK = 64,        /* attn_bwd_lanes: rows and keys of a tile, where they fit */
    CPU_DEVICE_BLOCK = 32,            /* attn_bwd, for a test: larger tiles take a CPU's compiler a minute */
    SMALL_GROUP = 64,                 /* most work-items of the small kernels' groups */
    BIAS_TILE = 4,                    /* attn_bwd_bias: rows and keys of a work-item, as in the kernel */
};
static const int64_t ALL_ROWS_MAX = (int64_t)1 << 52; /* rows of all heads and entries: their bytes fit 63 bits */

const char *clattn_path_name(clattn_path path)
{
    switch (path) {
#define TEXT(name, value, text)                                                                                        \
    case CLATTN_PATH_##name: return text;
        CLATTN_PATH_MAP(TEXT)
#undef TEXT
    }
    return "unknown";
}

const char *clattn_kernel_name(clattn_kernel kernel)
{
    switch (kernel) {
#define TEXT(name, value, text)                                                                                        \
    case CLATTN_KERNEL_##name: return text;
        CLATTN_KERNEL_MAP(TEXT)
#undef TEXT
    }
    return "unknown";
}

void clattn_plan_options_init(clattn_plan_options *options)
{
    if (!options) return;
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
}

void clattn_plan_info_init(clattn_plan_info *info)
{
    if (!info) return;
    memset(info, 0, sizeof *info);
    info->struct_size = sizeof *info;
}

static bool is_host_kernel(clattn_kernel kernel)
{
    return kernel == CLATTN_KERNEL_HOST_TILE || kernel == CLATTN_KERNEL_HOST_DECODE ||
           kernel == CLATTN_KERNEL_HOST_BACKWARD;
}

static bool is_backward_kernel(clattn_kernel kernel)
{
    return kernel == CLATTN_KERNEL_HOST_BACKWARD || kernel == CLATTN_KERNEL_ATTN_BWD_LANES ||
           kernel == CLATTN_KERNEL_ATTN_BWD;
}

clattn_status clattn__plan_check_options(const clattn_plan_options *o)
{
    RETURN_IF(o->struct_size != sizeof *o, INVALID_ARGUMENT,
              "options.struct_size is %zu; this library knows %zu: call clattn_plan_options_init", o->struct_size,
              sizeof *o);
    RETURN_IF(!strcmp(clattn_path_name(o->path), "unknown"), INVALID_ARGUMENT,
              "options.path is %d; it must be one of clattn_path", (int)o->path);
    RETURN_IF(!strcmp(clattn_kernel_name(o->kernel), "unknown"), INVALID_ARGUMENT,
              "options.kernel is %d; it must be one of clattn_kernel", (int)o->kernel);
    RETURN_IF(o->pass != CLATTN_PASS_FORWARD && o->pass != CLATTN_PASS_BACKWARD, INVALID_ARGUMENT,
              "options.pass is %d; it must be one of clattn_pass", (int)o->pass);
    RETURN_IF(o->kernel != CLATTN_KERNEL_AUTO && is_backward_kernel(o->kernel) != (o->pass == CLATTN_PASS_BACKWARD),
              INVALID_ARGUMENT, "options.kernel %s does not run options.pass %s", clattn_kernel_name(o->kernel),
              o->pass == CLATTN_PASS_BACKWARD ? "backward" : "forward");
    RETURN_IF(o->block_q < 0, INVALID_ARGUMENT, "options.block_q is %" PRId64 "; it must be at least 0", o->block_q);
    RETURN_IF(o->block_kv < 0, INVALID_ARGUMENT, "options.block_kv is %" PRId64 "; it must be at least 0", o->block_kv);
    RETURN_IF(o->n_threads < 0, INVALID_ARGUMENT, "options.n_threads is %d; it must be at least 0", o->n_threads);
    const bool host_kernel = is_host_kernel(o->kernel), any_kernel = o->kernel == CLATTN_KERNEL_AUTO;
    RETURN_IF(!any_kernel && o->path != CLATTN_PATH_AUTO && host_kernel != (o->path == CLATTN_PATH_HOST),
              INVALID_ARGUMENT, "options.kernel %s does not run on options.path %s", clattn_kernel_name(o->kernel),
              clattn_path_name(o->path));
    return CLATTN_STATUS_SUCCESS;
}

clattn_path clattn__plan_wanted_path(const problem *p, const clattn_plan_options *o, int64_t host_rows, text *why)
{
    if (o->path != CLATTN_PATH_AUTO) {
        text_add(why, "path %s: asked for\n", clattn_path_name(o->path));
        return o->path;
    }
    if (o->kernel != CLATTN_KERNEL_AUTO) {
        const clattn_path path = is_host_kernel(o->kernel) ? CLATTN_PATH_HOST : CLATTN_PATH_DEVICE;
        text_add(why, "path %s: kernel %s, asked for, runs there\n", clattn_path_name(path),
                 clattn_kernel_name(o->kernel));
        return path;
    }
    const clattn_score_function *f = &p->score_function;
    if (f->source && !f->host) {
        text_add(why, "path device: score_function.host is NULL\n");
        return CLATTN_PATH_DEVICE;
    }
    if (o->pass == CLATTN_PASS_BACKWARD && f->source && f->source_derivative && !f->host_derivative) {
        text_add(why, "path device: score_function.host_derivative is NULL\n");
        return CLATTN_PATH_DEVICE;
    }
    if (p->n_q <= host_rows && p->n_kv <= host_rows) {
        text_add(why, "path host: n_q %" PRId64 " and n_kv %" PRId64 " are at most %" PRId64 "\n", p->n_q, p->n_kv,
                 host_rows);
        return CLATTN_PATH_HOST;
    }
    return CLATTN_PATH_AUTO;
}

static clattn_status check_reach(const problem *p)
{
    RETURN_IF(p->n_q >= ROWS_MAX || p->n_kv >= ROWS_MAX, UNSUPPORTED,
              "n_q is %" PRId64 " and n_kv %" PRId64 "; the kernels count up to %d", p->n_q, p->n_kv, ROWS_MAX - 1);
    RETURN_IF(p->head_dim_qk >= HEAD_DIM_MAX || p->head_dim_v >= HEAD_DIM_MAX, UNSUPPORTED,
              "head_dim_qk is %" PRId64 " and head_dim_v %" PRId64 "; the kernels count up to %d", p->head_dim_qk,
              p->head_dim_v, HEAD_DIM_MAX - 1);
    RETURN_IF(p->batch > INT32_MAX || p->n_heads_q > INT32_MAX, UNSUPPORTED,
              "batch is %" PRId64 " and n_heads_q %" PRId64 "; the kernels count up to %d", p->batch, p->n_heads_q,
              INT32_MAX);
    const int64_t longest = p->n_q > p->n_kv ? p->n_q : p->n_kv, heads = p->batch * p->n_heads_q;
    RETURN_IF(longest > ALL_ROWS_MAX / heads, UNSUPPORTED,
              "batch is %" PRId64 ", n_heads_q %" PRId64 ", n_q %" PRId64 " and n_kv %" PRId64
              "; together they count up to %" PRId64 " rows",
              p->batch, p->n_heads_q, p->n_q, p->n_kv, ALL_ROWS_MAX);
    return CLATTN_STATUS_SUCCESS;
}

/* asked, or automatic when that is 0; at least 1, at most the sequence, then a multiple of step, at most `most`. */
static int64_t block_of(int64_t asked, int64_t automatic, int64_t sequence, int64_t step, int64_t most)
{
    int64_t block = asked ? asked : automatic;
    if (block > sequence) block = sequence;
    if (block < 1) block = 1;
    block = (block + step - 1) / step * step;
    return block < most ? block : most;
}

/* Keys of a chunk of a decode kernel, of the problem alone but for the batch, so that bits depend on neither the device nor
 * what stands beside: from `least` to `most`, as long as n_keys are `chunks` of all heads all the same. */
static int64_t chunk_keys(const problem *p, int64_t n_keys, int64_t least, int64_t most, int64_t chunks)
{
    int64_t chunk = least;
    while (2 * chunk <= most && p->n_heads_kv * div_up(n_keys, 2 * chunk) >= chunks) chunk *= 2;
    return chunk;
}

/* Most keys that the rows of a head see, as far as the problem tells. */
static int64_t keys_seen_most(const problem *p)
{
    const int64_t left = p->window_left < 0 || p->window_left > p->n_kv ? p->n_kv : p->window_left;
    const int64_t right = p->window_right < 0 || p->window_right > p->n_kv ? p->n_kv : p->window_right;
    const int64_t window = left + right + p->n_q;
    return window < p->kv_length ? window : p->kv_length;
}

static int64_t host_decode_chunk(const problem *p, int64_t block_q)
{
    const int64_t most = HOST_DECODE_SCORES / (block_q * p->gqa_group);
    return chunk_keys(p, keys_seen_most(p), HOST_DECODE_CHUNK, most < DECODE_CHUNK_MOST ? most : DECODE_CHUNK_MOST,
                      DECODE_CHUNKS);
}

/* On the host: the lanes of host_tile would be mostly idle. */
static bool suits_decoding(const problem *p) { return p->n_q <= HOST_DECODE_N_Q; }

/* Rows of a tile: of 16 bits, K and V are decoded once for them. */
static int64_t host_tile_rows(const problem *p, const host_ops *ops)
{
    const int64_t all = ops->block_q, half = all / 2;
    if (half < ops->panel_rows) return all;
    if (clattn_dtype_size(p->dtype) == 2 && p->n_heads_q * div_up(p->n_q, all) >= HOST_TILES_MANY) return all;
    return p->n_heads_q * div_up(p->n_q, half) >= HOST_TILES_FEW ? half : ops->panel_rows;
}

clattn_status clattn__plan_host(const problem *p, const clattn_plan_options *o, int n_threads, host_plan *plan)
{
    FORWARD(check_reach(p));
    RETURN_IF(p->score_function.source && !p->score_function.host, UNSUPPORTED,
              "score_function.host is NULL; the host path needs it");
    plan->ops = NULL;
    plan->backward = NULL;
    plan->decode = clattn__decode_ops(p->dtype);
    plan->n_threads = o->n_threads ? o->n_threads : n_threads;
    if (o->pass == CLATTN_PASS_BACKWARD) {
        RETURN_IF(p->score_function.host && !p->score_function.host_derivative, UNSUPPORTED,
                  "score_function.host_derivative is NULL; backward needs it on the host path");
        int64_t bytes; /* of dQ's partials of a batch entry */
        RETURN_IF(__builtin_mul_overflow((p->n_q + BACKWARD_BLOCK) * (p->head_dim_qk + 16) * 16,
                                         p->n_heads_q * SPLITS_WANTED, &bytes),
                  UNSUPPORTED, "host_backward would keep sums of %" PRId64 " rows of %" PRId64 " heads", p->n_q,
                  p->n_heads_q);
        plan->kernel = CLATTN_KERNEL_HOST_BACKWARD;
        plan->block_q = plan->block_kv = BACKWARD_BLOCK;
        plan->chunk = 0;
        plan->backward = clattn__backward_ops(p->dtype);
        plan->instructions = plan->backward->name;
        plan->products = plan->backward->products;
        return CLATTN_STATUS_SUCCESS;
    }
    plan->kernel = o->kernel == CLATTN_KERNEL_HOST_DECODE || (o->kernel == CLATTN_KERNEL_AUTO && suits_decoding(p))
                       ? CLATTN_KERNEL_HOST_DECODE
                       : CLATTN_KERNEL_HOST_TILE;
    if (plan->kernel == CLATTN_KERNEL_HOST_DECODE) {
        const int64_t rows = p->gqa_group < HOST_DECODE_ROWS ? HOST_DECODE_ROWS / p->gqa_group : 1;
        plan->block_q = (int)block_of(o->block_q, rows, p->n_q, 1, rows);
        plan->block_kv = plan->chunk =
            (int)block_of(o->block_kv, host_decode_chunk(p, plan->block_q), p->n_kv, 1, 4096);
    } else {
        const host_ops *ops = plan->ops =
            clattn__host_ops(p->dtype); /* here alone: it may be a processor's first try */
        plan->block_q = (int)block_of(o->block_q, host_tile_rows(p, ops), p->n_q, 1, ops->block_q);
        plan->block_kv = (int)block_of(o->block_kv, ops->block_kv, p->n_kv, 1, 4096);
        plan->chunk = p->n_q * p->n_heads_q < HOST_TILE_ROWS_FEW && p->n_kv > HOST_TILE_CHUNK ? HOST_TILE_CHUNK : 0;
    }
    plan->instructions = plan->kernel == CLATTN_KERNEL_HOST_TILE ? plan->ops->name : plan->decode->name;
    plan->products = plan->kernel == CLATTN_KERNEL_HOST_TILE ? plan->ops->products
                     : p->dtype == CLATTN_DTYPE_F64          ? CLATTN_DTYPE_F64
                                                             : CLATTN_DTYPE_F32;
    return CLATTN_STATUS_SUCCESS;
}

clattn_kernel clattn__plan_device_kernel(const device_profile *device, clattn_pass pass)
{
    if (pass == CLATTN_PASS_BACKWARD) return device->is_cpu ? CLATTN_KERNEL_ATTN_BWD_LANES : CLATTN_KERNEL_ATTN_BWD;
    return device->is_cpu ? CLATTN_KERNEL_ATTN_FWD_LANES : CLATTN_KERNEL_ATTN_FWD;
}

int clattn__plan_axis(const device_choice *c, const device_stage *stage, axis a)
{
    if (stage->axes >> a & 1) return c->axes[a];
    return a == AXIS_STORAGE || a == AXIS_HEAD_DIM_QK || a == AXIS_HEAD_DIM_V;
}

/* n_tiles of each of `heads` heads, a work-group each. */
static device_stage *add_stage(device_choice *c, const char *name, int64_t n_tiles, int64_t heads,
                               int64_t work_group_size, unsigned wanted)
{
    device_stage *s = &c->stages[c->n_stages++];
    *s = (device_stage){.name = name,
                        .groups = n_tiles * heads,
                        .work_group_size = work_group_size,
                        .n_tiles = (int)n_tiles,
                        .wanted = wanted,
                        .axes = (1u << AXIS_COUNT) - 1};
    return s;
}

static int64_t lanes_private_bytes(const problem *p, int64_t vectors, int64_t block_kv)
{
    const int64_t qk = (p->head_dim_qk + 15) / 16 * 16, v = (p->head_dim_v + 15) / 16 * 16;
    const bool is_short = clattn_dtype_size(p->dtype) == 2;
    const int64_t decoded = is_short ? block_kv * (qk > v ? qk : v) * 4 : 0;
    const int64_t vector_bytes = LANES_ROWS * (p->dtype == CLATTN_DTYPE_F64 ? 8 : 4);
    const int64_t others = 6; /* two keys more, m, l, top and rescale */
    return (qk + v + block_kv + others) * vectors * vector_bytes + decoded;
}

/* The axis MMA of the lanes kernels. */
static int lanes_engine(const problem *p, const device_profile *d)
{
    return p->dtype == CLATTN_DTYPE_BF16 && engine_is_lanes(d->engine) ? (int)d->engine : ENGINE_NONE;
}

/* Rows of a tile. Of larger ones not more than a sixteenth are rows that the problem does not have. */
static int64_t lanes_rows(const problem *p)
{
    if (p->n_q < LANES_ROWS_MANY) return p->window_right >= 0 ? LANES_TILE / 2 : LANES_TILE;
    for (int64_t rows = LANES_TILE_MOST; rows > LANES_TILE && clattn_dtype_size(p->dtype) == 2; rows /= 2) {
        const int64_t tiles = div_up(p->n_q, rows), more = tiles * rows - p->n_q;
        if (tiles * p->n_heads_q >= LANES_TILES_MANY && more <= p->n_q / 16) return rows;
    }
    return LANES_TILE;
}

/* Larger tiles are whole panels of three or four vectors. */
static int64_t lanes_step(int64_t rows)
{
    return rows > LANES_TILE_MOST / 2 ? 4 * LANES_ROWS : rows > LANES_TILE ? 2 * LANES_ROWS : LANES_ROWS;
}

static int64_t lanes_private_best(int64_t block_q)
{
    return block_q == LANES_TILE_MOST ? LANES_PRIVATE_LARGE : LANES_PRIVATE_BEST;
}

static clattn_status choose_lanes(const problem *p, const device_profile *d, const clattn_plan_options *o,
                                  device_choice *c)
{
    const int64_t asked = o->block_q < p->n_q ? o->block_q : p->n_q;
    int64_t block_q = block_of(o->block_q, lanes_rows(p), p->n_q, lanes_step(asked), LANES_TILE_MOST);
    int64_t block_kv = block_of(o->block_kv, 128, p->n_kv, LANES_KEY_STEP, 1024);
    while (!o->block_q && block_q > LANES_ROWS &&
           lanes_private_bytes(p, block_q / LANES_ROWS, block_kv) > lanes_private_best(block_q))
        block_q = block_q == LANES_TILE_MOST ? LANES_TILE_MOST / 2 : block_q - lanes_step(block_q);
    const int64_t least_kv = o->block_kv || block_kv < 16 ? block_kv : 16;
    while (block_q > LANES_ROWS && lanes_private_bytes(p, block_q / LANES_ROWS, least_kv) > LANES_PRIVATE_MOST)
        block_q -= lanes_step(block_q);
    while (!o->block_kv && block_kv > 16 &&
           lanes_private_bytes(p, block_q / LANES_ROWS, block_kv) > lanes_private_best(block_q))
        block_kv = (block_kv / 2 + LANES_KEY_STEP - 1) / LANES_KEY_STEP * LANES_KEY_STEP;
    const int64_t bytes = lanes_private_bytes(p, block_q / LANES_ROWS, block_kv);
    RETURN_IF(bytes > LANES_PRIVATE_MOST, UNSUPPORTED,
              "attn_fwd_lanes with head_dim_qk %" PRId64 ", head_dim_v %" PRId64 ", block_q %" PRId64
              " and block_kv %" PRId64 " needs %" PRId64 " bytes of private memory; it may use %d",
              p->head_dim_qk, p->head_dim_v, block_q, block_kv, bytes, LANES_PRIVATE_MOST);
    c->axes[AXIS_BLOCK_Q] = (int)block_q;
    c->axes[AXIS_BLOCK_KV] = (int)block_kv;
    c->axes[AXIS_MMA] = lanes_engine(p, d);
    c->work_group_size = 1;
    add_stage(c, "attn_fwd_lanes", div_up(p->n_q, block_q), p->batch * p->n_heads_q, 1, 0);
    return CLATTN_STATUS_SUCCESS;
}

/* Rows that share one read of K and V. */
static int64_t decode_rows(const problem *p) { return p->n_q * p->gqa_group; }

/* Partials, as cl/partials.clh has them, the kernel that writes them and the one that merges them. */
static clattn_status add_decode_stages(const problem *p, const device_profile *d, int64_t block_kv, const char *merge,
                                       device_choice *c)
{
    const int64_t real_size = p->dtype == CLATTN_DTYPE_F64 ? 8 : 4, step = 64 / real_size;
    const int64_t chunks = p->n_kv ? div_up(p->n_kv, block_kv) : 1, row = div_up(p->head_dim_v, step) * step + step;
    const char *name = clattn_kernel_name(c->kernel);
    int64_t bytes;
    RETURN_IF(__builtin_mul_overflow(row * real_size * chunks, decode_rows(p), &bytes) ||
                  __builtin_mul_overflow(bytes, p->batch * p->n_heads_kv, &bytes) || bytes > d->max_alloc_bytes,
              UNSUPPORTED,
              "%s would keep partials of %" PRId64 " chunks of %" PRId64 " rows; %s allocates at most %" PRId64
              " bytes at once",
              name, chunks, decode_rows(p) * p->batch * p->n_heads_kv, d->name, d->max_alloc_bytes);
    c->axes[AXIS_BLOCK_KV] = (int)block_kv;
    c->partial_chunk = row * decode_rows(p);
    c->workspace_bytes = bytes;
    add_stage(c, name, chunks, p->batch * p->n_heads_kv, c->work_group_size, 0);
    device_stage *last = add_stage(c, merge, chunks, 0, c->work_group_size, 0);
    last->groups = p->batch * p->n_heads_q * p->n_q; /* a row each */
    last->axes &= ~AXIS_BIT(MMA);
    return CLATTN_STATUS_SUCCESS;
}

/* The chunks are the problem's alone, so that bits do not depend on the device. */
static clattn_status choose_decode_lanes(const problem *p, const device_profile *d, const clattn_plan_options *o,
                                         device_choice *c)
{
    const int64_t real_size = p->dtype == CLATTN_DTYPE_F64 ? 8 : 4, lanes = 64 / real_size;
    const int64_t most = decode_rows(p) <= DECODE_ROWS ? DECODE_CHUNK_MOST : DECODE_CHUNK;
    const int64_t chunk = chunk_keys(p, keys_seen_most(p), DECODE_CHUNK, most, DECODE_CHUNKS);
    const int64_t block_kv = block_of(o->block_kv, chunk, p->n_kv, lanes, 4096);
    const int64_t bytes = DECODE_ROWS * (div_up(p->head_dim_qk, lanes) * lanes + block_kv) * real_size;
    RETURN_IF(bytes > LANES_PRIVATE_MOST, UNSUPPORTED,
              "attn_decode_lanes with head_dim_qk %" PRId64 " and block_kv %" PRId64 " needs %" PRId64
              " bytes of private memory; it may use %d",
              p->head_dim_qk, block_kv, bytes, LANES_PRIVATE_MOST);
    c->axes[AXIS_BLOCK_Q] = DECODE_ROWS;
    c->axes[AXIS_MMA] = lanes_engine(p, d);
    c->work_group_size = 1;
    return add_decode_stages(p, d, block_kv, "attn_merge_lanes", c);
}

/* What cl/decode.clh keeps in local memory. */
static int64_t decode_local_bytes(const problem *p, int64_t block_q, int64_t block_kv)
{
    const int64_t real_size = p->dtype == CLATTN_DTYPE_F64 ? 8 : 4, piece = clattn_dtype_size(p->dtype) == 2 ? 8 : 4;
    const int64_t turns = div_up(p->head_dim_qk, 8 * piece), keys = turns <= 2 ? 4 : turns <= 4 ? 2 : 1;
    const int64_t cols = DECODE_GPU_WG / block_q, sums = div_up((block_q < 4 ? block_q : 4) * keys, 4);
    const int64_t q_tile = block_q * turns * 8 * piece, s_tile = block_q * (div_up(block_kv, cols) * cols + 8);
    const int64_t of_item = 4 * (sums > piece / 4 ? sums : piece / 4) + 1;
    return (q_tile + s_tile + of_item * DECODE_GPU_WG) * real_size;
}

/* Of the problem alone too, but for the batch: more keys a chunk, up to a point, once there are work-groups enough. */
static clattn_status choose_decode(const problem *p, const device_profile *d, const clattn_plan_options *o,
                                   device_choice *c)
{
    const int64_t scores = p->dtype == CLATTN_DTYPE_F64 ? DECODE_GPU_SCORES / 2 : DECODE_GPU_SCORES;
    int64_t block_q = 1;
    while (block_q < decode_rows(p) && block_q < DECODE_GPU_ROWS) block_q *= 2;
    const int64_t most = scores / block_q < 4096 ? scores / block_q : 4096;
    const int64_t chunk_most = most < DECODE_GPU_CHUNK_MOST ? most : DECODE_GPU_CHUNK_MOST;
    const int64_t chunk = chunk_keys(p, p->n_kv, DECODE_GPU_CHUNK_LEAST, chunk_most, DECODE_GPU_GROUPS);
    const int64_t block_kv = block_of(o->block_kv, chunk, p->n_kv, 16, most);
    while (block_q > 1 && decode_local_bytes(p, block_q, block_kv) > DECODE_GPU_LOCAL_MOST) block_q /= 2;
    c->local_bytes = decode_local_bytes(p, block_q, block_kv);
    const int64_t local_most = d->local_bytes < DECODE_GPU_LOCAL_MOST ? d->local_bytes : DECODE_GPU_LOCAL_MOST;
    RETURN_IF(c->local_bytes > local_most || d->max_work_group_size < DECODE_GPU_WG, UNSUPPORTED,
              "attn_decode with head_dim_qk %" PRId64 " and block_kv %" PRId64 " needs %" PRId64
              " bytes of local memory and %d work-items; it may use %" PRId64 " and %" PRId64,
              p->head_dim_qk, block_kv, c->local_bytes, DECODE_GPU_WG, local_most, d->max_work_group_size);
    c->axes[AXIS_BLOCK_Q] = (int)block_q;
    c->axes[AXIS_WG_SIZE] = DECODE_GPU_WG;
    c->work_group_size = DECODE_GPU_WG;
    return add_decode_stages(p, d, block_kv, "attn_merge", c);
}

static void set_tile(device_choice *c, const clattn__tile *t)
{
    c->axes[AXIS_BLOCK_Q] = t->block_q;
    c->axes[AXIS_BLOCK_KV] = t->block_kv;
    c->axes[AXIS_WG_SIZE] = t->wg_size;
    c->axes[AXIS_WG_COLS] = t->wg_cols;
    c->axes[AXIS_D_SLICE] = t->d_slice;
    c->axes[AXIS_V_SLICE] = t->v_slice;
    c->axes[AXIS_Q_RESIDENT] = t->q_resident;
    c->work_group_size = t->wg_size;
}

static clattn_status no_tile(const char *kernel, const problem *p, const device_profile *d, int nth)
{
    return clattn__fail(CLATTN_STATUS_UNSUPPORTED, 0,
                        "%s has no%s tile for head_dim_qk %" PRId64 ", head_dim_v %" PRId64 " in %" PRId64
                        " bytes of local memory and %" PRId64 " work-items",
                        kernel, nth ? " further" : "", p->head_dim_qk, p->head_dim_v, d->local_bytes,
                        d->max_work_group_size);
}

/* The axis AHEAD: NVIDIA's engines come with asynchronous copies, their emulation with plain ones. */
static int ahead_of(const problem *p, const device_profile *d)
{
    if (p->dtype != CLATTN_DTYPE_F32) return 0;
    return d->engine == ENGINE_MMA_SYNC || d->engine == ENGINE_WGMMA ? 2 : d->engine == ENGINE_EMULATED ? 1 : 0;
}

/* *is_last: the table has no further tile. */
static clattn_status choose_attn_fwd(const problem *p, const device_profile *d, const clattn_plan_options *o, int nth,
                                     device_choice *c, bool *is_last)
{
    const int64_t block_q = o->block_q ? block_of(o->block_q, 0, p->n_q, 1, ROWS_MAX) : 0;
    const int64_t block_kv = o->block_kv ? block_of(o->block_kv, 0, p->n_kv, 1, ROWS_MAX) : 0;
    const int real_size = p->dtype == CLATTN_DTYPE_F64 ? 8 : 4;
    clattn__tile t;
    const int how = ahead_of(p, d);
    const bool may_ahead =
        how && clattn__tile_pick_ahead(p->head_dim_qk, p->head_dim_v, d->local_bytes, d->max_work_group_size, &t) &&
        (!block_q || block_q == t.block_q) && (!block_kv || block_kv == t.block_kv);
    const bool ahead = may_ahead && nth == 0;
    *is_last = true;
    if (!ahead && !clattn__tile_pick(p->head_dim_qk, p->head_dim_v, real_size, d->local_bytes, d->max_work_group_size,
                                     block_q, block_kv, nth - may_ahead, &t))
        return no_tile("attn_fwd", p, d, nth);
    c->axes[AXIS_AHEAD] = ahead ? how : 0;
    *is_last = false;
    const int64_t rows = (int64_t)t.block_q * t.wg_cols / t.wg_size;
    const int64_t columns = (p->head_dim_v + 4 * t.wg_cols - 1) / (4 * t.wg_cols) * 4;
    RETURN_IF(rows * columns * real_size > ATTN_FWD_PRIVATE_MOST, UNSUPPORTED,
              "attn_fwd with head_dim_v %" PRId64 " and %d work-items keeps %" PRId64
              " bytes of O in each; it may keep %d",
              p->head_dim_v, t.wg_size, rows * columns * real_size, ATTN_FWD_PRIVATE_MOST);
    set_tile(c, &t);
    c->local_bytes =
        clattn__tile_local_bytes(&t, p->head_dim_qk, p->head_dim_v, ahead) + (int64_t)sizeof(int32_t) * p->has_mask;
    add_stage(c, "attn_fwd", div_up(p->n_q, t.block_q), p->batch * p->n_heads_q, t.wg_size, 0);
    return CLATTN_STATUS_SUCCESS;
}

/* There is an engine for attn_fwd_mma. */
static bool has_mma(const device_profile *d) { return d->engine != ENGINE_NONE && !engine_is_lanes(d->engine); }

/* attn_fwd_mma takes 16-bit elements and heads whose rows fit in registers. */
static bool suits_mma(const problem *p)
{
    return clattn_dtype_size(p->dtype) == 2 && p->head_dim_qk <= MMA_HEAD_DIM_MAX && p->head_dim_v <= MMA_HEAD_DIM_MAX;
}

static clattn_status choose_attn_fwd_mma(const problem *p, const device_profile *d, const clattn_plan_options *o,
                                         int nth, device_choice *c, bool *is_last)
{
    const int64_t block_q = o->block_q ? block_of(o->block_q, 0, p->n_q, 1, ROWS_MAX) : 0;
    const int64_t block_kv = o->block_kv ? block_of(o->block_kv, 0, p->n_kv, 1, ROWS_MAX) : 0;
    const matrix_engine engine = has_mma(d) ? d->engine : ENGINE_EMULATED;
    clattn__tile t;
    *is_last = true;
    RETURN_IF(clattn_dtype_size(p->dtype) != 2, UNSUPPORTED, "dtype is %s; attn_fwd_mma takes f16 and bf16",
              clattn_dtype_name(p->dtype));
    RETURN_IF(!suits_mma(p), UNSUPPORTED,
              "head_dim_qk is %" PRId64 " and head_dim_v %" PRId64 "; attn_fwd_mma takes up to %d", p->head_dim_qk,
              p->head_dim_v, MMA_HEAD_DIM_MAX);
    if (!clattn__tile_pick_mma(p->head_dim_qk, p->head_dim_v, engine, d->local_bytes, d->max_work_group_size, block_q,
                               block_kv, nth, &t))
        return no_tile("attn_fwd_mma", p, d, nth);
    *is_last = false;
    set_tile(c, &t);
    c->axes[AXIS_MMA] = (int)engine;
    c->local_bytes = clattn__tile_mma_local_bytes(&t, p->head_dim_qk, p->head_dim_v, engine);
    add_stage(c, "attn_fwd_mma", div_up(p->n_q, t.block_q), p->batch * p->n_heads_q, t.wg_size, 0);
    return CLATTN_STATUS_SUCCESS;
}

/* ---- backward */

int clattn__plan_backward_splits(const problem *p, int64_t block_kv, int64_t dq_bytes, int64_t *entries)
{
    const int64_t tiles = div_up(p->n_kv, block_kv), bytes = dq_bytes * p->n_heads_kv;
    int n = 1;
    while (p->n_heads_kv * n < SPLITS_WANTED && 2 * n <= tiles && 2 * n * bytes <= SPLITS_BYTES_MOST) n *= 2;
    *entries = bytes ? SPLITS_BYTES_MOST / (n * bytes) : p->batch;
    if (*entries > p->batch) *entries = p->batch;
    if (*entries < 1) *entries = 1;
    return n;
}

#define WANTS(name) (1u << GRADIENT_##name)

static int64_t small_group(const device_profile *d)
{
    return d->max_work_group_size < SMALL_GROUP ? d->max_work_group_size : SMALL_GROUP;
}

/* The kernels of a call: delta, the way's own, dbias, and what is one number a head. */
static clattn_status choose_backward(const problem *p, const device_profile *d, device_choice *c)
{
    const int64_t small = small_group(d), heads_q = p->batch * p->n_heads_q, heads_kv = p->batch * p->n_heads_kv;
    const int64_t q_tiles = div_up(p->n_q, c->axes[AXIS_BLOCK_Q]), kv_tiles = div_up(p->n_kv, c->axes[AXIS_BLOCK_KV]);
    const int64_t real_size = p->dtype == CLATTN_DTYPE_F64 ? 8 : 4, wg = c->work_group_size;
    const bool lanes = c->kernel == CLATTN_KERNEL_ATTN_BWD_LANES;
    const unsigned all = (1u << GRADIENT_COUNT) - 1, keys = WANTS(DK) | WANTS(DV), slopes = WANTS(DALIBI);
    const unsigned storage = AXIS_BIT(STORAGE) | AXIS_BIT(VARLEN);
    const unsigned columns = AXIS_BIT(HEAD_DIM_QK) | AXIS_BIT(HEAD_DIM_V);
    const unsigned blocks = AXIS_BIT(BLOCK_Q) | AXIS_BIT(BLOCK_KV);
    const unsigned local =
        AXIS_BIT(WG_SIZE) | AXIS_BIT(WG_COLS) | AXIS_BIT(D_SLICE) | AXIS_BIT(V_SLICE) | AXIS_BIT(Q_RESIDENT);
    const int64_t lane_count = p->dtype == CLATTN_DTYPE_F64 ? 8 : 16;
    const int64_t row = div_up(p->head_dim_qk, lane_count) * lane_count * real_size;
    int64_t dq_bytes = 0, bytes; /* of one kv head's share */
    bool fits = !__builtin_mul_overflow(q_tiles * c->axes[AXIS_BLOCK_Q] * row, p->gqa_group, &dq_bytes) &&
                !__builtin_mul_overflow(dq_bytes, 2 * SPLITS_WANTED * p->n_heads_kv, &bytes);
    c->n_splits = 1;
    if (lanes && fits) {
        c->n_splits = clattn__plan_backward_splits(p, c->axes[AXIS_BLOCK_KV], dq_bytes, &c->entries_in_turn);
        c->partials_of_entry = dq_bytes / real_size * p->n_heads_kv * c->n_splits;
    }
    c->n_slope_parts = p->n_q == 0 ? 0 : lanes ? c->n_splits : (int)q_tiles;
    const int64_t slope_parts = p->alibi ? c->n_slope_parts : 0;
    fits = fits && !__builtin_mul_overflow(heads_q, p->n_q + slope_parts, &bytes) && bytes <= d->max_alloc_bytes;
    c->slopes_at = heads_q * p->n_q;
    c->partials_at = fits ? div_up(c->slopes_at + heads_q * slope_parts, 16) * 16 : 0;
    fits = fits && !__builtin_mul_overflow(c->partials_of_entry, c->entries_in_turn, &bytes) &&
           !__builtin_add_overflow(bytes, c->partials_at, &bytes) &&
           !__builtin_mul_overflow(bytes, real_size, &c->workspace_bytes);
    RETURN_IF(!fits || c->workspace_bytes > d->max_alloc_bytes, UNSUPPORTED,
              "%s would keep sums of %" PRId64 " rows of %" PRId64 " heads; %s allocates at most %" PRId64
              " bytes at once",
              clattn_kernel_name(c->kernel), p->n_q, heads_q, d->name, d->max_alloc_bytes);
    if (!c->workspace_bytes) c->workspace_bytes = real_size; /* so that there is a buffer */

    if (p->n_q == 0) {
        const int64_t *count = p->tensor[TENSOR_K].count;
        add_stage(c, "attn_bwd_zero", 1, div_up(count[0] * count[1] * count[2], small), small, keys)->axes =
            storage | columns;
    } else {
        add_stage(c, "attn_bwd_delta", 1, div_up(heads_q * p->n_q, small), small, all)->axes =
            storage | AXIS_BIT(HEAD_DIM_V);
        const int first = c->n_stages;
        if (lanes) {
            add_stage(c, "attn_bwd_lanes", c->n_splits, heads_kv, wg, WANTS(DQ) | keys | slopes)->in_turns = true;
            device_stage *dq = add_stage(c, "attn_bwd_dq_lanes", q_tiles, heads_q, wg, WANTS(DQ));
            dq->in_turns = true;
            dq->axes = storage | columns | blocks;
        } else {
            add_stage(c, "attn_bwd", kv_tiles, heads_kv, wg, keys);
            add_stage(c, "attn_bwd_dq", q_tiles, heads_q, wg, WANTS(DQ) | slopes);
        }
        for (int i = first; i < c->n_stages; i++) c->stages[i].axes &= ~AXIS_BIT(SINKS); /* LSE has them */
    }
    if (p->bias_dtype) {
        const tensor_shape own = clattn__gradient_shape(p, GRADIENT_DBIAS);
        const int64_t tiles = div_up(own.count[2], BIAS_TILE) * div_up(own.count[3], BIAS_TILE);
        const int64_t group = d->is_cpu ? 1 : small; /* its loops are vectors already */
        add_stage(c, "attn_bwd_bias", 1, div_up(own.count[0] * own.count[1] * tiles, group), group, WANTS(DBIAS))
            ->axes &= ~(blocks | local | AXIS_BIT(MMA) | AXIS_BIT(SINKS));
    }
    if (p->has_sinks || p->alibi)
        add_stage(c, "attn_bwd_heads", 1, p->alibi == CLATTN_ALIBI_PER_BATCH_AND_HEAD ? heads_q : p->n_heads_q, small,
                  WANTS(DSINKS) | slopes);
    return CLATTN_STATUS_SUCCESS;
}

static int64_t odd_vectors(int64_t dim, int64_t lanes) { return (div_up(dim, lanes) | 1) * lanes; }

/* What cl/backward_lanes.clh keeps in private memory. */
static int64_t backward_lanes_private_bytes(const problem *p, int engine, int64_t block)
{
    const int64_t real_size = p->dtype == CLATTN_DTYPE_F64 ? 8 : 4, lanes = 64 / real_size;
    const int64_t qk = odd_vectors(p->head_dim_qk, lanes), v = odd_vectors(p->head_dim_v, lanes);
    const int64_t pairs = odd_vectors(div_up(p->head_dim_qk, 2), lanes) + odd_vectors(div_up(p->head_dim_v, 2), lanes);
    const int64_t turned = engine ? 2 * pairs + (v + block) / 2 : qk + v; /* of pairs rows and P too */
    return (3 * qk + 2 * v + turned + 3 * block) * block * real_size;
}

static clattn_status choose_backward_lanes(const problem *p, const device_profile *d, const clattn_plan_options *o,
                                           device_choice *c)
{
    const int64_t asked = o->block_kv ? o->block_kv : o->block_q;
    int64_t block = block_of(asked, BACKWARD_LANES_BLOCK, BACKWARD_LANES_BLOCK, 16, BACKWARD_LANES_BLOCK);
    int engine = lanes_engine(p, d);
    if (backward_lanes_private_bytes(p, engine, 16) > LANES_PRIVATE_MOST) engine = ENGINE_NONE; /* needs less */
    while (block > 16 && backward_lanes_private_bytes(p, engine, block) > LANES_PRIVATE_MOST) block -= 16;
    const int64_t bytes = backward_lanes_private_bytes(p, engine, block);
    RETURN_IF(bytes > LANES_PRIVATE_MOST, UNSUPPORTED,
              "attn_bwd_lanes with head_dim_qk %" PRId64 ", head_dim_v %" PRId64 " and tiles of %" PRId64
              " needs %" PRId64 " bytes of private memory; it may use %d",
              p->head_dim_qk, p->head_dim_v, block, bytes, LANES_PRIVATE_MOST);
    c->axes[AXIS_BLOCK_Q] = c->axes[AXIS_BLOCK_KV] = (int)block;
    c->axes[AXIS_MMA] = engine;
    c->work_group_size = 1;
    return choose_backward(p, d, c);
}

/* *is_last: the table has no further tile. */
static clattn_status choose_attn_bwd(const problem *p, const device_profile *d, const clattn_plan_options *o, int nth,
                                     device_choice *c, bool *is_last)
{
    const int64_t small = d->is_cpu ? CPU_DEVICE_BLOCK : 0;
    const int64_t block = o->block_q ? o->block_q : o->block_kv ? o->block_kv : small;
    const int real_size = p->dtype == CLATTN_DTYPE_F64 ? 8 : 4;
    clattn__tile t;
    *is_last = true;
    if (!clattn__tile_pick_backward(p->head_dim_qk, p->head_dim_v, real_size, d->local_bytes, d->max_work_group_size,
                                    block, nth, &t))
        return no_tile("attn_bwd", p, d, nth);
    *is_last = false;
    set_tile(c, &t);
    c->local_bytes =
        clattn__tile_backward_local_bytes(&t, p->head_dim_qk, p->head_dim_v) + (int64_t)sizeof(int32_t) * p->has_mask;
    return choose_backward(p, d, c);
}

/* What of each tensor a share has, in a buffer of its own. s NULL: all. */
static clattn_status check_allocations(const problem *p, const device_profile *d, const share *s)
{
    for (tensor_name i = 0; i < TENSOR_COUNT; i++) {
        const tensor_shape part = s ? clattn__share_part(p, s, i).shape : p->tensor[i], *t = &part;
        const int64_t bytes = clattn__tensor_copy_bytes(t);
        RETURN_IF(bytes > d->max_alloc_bytes, UNSUPPORTED,
                  "%s has %" PRId64 " x %" PRId64 " x %" PRId64 " x %" PRId64 " elements; %s allocates at most %" PRId64
                  " bytes at once",
                  clattn__tensor_names[i], t->count[0], t->count[1], t->count[2], t->count[3], d->name,
                  d->max_alloc_bytes);
    }
    return CLATTN_STATUS_SUCCESS;
}

/* The nth variant of c->kernel. */
static clattn_status choose_kernel(const problem *p, const device_profile *d, const clattn_plan_options *o, int nth,
                                   device_choice *c, bool *is_last)
{
    if (c->kernel == CLATTN_KERNEL_ATTN_FWD) return choose_attn_fwd(p, d, o, nth, c, is_last);
    if (c->kernel == CLATTN_KERNEL_ATTN_BWD) return choose_attn_bwd(p, d, o, nth, c, is_last);
    if (c->kernel == CLATTN_KERNEL_ATTN_FWD_MMA) return choose_attn_fwd_mma(p, d, o, nth, c, is_last);
    *is_last = true;
    RETURN_IF(nth > 0, UNSUPPORTED, "%s has one variant", clattn_kernel_name(c->kernel));
    if (c->kernel == CLATTN_KERNEL_ATTN_DECODE_LANES) return choose_decode_lanes(p, d, o, c);
    if (c->kernel == CLATTN_KERNEL_ATTN_DECODE) return choose_decode(p, d, o, c);
    return c->kernel == CLATTN_KERNEL_ATTN_BWD_LANES ? choose_backward_lanes(p, d, o, c) : choose_lanes(p, d, o, c);
}

static clattn_status choose(const problem *p, const device_profile *d, const clattn_plan_options *o, int nth,
                            device_choice *c, bool *is_last)
{
    *is_last = true;
    *c = (device_choice){.kernel = o->kernel};
    FORWARD(check_reach(p));
    RETURN_IF(p->batch > d->max_alloc_bytes / (2 * (int64_t)sizeof(int64_t)), UNSUPPORTED,
              "batch is %" PRId64 "; %s allocates at most %" PRId64 " bytes at once", p->batch, d->name,
              d->max_alloc_bytes);
    RETURN_IF((p->dtype == CLATTN_DTYPE_F64 || p->bias_dtype == CLATTN_DTYPE_F64) && !d->has_fp64, UNSUPPORTED,
              "%s is f64; %s has no fp64", p->dtype == CLATTN_DTYPE_F64 ? "dtype" : "bias.dtype", d->name);
    RETURN_IF(p->score_function.host && !p->score_function.source, UNSUPPORTED,
              "score_function.source is NULL; the device path needs it");
    const bool backward = o->pass == CLATTN_PASS_BACKWARD;
    RETURN_IF(backward && p->score_function.source && !p->score_function.source_derivative, UNSUPPORTED,
              "score_function.source_derivative is NULL; backward needs it on the device path");
    if (backward) FORWARD(check_allocations(p, d, NULL));
    c->axes[AXIS_STORAGE] = (int)p->dtype;
    c->axes[AXIS_HEAD_DIM_QK] = (int)p->head_dim_qk;
    c->axes[AXIS_HEAD_DIM_V] = (int)p->head_dim_v;
    c->axes[AXIS_BAND] = p->window_left >= 0 || p->window_right >= 0;
    c->axes[AXIS_BIAS] = (int)p->bias_dtype;
    c->axes[AXIS_MASK] = p->has_mask;
    c->axes[AXIS_SOFTCAP] = p->softcap > 0;
    c->axes[AXIS_ALIBI] = p->alibi != CLATTN_ALIBI_NONE;
    c->axes[AXIS_SCORE_FN] = p->score_function.source != NULL;
    c->axes[AXIS_SINKS] = p->has_sinks;
    c->axes[AXIS_DROPOUT] = p->dropout > 0;
    c->axes[AXIS_VARLEN] = p->varlen;
    c->pass = o->pass;
    c->score_source = p->score_function.source;
    c->score_derivative = backward ? p->score_function.source_derivative : NULL;
    /* AUTO: a decode kernel for few rows; the matrix engine where there is one; on a CPU device the lanes
     * kernel; and should that fail the tiles in local memory. Of each a table's block sizes first. */
    const bool is_auto = o->kernel == CLATTN_KERNEL_AUTO;
    const clattn_kernel lanes = backward ? CLATTN_KERNEL_ATTN_BWD_LANES : CLATTN_KERNEL_ATTN_FWD_LANES;
    const clattn_kernel tiles = backward ? CLATTN_KERNEL_ATTN_BWD : CLATTN_KERNEL_ATTN_FWD;
    const bool auto_lanes = is_auto && clattn__plan_device_kernel(d, o->pass) == lanes;
    const bool decode = is_auto && !backward && decode_rows(p) <= DECODE_ROWS_MOST && p->n_kv >= DECODE_KEYS_LEAST;
    const bool mma = is_auto && !backward && has_mma(d) && suits_mma(p);
    const struct {
        clattn_kernel kernel;
        bool is_wanted;
    } order[] = {{CLATTN_KERNEL_ATTN_DECODE_LANES, decode && auto_lanes},
                 {CLATTN_KERNEL_ATTN_DECODE, decode && !auto_lanes},
                 {CLATTN_KERNEL_ATTN_FWD_MMA, mma},
                 {lanes, auto_lanes},
                 {tiles, is_auto}};
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        if (!order[i].is_wanted && o->kernel != order[i].kernel) continue;
        const bool ends = !is_auto || order[i].kernel == tiles;
        clattn_plan_options tuned = *o;
        c->kernel = order[i].kernel;
        if (!o->block_q && !o->block_kv && clattn__tuning_tile(d, p, c->kernel, &tuned.block_q, &tuned.block_kv) &&
            nth-- == 0) {
            c->is_tuned = true;
            *is_last = false;
            bool of_these;
            return choose_kernel(p, d, &tuned, 0, c, &of_these);
        }
        if (!ends && nth-- > 0) continue;
        const clattn_status status = choose_kernel(p, d, o, ends ? nth : 0, c, is_last);
        *is_last = *is_last && ends;
        return status;
    }
    return clattn__fail(CLATTN_STATUS_UNSUPPORTED, 0, "%s runs no %s on a device", clattn_kernel_name(o->kernel),
                        backward ? "backward" : "forward");
}

bool clattn__plan_in_place(const problem *p, const device_profile *d)
{
    bool fits = d->shares_host_memory;
    for (tensor_name i = 0; i < TENSOR_COUNT; i++) fits = fits && p->tensor[i].bytes <= d->max_alloc_bytes;
    return fits;
}

/* By multiply-adds as if no mask hid anything; a backward pass has seven products where forward has two. */
static void cut_launches(const problem *p, const device_profile *d, device_choice *c)
{
    const double rows = (double)p->batch * (double)p->n_heads_q * (double)p->n_q;
    const double work =
        rows * (double)p->n_kv * (double)(p->head_dim_qk + p->head_dim_v) * (c->pass == CLATTN_PASS_BACKWARD ? 3.5 : 1);
    const bool by_engine =
        c->kernel == CLATTN_KERNEL_ATTN_FWD_MMA && !clattn__engine_is_emulated((matrix_engine)c->axes[AXIS_MMA]);
    const double most = (double)d->launch_work * (by_engine ? ENGINE_SPEED : 1);
    const int64_t n = most > 0 && work > most ? (int64_t)ceil(work / most) : 1;
    for (device_stage *s = c->stages; s < c->stages + c->n_stages; s++) {
        const int64_t even = div_up(s->groups, n), least = d->launch_groups > 1 ? d->launch_groups : 1;
        const int64_t wanted = even > least ? even : least, fits = LAUNCH_ITEMS / s->work_group_size;
        s->launch_groups = wanted < fits ? wanted : fits;
    }
}

clattn_status clattn__plan_check_copies(const problem *p, const device_profile *d, const device_choice *c)
{
    const tensor_shape *o = &p->tensor[TENSOR_O];
    const bool in_place = clattn__plan_in_place(p, d);
    if (c->pass == CLATTN_PASS_FORWARD)
        return c->cut.n_shares || (in_place && o->gapless)
                   ? CLATTN_STATUS_SUCCESS
                   : clattn__plan_cut_refuse(&c->cut, d, CLATTN_STATUS_UNSUPPORTED);
    const int64_t without_d_o = c->cut.share_bytes + c->cut.common_bytes;
    RETURN_IF(!in_place && without_d_o > c->cut.bytes_most - clattn__tensor_copy_bytes(o), UNSUPPORTED,
              "what gradients come from takes %" PRId64 " bytes of copies and work space, and dO; %s may hold %" PRId64
              " at a time",
              without_d_o, d->name, c->cut.bytes_most);
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__plan_device(const problem *p, const device_profile *d, const clattn_plan_options *o, int nth,
                                  device_choice *c, bool *is_last)
{
    FORWARD(choose(p, d, o, nth, c, is_last));
    cut_launches(p, d, c);
    clattn__plan_cut(p, d, c);
    if (c->cut.n_shares) return CLATTN_STATUS_SUCCESS;
    const share least = clattn__share_of(p, &c->cut, 0);
    const clattn_status status = check_allocations(p, d, &least);
    if (status == CLATTN_STATUS_SUCCESS && d->shares_host_memory) return status; /* a call that must copy finds out */
    /* The shipped sizes may fit, and a kernel without work space; a smaller tile would too, and give other bits. */
    if (!c->is_tuned && !c->workspace_bytes) *is_last = true;
    return status == CLATTN_STATUS_SUCCESS ? clattn__plan_cut_refuse(&c->cut, d, CLATTN_STATUS_UNSUPPORTED) : status;
}
