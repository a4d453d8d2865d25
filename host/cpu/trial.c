/* The trial of code for instructions that few processors have: on small problems it must agree with the rung below. */
#include <math.h>
#include <stdlib.h>

#include "../half.h"
#include "tile.h"

enum { ROWS = 64, KEYS = 128, DIM = 64, WORK_BYTES = 96 << 10 };

/* [rows or keys][dim] each, dense */
typedef struct trial {
    _Alignas(64) unsigned char work[WORK_BYTES];
    uint16_t q[ROWS * DIM], k[KEYS * DIM], v[KEYS * DIM], o[2][ROWS * DIM];
    float lse[2][ROWS];
} trial;

/* Cut and whole tiles, of each of the three sizes. */
static const struct {
    int n_q, n_kv, head_dim_qk, head_dim_v, window_right;
} cases[] = {{37, 61, 40, 24, -1}, {37, 61, 40, 24, 0}, {ROWS, KEYS, DIM, DIM, -1}};

/* Numbers in [-2, 2] that bf16 has. */
static void fill(uint16_t *to, int n, uint32_t seed)
{
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        to[i] = bf16_of_f32((float)((int)(seed >> 24) - 128) / 64);
    }
}

static bool agree_on(trial *t, int n, const host_ops *const ops[2])
{
    const int n_q = cases[n].n_q, n_kv = cases[n].n_kv, dim_qk = cases[n].head_dim_qk, dim_v = cases[n].head_dim_v;
    const float o_most = 0x1p-6F, lse_most = 1e-5F; /* |O| is at most 2: two of its steps */
    host_tile tile = {.q = t->q, .k = t->k, .v = t->v, .lse_row = 1, .dtype = CLATTN_DTYPE_BF16, .row_end = n_q};
    tile.q_row = tile.k_row = tile.head_dim_qk = dim_qk;
    tile.v_row = tile.o_row = tile.head_dim_v = dim_v;
    tile.block_kv = KEYS;
    tile.band = mask_band_init(n_kv - n_q, n_kv, n_kv, -1, cases[n].window_right);
    tile.scale = 0.125;
    for (int i = 0; i < 2; i++) {
        tile.o = t->o[i];
        tile.lse = t->lse[i];
        if (ops[i]->block_q < n_q || ops[i]->work_bytes(dim_qk, dim_v, n_q, KEYS, tile.dtype) > WORK_BYTES)
            return false;
        ops[i]->tile_forward(&tile, t->work);
    }
    bool agree = true; /* a NaN does not */
    for (int i = 0; i < n_q * dim_v; i++) agree &= fabsf(f32_of_bf16(t->o[0][i]) - f32_of_bf16(t->o[1][i])) <= o_most;
    for (int i = 0; i < n_q; i++) agree &= fabsf(t->lse[0][i] - t->lse[1][i]) <= lse_most;
    return agree;
}

bool clattn__host_ops_agree(const host_ops *a, const host_ops *b)
{
    const host_ops *const ops[2] = {a, b};
    trial *t = aligned_alloc(64, (sizeof *t + 63) / 64 * 64);
    if (!t) return false;
    fill(t->q, ROWS * DIM, 1);
    fill(t->k, KEYS * DIM, 2);
    fill(t->v, KEYS * DIM, 3);
    bool agree = true;
    for (int n = 0; n < (int)(sizeof cases / sizeof *cases); n++) agree &= agree_on(t, n, ops);
    free(t);
    return agree;
}
