/* Which tiles attn_fwd tries, best first, and attn_bwd further down. A head dimension uses the rows of the smallest
 * class that holds it, then those of the class that holds any. From sizes that compile for sm_90 without a spill
 * (182 registers at d = 64, 238 at 128) down to what 16 KiB of local memory and 64 work-items allow; the last row of
 * a type is for devices that allow neither. */
#include "tile_table.h"

#include <limits.h>
#include <stddef.h>

#define ANY_DIM INT_MAX
#define BLOCK_STEP 16 /* forced block sizes are multiples of it */
#define BLOCK_MOST 128
#define WG_LEAST 64 /* for forced block sizes, where the tile allows it */
#define WG_MOST 256
#define LOCAL_BYTES_USUAL (48 << 10) /* a row of the table that wants more is for devices with room for three */

/* clang-format off */
static const clattn__tile tiles[] = {
    /* up to     real  BLOCK_Q BLOCK_KV  WG_SIZE WG_COLS  D_SLICE V_SLICE  Q_RESIDENT     KiB of local memory */
    { 64,        4,    64,     64,       128,    8,       64,     64,      1 },        /* 53 */
    { 64,        4,    64,     64,       128,    8,       32,     64,      0 },        /* 37 */
    { 64,        4,    64,     64,       128,    8,       16,     32,      0 },        /* 29 */
    { 64,        4,    32,     32,       64,     8,       32,     32,      0 },        /* 14.5 */
    { 128,       4,    64,     64,       128,    8,       32,     32,      0 },        /* 37 */
    { 128,       4,    64,     64,       128,    8,       16,     16,      0 },        /* 29 */
    { 128,       4,    32,     32,       64,     8,       16,     16,      0 },        /* 13.5 */
    { 256,       4,    64,     64,       256,    16,      32,     16,      0 },        /* 39 */
    { 256,       4,    64,     64,       256,    16,      16,     8,       0 },        /* 31 */
    { 256,       4,    32,     32,       128,    16,      16,     8,       0 },        /* 14.5 */
    { 256,       4,    32,     32,       64,     8,       16,     8,       0 },        /* 13.5 */
    { 512,       4,    32,     64,       256,    32,      32,     8,       0 },        /* 28.5 */
    { 512,       4,    16,     32,       128,    32,      16,     4,       0 },        /* 12.3 */
    { 512,       4,    16,     32,       64,     16,      16,     4,       0 },        /* 11.3 */
    { 1024,      4,    16,     32,       256,    32,      32,     8,       0 },        /* 36.3 */
    { 1024,      4,    16,     32,       256,    32,      32,     4,       0 },        /* 20.3 */
    { 1024,      4,    16,     32,       64,     16,      16,     4,       0 },        /* 19.3 */
    { ANY_DIM,   4,    16,     32,       256,    32,      16,     4,       0 },        /* the rest grow with the dim */
    { ANY_DIM,   4,    16,     16,       64,     8,       8,      4,       0 },
    { ANY_DIM,   4,    16,     16,       16,     4,       8,      4,       0 },
    { 64,        8,    32,     32,       64,     8,       16,     32,      0 },        /* 27 */
    { 64,        8,    16,     32,       64,     8,       16,     16,      0 },        /* 13.5 */
    { 128,       8,    32,     32,       128,    16,      16,     16,      0 },        /* 29 */
    { 128,       8,    16,     32,       64,     8,       16,     8,       0 },        /* 13.5 */
    { 256,       8,    32,     32,       256,    16,      16,     8,       0 },        /* 29 */
    { 256,       8,    16,     32,       128,    16,      8,      4,       0 },        /* 14.5 */
    { 256,       8,    16,     32,       64,     8,       8,      4,       0 },        /* 13.5 */
    { 512,       8,    16,     32,       256,    32,      16,     4,       0 },        /* 24.5 */
    { 512,       8,    16,     32,       128,    16,      16,     4,       0 },        /* 22.5 */
    { 512,       8,    16,     32,       64,     8,       16,     4,       0 },        /* 21.5 */
    { 1024,      8,    16,     32,       256,    32,      16,     4,       0 },        /* 40.5 */
    { 1024,      8,    16,     16,       128,    16,      16,     4,       0 },        /* 36.5 */
    { ANY_DIM,   8,    16,     32,       256,    32,      16,     4,       0 },
    { ANY_DIM,   8,    16,     16,       64,     8,       8,      4,       0 },
    { ANY_DIM,   8,    16,     16,       16,     4,       8,      4,       0 },
};

