/* Gradients of Q, and what each query tile adds to ALiBi's slopes, for GPUs: one work-group for each tile of BLOCK_Q query
 * rows of a head.
 *
 *   dQ = 0, slope = 0
 *   for each kv block that the tile's rows see:
 *       S = Q K^T                         summed over slices of D_SLICE columns
 *       dP = dO V^T
 *       P, dS from S, dP, LSE, delta      dS = dZ (1 - tanh^2), dZ = P (r dP - delta) f'
 *       slope = slope - sum of dZ |p - j|
 *       dQ = dQ + dS K                    summed over slices of V_SLICE keys
 *
 * The tiles are those of attn_bwd, with rows and columns changed about.
 * A trial launch has n_q = 0 and one work-group; it touches no global memory. */
#define ROWS_ARE_KEYS 0
#define GRAD_COLUMNS GRAD_COLUMNS_OF(HEAD_DIM_QK)
#include "tile_backward.clh"

WG_KERNEL void attn_bwd_dq(BACKWARD_PARAMETERS)
{
    __local real4 stage[STAGE_SIZE4]; /* slices of Q and K, of dO and V, [BLOCK_Q + BLOCK_KV, D_SLICE]; then of K */
    __local real4 p_tile[P_SIZE4];    /* dS [BLOCK_Q, BLOCK_KV]; in the end the work-items' slope sums */
    __local int mask_found;
    const uint lid = get_local_id(0);
    const int row = tile_row(lid), col = tile_col(lid);

    const attn_place at = attn_place_of(args.first_group + (i64)get_group_id(0), max_int(args.n_tiles, 1),
                                        max_int(args.n_heads_q, 1), max_int(args.gqa_group, 1));
    const forward_entry entry =
        forward_entry_of(&args, at.batch, kv_lengths, query_offsets, cu_seqlens_q, cu_seqlens_kv);
    const score_source src = score_source_of(&args, at, &entry, bias, mask, alibi_slopes, score_data, softcap);
    const mask_band band = entry.band;
    const int n_q = entry.n_q, i0 = at.tile * BLOCK_Q, i_last = min_int(i0 + BLOCK_Q, n_q) - 1, n_rows = n_q - i0;
    const int j_first = mask_first(band, i0), j_end = i_last < i0 ? 0 : mask_end(band, i_last);
    const i64 head = (i64)at.batch * args.n_heads_q + at.head;

    q += args.q_at + at.batch * args.q_batch + at.head * args.q_head + (entry.q_row_first + i0) * args.q_row;
    k += args.k_at + at.batch * args.k_batch + at.kv_head * args.k_head + entry.kv_row_first * args.k_row;
    v += args.v_at + at.batch * args.v_batch + at.kv_head * args.v_head + entry.kv_row_first * args.v_row;
    d_o += back.d_o_at + at.batch * args.o_batch + at.head * args.o_head + (entry.q_row_first + i0) * args.o_row;
    dq += back.dq_at + at.batch * args.q_batch + at.head * args.q_head + (entry.q_row_first + i0) * args.q_row;
    lse += args.lse_at + at.batch * args.lse_batch + at.head * args.lse_head + entry.q_row_first * args.lse_row;

    query_rows rows;
    query_rows_load(&rows, lse, args.lse_row, workspace + back.delta_at + head * args.n_q, i0, n_q, row, col);

    const int lacks_probs = rows_without_probs(lse, args.lse_row, i0, n_q);
    real slope = 0; /* this work-item's part */
    for (int d0 = 0; d0 < HEAD_DIM_QK; d0 += GRAD_COLUMNS) {
        o_row acc[TILE_M]; /* this work-item's part of columns d0 .. of dQ */
        tile_zero_o(acc);

        for (int j0 = j_first; j0 < j_end; j0 += BLOCK_KV) {
            const int found = tile_mask_classify(&mask_found, &src, i0, n_q, j0, j_end, row, col, lid);
            if (!(found & MASK_SOME)) continue;
            const int cut = mask_cuts(band, i0, i_last, j0, j0 + BLOCK_KV) || (found & MASK_HIDDEN) || lacks_probs;
            const int n_keys = j_end - j0;
            __global const storage *k_block = k + j0 * args.k_row, *v_block = v + j0 * args.v_row;
            real s[TILE_M][TILE_N], dp[TILE_M][TILE_N]; /* this work-item's part of S and dP, then P and dS */

            tile_product_nt(s, stage, q, args.q_row, n_rows, k_block, args.k_row, n_keys, HEAD_DIM_QK, score_scale, row,
                            col, lid);
            tile_product_nt(dp, stage, d_o, args.o_row, n_rows, v_block, args.v_row, n_keys, HEAD_DIM_V, 1, row, col,
                            lid);
            const real sum =
                tile_gradients(s, dp, &rows, &src, &args, band, dropout_scale, i0, n_q, j0, j_end, cut, row, col);
            slope -= d0 == 0 ? sum : 0;
            if (back.wants_dq)
                tile_product_nn(acc, dp, p_tile, stage, k_block, args.k_row, n_keys, d0, HEAD_DIM_QK, cut, row, col,
                                lid);
        }

        UNROLL_FOR (int m = 0; m < TILE_M; m++) {
            const int r = row + m * WG_ROWS;
            if (back.wants_dq && r < n_rows)
                tile_store_row(dq + r * args.q_row, acc[m], scale, 0, d0, HEAD_DIM_QK, col);
        }
    }
    if (ALIBI && back.wants_dalibi && args.n_q != 0) {
        slope = tile_sum((__local real *)p_tile, slope, lid);
        if (lid == 0) workspace[back.slopes_at + head * back.n_slope_parts + at.tile] = slope;
    }
}
