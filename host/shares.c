#include "shares.h"

#include <inttypes.h>

#include "error.h"
#include "plan.h"

enum {
    SHARE_BYTES = 64 << 20, /* less is not cut for the sake of copying beside the kernels */
    SHARES_BEST = 8         /* nor are larger calls cut into many more than this */
};

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t add(int64_t a, int64_t b)
{
    int64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? INT64_MAX : sum;
}

/* Heads are cut within each GQA group, or within them all. */
static int64_t head_span(const problem *p, const device_cut *c)
{
    return c->heads < p->gqa_group ? p->gqa_group : p->n_heads_q;
}

static int64_t row_parts(const problem *p, const device_cut *c) { return p->n_q ? div_up(p->n_q, c->rows) : 1; }
static int64_t key_parts(const problem *p, const device_cut *c) { return p->n_kv ? div_up(p->n_kv, c->keys) : 1; }

share clattn__share_of(const problem *p, const device_cut *c, int64_t nth)
{
    const int64_t keys = key_parts(p, c), key_part = nth % keys;
    const int64_t rows = row_parts(p, c), span = head_span(p, c), heads_in_span = div_up(span, c->heads);
    nth /= keys;
    const int64_t heads = p->n_heads_q / span * heads_in_span, head_part = nth / rows % heads;
    const int64_t head_end = (head_part / heads_in_span + 1) * span;
    share s = {.entry = nth / rows / heads * c->entries,
               .head = head_end - span + head_part % heads_in_span * c->heads,
               .row = nth % rows * c->rows,
               .key = key_part * c->keys};
    s.entry_end = least(s.entry + c->entries, p->batch);
    s.head_end = least(s.head + c->heads, head_end);
    s.row_end = least(s.row + c->rows, p->n_q);
    s.key_end = least(s.key + c->keys, p->n_kv);
    s.skips_merge = s.key_end < p->n_kv;
    return s;
}

tensor_part clattn__share_part(const problem *p, const share *s, tensor_name name)
{
    const bool is_keys = name == TENSOR_K || name == TENSOR_V,
               beside_scores = name == TENSOR_BIAS || name == TENSOR_MASK;
    const bool is_cut = name <= TENSOR_LSE || beside_scores; /* else a list, which all shares read whole */
    const bool is_packed = p->varlen && !beside_scores;      /* all sequences' rows */
    const int64_t group = is_keys ? p->gqa_group : 1;
    tensor_part part = {.shape = p->tensor[name]};
    const int64_t first[3] = {s->entry, s->head / group, is_keys ? s->key : s->row};
    const int64_t end[3] = {s->entry_end, div_up(s->head_end, group), is_keys ? s->key_end : s->row_end};
    for (int i = 0; i < 3 && is_cut; i++) {
        if (part.shape.stride[i] == 0 || (is_packed && i != 1)) continue;
        part.first[i] = first[i];
        part.shape.count[i] = end[i] - first[i];
    }
    return part;
}

/* ---- the cut */

typedef enum cut_level { CUT_ENTRIES, CUT_GROUPS, CUT_CHUNKS, CUT_HEADS, CUT_TILES, CUT_LEVELS } cut_level;

/* is_parted: groups and heads may be. */
static bool may_cut_at(const problem *p, const device_choice *choice, bool is_parted, cut_level level)
{
    if (level == CUT_GROUPS) return true;
    if (level == CUT_HEADS) return is_parted && !choice_splits_keys(choice);
    if (p->varlen) return false;
    return level == CUT_ENTRIES || (is_parted && choice_splits_keys(choice) == (level == CUT_CHUNKS));
}

/* n batch entries, GQA groups, chunks of a group's keys, heads of a group, or tiles of a head. */
static void cut_at(const problem *p, cut_level level, int64_t n, const device_choice *choice, device_cut *c)
{
    const int64_t block_q = choice->axes[AXIS_BLOCK_Q], block_kv = choice->axes[AXIS_BLOCK_KV];
    c->entries = level == CUT_ENTRIES ? n : p->varlen ? p->batch : 1;
    c->heads = level == CUT_ENTRIES  ? p->n_heads_q
               : level == CUT_GROUPS ? n * p->gqa_group
               : level == CUT_CHUNKS ? p->gqa_group
               : level == CUT_HEADS  ? n
                                     : 1;
    c->rows = level == CUT_TILES && n * block_q < p->n_q ? n * block_q : p->n_q;
    c->keys = level == CUT_CHUNKS && n * block_kv < p->n_kv ? n * block_kv : p->n_kv;
    const int64_t span = head_span(p, c);
    c->n_shares = div_up(p->batch, c->entries) * (p->n_heads_q / span) * div_up(span, c->heads) * row_parts(p, c) *
                  key_parts(p, c);
}