/* With slices copied ahead, for compute capability 8.0 and up: two work-groups have all of its registers. */
static const clattn__tile ahead_tiles[] = {
    { 64,        4,    64,     64,       128,    8,       64,     64,      1 },        /* 70 */
    { 128,       4,    64,     64,       128,    8,       64,     32,      1 },        /* 86 */
};
/* clang-format on */
#define N_TILES ((int)(sizeof tiles / sizeof tiles[0]))
#define N_AHEAD_TILES ((int)(sizeof ahead_tiles / sizeof ahead_tiles[0]))

static int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }
static int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t pitch4(int64_t width) { return width / 4 | 1; }

int64_t clattn__tile_local_bytes(const clattn__tile *t, int64_t head_dim_qk, int64_t head_dim_v, bool ahead)
{
    const int64_t q = t->block_q * pitch4(t->q_resident ? round_up(head_dim_qk, t->d_slice) : t->d_slice);
    const int64_t k = t->block_kv * pitch4(t->d_slice);
    const int64_t v = t->v_slice * (round_up(head_dim_v, 4 * (int64_t)t->wg_cols) / 4);
    const int64_t place = max_of((t->q_resident ? 0 : q) + k, v);
    const int64_t p = t->block_q * pitch4(t->block_kv);
    const int64_t row_part = (int64_t)t->block_q * t->wg_cols / 4;
    return 4 * (int64_t)t->real_size * ((t->q_resident ? q : 0) + (ahead ? 2 : 1) * place + p + row_part);
}

/* Gives t the block sizes asked for, keeping as near as it can to t's own rows and columns per work-item. 0 when that
 * takes more than max_wg work-items. */
static int set_blocks(clattn__tile *t, int block_q, int block_kv, int64_t max_wg)
{
    int tile_m = t->block_q / (t->wg_size / t->wg_cols);
    while (block_kv % t->wg_cols != 0 && t->wg_cols > BLOCK_STEP) {
        t->wg_cols /= 2;
        tile_m = tile_m > 1 ? tile_m / 2 : 1;
    }
    if (block_kv % t->wg_cols != 0) return 0;
    while (block_kv % t->v_slice != 0) t->v_slice /= 2;
    while (tile_m > 1 && (block_q % tile_m != 0 || block_q / tile_m * t->wg_cols < WG_LEAST)) tile_m /= 2;
    while (block_q / tile_m * t->wg_cols > (max_wg < WG_MOST ? max_wg : WG_MOST)) {
        tile_m *= 2;
        if (block_q % (2 * tile_m) != 0) /* work-items stand in pairs of rows */
            return 0;
    }
    t->block_q = block_q;
    t->block_kv = block_kv;
    t->wg_size = block_q / tile_m * t->wg_cols;
    return t->wg_size % 16 == 0 && t->wg_size % (2 * t->wg_cols) == 0;
}

/* Narrower slices where wide ones would stage many columns that the head does not have. */
static void trim_slice(clattn__tile *t, int64_t head_dim)
{
    while (t->d_slice > 4 && t->d_slice % 8 == 0 &&
           8 * (round_up(head_dim, t->d_slice) - round_up(head_dim, t->d_slice / 2)) >= head_dim)
        t->d_slice /= 2;
}

