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

/* Its own elements [bias_count]; and of all batch entries, heads, rows and keys those that share them. */
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
        for (int h = own.first[1]; h < own.end[1]; h++) {
            const attn_place at = {b, h, h / args.gqa_group, 0};
            const score_source src = score_source_of(&args, at, &entry, bias, mask, alibi_slopes, score_data, softcap);
            const i64 kv_k = args.k_at + b * args.k_batch + at.kv_head * args.k_head + entry.kv_row_first * args.k_row;
            const i64 kv_v = args.v_at + b * args.v_batch + at.kv_head * args.v_head + entry.kv_row_first * args.v_row;
            const i64 o_row_first = b * args.o_batch + h * args.o_head + entry.q_row_first * args.o_row;
            __global const storage *q_head =
                q + args.q_at + b * args.q_batch + h * args.q_head + entry.q_row_first * args.q_row;
            __global const float *lse_head =
                lse + args.lse_at + b * args.lse_batch + h * args.lse_head + entry.q_row_first * args.lse_row;
            __global const real *delta = workspace + back.delta_at + ((i64)b * args.n_heads_q + h) * args.n_q;
            for (int i0 = own.first[2]; i0 < min_int(own.end[2], entry.n_q); i0 += TILE) {
                const int n_q = min_int(TILE, entry.n_q - i0), i_last = i0 + n_q - 1;
                const int j_end = min_int(own.end[3], mask_end(entry.band, i_last));
                const int j_first = max_int(own.first[3], mask_first(entry.band, i0) / TILE * TILE);
                for (int j0 = j_first; j0 < j_end; j0 += TILE) {
                    const int n_kv = min_int(TILE, j_end - j0);
                    real s[TILE][TILE], dp[TILE][TILE];
                    products(s, q_head + i0 * args.q_row, args.q_row, n_q, k + kv_k + j0 * args.k_row, args.k_row, n_kv,
                             HEAD_DIM_QK);
                    products(dp, d_o + back.d_o_at + o_row_first + i0 * args.o_row, args.o_row, n_q,
                             v + kv_v + j0 * args.v_row, args.v_row, n_kv, HEAD_DIM_V);
                    for (int u = 0; u < n_q; u++) {
                        const int i = i0 + u;
                        const real row_lse = (real)lse_head[i * args.lse_row];
                        philox_block block;
                        if (DROPOUT)
                            block =
                                dropout_block(args.dropout_key0, args.dropout_key1, (u64)b * args.n_heads_q + h, i, j0);
                        for (int c = 0; c < n_kv; c++) {
                            const int j = j0 + c;
                            if (row_lse == -INFINITY || j < mask_first(entry.band, i) || j >= mask_end(entry.band, i))
                                continue;
                            if (MASK && !mask_allows(&src, i, j)) continue;
                            const score_gradient g = score_gradient_of(s[u][c] * scale, &src, i, j);
                            const real p = exp(g.score - row_lse);
                            real d_prob = dp[u][c];
                            if (DROPOUT) d_prob *= dropout_keeps(block, j, args.dropout_threshold) ? dropout_scale : 0;
                            add_exactly(&sum[u][c], &rest[u][c], p * (d_prob - delta[i]) * g.function);
                        }
                    }
                }
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
