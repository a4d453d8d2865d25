/* Gradients, for CPU devices. One work-item: every n_splits-th kv tile of one kv head; dQ is summed up in the work-item's
 * part of the workspace, which attn_bwd_dq_lanes reads. No barrier, no local memory, and an order of additions that the
 * problem alone decides.
 *
 *   for kv tile of the split:  K', V' = transposes;  dK = dV = 0
 *       for head of the GQA group, for block of query rows that see any of the keys:
 *           S = Q K';  (Z, f') = score(S);  P = exp(Z - LSE), 0 where hidden
 *           dP = dO V';  r = dropout;  dZ = P (r dP - delta) f';  dS = scale dZ softcap'
 *           dV += (P r)' dO;  dK += dS' Q;  dQ += dS K
 *
 * Formulas: T. Dao, FlashAttention-2 (2023), section 3.1; each block is summed from 0 and added once. */
#include "backward_lanes.clh"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void attn_bwd_lanes(BACKWARD_PARAMETERS)
{
    if (args.n_q == 0) return; /* a trial launch */
    const attn_place share =
        attn_place_of(args.first_group + get_group_id(0), args.n_tiles, args.n_heads_q / args.gqa_group, 1);
    const int batch = share.batch, kv_head = share.head, split = share.tile;
    const forward_entry entry = forward_entry_of(&args, batch, kv_lengths, query_offsets, cu_seqlens_q, cu_seqlens_kv);
    const int n_kv = VARLEN ? entry.band.length : args.n_kv;

    k += args.k_at + batch * args.k_batch + kv_head * args.k_head + entry.kv_row_first * args.k_row;
    v += args.v_at + batch * args.v_batch + kv_head * args.v_head + entry.kv_row_first * args.v_row;
    dk += back.dk_at + batch * args.k_batch + kv_head * args.k_head + entry.kv_row_first * args.k_row;
    dv += back.dv_at + batch * args.v_batch + kv_head * args.v_head + entry.kv_row_first * args.v_row;

    real q_rows[BLOCK_Q * QK_PITCH], d_o_rows[BLOCK_Q * V_PITCH];
    real k_rows[BLOCK_KV * QK_PITCH], dk_rows[BLOCK_KV * QK_PITCH], dv_rows[BLOCK_KV * V_PITCH];
    vec k_turned[BLOCK_KV * WORDS_PITCH(HEAD_DIM_QK) / LANES], v_turned[BLOCK_KV * WORDS_PITCH(HEAD_DIM_V) / LANES];
    real p[BLOCK_Q * BLOCK_KV], ds[BLOCK_Q * BLOCK_KV], function[SCORE_FN ? BLOCK_Q * BLOCK_KV : 1];
    word q_words[PAIRS_ALONE(BLOCK_Q * WORDS_PITCH(HEAD_DIM_QK))],
        d_o_words[PAIRS_ALONE(BLOCK_Q * WORDS_PITCH(HEAD_DIM_V))];
    word p_words[PAIRS_ALONE(WORDS(BLOCK_Q) * BLOCK_KV)], d_o_pairs[PAIRS_ALONE(WORDS(BLOCK_Q) * V_PITCH)];
    lanes_block t = {q_rows,   d_o_rows, q_words, d_o_words, k_rows,  dk_rows,   dv_rows,
                     k_turned, v_turned, p,       ds,        p_words, d_o_pairs, function};
    words_place(&t);

    for (int n = 0; n < args.gqa_group; n++) {
        const attn_place at = {batch, kv_head * args.gqa_group + n, kv_head, split};
        sums_clear(workspace, &args, &back, at, entry.n_q);
    }
    for (t.k0 = split * BLOCK_KV; t.k0 < n_kv; t.k0 += args.n_tiles * BLOCK_KV) {
        int first = 0, end = 0;
        t.n_k = min(BLOCK_KV, entry.band.length - t.k0);
        zero_fill(dk_rows, BLOCK_KV * QK_PITCH);
        zero_fill(dv_rows, BLOCK_KV * V_PITCH);
        if (t.n_k > 0) {
            tile_load(&t, k + t.k0 * args.k_row, args.k_row, v + t.k0 * args.v_row, args.v_row);
            rows_of_keys(entry.band, 0, entry.n_q, t.k0, t.k0 + t.n_k, &first, &end);
        }
        for (int n = 0; n < args.gqa_group; n++) {
            const attn_place at = {batch, kv_head * args.gqa_group + n, kv_head, split};
            const score_source src = score_source_of(&args, at, &entry, bias, mask, alibi_slopes, score_data, softcap);
            const lanes_head h =
                lanes_head_of(&args, &back, at, &entry, &src, q, d_o, lse, workspace, score_scale, dropout_scale);
            vec slopes = (vec)(0);
            for (t.q0 = first / BLOCK_Q * BLOCK_Q; t.q0 < end; t.q0 += BLOCK_Q) {
                t.n_q = min(BLOCK_Q, entry.n_q - t.q0);
                q_block_load(&t, &h);
                block_gradients(&t, &h, &slopes);
                products(&t, &h);
            }
            if (back.wants_dalibi) *slope_sum_of(workspace, &args, &back, batch, at.head, split) += vec_sum(slopes);
        }
        const int n = min(BLOCK_KV, n_kv - t.k0);
        if (back.wants_dk) rows_store(dk + t.k0 * args.k_row, args.k_row, dk_rows, n, HEAD_DIM_QK, SCORE_LN);
        if (back.wants_dv) rows_store(dv + t.k0 * args.v_row, args.v_row, dv_rows, n, HEAD_DIM_V, 1);
    }
}
