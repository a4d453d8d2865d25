/* Tiled attention, forward, for matrix engines: Q, P and O stay in registers as the engine's fragments, K and V are
 * staged in local memory as they are stored, in 16 bits. Scores, row state and sums are f32; P is rounded to the
 * storage type.
 *
 *   copy Q and the first block of K and V; m = -inf, l = 0, O = 0
 *   for each kv block that the tile's rows see:
 *       wait for its K and V; start to copy the next block's
 *       S = Q K^T
 *       S = score(S * scale)          softcap, ALiBi, bias, the app's function, where the problem has them
 *       S = -inf where hidden         only in blocks that the band or the boolean mask cuts
 *       P, r = row state, updated     m' = max(m, S), P = exp2(S - m'), r = exp2(m - m'), l' = l r + sum of P
 *       O = O r + P V                 in cut blocks without V's NaN and infinities, which only the rows that see them get
 *   O = O / l,  LSE = m + ln l
 *
 *                       BLOCK_KV                                    one work-group: one tile of BLOCK_Q query rows
 *                     +----------+                                  of one head, in a 1-D grid of all heads' tiles
 *                     |   K^T    |
 *            D        +----------+           HEAD_DIM_V
 *         +------+    +----------+         +------------+
 *  warp 0 |  Q   | 16 |   S, P   |         |     O      |           a warp of work-items: 16 rows, by some engines 8,
 *         +------+    +----------+         +------------+           which it shares with no other
 *  warp 1 |      | 16 |          |         |            |
 *         +------+    +----------+         +------------+
 *                                          +------------+
 *                     two fragments of S   |     V      |
 *                     are one of P         +------------+
 *
 * Of the two stages in local memory one is worked on while the other is filled. A trial launch has n_q = 0 and one
 * work-group; it touches no global memory. */
#include "forward.clh"
#include "tile_mma.clh"
#include "tile_score.clh"
#include "row_state.clh"
#include "tile_special.clh"

WG_KERNEL void attn_fwd_mma(FORWARD_PARAMETERS)
{
    /* each stage: K [BLOCK_KV, 16 QK_STEPS], V [BLOCK_KV, 16 V_STEPS]; at first Q [BLOCK_Q, 16 QK_STEPS] in the
     * second */
    __local ushort stages[2 * STAGE_SIZE] __attribute__((aligned(TILE_ALIGN)));
    __local real4 exchange[EXCHANGE_SIZE4]; /* the engine's own */
    __local int mask_found, v_is_special[2];
    const uint lid = get_local_id(0);
    const int row = tile_row(lid), col = tile_col(lid);

    const attn_place at = attn_place_of(args.first_group + (i64)get_group_id(0), max_int(args.n_tiles, 1),
                                        max_int(args.n_heads_q, 1), max_int(args.gqa_group, 1));
    const forward_entry entry =
        forward_entry_of(&args, at.batch, kv_lengths, query_offsets, cu_seqlens_q, cu_seqlens_kv);
    const score_source src = score_source_of(&args, at, &entry, bias, mask, alibi_slopes, score_data, softcap);
    const mask_band band = entry.band;
    const int n_q = entry.n_q, row_first = at.tile * BLOCK_Q, row_last = min_int(row_first + BLOCK_Q, n_q) - 1;
    const int j_first = mask_first(band, row_first), j_end = row_last < row_first ? 0 : mask_end(band, row_last);

    q += args.q_at + at.batch * args.q_batch + at.head * args.q_head + entry.q_row_first * args.q_row;
    k += args.k_at + at.batch * args.k_batch + at.kv_head * args.k_head + entry.kv_row_first * args.k_row;
    v += args.v_at + at.batch * args.v_batch + at.kv_head * args.v_head + entry.kv_row_first * args.v_row;
    o += args.o_at + at.batch * args.o_batch + at.head * args.o_head + entry.q_row_first * args.o_row;
    const i64 lse_at =
        args.lse_at + at.batch * args.lse_batch + at.head * args.lse_head + entry.q_row_first * args.lse_row;

    uint4 q_part[QK_STEPS];      /* this work-item's part of Q [BLOCK_Q, 16 QK_STEPS] */
    real acc[TILE_M][O_COLUMNS]; /* its part of O [BLOCK_Q, 16 V_STEPS] */
    row_state state;
    tile_copy(stages + STAGE_SIZE, BLOCK_Q, QK_STEPS, q + row_first * args.q_row, args.q_row, n_q - row_first,
              HEAD_DIM_QK, lid);
    kv_copy(stages, k, args.k_row, v, args.v_row, j_first, j_end, lid);
    if (lid < 2) v_is_special[lid] = 0;
    copy_wait();
    barrier(CLK_LOCAL_MEM_FENCE);
    q_fragments(q_part, exchange, stages + STAGE_SIZE, lid);
    row_state_init(&state, sink_of(&args, at.head, sinks), col);
    tile_zero_o(acc);

    int turn = 0;
    for (int j0 = j_first; j0 < j_end; j0 += BLOCK_KV, turn ^= 1) {
        __local ushort *stage = stages + turn * STAGE_SIZE;
        const int band_cuts = mask_cuts(band, row_first, row_last, j0, j0 + BLOCK_KV);
        copy_wait();
        const int cleans = MASK || band_cuts;
        if (cleans) tile_clean(stage + V_AT, BLOCK_KV, V_STEPS, &v_is_special[turn], j0 + 1, lid);
        copy_fence();
        barrier(CLK_LOCAL_MEM_FENCE);
        kv_copy(stages + (turn ^ 1) * STAGE_SIZE, k, args.k_row, v, args.v_row, j0 + BLOCK_KV, j_end, lid);

        const int found = tile_mask_classify(&mask_found, &src, row_first, n_q, j0, j_end, row, col, lid);
        if (!(found & MASK_SOME)) continue;
        const int cut = band_cuts || (found & MASK_HIDDEN);
        real s[TILE_M][TILE_N]; /* this work-item's part of S, then P [BLOCK_Q, BLOCK_KV] */
        uint4 p[KV_STEPS];      /* P in the storage type */
        real rescale[TILE_M];

        tile_matmul_nt(s, q_part, exchange, stage, lid);
        scores_scale(s, scale);
        tile_score(s, &src, row_first, n_q, j0, j_end, row, col);

        if (cut) tile_mask(s, band, &src, row_first, n_q, j0, j_end, -INFINITY, row, col);
        row_state_update(&state, s, rescale, exchange + ROW_PART_AT, row, col);
        tile_dropout(s, &args, at, 1, row_first, j0, row, col);
        p_fragments(p, exchange, s, lid);

        tile_matmul_nn(acc, rescale, p, exchange, stage + V_AT, lid);
        if (cleans && v_is_special[turn] == j0 + 1)
            tile_add_special(acc, stage, p, v, args.v_row, band, &src, row_first, n_q, j0, j_end, row, col);
    }

    row_state_finish(&state, exchange + ROW_PART_AT, row, col);
    MMA_FOR (int m = 0; m < TILE_M; m++) {
        const int r = row_first + row + TILE_ROW(m);
        if (r < n_q) {
            tile_store_row(o + r * args.o_row, acc[m], dropout_scale / state.l[m], state.l[m] == 0, col);
            if (args.has_lse && col == 0) lse[lse_at + r * args.lse_row] = row_lse(state.m[m], state.l[m]);
        }
    }
}
