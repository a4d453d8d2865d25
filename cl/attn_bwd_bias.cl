/* dbias = dZ summed over what the bias broadcasts, in the order of batch entries, heads, rows and keys; S and dP are computed
 * again. One work-item: TILE x TILE elements of dbias, whatever the device.
 *
 *   for each batch entry and head that share them, for each TILE x TILE block of rows and keys that share them:
 *       S = Q K';  dP = dO V';  dZ = P (r dP - delta) f', 0 where hidden
 *       sum += dZ */
#include "backward.clh"
#include "dropout.clh"
#include "score_gradient.clh"
#include "storage4.clh"

#define TILE 4 /* a block of dropout's numbers, and what plan.c counts with */

/* s = a b', of rows that are n_a and n_b; rows past the last repeat it. */
FN void products(real s[TILE][TILE], __global const storage *a, i64 a_row, int n_a, __global const storage *b,
                 i64 b_row, int n_b, const int dim)
{
    real4 sum[TILE][TILE];
    UNROLL_FOR (int u = 0; u < TILE; u++)
        UNROLL_FOR (int c = 0; c < TILE; c++) sum[u][c] = (real4)(0);
    for (int d = 0; d < dim; d += 4) {
        real4 x[TILE], y[TILE];
        UNROLL_FOR (int u = 0; u < TILE; u++) x[u] = load4(a + min_int(u, n_a - 1) * a_row + d, d, dim);
        UNROLL_FOR (int c = 0; c < TILE; c++) y[c] = load4(b + min_int(c, n_b - 1) * b_row + d, d, dim);
        UNROLL_FOR (int u = 0; u < TILE; u++)
            UNROLL_FOR (int c = 0; c < TILE; c++) sum[u][c] = FMA(x[u], y[c], sum[u][c]);
    }
    UNROLL_FOR (int u = 0; u < TILE; u++)
        UNROLL_FOR (int c = 0; c < TILE; c++) s[u][c] = (sum[u][c].x + sum[u][c].y) + (sum[u][c].z + sum[u][c].w);
}

/* sum + rest is what was added, to twice the precision; rest is nothing once sum is not finite. */
FN void add_exactly(real *sum, real *rest, real x)
{
    const real all = *sum + x, of_x = all - *sum;
    *rest += (*sum - (all - of_x)) + (x - of_x);
    *sum = all;
}

FN int is_finite(real x) { return x - x == 0; }

/* One head of one batch entry; pointers are at its first row or key. */
typedef struct bias_head {
    __global const storage *q, *k, *v, *d_o;
    __global const float *lse;
    __global const real *delta;
    score_source src;
    mask_band band;
} bias_head;

/* sum + rest += dZ of n_q rows from i0 on and n_kv keys from j0 on, where visible. */
FN void tile_add(real sum[TILE][TILE], real rest[TILE][TILE], const bias_head *h, const attn_args *args, real scale,
                 real dropout_scale, int i0, int n_q, int j0, int n_kv)
{
    const u64 batch_head = (u64)h->src.batch * args->n_heads_q + h->src.head;
    real s[TILE][TILE], dp[TILE][TILE];
    products(s, h->q + i0 * args->q_row, args->q_row, n_q, h->k + j0 * args->k_row, args->k_row, n_kv, HEAD_DIM_QK);
    products(dp, h->d_o + i0 * args->o_row, args->o_row, n_q, h->v + j0 * args->v_row, args->v_row, n_kv, HEAD_DIM_V);
    for (int u = 0; u < n_q; u++) {
        const int i = i0 + u, first = mask_first(h->band, i), end = mask_end(h->band, i);
        const real lse = (real)h->lse[i * args->lse_row];
        if (lse == -INFINITY) continue; /* it sees nothing */
        philox_block block;
        if (DROPOUT) block = dropout_block(args->dropout_key0, args->dropout_key1, batch_head, i, j0);
        for (int c = 0; c < n_kv; c++) {
            const int j = j0 + c;
            if (j < first || j >= end || (MASK && !mask_allows(&h->src, i, j))) continue;
            const score_gradient g = score_gradient_of(s[u][c] * scale, &h->src, i, j);
            real d_prob = dp[u][c];
            if (DROPOUT) d_prob *= dropout_keeps(block, j, args->dropout_threshold) ? dropout_scale : 0;
            add_exactly(&sum[u][c], &rest[u][c], exp(g.score - lse) * (d_prob - h->delta[i]) * g.function);
        }
    }
}

