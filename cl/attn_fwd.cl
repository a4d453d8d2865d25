/* Tiled attention, forward, for GPUs: K and V staged in local memory, S and O in registers.
 *
 *   Q = load Q * scale; m = -inf, l = 0, O = 0
 *   for each kv block that the tile's rows see:
 *       S = Q K^T                     summed over slices of D_SLICE columns
 *       S = score(S)                  softcap, ALiBi, bias, the app's function, where the problem has them
 *       S = -inf where hidden         only in blocks that the band or the boolean mask cuts
 *       P, r = row state, updated     m' = max(m, S), P = exp2(S - m'), r = exp2(m - m'), l = l r + sum of P
 *       O = O r + P V                 summed over slices of V_SLICE keys
 *   O = O / l,  LSE = m + ln l
 *
 *                       BLOCK_KV                                    one work-group: one tile of BLOCK_Q query rows
 *                     +----------+                                  of one head, in a 1-D grid of all heads' tiles
 *                     |   K^T    | D_SLICE at a time
 *            D        +----------+           HEAD_DIM_V
 *         +------+    +----------+         +------------+
 *  BLOCK_Q|  Q   |    |   S, P   |         |     O      |           S, P, O: each work-item keeps every WG_ROWS-th
 *         |      |    |          |         |            |           row and every WG_COLS-th column in registers
 *         +------+    +----------+         +------------+
 *                       P goes through     +------------+
 *                       local memory       |     V      | V_SLICE keys at a time
 *                                          +------------+
 *
 * With AHEAD slices have two places in local memory, and the next one, of V or of the next block's K too, is on its way
 * while this one is multiplied.
 *
 * A trial launch has n_q = 0 and one work-group; it touches no global memory. */
#define WHOLE_LOADS 1
#define MATMUL_UNROLL 2
#include "forward.clh"
#include "tile.clh"
#include "tile_score.clh"
#include "q_source.clh"
#include "kv_source.clh"
#include "row_fold.clh"
#include "row_state.clh"

WG_KERNEL void attn_fwd(FORWARD_PARAMETERS)
{
    __local real4 stage[STAGE_SIZE4];       /* Q; slices of Q and K, [BLOCK_Q + BLOCK_KV, D_SLICE], or of V */
    __local real4 p_tile[P_SIZE4];          /* P [BLOCK_Q, BLOCK_KV], hidden probs marked */
    __local real4 row_part[ROW_PART_SIZE4]; /* [BLOCK_Q, WG_COLS] */
    __local int mask_found;
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

    o_row acc[TILE_M]; /* this work-item's part of O [BLOCK_Q, HEAD_DIM_V] */
    row_state state;
    q_tile_load(stage, q, args.q_row, row_first, n_q, scale, lid);
    row_state_init(&state, sink_of(&args, at.head, sinks), col);
    tile_zero_o(acc);

    int turn = 0; /* whose place has the next slice */
    if (AHEAD && j_first < j_end) k_slice_load(stage + PLACE(turn), k, args.k_row, j_first, j_end, 0, lid);
    q_tile_scale(stage, scale, lid);
    for (int j0 = j_first; j0 < j_end; j0 += BLOCK_KV) {
        const int found = tile_mask_classify(&mask_found, &src, row_first, n_q, j0, j_end, row, col, lid);
        if (!(found & MASK_SOME)) {
            copy_wait();
            if (AHEAD) k_slice_load(stage + PLACE(turn), k, args.k_row, j0 + BLOCK_KV, j_end, 0, lid);
            continue;
        }
        const int cut = mask_cuts(band, row_first, row_last, j0, j0 + BLOCK_KV) || (found & MASK_HIDDEN);
        real s[TILE_M][TILE_N]; /* this work-item's part of S, then P [BLOCK_Q, BLOCK_KV] */
        real rescale[TILE_M];

        tile_zero_s(s);
        for (int d0 = 0; d0 < HEAD_DIM_QK; d0 += D_SLICE) {
            __local real4 *here = stage + PLACE(turn);
            if (!AHEAD) {
                q_slice_load(here, q, args.q_row, row_first, n_q, d0, scale, lid);
                k_slice_load(here + K_AT, k, args.k_row, j0, j_end, d0, lid);
            }
            copy_wait();
            barrier(CLK_LOCAL_MEM_FENCE);
            if (AHEAD) {
                turn ^= 1;
                if (d0 + D_SLICE < HEAD_DIM_QK)
                    k_slice_load(stage + PLACE(turn), k, args.k_row, j0, j_end, d0 + D_SLICE, lid);
                else
                    v_slice_load(stage + PLACE(turn), v, args.v_row, j0, j_end, lid);
            }
            tile_matmul_nt(s, Q_RESIDENT ? stage + d0 / 4 : here, here + K_AT, row, col);
            if (!AHEAD) barrier(CLK_LOCAL_MEM_FENCE);
        }
        tile_score(s, &src, row_first, n_q, j0, j_end, row, col);

        if (cut) tile_mask(s, band, &src, row_first, n_q, j0, j_end, -INFINITY, row, col);
        row_state_update(&state, s, rescale, row_part, row, col);
        tile_dropout(s, &args, at, dropout_scale, row_first, j0, row, col);
        if (cut) tile_mask(s, band, &src, row_first, n_q, j0, j_end, PROB_HIDDEN, row, col);
        tile_share(p_tile, s, row, col);

        o_row part[TILE_M]; /* as acc */
        o_row *sum = tile_block_begin(acc, part, rescale);
        for (int t = 0; t < BLOCK_KV; t += V_SLICE) {
            __local real4 *here = stage + PLACE(turn);
            if (!AHEAD) v_slice_load(here, v, args.v_row, j0 + t, j_end, lid);
            copy_wait();
            barrier(CLK_LOCAL_MEM_FENCE);
            if (AHEAD) {
                turn ^= 1;
                if (t + V_SLICE < BLOCK_KV)
                    v_slice_load(stage + PLACE(turn), v, args.v_row, j0 + t + V_SLICE, j_end, lid);
                else if (j0 + BLOCK_KV < j_end)
                    k_slice_load(stage + PLACE(turn), k, args.k_row, j0 + BLOCK_KV, j_end, 0, lid);
            }
            if (cut)
                tile_matmul_nn_masked(sum, p_tile + t / 4, here, row, col);
            else
                tile_matmul_nn(sum, p_tile + t / 4, here, row, col);
            if (!AHEAD) barrier(CLK_LOCAL_MEM_FENCE);
        }
        tile_block_end(acc, part, rescale);
    }

    row_state_finish(&state, row_part, row, col);
    UNROLL_FOR (int i = 0; i < TILE_M; i++) {
        const int r = row_first + row + i * WG_ROWS;
        if (r < n_q) {
            tile_store_row(o + r * args.o_row, acc[i], 1 / state.l[i], state.l[i] == 0, 0, HEAD_DIM_V, col);
            if (args.has_lse && col == 0) lse[lse_at + r * args.lse_row] = row_lse(state.m[i], state.l[i]);
        }
    }
}
