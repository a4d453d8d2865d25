/* dK = dV = 0, of a problem without a query row. One work-item: one key of one kv head. */
#include "backward.clh"

__kernel void attn_bwd_zero(BACKWARD_PARAMETERS)
{
    const i64 item = args.first_group * get_local_size(0) + get_global_id(0);
    const i64 n_kv = VARLEN ? args.total_kv : args.n_kv;
    const int heads = args.n_heads_q / args.gqa_group, entries = VARLEN ? 1 : back.batch;
    if (n_kv == 0 || item >= (i64)entries * heads * n_kv) return;
    const i64 head_row = item / n_kv, key = item - head_row * n_kv, batch = head_row / heads, head = head_row % heads;
    dk += back.dk_at + batch * args.k_batch + head * args.k_head + key * args.k_row;
    dv += back.dv_at + batch * args.v_batch + head * args.v_head + key * args.v_row;
    for (int d = 0; back.wants_dk && d < HEAD_DIM_QK; d++) store1(dk + d, 0);
    for (int d = 0; back.wants_dv && d < HEAD_DIM_V; d++) store1(dv + d, 0);
}
