/* The partials of attn_decode -> O and LSE. One work-group: one query row of one head; its work-items stand side by
 * side on the columns, four each, and share the chunks. */
#include "partials.clh"
#include "storage4.clh"

#define PIECES DIV_UP(HEAD_DIM_V, 4)
/* Two at least: with one work-item a row PoCL 3.1 lets all of them do what row 0 alone is to do. */
#define COLS (PIECES > WG_SIZE / 2 ? WG_SIZE : MAX_OF(POWER_UP(PIECES), 2))
#define ROWS (WG_SIZE / COLS) /* chunks at a time */

__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void attn_merge(FORWARD_PARAMETERS,
                                                                              __global real *restrict partials)
{
    __local real4 sums[WG_SIZE];
    __local real part[WG_SIZE];
    if (args.n_q == 0) return; /* a trial launch */
    const uint lid = get_local_id(0);
    const int col = lid % COLS, row = lid / COLS, n = args.n_tiles;
    const merge_place at = merge_place_of(&args, args.first_group + (i64)get_group_id(0));
    const forward_entry entry =
        forward_entry_of(&args, at.batch, kv_lengths, query_offsets, cu_seqlens_q, cu_seqlens_kv);
    if (at.row >= entry.n_q) return; /* a shorter sequence than the longest */
    partials += merge_partial_at(&args, at, entry.n_q);
    o += merge_o_at(&args, at, &entry);

    const real sink = sink_of(&args, at.head, sinks);
    real m = sink;
    for (int c = lid; c < n; c += WG_SIZE) m = fmax(m, partials[c * args.partial_chunk + PARTIAL_M]);
    part[lid] = m;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int i = 0; i < WG_SIZE; i++) m = fmax(m, part[i]);
    const real base = m == -INFINITY ? 0 : m;

    for (int d0 = 0; d0 < HEAD_DIM_V; d0 += 4 * COLS) {
        const int d = d0 + 4 * col;
        real l = 0;
        real4 sum = (real4)(0);
        UNROLL_FOR_BY (4, int c = row; c < n; c += ROWS) {
            __global const real *p = partials + c * args.partial_chunk;
            const real x = p[PARTIAL_M], weight = exp2((x - base) * SCORE_UNIT);
            l = FMA(p[PARTIAL_L], weight, l);
            if (x != -INFINITY && d < HEAD_DIM_V) sum = FMA(*(__global const real4 *)(p + d), (real4)(weight), sum);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        sums[lid] = sum;
        part[lid] = l;
        barrier(CLK_LOCAL_MEM_FENCE);
        if (row == 0) {
            for (int i = 1; i < ROWS; i++) {
                sum += sums[i * COLS + col];
                l += part[i * COLS + col];
            }
            if (SINKS) l += exp2((sink - base) * SCORE_UNIT);
            store4(o + d, d, HEAD_DIM_V, l == 0 ? (real4)(0) : sum / l);
        }
        if (lid == 0 && d0 == 0 && args.has_lse) lse[merge_lse_at(&args, at, &entry)] = row_lse(m, l);
    }
}
