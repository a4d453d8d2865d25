/* Flash attention, forward, for CPU devices. One work-item: BLOCK_Q query rows of one head, ROW_VECTORS vectors whose
 * lanes are query rows. No barrier, no local memory.
 *
 *      keys ->        left edge      open       right edge
 *   rows    +---------+.........+-------------+ \           load Q; for kv block in the keys that the tile sees:
 *    |      |         :  some   |   every     |   \             S = Q K';  S = mask(S) on the two edges
 *    v      |  none   :  rows   |   row sees  | some \          (P, r) = row_state_update(S)
 *           |         :   see   |   these     | rows see\       O = O r + P V
 *           +---------+.........+-------------+-----------+  O = O / l,  LSE = m + ln l
 */
#include "args.clh"
#include "lanes_tile.clh"
#include "lanes_vector.clh"
#include "mask.clh"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
attn_fwd_lanes(__global const storage *restrict q, __global const storage *restrict k,
               __global const storage *restrict v, __global storage *restrict o, __global float *restrict lse,
               __global const long *restrict kv_lengths, __global const long *restrict query_offsets,
               const real scale_log2, const attn_args args)
{
    if (args.n_q == 0) return; /* a trial launch */
    const attn_place at =
        attn_place_of(args.first_group + get_group_id(0), args.n_tiles, args.n_heads_q, args.gqa_group);
    const int row_first = at.tile * BLOCK_Q, row_last = min(row_first + BLOCK_Q, args.n_q) - 1;
    const mask_band band =
        mask_band_init(query_offsets[args.query_offsets_at + at.batch], kv_lengths[args.kv_lengths_at + at.batch],
                       args.n_kv, args.window_left, args.window_right);

    q += args.q_at + at.batch * args.q_batch + at.head * args.q_head;    /* [n_q, HEAD_DIM_QK] */
    k += args.k_at + at.batch * args.k_batch + at.kv_head * args.k_head; /* [n_kv, HEAD_DIM_QK] */
    v += args.v_at + at.batch * args.v_batch + at.kv_head * args.v_head; /* [n_kv, HEAD_DIM_V] */
    o += args.o_at + at.batch * args.o_batch + at.head * args.o_head;    /* [n_q, HEAD_DIM_V] */

    vec q_tile[Q_COLUMNS * ROW_VECTORS]; /* [HEAD_DIM_QK][ROW_VECTORS] */
    vec o_tile[O_COLUMNS * ROW_VECTORS]; /* [HEAD_DIM_V][ROW_VECTORS], unnormalised */
    vec s[BLOCK_KV * ROW_VECTORS];       /* [BLOCK_KV][ROW_VECTORS], scores, then probs */
    vec m[ROW_VECTORS], l[ROW_VECTORS], rescale[ROW_VECTORS];
    real decoded[DECODED_SIZE]; /* [BLOCK_KV][HEAD_DIM] of K or V, when they are stored in 16 bits */
    i64 pitch;

    q_load(q_tile, q, args.q_row, row_first, args.n_q, scale_log2);
    for (int i = 0; i < O_COLUMNS * ROW_VECTORS; i++) o_tile[i] = (vec)(0);
    for (int r = 0; r < ROW_VECTORS; r++) {
        m[r] = (vec)(-INFINITY);
        l[r] = (vec)(0);
    }

    const int end = mask_end(band, row_last), open = min(mask_first(band, row_last), end);
    const int edge = max(open, mask_end(band, row_first)); /* every row sees the keys of [open, edge) */
    for (int j0 = mask_first(band, row_first), n; j0 < end; j0 += n) {
        const int masked = j0 < open || j0 >= edge;
        n = min(j0 < open ? min(open - j0, BLOCK_KV)
                : masked  ? min(LANES, BLOCK_KV)
                          : min(edge - j0, BLOCK_KV),
                end - j0);

        BLOCK_SPACE const real *k_block = block_load(decoded, k + j0 * args.k_row, args.k_row, &pitch, n, HEAD_DIM_QK);
        scores(s, q_tile, k_block, pitch, n);
        if (masked) mask(s, band, row_first, j0, n);
        row_state_update(m, l, rescale, s, n);
        BLOCK_SPACE const real *v_block = block_load(decoded, v + j0 * args.v_row, args.v_row, &pitch, n, HEAD_DIM_V);
        accumulate(o_tile, rescale, s, v_block, pitch, n, band, row_first, j0, masked);
    }

    o_store(o, args.o_row, o_tile, l, row_first, args.n_q);
    if (args.has_lse)
        lse_store(lse + args.lse_at + at.batch * args.lse_batch + at.head * args.lse_head, args.lse_row, m, l,
                  row_first, args.n_q);
}
