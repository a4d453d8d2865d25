/* Flash attention, forward, of few query rows, for CPU devices: the keys are split in chunks of BLOCK_KV, and one work-item
 * reads its chunk of K and V once for all query rows of the GQA group. The lanes are columns. No barrier, no local memory.
 *
 *      keys ->   chunk 0      chunk 1      chunk 2         for BLOCK_Q rows of (head of the group, query row):
 *   rows   +------------+------------+------------+            load Q;  S = Q K';  S = score(S);  S = mask(S)
 *    |     | O, m, l    | O, m, l    | O, m, l    |            (P, m, l) = softmax(S);  P = dropout(P);  O = P V
 *    v     +------------+------------+------------+        attn_merge_lanes: O = sum O 2^(m - max m) / sum l 2^(m - max m)
 */
#include "decode_lanes.clh"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void attn_decode_lanes(FORWARD_PARAMETERS,
                                                                               __global real *restrict partials)
{
    if (args.n_q == 0) return; /* a trial launch */
    const decode_place at = decode_place_of(&args, args.first_group + get_group_id(0));
    const forward_entry entry =
        forward_entry_of(&args, at.batch, kv_lengths, query_offsets, cu_seqlens_q, cu_seqlens_kv);
    const mask_band band = entry.band;
    const int rows = entry.n_q * args.gqa_group; /* row r is query row r % n_q of head r / n_q of the group */

    k += args.k_at + at.batch_in_tensors * args.k_batch + at.kv_head * args.k_head + entry.kv_row_first * args.k_row;
    v += args.v_at + at.batch_in_tensors * args.v_batch + at.kv_head * args.v_head + entry.kv_row_first * args.v_row;
    partials += decode_partial_at(&args, at, 0);

    vec q_rows[BLOCK_Q * QK_VECTORS];  /* [BLOCK_Q][QK_VECTORS], words; reals are scaled */
    vec s[BLOCK_Q * BLOCK_KV / LANES]; /* [BLOCK_Q][BLOCK_KV], scores, then probs */
    decode_row row[BLOCK_Q];

    const int first = max(at.chunk * BLOCK_KV, mask_first(band, 0));
    const int end = rows > 0 ? min((at.chunk + 1) * BLOCK_KV, mask_end(band, entry.n_q - 1)) : 0,
              n = max(0, end - first);
    const key_rows keys = {k + first * args.k_row, v + first * args.v_row, args.k_row, args.v_row, n};
    k_read_first(&keys);
    for (int r0 = 0; r0 < rows; r0 += BLOCK_Q) {
        for (int r = 0; r < BLOCK_Q; r++)
            row[r] =
                decode_row_of(&args, at, &entry, min(r0 + r, rows - 1), bias, mask, alibi_slopes, score_data, softcap);
        if (n > 0) {
            q_load(q_rows, &args, at, &entry, q, row, scale);
            scores(s, q_rows, &keys, scale, rows - r0 <= BLOCK_Q);
            score(s, row, first, n);
            const int masked = mask_hidden(s, band, row, first, n);
            softmax(s, row, n);
            dropout(s, &args, at, row, dropout_scale, first, n);
            prob_values(partials + (i64)r0 * PARTIAL_SIZE, s, row, rows - r0, &keys, first, band, masked);
        }
        row_states_store(partials + (i64)r0 * PARTIAL_SIZE, row, rows - r0);
    }
}
