/* Flash attention, forward, for CPU devices. One work-item: BLOCK_Q query rows of one head, ROW_VECTORS vectors whose
 * lanes are query rows. No barrier, no local memory.
 *
 *      keys ->        left edge      open       right edge
 *   rows    +---------+.........+-------------+ \           load Q; for kv block in the keys that the tile sees:
 *    |      |         :  some   |   every     |   \             S = Q K';  S = score(S);  S = mask(S) on the edges
 *    v      |  none   :  rows   |   row sees  | some \          (P, r) = row_state_update(S)
 *           |         :   see   |   these     | rows see\       O = O r + P V
 *           +---------+.........+-------------+-----------+  O = O / l,  LSE = m + ln l
 */
#include "forward.clh"
#include "lanes_score.clh"
#include "lanes_tile.clh"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void attn_fwd_lanes(FORWARD_PARAMETERS)
{
    if (args.n_q == 0) return; /* a trial launch */
    const attn_place at =
        attn_place_of(args.first_group + get_group_id(0), args.n_tiles, args.n_heads_q, args.gqa_group);
    const forward_entry entry =
        forward_entry_of(&args, at.batch, kv_lengths, query_offsets, cu_seqlens_q, cu_seqlens_kv);
    const int n_q = entry.n_q, row_first = at.tile * BLOCK_Q, row_last = min(row_first + BLOCK_Q, n_q) - 1;
    if (row_last < row_first) return; /* a shorter sequence than the longest */
    const score_source src = score_source_of(&args, at, &entry, bias, mask, alibi_slopes, score_data, softcap);
    const mask_band band = entry.band;

    q += args.q_at + at.batch * args.q_batch + at.head * args.q_head + entry.q_row_first * args.q_row;
    k += args.k_at + at.batch * args.k_batch + at.kv_head * args.k_head + entry.kv_row_first * args.k_row;
    v += args.v_at + at.batch * args.v_batch + at.kv_head * args.v_head + entry.kv_row_first * args.v_row;
    o += args.o_at + at.batch * args.o_batch + at.head * args.o_head + entry.q_row_first * args.o_row;

    vec q_tile[Q_WORDS * ROW_VECTORS];   /* [panels][words of HEAD_DIM_QK][PANEL] */
    vec o_tile[O_COLUMNS * ROW_VECTORS]; /* [panels][HEAD_DIM_V][PANEL], unnormalised */
    vec s[S_KEYS * ROW_VECTORS];         /* [panels][S_KEYS][PANEL], scores, then probs */
    vec m[ROW_VECTORS], l[ROW_VECTORS], top[ROW_VECTORS], rescale[ROW_VECTORS];
    word decoded[DECODED_SIZE] __attribute__((aligned(64))); /* [BLOCK_KV][HEAD_DIM] of 16-bit K or V */
    i64 pitch;

    q_load(q_tile, q, args.q_row, row_first, n_q, scale);
    for (int i = 0; i < O_COLUMNS * ROW_VECTORS; i++) o_tile[i] = (vec)(0);
    const real sink = sink_of(&args, at.head, sinks); /* a logit without a value */
    for (int r = 0; r < ROW_VECTORS; r++) {
        m[r] = (vec)(sink);
        l[r] = (vec)(sink == -INFINITY ? 0 : 1);
    }

    const int end = mask_end(band, row_last);
    for (int j0 = mask_first(band, row_first); j0 < end; j0 += BLOCK_KV) {
        const tile_cut cut = {band, &src, row_first, row_last, n_q, j0};
        kv_block block = kv_block_of(&cut, end);
        const int found = mask_classify(&src, row_first, n_q, j0, block.n);
        if (!(found & MASK_SOME)) continue;
        block.is_masked |= found & MASK_HIDDEN;

        BLOCK_SPACE const word *k_block = k_load(decoded, k + j0 * args.k_row, args.k_row, &pitch, block.n);
        for (int r = 0; r < ROW_VECTORS; r++) top[r] = m[r];
        scores(s, top, q_tile, k_block, pitch, &block, scale);
        score(s, &cut, &block);
        if (block.is_masked) mask_hidden(s, &cut, &block);
        if (SCORED || block.is_masked) row_maxima(top, m, s, &block);
        row_state_update(m, l, rescale, s, top, &block);
        dropout(s, &args, at, dropout_scale, row_first, &block);
        probs_pack(s, &block);
        BLOCK_SPACE const word *v_block = v_load(decoded, v + j0 * args.v_row, args.v_row, &pitch, block.n);
        accumulate(o_tile, rescale, s, v_block, pitch, &cut, &block);
    }

    o_store(o, args.o_row, o_tile, l, row_first, n_q);
    if (args.has_lse)
        lse_store(lse + args.lse_at + at.batch * args.lse_batch + at.head * args.lse_head +
                      entry.q_row_first * args.lse_row,
                  args.lse_row, m, l, row_first, n_q);
}
