/* The partials of attn_decode_lanes -> O and LSE. One work-item: one query row of one head. */
#include "decode_lanes.clh"

#define MERGED (HEAD_DIM_V > 7 * LANES ? 8 : DIV_UP(HEAD_DIM_V, LANES)) /* vectors of a row at a time */

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void attn_merge_lanes(FORWARD_PARAMETERS,
                                                                              __global real *restrict partials)
{
    if (args.n_q == 0) return; /* a trial launch */
    const merge_place at = merge_place_of(&args, args.first_group + get_group_id(0));
    const forward_entry entry =
        forward_entry_of(&args, at.batch, kv_lengths, query_offsets, cu_seqlens_q, cu_seqlens_kv);
    if (at.row >= entry.n_q) return; /* a shorter sequence than the longest */
    partials += merge_partial_at(&args, at, entry.n_q);
    o += merge_o_at(&args, at, &entry);

    const real sink = sink_of(&args, at.head, sinks);
    real m = sink, l = 0;
    for (int c = 0; c < args.n_tiles; c++) {
        const real x = partials[c * args.partial_chunk + PARTIAL_M];
        m = x > m || x != x ? x : m; /* a NaN stays */
    }
    const real base = m == -INFINITY ? 0 : m;
    for (int d0 = 0; d0 < HEAD_DIM_V; d0 += MERGED * LANES) {
        vec sum[MERGED];
        UNROLL_FOR (int i = 0; i < MERGED; i++) sum[i] = (vec)(0);
        l = SINKS ? exp2((sink - base) * SCORE_UNIT) : 0;
        for (int c = 0; c < args.n_tiles; c++) {
            __global const real *p = partials + c * args.partial_chunk;
            if (p[PARTIAL_L] == 0) continue; /* nothing above -infinity: O may be NaN, or not written */
            const real weight = exp2((p[PARTIAL_M] - base) * SCORE_UNIT);
            l += p[PARTIAL_L] * weight;
            UNROLL_FOR (int i = 0; i < MERGED; i++)
                if (d0 + i * LANES < HEAD_DIM_V) sum[i] = fma(vload(p + d0 + i * LANES), (vec)(weight), sum[i]);
        }
        for (int i = 0, d = d0; i < MERGED && d < HEAD_DIM_V; i++, d += LANES)
            store_columns(o + d, d, HEAD_DIM_V, l == 0 ? (vec)(0) : sum[i] / l);
    }
    if (args.has_lse) lse[merge_lse_at(&args, at, &entry)] = l == 0 ? -INFINITY : (float)(m * SCORE_LN + log(l));
}