/* Counts its bytes: do they fit? What the first share and the last have alike all have. */
static bool cut_fits(const problem *p, const device_profile *d, int64_t workspace_bytes, device_cut *c)
{
    const share first = clattn__share_of(p, c, 0), last = clattn__share_of(p, c, c->n_shares - 1);
    int64_t largest = 0;
    c->share_bytes = 0;
    c->common_bytes = workspace_bytes;
    for (tensor_name i = 0; i < TENSOR_COUNT; i++) {
        const tensor_part a = clattn__share_part(p, &first, i), b = clattn__share_part(p, &last, i);
        const int64_t bytes = clattn__tensor_copy_bytes(&a.shape);
        int64_t *sum = part_is(&a, &b) ? &c->common_bytes : &c->share_bytes;
        *sum = add(*sum, bytes);
        if (bytes > largest) largest = bytes;
    }
    const int64_t all = add(c->common_bytes, c->n_sets == 2 ? add(c->share_bytes, c->share_bytes) : c->share_bytes);
    return largest <= d->max_alloc_bytes && all <= c->bytes_most && all < INT64_MAX;
}

/* At least `wanted` shares, more than one, each of at most `enough` bytes where batch entries or groups do that: is
 * there such a cut? fits: the call whole does; then it is cut for two sets of buffers or not at all. */
static bool cut_into(const problem *p, const device_profile *d, const device_choice *choice, int64_t wanted,
                     int64_t enough, bool fits, device_cut *c)
{
    const int64_t block_q = choice->axes[AXIS_BLOCK_Q], block_kv = choice->axes[AXIS_BLOCK_KV];
    const int64_t units[CUT_LEVELS] = {p->batch, p->n_heads_kv, block_kv ? div_up(p->n_kv, block_kv) : 1, p->gqa_group,
                                       div_up(p->n_q, block_q)};
    /* Groups and heads are parted for want of memory or of shares only. */
    const bool is_parted = !fits || wanted > (p->varlen ? 1 : p->batch) * p->n_heads_kv;
    for (c->n_sets = d->shares_host_memory ? 1 : 2; c->n_sets > (fits ? 1 : 0); c->n_sets--)
        for (cut_level level = CUT_ENTRIES; level < CUT_LEVELS; level++)
            for (int64_t n = units[level]; may_cut_at(p, choice, is_parted, level); n = div_up(n, 2)) {
                cut_at(p, level, n, choice, c);
                const bool is_cut =
                    cut_fits(p, d, choice->workspace_bytes, c) && c->n_shares > 1 && c->n_shares >= wanted;
                const bool is_least = level > CUT_GROUPS || (level == CUT_GROUPS && n == 1);
                if (is_cut && (c->n_sets == 1 || is_least || c->share_bytes <= enough)) return true;
                if (n <= 1) break;
            }
    return false;
}

void clattn__plan_cut(const problem *p, const device_profile *d, device_choice *choice)
{
    device_cut *c = &choice->cut;
    c->bytes_most = d->copy_bytes_most ? d->copy_bytes_most : INT64_MAX;
    c->n_sets = 1;
    cut_at(p, CUT_ENTRIES, p->batch, choice, c);
    const bool fits = cut_fits(p, d, choice->workspace_bytes, c);
    const device_cut whole = *c;
    const int64_t most =
        whole.common_bytes / SHARES_BEST > SHARE_BYTES ? whole.common_bytes / SHARES_BEST : SHARE_BYTES;
    const int64_t enough = d->shares_host_memory ? INT64_MAX : most;
    if (choice->pass == CLATTN_PASS_BACKWARD) return;
    for (int64_t wanted = d->n_devices; wanted > 1; wanted--)
        if (cut_into(p, d, choice, wanted, enough, fits, c)) return;
    if (!(fits && whole.common_bytes <= enough) && cut_into(p, d, choice, 1, enough, fits, c)) return;
    if (fits)
        *c = whole;
    else
        c->n_shares = 0;
}

clattn_status clattn__plan_cut_refuse(const device_cut *c, const device_profile *d, clattn_status status)
{
    return clattn__fail(
        status, 0,
        "the least share of a call, %" PRId64 " rows of %" PRId64 " query heads and %" PRId64 " keys, takes %" PRId64
        " bytes of copies; %s may hold %" PRId64 " at a time, %" PRId64 " in one buffer",
        c->rows, c->heads, c->keys, add(c->share_bytes, c->common_bytes), d->name, c->bytes_most, d->max_alloc_bytes);
}
