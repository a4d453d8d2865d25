/* delta = dO . O - dLSE of every query row, which the other kernels take from dP. One work-item: one row. dLSE is not read
 * where LSE is -infinity. */
#include "backward.clh"
#include "storage4.clh"

__kernel void attn_bwd_delta(BACKWARD_PARAMETERS)
{
    const i64 item = args.first_group * get_local_size(0) + get_global_id(0);
    if (args.n_q == 0 || item >= (i64)back.batch * args.n_heads_q * args.n_q) return; /* n_q = 0: a trial launch */
    const i64 head_row = item / args.n_q;
    const int i = (int)(item - head_row * args.n_q);
    const attn_place at = attn_place_of(head_row, 1, args.n_heads_q, args.gqa_group);
    const forward_entry entry =
        forward_entry_of(&args, at.batch, kv_lengths, query_offsets, cu_seqlens_q, cu_seqlens_kv);
    if (i >= entry.n_q) return; /* a shorter sequence than the longest */

    const i64 row = entry.q_row_first + i, o_at = at.batch * args.o_batch + at.head * args.o_head + row * args.o_row;
    const i64 lse_at = at.batch * args.lse_batch + at.head * args.lse_head + row * args.lse_row;
    o += args.o_at + o_at;
    d_o += back.d_o_at + o_at;
    real4 sum = (real4)(0);
    for (int d = 0; d < HEAD_DIM_V; d += 4) sum = FMA(load4(o + d, d, HEAD_DIM_V), load4(d_o + d, d, HEAD_DIM_V), sum);
    real delta = (sum.x + sum.y) + (sum.z + sum.w);
    if (back.has_d_lse && lse[args.lse_at + lse_at] != -INFINITY) delta -= d_lse[back.d_lse_at + lse_at];
    workspace[back.delta_at + item] = delta;
}
