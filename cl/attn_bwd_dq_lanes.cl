/* dQ from the splits' sums that attn_bwd_lanes leaves in the workspace, added in the splits' order. One work-item: BLOCK_Q
 * query rows of one head. */
#include "backward_lanes.clh"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void attn_bwd_dq_lanes(BACKWARD_PARAMETERS)
{
    if (args.n_q == 0) return; /* a trial launch */
    const attn_place at =
        attn_place_of(args.first_group + get_group_id(0), args.n_tiles, args.n_heads_q, args.gqa_group);
    const forward_entry entry =
        forward_entry_of(&args, at.batch, kv_lengths, query_offsets, cu_seqlens_q, cu_seqlens_kv);
    const i64 next_split = partial_size(&args) * args.gqa_group;
    __global const real *sums = partial_of(workspace, &args, &back, at.batch, at.head, 0);
    dq += back.dq_at + at.batch * args.q_batch + at.head * args.q_head + entry.q_row_first * args.q_row;

    const int row_first = at.tile * BLOCK_Q, row_end = min(row_first + BLOCK_Q, entry.n_q);
    for (int i = row_first; i < row_end; i++)
        for (int d = 0; d < HEAD_DIM_QK; d += LANES) {
            vec sum = (vec)(0);
            for (int split = 0; split < back.n_splits; split++)
                sum += vload(sums + split * next_split + (i64)i * PARTIAL_PITCH + d);
            store_columns(dq + i * args.q_row + d, d, HEAD_DIM_QK, sum * scale);
        }
}
