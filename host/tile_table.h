/* Tile configurations of cl/attn_fwd.cl and cl/attn_bwd.cl: data, and the arithmetic to choose from it. Pure; knows
 * no OpenCL. */
#ifndef CLATTN_TILE_TABLE_H
#define CLATTN_TILE_TABLE_H

#include <stdbool.h>
#include <stdint.h>

/* The fields after real_size are the axes of cl/config.clh, which says what each means and what must divide what. */
typedef struct clattn__tile {
    int head_dim_max; /* a row of the table serves max(head_dim_qk, head_dim_v) up to this */
    int real_size;    /* bytes of a score: 4, or 8 for f64 */
    int block_q, block_kv, wg_size, wg_cols, d_slice, v_slice, q_resident;
} clattn__tile;

/* Local memory of one work-group, in bytes, exactly as cl/config.clh lays it out; ahead: with two places for slices. */
int64_t clattn__tile_local_bytes(const clattn__tile *t, int64_t head_dim_qk, int64_t head_dim_v, bool ahead);

/* The configuration for slices that are copied ahead, of f32, where the device has local memory for two such
 * work-groups; else NULL. */
const clattn__tile *clattn__tile_pick_ahead(int64_t head_dim_qk, int64_t head_dim_v, int64_t local_bytes,
                                            int64_t max_wg, clattn__tile *out);

/* The first configuration that needs at most local_bytes of local memory and max_wg work-items, after passing over
 * `skip` others that do; written to *out and returned, or NULL when there is none left.
 * block_q, block_kv: 0 takes the table's; any other value is rounded up to a multiple of 16 and cut to 128, and cut
 * further only when no configuration of that size fits. */
const clattn__tile *clattn__tile_pick(int64_t head_dim_qk, int64_t head_dim_v, int real_size, int64_t local_bytes,
                                      int64_t max_wg, int64_t block_q, int64_t block_kv, int skip, clattn__tile *out);

/* What multiplies attn_fwd_mma's tiles; the axis MMA. */
typedef enum matrix_engine {
    ENGINE_NONE,
    ENGINE_EMULATED,      /* any device, slowly, with the registers of mma_sync */
    ENGINE_MMA_SYNC,      /* NVIDIA, compute capability 8.0 and up */
    ENGINE_WGMMA,         /* NVIDIA, 9.0 */
    ENGINE_EMULATED_MFMA, /* as above */
    ENGINE_MFMA,          /* AMD, CDNA 2 and 3 */
    ENGINE_EMULATED_DPAS,
    ENGINE_DPAS, /* Intel, Xe-HPC and Xe2: sub-groups of 16 */
    ENGINE_EMULATED_WMMA_GFX11,
    ENGINE_WMMA_GFX11, /* AMD, RDNA 3 */
    ENGINE_EMULATED_WMMA_GFX12,
    ENGINE_WMMA_GFX12, /* AMD, RDNA 4 */
    ENGINE_EMULATED_PAIRS,
    ENGINE_VDPBF16PS, /* x86 processors with AVX512-BF16: products of bf16 pairs in the lanes kernels */
    ENGINE_COUNT
} matrix_engine;

bool clattn__engine_is_emulated(matrix_engine engine);

/* It serves the lanes kernels in bf16; the others attn_fwd_mma. */
static inline bool engine_is_lanes(matrix_engine engine)
{
    return engine == ENGINE_EMULATED_PAIRS || engine == ENGINE_VDPBF16PS;
}

/* The same for attn_fwd_mma, of 16-bit elements. NULL too when a head dimension is beyond MMA_HEAD_DIM_MAX. */
enum { MMA_HEAD_DIM_MAX = 128 }; /* a warp keeps its rows of Q and O in registers */
int64_t clattn__tile_mma_local_bytes(const clattn__tile *t, int64_t head_dim_qk, int64_t head_dim_v,
                                     matrix_engine engine);
const clattn__tile *clattn__tile_pick_mma(int64_t head_dim_qk, int64_t head_dim_v, matrix_engine engine,
                                          int64_t local_bytes, int64_t max_wg, int64_t block_q, int64_t block_kv,
                                          int skip, clattn__tile *out);

/* The same for attn_bwd and attn_bwd_dq. Their tiles are square, of at most `block` rows (0: any; there is always
 * one of 16), and serve every head dimension: of a wide head they sum a part of the columns at a time. */
int64_t clattn__tile_backward_local_bytes(const clattn__tile *t, int64_t head_dim_qk, int64_t head_dim_v);
const clattn__tile *clattn__tile_pick_backward(int64_t head_dim_qk, int64_t head_dim_v, int real_size,
                                               int64_t local_bytes, int64_t max_wg, int64_t block, int skip,
                                               clattn__tile *out);

#endif
