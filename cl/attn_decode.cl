/* Flash attention, forward, of few query rows, for GPUs: the keys are split in chunks of BLOCK_KV, and one
 * work-group reads its chunk of K and V once for up to BLOCK_Q rows of the GQA group. K and V are not staged: no
 * other work-item wants what one reads.
 *
 *      keys ->   chunk 0      chunk 1      chunk 2         for BLOCK_Q rows of (head of the group, query row):
 *   rows   +------------+------------+------------+            load Q;  S = Q K';  S = score(S);  S = mask(S)
 *    |     | O, m, l    | O, m, l    | O, m, l    |            (P, m, l) = softmax(S);  P = dropout(P);  O = P V
 *    v     +------------+------------+------------+        attn_merge: O = sum O 2^(m - max m) / sum l 2^(m - max m)
 */
#include "decode.clh"

WG_KERNEL void attn_decode(FORWARD_PARAMETERS, __global real *restrict partials)
{
    __local real4 q_tile[Q_TILE_SIZE4];     /* [BLOCK_Q, columns], see q_at */
    __local real4 s_tile[S_SIZE4];          /* S, then P [BLOCK_Q, S_WIDTH], hidden probs marked */
    __local real4 sums[SUMS_SIZE4];         /* of work-items that share a key, or columns */
    __local real4 row_part[ROW_PART_SIZE4]; /* [BLOCK_Q, WG_COLS] */
    if (args.n_q == 0) return;              /* a trial launch */
    const uint lid = get_local_id(0);
    const int row = lid / WG_COLS, col = lid % WG_COLS;
    const decode_place at = decode_place_of(&args, args.first_group + (i64)get_group_id(0));
    const forward_entry entry =
        forward_entry_of(&args, at.batch, kv_lengths, query_offsets, cu_seqlens_q, cu_seqlens_kv);
    mask_band band = entry.band;
    band.length = min_int(band.length, (at.chunk + 1) * BLOCK_KV);
    const int rows = entry.n_q * args.gqa_group, first = max_int(at.chunk * BLOCK_KV, mask_first(band, 0));
    const int end = mask_end(band, entry.n_q - 1), n = end - first;
    const int cut = MASK || mask_cuts(band, 0, entry.n_q - 1, first, first + S_WIDTH);

    k += args.k_at + at.batch_in_tensors * args.k_batch + at.kv_head * args.k_head +
         (entry.kv_row_first + first) * args.k_row;
    v += args.v_at + at.batch_in_tensors * args.v_batch + at.kv_head * args.v_head +
         (entry.kv_row_first + first) * args.v_row;
    partials += decode_partial_at(&args, at, 0);
    const int whole = rows_are_pieces(v, args.v_row, HEAD_DIM_V);

    for (int r0 = 0; r0 < rows; r0 += BLOCK_Q) {
        const int r = r0 + row; /* this work-item's, but for the products */
        const decode_row mine =
            decode_row_of(&args, at, &entry, min_int(r, rows - 1), bias, mask, alibi_slopes, score_data, softcap);
        row_state state;
        row_state_init(&state, -INFINITY, col);
        if (n > 0) {
            q_load(q_tile, &args, at, &entry, q, r0, rows, lid);
            scores((__local real *)s_tile, q_tile, sums, k, args.k_row, n, lid);

            real s[TILE_M][TILE_N], rescale[TILE_M];
            scores_take(s, (__local const real *)s_tile, n, scale, row, col);
            tile_score(s, &mine.src, mine.i, entry.n_q, first, end, 0, col);
            if (cut) tile_mask(s, band, &mine.src, mine.i, entry.n_q, first, end, -INFINITY, 0, col);
            row_state_update(&state, s, rescale, row_part, row, col);
            tile_dropout(s, &args, mine.at, dropout_scale, mine.i, first, 0, col);
            if (cut) tile_mask(s, band, &mine.src, mine.i, entry.n_q, first, end, PROB_HIDDEN, 0, col);
            probs_put((__local real *)s_tile, s, row, col);
            barrier(CLK_LOCAL_MEM_FENCE);
            row_state_finish(&state, row_part, row, col);

            for (int d0 = 0; d0 < HEAD_DIM_V; d0 += V_LANES * PIECE) {
                const int d = d0 + lid % V_LANES * PIECE, v_row = lid / V_LANES;
                real4 sum[BLOCK_Q][PARTS]; /* this work-item's keys' share of O [BLOCK_Q, d .. d + PIECE] */
                UNROLL_FOR (int i = 0; i < BLOCK_Q; i++)
                    UNROLL_FOR (int h = 0; h < PARTS; h++) sum[i][h] = (real4)(0);
                values_sum(sum, s_tile, v, args.v_row, n, d, v_row, whole);
                values_store(partials + (i64)r0 * PARTIAL_SIZE, sum, sums, rows - r0, d0, lid);
            }
        }
        if (col == 0 && r < rows) {
            partials[(i64)r * PARTIAL_SIZE + PARTIAL_M] = state.m[0];
            partials[(i64)r * PARTIAL_SIZE + PARTIAL_L] = state.l[0];
        }
    }
}