const clattn__tile *clattn__tile_pick_ahead(int64_t head_dim_qk, int64_t head_dim_v, int64_t local_bytes,
                                            int64_t max_wg, clattn__tile *out)
{
    const int64_t head_dim = max_of(head_dim_qk, head_dim_v);
    for (int i = 0; i < N_AHEAD_TILES; i++) {
        clattn__tile t = ahead_tiles[i];
        if (head_dim > t.head_dim_max || t.wg_size > max_wg) continue;
        trim_slice(&t, head_dim_qk);
        if (2 * clattn__tile_local_bytes(&t, head_dim_qk, head_dim_v, true) > local_bytes) continue;
        *out = t;
        return out;
    }
    return NULL;
}

/* The class of rows of a table that serves this head dimension first. */
static int class_of(const clattn__tile *table, int n, int64_t head_dim, int real_size)
{
    int least = ANY_DIM;
    for (int i = 0; i < n; i++)
        if (table[i].real_size == real_size && table[i].head_dim_max >= head_dim && table[i].head_dim_max < least)
            least = table[i].head_dim_max;
    return least;
}

static int64_t legal_block(int64_t block, int64_t step)
{
    return block <= 0 ? 0 : block >= BLOCK_MOST ? BLOCK_MOST : round_up(block, step);
}

const clattn__tile *clattn__tile_pick(int64_t head_dim_qk, int64_t head_dim_v, int real_size, int64_t local_bytes,
                                      int64_t max_wg, int64_t block_q, int64_t block_kv, int skip, clattn__tile *out)
{
    const int64_t head_dim = max_of(head_dim_qk, head_dim_v);
    if (head_dim_qk < 1 || head_dim_v < 1 || head_dim > (1 << 20)) /* past that no local memory holds a row of V */
        return NULL;
    const int first_class = class_of(tiles, N_TILES, head_dim, real_size);
    int64_t bq = legal_block(block_q, BLOCK_STEP), bkv = legal_block(block_kv, BLOCK_STEP);
    for (;;) {
        for (int i = 0; i < N_TILES; i++) {
            clattn__tile t = tiles[i];
            if (t.real_size != real_size || (t.head_dim_max != first_class && t.head_dim_max != ANY_DIM)) continue;
            trim_slice(&t, head_dim_qk);
            if ((bq != 0 || bkv != 0) &&
                !set_blocks(&t, bq != 0 ? (int)bq : t.block_q, bkv != 0 ? (int)bkv : t.block_kv, max_wg))
                continue;
            const int64_t bytes = clattn__tile_local_bytes(&t, head_dim_qk, head_dim_v, false);
            if (t.wg_size > max_wg || bytes > local_bytes) continue;
            if (!bq && !bkv && bytes > LOCAL_BYTES_USUAL && bytes > local_bytes / 3) continue;
            if (skip-- > 0) continue;
            *out = t;
            return out;
        }
        if (bq <= BLOCK_STEP && bkv <= BLOCK_STEP) return NULL;
        *(bq >= bkv ? &bq : &bkv) -= BLOCK_STEP; /* what was forced does not fit: the next smaller one */
    }
}

/* ---- attn_fwd_mma */

bool clattn__engine_is_emulated(matrix_engine engine)
{
    return engine == ENGINE_EMULATED || engine == ENGINE_EMULATED_MFMA || engine == ENGINE_EMULATED_DPAS ||
           engine == ENGINE_EMULATED_WMMA_GFX11 || engine == ENGINE_EMULATED_WMMA_GFX12 ||
           engine == ENGINE_EMULATED_PAIRS;
}

static bool is_mfma(matrix_engine engine) { return engine == ENGINE_MFMA || engine == ENGINE_EMULATED_MFMA; }
static bool is_dpas(matrix_engine engine) { return engine == ENGINE_DPAS || engine == ENGINE_EMULATED_DPAS; }

/* cl/tile_mma*.clh: a tile of so many rows, in elements. */
static int64_t mma_tile_size(int64_t rows, int64_t head_dim, matrix_engine engine)
{
    return engine == ENGINE_WGMMA ? rows * round_up(head_dim, 64) : rows * (round_up(head_dim, 16) + 8);
}