/* A work-item's own elements, and with what they share: of batch entries, heads, rows and keys [first, end). */
typedef struct own_place {
    int first[4], end[4];
} own_place;

FN own_place own_place_of(i64 item, const attn_args *args, const backward_args *back)
{
    const i64 rows = DIV_UP(back->bias_count2, TILE), keys = DIV_UP(back->bias_count3, TILE);
    const i64 row = item / keys, head = row / rows, batch = head / back->bias_count1;
    const int n[4] = {back->batch, args->n_heads_q, args->n_q, args->n_kv};
    const i64 at[4] = {batch, head - batch * back->bias_count1, (row - head * rows) * TILE, (item - row * keys) * TILE};
    const i64 stride[4] = {args->bias_batch, args->bias_head, args->bias_q, args->bias_kv};
    own_place p;
    for (int i = 0; i < 4; i++) {
        p.first[i] = stride[i] == 0 ? 0 : (int)at[i];
        p.end[i] = stride[i] == 0 ? n[i] : min_int((int)at[i] + (i < 2 ? 1 : TILE), n[i]);
    }
    return p;
}

__kernel void attn_bwd_bias(BACKWARD_PARAMETERS)
{
    const i64 item = args.first_group * get_local_size(0) + get_global_id(0);
    const i64 tiles = DIV_UP(back.bias_count2, TILE) * DIV_UP(back.bias_count3, TILE);
    if (!back.wants_dbias || item >= back.bias_count0 * back.bias_count1 * tiles) return;
    const own_place own = own_place_of(item, &args, &back);
    real sum[TILE][TILE], rest[TILE][TILE];
    for (int u = 0; u < TILE; u++)
        for (int c = 0; c < TILE; c++) sum[u][c] = rest[u][c] = 0;

    for (int b = own.first[0]; b < own.end[0]; b++) {
        const forward_entry entry = forward_entry_of(&args, b, kv_lengths, query_offsets, cu_seqlens_q, cu_seqlens_kv);
        const int i_end = min_int(own.end[2], entry.n_q);
        for (int n = own.first[1]; n < own.end[1]; n++) {
            const attn_place at = {b, n, n / args.gqa_group, 0};
            const bias_head h = {
                q + args.q_at + b * args.q_batch + n * args.q_head + entry.q_row_first * args.q_row,
                k + args.k_at + b * args.k_batch + at.kv_head * args.k_head + entry.kv_row_first * args.k_row,
                v + args.v_at + b * args.v_batch + at.kv_head * args.v_head + entry.kv_row_first * args.v_row,
                d_o + back.d_o_at + b * args.o_batch + n * args.o_head + entry.q_row_first * args.o_row,
                lse + args.lse_at + b * args.lse_batch + n * args.lse_head + entry.q_row_first * args.lse_row,
                workspace + back.delta_at + ((i64)b * args.n_heads_q + n) * args.n_q,
                score_source_of(&args, at, &entry, bias, mask, alibi_slopes, score_data, softcap),
                entry.band};
            for (int i0 = own.first[2]; i0 < i_end; i0 += TILE) {
                const int n_q = min_int(TILE, i_end - i0);
                const int first = max_int(own.first[3], mask_first(h.band, i0) / TILE * TILE);
                const int end = min_int(own.end[3], mask_end(h.band, i0 + n_q - 1));
                for (int j0 = first; j0 < end; j0 += TILE)
                    tile_add(sum, rest, &h, &args, scale, dropout_scale, i0, n_q, j0, min_int(TILE, end - j0));
            }
        }
    }

    /* What the tile itself broadcasts. */
    const int rows = args.bias_q == 0 ? 1 : own.end[2] - own.first[2];
    const int keys = args.bias_kv == 0 ? 1 : own.end[3] - own.first[3];
    const i64 out = back.dbias_at + own.first[0] * args.bias_batch + own.first[1] * args.bias_head +
                    own.first[2] * args.bias_q + own.first[3] * args.bias_kv;
    for (int u = 0; u < rows; u++)
        for (int c = 0; c < keys; c++) {
            real all = 0, left = 0;
            for (int y = u; y < (args.bias_q == 0 ? TILE : u + 1); y++)
                for (int x = c; x < (args.bias_kv == 0 ? TILE : c + 1); x++) {
                    add_exactly(&all, &left, sum[y][x]);
                    left += rest[y][x];
                }
            bias_store1(dbias + out + u * args.bias_q + c * args.bias_kv, is_finite(all) ? all + left : all);
        }
}
