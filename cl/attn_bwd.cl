/* Gradients of K and V, for GPUs: one work-group for each tile of BLOCK_KV keys of a kv head, which are the tile's rows.
 *
 *   dK = 0, dV = 0
 *   for each query head of the GQA group, for each block of its queries that see a key of the tile:
 *       S' = K Q^T                        summed over slices of D_SLICE columns
 *       dP' = V dO^T
 *       P, dS from S, dP, LSE, delta      dS = dZ (1 - tanh^2), dZ = P (r dP - delta) f'
 *       dV = dV + (P r)' dO               summed over slices of V_SLICE queries
 *       dK = dK + dS' Q
 *
 *                       BLOCK_Q                                     dK and dV stay in registers, GRAD_COLUMNS of each;
 *                     +----------+                                  for heads that have more columns the whole is done
 *                     | Q^T, dO^T| D_SLICE at a time                again for the next ones. P and dS, one after the
 *            D        +----------+        GRAD_COLUMNS              other, go through local memory, where the hidden
 *         +------+    +----------+       +------------+             pairs are marked, and passed over
 * BLOCK_KV| K, V |    | S', P',  |       |   dK, dV   |
 *         |      |    | dP', dS' |       |            |
 *         +------+    +----------+       +------------+
 *                                        +------------+
 *                                        |   dO, Q    | V_SLICE queries at a time
 *                                        +------------+
 *
 * A trial launch has n_q = 0 and one work-group; it touches no global memory. */
#define ROWS_ARE_KEYS 1
#define GRAD_COLUMNS GRAD_COLUMNS_OF(MAX_OF(HEAD_DIM_QK, HEAD_DIM_V))
#include "tile_backward.clh"

WG_KERNEL void attn_bwd(BACKWARD_PARAMETERS)
{
    __local real4 stage[STAGE_SIZE4]; /* slices of K and Q, of V and dO, [BLOCK_KV + BLOCK_Q, D_SLICE]; then of dO, Q */
    __local real4 p_tile[P_SIZE4];    /* P r, then dS [BLOCK_KV, BLOCK_Q] */
    __local int mask_found;
    const uint lid = get_local_id(0);
    const int row = tile_row(lid), col = tile_col(lid);

    const int n_tiles = max_int(args.n_tiles, 1), group = max_int(args.gqa_group, 1);
    const attn_place at = attn_place_of(args.first_group + (i64)get_group_id(0), n_tiles,
                                        max_int(args.n_heads_q / group, 1), 1); /* of kv heads */
    const forward_entry entry =
        forward_entry_of(&args, at.batch, kv_lengths, query_offsets, cu_seqlens_q, cu_seqlens_kv);
    const mask_band band = entry.band;
    const int j0 = (n_tiles - 1 - at.tile) * BLOCK_KV; /* first keys first: when causal, most queries see them */
    const int n_q = entry.n_q, j_end = min_int(j0 + BLOCK_KV, band.length), n_keys = max_int(j_end - j0, 0);
    const int i_first = mask_row_first(band, j0), i_end = n_keys == 0 ? 0 : min_int(n_q, mask_row_end(band, j_end - 1));

    k += args.k_at + at.batch * args.k_batch + at.head * args.k_head + (entry.kv_row_first + j0) * args.k_row;
    v += args.v_at + at.batch * args.v_batch + at.head * args.v_head + (entry.kv_row_first + j0) * args.v_row;
    dk += back.dk_at + at.batch * args.k_batch + at.head * args.k_head + (entry.kv_row_first + j0) * args.k_row;
    dv += back.dv_at + at.batch * args.v_batch + at.head * args.v_head + (entry.kv_row_first + j0) * args.v_row;

    for (int d0 = 0; d0 < MAX_OF(HEAD_DIM_QK, HEAD_DIM_V); d0 += GRAD_COLUMNS) {
        o_row acc_k[TILE_M], acc_v[TILE_M]; /* this work-item's part of columns d0 .. of dK and dV */
        tile_zero_o(acc_k);
        tile_zero_o(acc_v);

        for (int h = 0; h < group; h++) {
            const attn_place head = {at.batch, at.head * group + h, at.head, 0};
            const score_source src =
                score_source_of(&args, head, &entry, bias, mask, alibi_slopes, score_data, softcap);
            const i64 o_first = head.batch * args.o_batch + head.head * args.o_head + entry.q_row_first * args.o_row;
            __global const storage *q_head =
                q + args.q_at + head.batch * args.q_batch + head.head * args.q_head + entry.q_row_first * args.q_row;
            __global const storage *d_o_head = d_o + back.d_o_at + o_first;
            __global const float *lse_head = lse + args.lse_at + head.batch * args.lse_batch +
                                             head.head * args.lse_head + entry.q_row_first * args.lse_row;
            __global const real *delta =
                workspace + back.delta_at + ((i64)head.batch * args.n_heads_q + head.head) * args.n_q;

            for (int i0 = i_first; i0 < i_end; i0 += BLOCK_Q) {
                const int found = tile_mask_classify(&mask_found, &src, i0, n_q, j0, j_end, row, col, lid);
                if (!(found & MASK_SOME)) continue;
                const int i_last = min_int(i0 + BLOCK_Q, n_q) - 1, n_rows = n_q - i0;
                const int cut = mask_cuts(band, i0, i_last, j0, j0 + BLOCK_KV) || (found & MASK_HIDDEN) ||
                                rows_without_probs(lse_head, args.lse_row, i0, n_q);
                __global const storage *q_block = q_head + i0 * args.q_row, *d_o_block = d_o_head + i0 * args.o_row;
                real s[TILE_M][TILE_N], dp[TILE_M][TILE_N]; /* this work-item's part of S' and dP', then P' and dS' */
                query_rows rows;

                query_rows_load(&rows, lse_head, args.lse_row, delta, i0, n_q, row, col);
                tile_product_nt(s, stage, k, args.k_row, n_keys, q_block, args.q_row, n_rows, HEAD_DIM_QK, score_scale,
                                row, col, lid);
                tile_product_nt(dp, stage, v, args.v_row, n_keys, d_o_block, args.o_row, n_rows, HEAD_DIM_V, 1, row,
                                col, lid);
                tile_gradients(s, dp, &rows, &src, &args, band, dropout_scale, i0, n_q, j0, j_end, cut, row, col);
                if (back.wants_dv)
                    tile_product_nn(acc_v, s, p_tile, stage, d_o_block, args.o_row, n_rows, d0, HEAD_DIM_V, cut, row,
                                    col, lid);
                if (back.wants_dk)
                    tile_product_nn(acc_k, dp, p_tile, stage, q_block, args.q_row, n_rows, d0, HEAD_DIM_QK, cut, row,
                                    col, lid);
            }
        }

        const int n_stored = min_int(VARLEN ? band.length : args.n_kv, j0 + BLOCK_KV) - j0;
        UNROLL_FOR (int m = 0; m < TILE_M; m++) {
            const int j = row + m * WG_ROWS;
            if (args.n_q != 0 && j < n_stored) {
                if (back.wants_dk) tile_store_row(dk + j * args.k_row, acc_k[m], scale, 0, d0, HEAD_DIM_QK, col);
                if (back.wants_dv) tile_store_row(dv + j * args.v_row, acc_v[m], 1, 0, d0, HEAD_DIM_V, col);
            }
        }
    }
}