int64_t clattn__tile_mma_local_bytes(const clattn__tile *t, int64_t head_dim_qk, int64_t head_dim_v,
                                     matrix_engine engine)
{
    const int64_t kv = mma_tile_size(t->block_kv, head_dim_qk, engine) + mma_tile_size(t->block_kv, head_dim_v, engine);
    const int64_t q = mma_tile_size(t->block_q, head_dim_qk, engine), p = (int64_t)t->block_q * t->block_kv;
    const int64_t fragments = (round_up(head_dim_qk, 16) + t->block_kv) / 16 * t->wg_size;
    const int64_t shared = fragments + t->block_q * (is_dpas(engine) ? 4 : 1); /* numbers of a row: 16, or 4 */
    return 4 * max_of(kv, max_of(q, p)) + 16 * (clattn__engine_is_emulated(engine) ? shared : 1) +
           3 * (int64_t)sizeof(int32_t);
}

const clattn__tile *clattn__tile_pick_mma(int64_t head_dim_qk, int64_t head_dim_v, matrix_engine engine,
                                          int64_t local_bytes, int64_t max_wg, int64_t block_q, int64_t block_kv,
                                          int skip, clattn__tile *out)
{
    /* Up to a head dim of 64, whose registers leave room for two work-groups of 128 rows, and beyond. */
    static const int by_warp[][6][2] = {{{128, 64}, {64, 64}, {64, 32}, {32, 32}, {16, 16}},
                                        {{64, 64}, {64, 32}, {32, 32}, {16, 16}}};
    static const int by_sub_group[][6][2] = {{{128, 32}, {64, 32}, {32, 32}, {16, 16}},
                                             {{128, 16}, {64, 16}, {32, 16}, {16, 16}}};
    static const int by_warpgroup[][6][2] = {{{128, 64}, {64, 64}}, {{128, 128}, {128, 64}, {64, 64}}};
    const int64_t step = engine == ENGINE_WGMMA ? 64 : BLOCK_STEP, head_dim = max_of(head_dim_qk, head_dim_v);
    const bool is_wide = head_dim > 64 || is_mfma(engine) || (clattn__engine_is_emulated(engine) && !is_dpas(engine));
    const int(*blocks)[2] = is_dpas(engine)          ? by_sub_group[is_wide]
                            : engine == ENGINE_WGMMA ? by_warpgroup[is_wide]
                                                     : by_warp[is_wide];
    const int64_t bq = legal_block(block_q, step), bkv = legal_block(block_kv, step);
    if (head_dim_qk < 1 || head_dim_v < 1 || head_dim > MMA_HEAD_DIM_MAX) return NULL;
    int seen_q = 0, seen_kv = 0;
    for (int i = 0; blocks[i][0]; i++) {
        clattn__tile t = {.head_dim_max = MMA_HEAD_DIM_MAX,
                          .real_size = 4,
                          .block_q = blocks[i][0],
                          .block_kv = blocks[i][1],
                          .wg_cols = 4};
        if (bq && (i == 0 || bq < t.block_q)) t.block_q = (int)bq; /* what was forced does not fit: smaller ones */
        if (bkv && (i == 0 || bkv < t.block_kv)) t.block_kv = (int)bkv;
        t.wg_size = (is_mfma(engine) ? 4 : 2) * t.block_q;
        if (t.block_q == seen_q && t.block_kv == seen_kv) continue;
        seen_q = t.block_q;
        seen_kv = t.block_kv;
        if (t.wg_size > max_wg || clattn__tile_mma_local_bytes(&t, head_dim_qk, head_dim_v, engine) > local_bytes)
            continue;
        if (skip-- > 0) continue;
        *out = t;
        return out;
    }
    return NULL;
}

/* ---- attn_bwd and attn_bwd_dq */

/* Chosen as above. The registers are those of attn_bwd and attn_bwd_dq compiled for sm_90 with a band, f32 and f16;
 * none spills. */
