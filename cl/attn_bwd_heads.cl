/* The gradients that are one number a head. One work-group: one head; of slopes per batch entry, one head of one entry.
 *
 *   dsinks = -sum over entries and rows of exp(sink - LSE) delta       0 where LSE is -infinity
 *   dalibi_slopes = sum of the parts that the main kernels left
 *
 * Each work-item adds up every get_local_size(0)-th summand, and the first one the work-items' sums in their order. */
#include "backward.clh"

#define MOST_ITEMS 64

/* The sum of every work-item's x, to the first. Every work-item calls it. */
FN real group_sum(__local real *part, real x)
{
    real sum = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    part[get_local_id(0)] = x;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int i = 0; get_local_id(0) == 0 && i < (int)get_local_size(0); i++) sum += part[i];
    return sum;
}

__kernel void attn_bwd_heads(BACKWARD_PARAMETERS)
{
    __local real part[MOST_ITEMS];
    const i64 group = args.first_group + get_group_id(0);
    const int lid = (int)get_local_id(0), n_items = (int)get_local_size(0), n_heads = max_int(args.n_heads_q, 1);
    const int head = (int)(group % n_heads), entry_of_slope = (int)(group / n_heads);

    real sum = 0;
    const int n_entries = SINKS && back.wants_dsinks && group < n_heads ? back.batch : 0;
    for (int b = 0; b < n_entries; b++) {
        const forward_entry entry = forward_entry_of(&args, b, kv_lengths, query_offsets, cu_seqlens_q, cu_seqlens_kv);
        const real sink = (real)sinks[args.sinks_at + head];
        __global const float *rows =
            lse + args.lse_at + b * args.lse_batch + head * args.lse_head + entry.q_row_first * args.lse_row;
        __global const real *delta = workspace + back.delta_at + ((i64)b * n_heads + head) * args.n_q;
        for (int i = lid; i < entry.n_q; i += n_items) {
            const real row_lse = (real)rows[i * args.lse_row];
            if (row_lse != -INFINITY) sum -= exp(sink - row_lse) * delta[i];
        }
    }
    sum = group_sum(part, sum);
    if (n_entries > 0 && lid == 0) dsinks[back.dsinks_at + head] = (float)sum;

    const int wants_slope = ALIBI && back.wants_dalibi && (args.alibi_per_batch || group < n_heads);
    const int b_first = args.alibi_per_batch ? entry_of_slope : 0,
              b_end = args.alibi_per_batch ? b_first + 1 : back.batch;
    const i64 n_parts = wants_slope ? (i64)(b_end - b_first) * back.n_slope_parts : 0;
    sum = 0;
    for (i64 n = lid; n < n_parts; n += n_items) {
        const i64 b = b_first + n / back.n_slope_parts;
        sum += workspace[back.slopes_at + (b * n_heads + head) * back.n_slope_parts + n % back.n_slope_parts];
    }
    sum = group_sum(part, sum);
    if (wants_slope && lid == 0) dalibi_slopes[back.dalibi_at + group] = (float)sum;
}