/* clang-format off */
static const clattn__tile backward_tiles[] = {
    /* up to     real  BLOCK_Q BLOCK_KV  WG_SIZE WG_COLS  D_SLICE V_SLICE  Q_RESIDENT     KiB; registers f32, f16 */
    { 64,        4,    64,     64,       128,    8,       32,     64,      0 },        /* 35 */
    { 64,        4,    64,     64,       256,    16,      16,     32,      0 },        /* 27;   161 128, 128 128 */
    { 64,        4,    32,     32,       64,     8,       32,     32,      0 },        /* 13.5; 255 163, 255 168 */
    { 128,       4,    64,     64,       256,    16,      32,     32,      0 },        /* 35;   255 130, 245 168 */
    { 128,       4,    64,     64,       256,    16,      16,     16,      0 },        /* 27 */
    { ANY_DIM,   4,    64,     64,       256,    16,      32,     16,      0 },        /* 35;   255 168, 255 168 */
    { ANY_DIM,   4,    64,     64,       256,    16,      16,     8,       0 },        /* 27 */
    { ANY_DIM,   4,    32,     32,       64,     8,       32,     16,      0 },        /* 13.5; 255 167, 255 176 */
    { ANY_DIM,   4,    16,     16,       16,     4,       8,      4,       0 },        /* 2.8 */
    { 64,        8,    32,     32,       64,     8,       16,     32,      0 },        /* 25 */
    { 128,       8,    32,     32,       128,    16,      16,     16,      0 },        /* 25 */
    { ANY_DIM,   8,    32,     32,       256,    32,      16,     8,       0 },        /* 25 */
    { ANY_DIM,   8,    32,     32,       64,     8,       16,     16,      0 },        /* 19 */
    { ANY_DIM,   8,    32,     32,       64,     8,       8,      8,       0 },        /* 15 */
    { ANY_DIM,   8,    16,     16,       16,     4,       8,      4,       0 },        /* 5.5 */
};
/* clang-format on */
#define N_BACKWARD_TILES ((int)(sizeof backward_tiles / sizeof backward_tiles[0]))

/* GRAD_COLUMNS of cl/attn_bwd.cl, which has more than attn_bwd_dq. */
static int64_t grad_columns(const clattn__tile *t, int64_t head_dim)
{
    const int64_t tile_m = t->block_q / (t->wg_size / t->wg_cols), vectors = t->real_size == 8 ? 8 : 16;
    const int64_t most = 4 * t->wg_cols * max_of(vectors / tile_m, 1);
    return head_dim < most ? head_dim : most;
}

int64_t clattn__tile_backward_local_bytes(const clattn__tile *t, int64_t head_dim_qk, int64_t head_dim_v)
{
    const int64_t slices = (int64_t)(t->block_q + t->block_kv) * pitch4(t->d_slice);
    const int64_t columns = grad_columns(t, max_of(head_dim_qk, head_dim_v));
    const int64_t rows = t->v_slice * (round_up(columns, 4 * (int64_t)t->wg_cols) / 4);
    return 4 * (int64_t)t->real_size * (max_of(slices, rows) + t->block_q * pitch4(t->block_kv));
}

const clattn__tile *clattn__tile_pick_backward(int64_t head_dim_qk, int64_t head_dim_v, int real_size,
                                               int64_t local_bytes, int64_t max_wg, int64_t block, int skip,
                                               clattn__tile *out)
{
    const int64_t head_dim = max_of(head_dim_qk, head_dim_v);
    if (head_dim_qk < 1 || head_dim_v < 1) return NULL;
    const int first_class = class_of(backward_tiles, N_BACKWARD_TILES, head_dim, real_size);
    for (int i = 0; i < N_BACKWARD_TILES; i++) {
        clattn__tile t = backward_tiles[i];
        if (t.real_size != real_size || (t.head_dim_max != first_class && t.head_dim_max != ANY_DIM)) continue;
        if (block && t.block_q > 16 && t.block_q > block) continue;
        trim_slice(&t, head_dim);
        if (t.wg_size > max_wg || clattn__tile_backward_local_bytes(&t, head_dim_qk, head_dim_v) > local_bytes)
            continue;
        if (skip-- > 0) continue;
        *out = t;
        return out;
    }
    return NULL;
}
