/* Decisions and arithmetic that need no device: which kernel variant a made-up device gets, which tile of the table,
 * which paths, and the 16-bit formats. Linked to the static library, for these are the library's own functions. */
#include "harness.h"

#include <inttypes.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "context.h"
#include "device.h"
#include "error.h"
#include "half.h"
#include "plan.h"
#include "tile_table.h"
#include "tuning.h"

/* ---- made-up devices */

typedef struct machine {
    const char *what;
    bool is_cpu, has_fp64;
    int64_t local_bytes, max_work_group_size, max_alloc_bytes;
} machine;

#define KIB INT64_C(1024)
#define GIB (INT64_C(1) << 30)
static const machine machines[] = {
    {"gpu 48 KiB, 1024", false, true, 48 * KIB, 1024, 8 * GIB},
    {"gpu 32 KiB, 256", false, true, 32 * KIB, 256, 2 * GIB},
    {"gpu 16 KiB, 64", false, false, 16 * KIB, 64, GIB},
    {"gpu 64 KiB, 128", false, false, 64 * KIB, 128, GIB},
    {"gpu 8 KiB, 16", false, true, 8 * KIB, 16, GIB},
    {"cpu 256 KiB, 4096", true, true, 256 * KIB, 4096, 4 * GIB},
    {"cpu 16 KiB, 64", true, false, 16 * KIB, 64, 4 * GIB},
};
enum { N_MACHINES = sizeof machines / sizeof *machines };

static device_profile profile_of(const machine *m)
{
    device_profile d;
    memset(&d, 0, sizeof d);
    snprintf(d.name, sizeof d.name, "%s", m->what);
    d.is_cpu = m->is_cpu;
    d.has_fp64 = m->has_fp64;
    d.local_bytes = m->local_bytes;
    d.max_work_group_size = m->max_work_group_size;
    d.max_alloc_bytes = m->max_alloc_bytes;
    return d;
}

static bool is_last; /* of the latest clattn__plan_device */

static problem problem_of(const char *line)
{
    clattn_problem given;
    problem p;
    ck_assert_msg(clattn_problem_from_text(line, &given) == CLATTN_STATUS_SUCCESS, "%s", clattn_last_error()->message);
    ck_assert_int_eq(clattn__problem_make(&given, &p), CLATTN_STATUS_SUCCESS);
    return p;
}

static clattn_plan_options options_of(clattn_kernel kernel, int64_t block_q, int64_t block_kv)
{
    clattn_plan_options o;
    clattn_plan_options_init(&o);
    o.kernel = kernel;
    o.block_q = block_q;
    o.block_kv = block_kv;
    return o;
}

/* What cl/config.clh demands of the axes, and what it says of local memory; written from there, not from the table. */
static int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

static void expect_attn_fwd(const int *a, int64_t wg, int64_t local, const machine *m, const char *what)
{
    const int64_t bq = a[AXIS_BLOCK_Q], bkv = a[AXIS_BLOCK_KV], size = a[AXIS_WG_SIZE], cols = a[AXIS_WG_COLS];
    const int64_t d = a[AXIS_D_SLICE], v = a[AXIS_V_SLICE], resident = a[AXIS_Q_RESIDENT];
    const int64_t real = a[AXIS_STORAGE] == CLATTN_DTYPE_F64 ? 8 : 4;
    ck_assert_msg(cols >= 4 && (cols & (cols - 1)) == 0, "%s: WG_COLS %d", what, (int)cols);
    ck_assert_msg(size >= 16 && size % 16 == 0 && size % (2 * cols) == 0, "%s: WG_SIZE %d", what, (int)size);
    ck_assert_msg(bq >= 1 && bq % (size / cols) == 0, "%s: BLOCK_Q %d", what, (int)bq);
    ck_assert_msg(bkv >= 1 && bkv % cols == 0, "%s: BLOCK_KV %d", what, (int)bkv);
    ck_assert_msg(d >= 4 && d % 4 == 0, "%s: D_SLICE %d", what, (int)d);
    ck_assert_msg(v >= 4 && v % 4 == 0 && bkv % v == 0, "%s: V_SLICE %d of BLOCK_KV %d", what, (int)v, (int)bkv);
    ck_assert_msg(resident == 0 || resident == 1, "%s: Q_RESIDENT %d", what, (int)resident);
    ck_assert_int_eq(wg, size);
    const int64_t q4 = (resident ? up(a[AXIS_HEAD_DIM_QK], d) : d) / 4 | 1, k4 = d / 4 | 1, p4 = bkv / 4 | 1;
    const int64_t v4 = up(a[AXIS_HEAD_DIM_V], 4 * cols) / 4;
    const int64_t q_kept = resident ? bq * q4 : 0, qk = bq * q4 - q_kept + bkv * k4, places = a[AXIS_AHEAD] ? 2 : 1;
    const int64_t bytes = 4 * real * (q_kept + places * (qk > v * v4 ? qk : v * v4) + bq * p4 + bq * cols / 4);
    ck_assert_msg(places == 1 || (resident && a[AXIS_STORAGE] == CLATTN_DTYPE_F32 && 2 * bytes <= m->local_bytes), "%s",
                  what);
    ck_assert_msg(local == bytes, "%s: %d bytes of local memory, not %d", what, (int)local, (int)bytes);
    ck_assert_msg(bytes <= m->local_bytes, "%s: %d bytes of local memory on %s", what, (int)bytes, m->what);
    ck_assert_msg(size <= m->max_work_group_size, "%s: %d work-items on %s", what, (int)size, m->what);
}

/* What cl/tile_mma.clh demands of the axes, and what it says of local memory; written from there. */
static void expect_mma(const device_choice *c, const problem *p, const device_profile *d, const char *what)
{
    const int64_t bq = c->axes[AXIS_BLOCK_Q], bkv = c->axes[AXIS_BLOCK_KV], wg = c->axes[AXIS_WG_SIZE];
    const int64_t qk = up(p->head_dim_qk, 16), v = up(p->head_dim_v, 16);
    const int engine = c->axes[AXIS_MMA], step = engine == 3 ? 64 : 16;
    const int64_t k_row = engine == 3 ? up(p->head_dim_qk, 64) : qk + 8,
                  v_row = engine == 3 ? up(p->head_dim_v, 64) : v + 8;
    const int64_t kv_place = bkv * (k_row + v_row), qp_place = bq * (k_row > bkv ? k_row : bkv);
    const int64_t stage = qp_place > kv_place ? qp_place : kv_place;
    const bool is_emulated = engine == 1 || (engine >= 4 && engine % 2 == 0);
    const int64_t exchange = is_emulated ? wg * (qk + bkv) / 16 + bq * (engine == 6 ? 4 : 1) : 1;
    const int64_t items = engine == 4 || engine == 5 ? 4 : 2; /* of a row */
    const bool has_one = d->engine != ENGINE_NONE && !engine_is_lanes(d->engine);
    ck_assert_msg(engine == (has_one ? (int)d->engine : 1), "%s: MMA %d", what, engine);
    ck_assert_msg(bq >= step && bq % step == 0 && bkv >= step && bkv % step == 0 && wg == items * bq, "%s", what);
    ck_assert_msg(c->local_bytes == 4 * stage + 16 * exchange + 12, "%s: %d bytes", what, (int)c->local_bytes);
    ck_assert_msg(c->local_bytes <= d->local_bytes, "%s", what);
    ck_assert_msg(wg <= d->max_work_group_size, "%s", what);
    ck_assert_int_eq(c->work_group_size, wg);
}

static const int head_dims[] = {1, 7, 31, 32, 46, 64, 65, 80, 96, 128, 129, 200, 224, 256, 257, 512, 513, 576, 1024};
static const char *const storages[] = {"f32", "f16", "bf16", "f64"};
enum { N_HEAD_DIMS = sizeof head_dims / sizeof *head_dims };

/* Every head dim, type and forced size on one machine: what is chosen fits, and is no more than what was asked for. */
START_TEST(tiles_fit)
{
    const machine *m = &machines[_i];
    const device_profile d = profile_of(m);
    const int64_t forced[][2] = {{0, 0}, {1, 1}, {16, 16}, {17, 100}, {128, 32}, {0, 64}, {48, 0}, {4096, 4096}};
    int chosen = 0;
    for (int i = 0; i < N_HEAD_DIMS; i++)
        for (int t = 0; t < 4; t++)
            for (size_t k = 0; k < sizeof forced / sizeof *forced; k++) {
                char line[128];
                snprintf(line, sizeof line, "%s hq2 q300 kv500 d%d dv%d", storages[t], head_dims[i],
                         head_dims[(i * 7 + t) % N_HEAD_DIMS]);
                const problem p = problem_of(line);
                const clattn_plan_options o = options_of(CLATTN_KERNEL_ATTN_FWD, forced[k][0], forced[k][1]);
                device_choice c;
                const clattn_status status = clattn__plan_device(&p, &d, &o, 0, &c, &is_last);
                if (status != CLATTN_STATUS_SUCCESS) {
                    ck_assert_int_eq(status, CLATTN_STATUS_UNSUPPORTED);
                    continue;
                }
                chosen++;
                ck_assert_int_eq(c.kernel, CLATTN_KERNEL_ATTN_FWD);
                ck_assert_int_eq(c.axes[AXIS_STORAGE], p.dtype);
                ck_assert_int_eq(c.axes[AXIS_HEAD_DIM_QK], p.head_dim_qk);
                ck_assert_int_eq(c.axes[AXIS_HEAD_DIM_V], p.head_dim_v);
                expect_attn_fwd(c.axes, c.work_group_size, c.local_bytes, m, line);
                if (forced[k][0]) ck_assert_int_le(c.axes[AXIS_BLOCK_Q], up(forced[k][0], 16));
                if (forced[k][1]) ck_assert_int_le(c.axes[AXIS_BLOCK_KV], up(forced[k][1], 16));
            }
    ck_assert_msg(chosen > (m->local_bytes < 16 * KIB ? 50 : 150), "%s: only %d problems have a tile", m->what, chosen);
}
END_TEST

/* Where a head dim must have a tile: up to 256 on 16 KiB with 64 work-items, all of f32, f16 and bf16. */
START_TEST(tiles_exist)
{
    const machine small = {"16 KiB, 64", false, true, 16 * KIB, 64, GIB};
    const device_profile d = profile_of(&small);
    const clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
    for (int dim = 1; dim <= 256; dim++)
        for (int t = 0; t < 4; t++) {
            char line[128];
            device_choice c;
            snprintf(line, sizeof line, "%s hq1 q300 kv300 d%d", storages[t], dim);
            const problem p = problem_of(line);
            ck_assert_msg(clattn__plan_device(&p, &d, &o, 0, &c, &is_last) == CLATTN_STATUS_SUCCESS, "%s: %s", line,
                          clattn_last_error()->message);
            expect_attn_fwd(c.axes, c.work_group_size, c.local_bytes, &small, line);
        }
}
END_TEST

/* More local memory or more work-items never lose a tile, and never make it smaller. */
START_TEST(tiles_grow_with_the_device)
{
    const int64_t locals[] = {8 * KIB, 16 * KIB, 24 * KIB, 32 * KIB, 48 * KIB, 64 * KIB, 227 * KIB};
    const int64_t groups[] = {16, 64, 128, 256, 1024};
    for (int i = 0; i < N_HEAD_DIMS; i++)
        for (int real = 4; real <= 8; real += 4)
            for (int g = 0; g < 5; g++) {
                bool had = false;
                for (int l = 0; l < 7; l++) {
                    clattn__tile t;
                    const bool has =
                        clattn__tile_pick(head_dims[i], head_dims[i], real, locals[l], groups[g], 0, 0, 0, &t) != NULL;
                    ck_assert_msg(has || !had, "d%d: %d KiB lose what fewer had", head_dims[i], (int)(locals[l] / KIB));
                    if (has) {
                        ck_assert_int_le(clattn__tile_local_bytes(&t, head_dims[i], head_dims[i], false), locals[l]);
                        ck_assert_int_le(t.wg_size, groups[g]);
                    }
                    had = has;
                }
            }
}
END_TEST

/* The variants are tried one after the other, each another one, and then there are none. */
START_TEST(variants_end)
{
    const device_profile d = profile_of(&machines[_i]);
    const problem p = problem_of("f16 hq4 q300 kv300 d64");
    const clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
    device_choice seen[64];
    int n = 0;
    for (; n < 64 && clattn__plan_device(&p, &d, &o, n, &seen[n], &is_last) == CLATTN_STATUS_SUCCESS; n++)
        for (int i = 0; i < n; i++)
            ck_assert_msg(memcmp(seen[i].axes, seen[n].axes, sizeof seen[n].axes) || seen[i].kernel != seen[n].kernel,
                          "%s: variants %d and %d are one", machines[_i].what, i, n);
    ck_assert_int_ge(n, 1);
    ck_assert_int_lt(n, 64);
    ck_assert_int_eq(clattn_last_error()->status, CLATTN_STATUS_UNSUPPORTED);
    ck_assert_int_eq(seen[0].kernel, machines[_i].is_cpu ? CLATTN_KERNEL_ATTN_FWD_LANES : CLATTN_KERNEL_ATTN_FWD);
    for (int i = 1; i < n; i++) ck_assert_int_eq(seen[i].kernel, CLATTN_KERNEL_ATTN_FWD);
}
END_TEST

/* AUTO takes the engine where a device has one, for f16 and bf16 and the head dims that it takes, and attn_fwd after
 * it. */
START_TEST(engine_automatic)
{
    static const struct {
        const char *text;
        bool suits;
    } cases[] = {{"f16 hq4 q300 kv300 d64", true},     {"bf16 hq4 q100 kv9000 d128 dv40", true},
                 {"bf16 hq4 q300 kv300 d64", true},    {"f16 hq4 q100 kv9000 d128 dv40", true},
                 {"f16 hq2 q30 kv300 d80", true},      {"bf16 hq2 q300 kv30 d40", true},
                 {"f32 hq4 q300 kv300 d64", false},    {"f64 hq4 q300 kv300 d64", false},
                 {"f16 hq4 q300 kv300 d129", false},   {"f16 hq4 q300 kv300 d64 dv136", false},
                 {"f16 hq4 q300 kv300 d3 alibi", true}};
    static const matrix_engine engines[] = {ENGINE_MMA_SYNC, ENGINE_WGMMA,      ENGINE_MFMA,
                                            ENGINE_DPAS,     ENGINE_WMMA_GFX11, ENGINE_WMMA_GFX12};
    const clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
    device_profile d = profile_of(&machines[0]);
    device_choice c;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const problem p = problem_of(cases[i].text);
        d.engine = engines[i % (sizeof engines / sizeof *engines)];
        d.local_bytes = 227 * KIB;
        ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
        ck_assert_msg((c.kernel == CLATTN_KERNEL_ATTN_FWD_MMA) == cases[i].suits, "%s", cases[i].text);
        if (cases[i].suits) {
            expect_mma(&c, &p, &d, cases[i].text);
            ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 1, &c, &is_last), CLATTN_STATUS_SUCCESS);
        }
        ck_assert_int_eq(c.kernel, CLATTN_KERNEL_ATTN_FWD);
        ck_assert_int_eq(c.axes[AXIS_MMA], 0);
        d.engine = ENGINE_NONE;
        ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
        ck_assert_int_eq(c.kernel, CLATTN_KERNEL_ATTN_FWD);
    }
    clattn_plan_options backward = o;
    backward.pass = CLATTN_PASS_BACKWARD;
    d.engine = ENGINE_MMA_SYNC;
    const problem p = problem_of(cases[0].text);
    ck_assert_int_eq(clattn__plan_device(&p, &d, &backward, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(c.kernel, CLATTN_KERNEL_ATTN_BWD);
}
END_TEST

/* The lanes kernels take pairs in bf16 where a CPU device has them; attn_fwd_mma does not. */
START_TEST(pairs_automatic)
{
    static const clattn_pass passes[] = {CLATTN_PASS_FORWARD, CLATTN_PASS_BACKWARD};
    device_choice c;
    for (int i = 0; i < 8; i++) {
        char line[64];
        device_profile d = profile_of(&machines[5]);
        clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
        const matrix_engine engine = i % 4 == 2 ? ENGINE_VDPBF16PS : ENGINE_EMULATED_PAIRS;
        snprintf(line, sizeof line, "%s hq2 q300 kv500 d64", storages[i % 4]);
        const problem p = problem_of(line);
        o.pass = passes[i / 4];
        d.engine = engine;
        ck_assert(d.is_cpu);
        ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
        ck_assert_int_eq(c.kernel, i / 4 ? CLATTN_KERNEL_ATTN_BWD_LANES : CLATTN_KERNEL_ATTN_FWD_LANES);
        ck_assert_int_eq(c.axes[AXIS_MMA], p.dtype == CLATTN_DTYPE_BF16 ? (int)engine : ENGINE_NONE);
        ck_assert_int_eq(choice_rounds_probs(&c), p.dtype == CLATTN_DTYPE_BF16);
    }
}
END_TEST

/* Of Q and K alone; the merge has no use for the engine. */
START_TEST(pairs_decode)
{
    for (int i = 0; i < 4; i++) {
        char line[64];
        device_choice c;
        device_profile d = profile_of(&machines[5]);
        const clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
        snprintf(line, sizeof line, "%s hq2 q1 kv5000 d64", storages[i]);
        const problem p = problem_of(line);
        d.engine = ENGINE_VDPBF16PS;
        ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
        ck_assert_int_eq(c.kernel, CLATTN_KERNEL_ATTN_DECODE_LANES);
        ck_assert_int_eq(c.axes[AXIS_MMA], p.dtype == CLATTN_DTYPE_BF16 ? ENGINE_VDPBF16PS : ENGINE_NONE);
        ck_assert(!choice_rounds_probs(&c));
        ck_assert(c.stages[0].axes >> AXIS_MMA & 1);
        ck_assert(!(c.stages[1].axes >> AXIS_MMA & 1));
    }
}
END_TEST

/* f32 slices go ahead where the engine's copies are there and two work-groups fit; the shipped tiles come after. */
START_TEST(slices_ahead)
{
    const machine *m = &machines[_i];
    const int wanted[ENGINE_COUNT] = {[ENGINE_EMULATED] = 1, [ENGINE_MMA_SYNC] = 2, [ENGINE_WGMMA] = 2};
    device_profile d = profile_of(m);
    for (int engine = ENGINE_NONE; engine < ENGINE_COUNT; engine++)
        for (int i = 0; i < 4 * N_HEAD_DIMS; i++)
            for (int forced = 0; forced <= 64; forced += 16) {
                char line[128];
                device_choice c, next;
                const int dim = head_dims[i / 4];
                snprintf(line, sizeof line, "%s hq2 q300 kv500 d%d dv%d", storages[i % 4], dim, dim + (forced > 0));
                const problem p = problem_of(line);
                const clattn_plan_options o = options_of(CLATTN_KERNEL_ATTN_FWD, forced, 0);
                d.engine = (matrix_engine)engine;
                if (clattn__plan_device(&p, &d, &o, 0, &c, &is_last) != CLATTN_STATUS_SUCCESS) continue;
                const int64_t least =
                    dim + (forced > 0) <= 64 ? 142 * KIB : 174 * KIB; /* twice a tile's, at the class's widest */
                const bool suits =
                    i % 4 == 0 && dim + (forced > 0) <= 128 && (!forced || forced == 64); /* its own size */
                if (c.axes[AXIS_AHEAD] || (suits && m->local_bytes >= least && m->max_work_group_size >= 128))
                    ck_assert_msg(suits && c.axes[AXIS_AHEAD] == wanted[engine], "%s on %s, engine %d: AHEAD %d", line,
                                  m->what, engine, c.axes[AXIS_AHEAD]);
                expect_attn_fwd(c.axes, c.work_group_size, c.local_bytes, m, line);
                if (!c.axes[AXIS_AHEAD]) continue;
                ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 1, &next, &is_last), CLATTN_STATUS_SUCCESS);
                ck_assert_int_eq(next.axes[AXIS_AHEAD], 0);
                d.engine = ENGINE_NONE;
                ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
                ck_assert(!memcmp(c.axes, next.axes, sizeof c.axes));
            }
}
END_TEST

/* Asked for, it runs on every machine that has room for a tile, and what is chosen fits. */
START_TEST(engine_tiles_fit)
{
    const machine *m = &machines[_i];
    device_profile d = profile_of(m);
    const int64_t forced[][2] = {{0, 0}, {1, 1}, {17, 100}, {128, 32}, {0, 64}, {48, 0}, {4096, 4096}};
    for (int engine = ENGINE_NONE; engine < ENGINE_COUNT; engine++)
        for (int dim = 1; dim <= 128; dim += 9)
            for (size_t k = 0; k < sizeof forced / sizeof *forced; k++) {
                char line[128];
                device_choice c, last;
                int n = 0;
                snprintf(line, sizeof line, "f16 hq2 q300 kv500 d%d dv%d", dim, 129 - dim);
                const problem p = problem_of(line);
                const clattn_plan_options o = options_of(CLATTN_KERNEL_ATTN_FWD_MMA, forced[k][0], forced[k][1]);
                const int step = engine == ENGINE_WGMMA ? 64 : 16;
                d.engine = (matrix_engine)engine;
                for (; clattn__plan_device(&p, &d, &o, n, &c, &is_last) == CLATTN_STATUS_SUCCESS; n++) {
                    ck_assert_int_eq(c.kernel, CLATTN_KERNEL_ATTN_FWD_MMA);
                    expect_mma(&c, &p, &d, line);
                    if (forced[k][0]) ck_assert_int_le(c.axes[AXIS_BLOCK_Q], up(forced[k][0], step));
                    if (forced[k][1]) ck_assert_int_le(c.axes[AXIS_BLOCK_KV], up(forced[k][1], step));
                    ck_assert_msg(n == 0 || memcmp(c.axes, last.axes, sizeof c.axes), "%s: one tile twice", line);
                    last = c;
                }
                ck_assert_int_eq(clattn_last_error()->status, CLATTN_STATUS_UNSUPPORTED);
                ck_assert_msg(n >= 1 || m->local_bytes < (engine == ENGINE_EMULATED_MFMA ? 24 : step) * KIB ||
                                  m->max_work_group_size < 4 * step,
                              "%s on %s", line, m->what);
                ck_assert_int_lt(n, 8);
            }
}
END_TEST

#if CLATTN_HAVE_OPENCL
/* What the driver gives, and what is no such thing. */
START_TEST(ptx)
{
    static const char good[] =
        ".version 9.0\n.target sm_90, texmode_independent\n/*@ wgmma.a; @*/ mov; /*@ wgmma.b; @*/";
    static const char *const bad[] = {"",
                                      "/*@",
                                      ".target sm_90, x",
                                      ".target sm_80, x /*@ a @*/",
                                      "/*@ a @*/",
                                      ".target sm_90, x /*@ a",
                                      ".target sm_90, x /*@ a @*/ @*/",
                                      ".target sm_90, .target sm_90, /*@ a @*/"};
    char made[200];
    snprintf(made, sizeof made, "%s", good);
    ck_assert_int_eq(clattn__ptx_for_90a(made, strlen(made)), CLATTN_STATUS_SUCCESS);
    ck_assert_str_eq(made, ".version 9.0\n.target sm_90a,texmode_independent\n    wgmma.a;     mov;     wgmma.b;    ");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(made, sizeof made, "%s", bad[i]);
        ck_assert_int_eq(clattn__ptx_for_90a(made, strlen(made)), CLATTN_STATUS_BUILD_FAILED);
    }
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "have 2 targets sm_90, 1 marks"));
}
END_TEST
#endif

START_TEST(lanes_has_one_variant)
{
    const device_profile d = profile_of(&machines[_i]);
    const problem p = problem_of("f32 hq4 q300 kv300 d64");
    const clattn_plan_options o = options_of(CLATTN_KERNEL_ATTN_FWD_LANES, 0, 0);
    device_choice c;
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(c.kernel, CLATTN_KERNEL_ATTN_FWD_LANES);
    ck_assert_int_eq(c.work_group_size, 1);
    ck_assert_int_eq(c.local_bytes, 0);
    ck_assert_int_eq(c.axes[AXIS_BLOCK_Q] % 16, 0);
    ck_assert_int_le(c.axes[AXIS_BLOCK_Q], 256);
    ck_assert_int_eq(c.axes[AXIS_BLOCK_KV] % 4, 0);
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 1, &c, &is_last), CLATTN_STATUS_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "attn_fwd_lanes"));
}
END_TEST

typedef struct lanes_case {
    const char *text;
    int64_t block_q, block_kv; /* asked */
    int got_q, got_kv;
} lanes_case;
static const lanes_case lanes_cases[] = {
    {"f32 hq1 q300 kv300 d64", 16, 4, 16, 4},
    {"f32 hq1 q300 kv300 d64", 1, 1, 16, 4},
    {"f32 hq1 q300 kv300 d64", 17, 5, 32, 8},
    {"f32 hq1 q300 kv300 d64", 64, 128, 64, 128},
    {"f32 hq1 q300 kv300 d64", 65, 100, 96, 100},
    {"f32 hq1 q300 kv300 d64", 128, 100, 128, 100},
    {"f32 hq1 q300 kv300 d64", 129, 100, 192, 100},
    {"f32 hq1 q300 kv300 d64", 1000, 100, 256, 100},
    {"f32 hq1 q300 kv300 d256", 1000, 0, 192, 16}, /* cut to what fits */
    {"f16 hq1 q300 kv300 d256", 1000, 0, 192, 16},
    {"f64 hq1 q300 kv300 d128", 1000, 0, 192, 16},
    {"f32 hq1 q300 kv300 d128", 1000, 300, 192, 300},
    {"f32 hq1 q300 kv300 d512", 1000, 0, 96, 16},
    {"f32 hq1 q900 kv900 d256", 96, 848, 64, 848},
    {"f32 hq1 q9 kv9 d64", 0, 0, 16, 12},
    {"f32 hq1 q1 kv1 d64", 0, 0, 16, 4},
    {"f32 hq1 q0 kv0 d64", 0, 0, 16, 4},
    {"f32 hq1 q20 kv300 d32", 0, 0, 32, 128},
    {"f32 hq1 q513 kv600 d32", 0, 0, 64, 128},
    {"f32 hq9 q511 kv600 d64 causal", 0, 0, 32, 128},
    {"f32 hq9 q512 kv600 d64 causal", 0, 0, 64, 128},
    {"f64 hq9 q512 kv600 d64", 0, 0, 64, 128},
    {"f16 hq16 q512 kv600 d64", 0, 0, 256, 128}, /* K and V decoded for more rows, */
    {"bf16 hq16 q512 kv600 d64 causal", 0, 0, 256, 128},
    {"b9 f16 hq15 q512 kv600 d64", 0, 0, 128, 128}, /* unless threads would be idle, */
    {"bf16 hq8 q512 kv600 d64 causal", 0, 0, 128, 128},
    {"b9 f16 hq9 q511 kv600 d64", 0, 0, 64, 128},
    {"b9 f16 hq7 q512 kv600 d64", 0, 0, 64, 128},
    {"f16 hq9 q961 kv600 d64", 0, 0, 64, 128}, /* or a tile nearly empty, */
    {"f16 hq9 q964 kv600 d64", 0, 0, 256, 128},
    {"f16 hq9 q1089 kv600 d64", 0, 0, 128, 128},
    {"bf16 hq16 q512 kv600 d128", 0, 0, 256, 128}, /* in 464 KiB, */
    {"bf16 hq16 q512 kv600 d144", 0, 0, 96, 128},
    {"bf16 hq9 q512 kv600 d128", 0, 0, 128, 128}, /* smaller ones in 260 */
    {"bf16 hq9 q512 kv600 d160", 0, 0, 96, 128},
    {"bf16 hq9 q512 kv600 d256", 0, 0, 48, 128},
};
enum { N_LANES = sizeof lanes_cases / sizeof *lanes_cases };

START_TEST(lanes_blocks)
{
    const lanes_case *k = &lanes_cases[_i];
    const device_profile d = profile_of(&machines[5]);
    const problem p = problem_of(k->text);
    const clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, k->block_q, k->block_kv);
    device_choice c;
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(c.kernel, CLATTN_KERNEL_ATTN_FWD_LANES);
    ck_assert_int_eq(c.axes[AXIS_BLOCK_Q], k->got_q);
    ck_assert_int_eq(c.axes[AXIS_BLOCK_KV], k->got_kv);
}
END_TEST

/* A head that neither a thread's stack nor a work-item's registers hold: every variant refused, down to the last. */
START_TEST(variants_of_a_huge_head)
{
    const device_profile d = profile_of(&machines[5]);
    const problem p = problem_of("f32 hq1 q300 kv300 d5000");
    clattn_plan_options o = options_of(CLATTN_KERNEL_ATTN_FWD_LANES, 0, 0);
    device_choice c;
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_UNSUPPORTED);
    ck_assert(is_last);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "5000"));
    o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
    int n = 0;
    do ck_assert_int_eq(clattn__plan_device(&p, &d, &o, n++, &c, &is_last), CLATTN_STATUS_UNSUPPORTED);
    while (!is_last && n < 64);
    ck_assert_int_gt(n, 1);
    ck_assert_int_lt(n, 64);
}
END_TEST

/* ---- refusals of a device */

typedef struct refusal {
    const char *text;
    machine m;
    const char *says[3];
} refusal;
static const refusal refusals[] = {
    {"f64 hq1 q300 kv300 d64", {"plain gpu", false, false, 48 * KIB, 1024, GIB}, {"dtype is f64", "plain gpu", "fp64"}},
    {"f64 hq1 q300 kv300 d64", {"plain cpu", true, false, 48 * KIB, 1024, GIB}, {"dtype is f64", "plain cpu", "fp64"}},
    {"f32 hq1 q300 kv300 d64", {"tiny gpu", false, true, 1 * KIB, 1024, GIB}, {"no tile", "1024 bytes", "64"}},
    {"f32 hq1 q300 kv300 d64", {"narrow gpu", false, true, 48 * KIB, 8, GIB}, {"no tile", "8 work-items", "64"}},
    {"f32 hq1 q300 kv300 d100000", {"gpu", false, true, 48 * KIB, 1024, GIB}, {"no tile", "100000", "head_dim_qk"}},
    {"f32 hq1 q300 kv300 d64", {"poor gpu", false, true, 48 * KIB, 1024, 76799}, {"k has", "300", "76799 bytes"}},
    {"f32 hq1 q300 kv301 d64", {"poor gpu", false, true, 48 * KIB, 1024, 76800}, {"k has", "301", "76800 bytes"}},
    {"f32 hq1 q300 kv300 d64 dv65", {"poor cpu", true, true, 48 * KIB, 1024, 76800}, {"v has", "65", "76800 bytes"}},
    {"f32 b2 hq2 q300 kv300 d64 dv65",
     {"poor cpu", true, true, 48 * KIB, 1024, 76800},
     {"v has 1 x 1", "65", "76800 bytes"}},
    {"f32 hq1 q1073741824 kv1 d1",
     {"gpu", false, true, 48 * KIB, 1024, INT64_MAX},
     {"n_q is 1073741824", "1073741823"}},
    {"f32 hq1 q1 kv1073741824 d1", {"gpu", false, true, 48 * KIB, 1024, INT64_MAX}, {"n_kv 1073741824", "1073741823"}},
    {"f32 hq1 q1 kv1 d16777216", {"gpu", false, true, 48 * KIB, 1024, INT64_MAX}, {"head_dim_qk is 16777216"}},
    {"f32 hq1 q1 kv1 d1 dv16777216", {"gpu", false, true, 48 * KIB, 1024, INT64_MAX}, {"head_dim_v 16777216"}},
    {"f32 b2147483648 hq1 q1 kv1 d1", {"gpu", false, true, 48 * KIB, 1024, INT64_MAX}, {"batch is 2147483648"}},
    {"f32 hq2147483648 q1 kv1 d1", {"gpu", false, true, 48 * KIB, 1024, INT64_MAX}, {"n_heads_q 2147483648"}},
};
enum { N_REFUSALS = sizeof refusals / sizeof *refusals };

START_TEST(device_refuses)
{
    const refusal *r = &refusals[_i];
    const device_profile d = profile_of(&r->m);
    const problem p = problem_of(r->text);
    const clattn_plan_options o = options_of(r->m.is_cpu ? CLATTN_KERNEL_AUTO : CLATTN_KERNEL_ATTN_FWD, 0, 0);
    device_choice c;
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_UNSUPPORTED);
    const char *message = clattn_last_error()->message;
    ck_assert_int_eq(clattn_last_error()->status, CLATTN_STATUS_UNSUPPORTED);
    for (int i = 0; i < 3 && r->says[i]; i++)
        ck_assert_msg(strstr(message, r->says[i]) != NULL, "'%s' lacks '%s'", message, r->says[i]);
}
END_TEST

/* One byte more, and it is taken. */
START_TEST(largest_allocation)
{
    const machine m = {"exact", false, true, 48 * KIB, 1024, 76800};
    device_profile d = profile_of(&m);
    const problem p = problem_of("f32 hq1 q300 kv300 d64");
    const clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
    device_choice c;
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
    d.max_alloc_bytes--;
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_UNSUPPORTED);
}
END_TEST

/* ---- few query rows */

typedef struct decode_case {
    const char *text;
    int machine;
    clattn_kernel kernel; /* of AUTO's first variant */
    int block_q, block_kv;
} decode_case;
static const decode_case decode_cases[] = {
    {"f32 hq8 hkv2 q1 kv600 d64", 0, CLATTN_KERNEL_ATTN_DECODE, 4, 128},
    {"bf16 hq32 hkv8 q1 kv32768 d128", 0, CLATTN_KERNEL_ATTN_DECODE, 4, 512},
    {"bf16 b7 hq32 hkv8 q1 kv32768 d128", 0, CLATTN_KERNEL_ATTN_DECODE, 4, 512},
    {"bf16 hq32 hkv8 q1 kv32768 d128 window=255,0", 0, CLATTN_KERNEL_ATTN_DECODE, 4, 512},
    {"bf16 hq32 hkv8 q1 kv16384 d128", 0, CLATTN_KERNEL_ATTN_DECODE, 4, 256},
    {"f16 hq128 hkv8 q1 kv32768 d128", 0, CLATTN_KERNEL_ATTN_DECODE, 16, 256},
    {"f64 hq128 hkv8 q1 kv32768 d64", 0, CLATTN_KERNEL_ATTN_DECODE, 8, 128},
    {"f32 hq1 q1 kv600 d3000 dv16", 0, CLATTN_KERNEL_ATTN_DECODE, 1, 128},
    {"f32 hq4 hkv1 q1 kv600 d3000 dv16", 0, CLATTN_KERNEL_ATTN_DECODE, 2, 128},
    {"f32 hq8 hkv2 q1 kv600 d64", 1, CLATTN_KERNEL_ATTN_DECODE, 4, 128},
    {"f32 hq8 hkv2 q1 kv511 d64", 0, CLATTN_KERNEL_ATTN_FWD, 0, 0},
    {"f32 hq8 hkv2 q5 kv600 d64", 0, CLATTN_KERNEL_ATTN_FWD, 0, 0},
    {"f32 hq8 hkv2 q4 kv600 d64", 0, CLATTN_KERNEL_ATTN_DECODE, 16, 128},
    {"f32 hq8 hkv2 q1 kv600 d64", 5, CLATTN_KERNEL_ATTN_DECODE_LANES, 4, 256},
    {"f16 hq32 hkv8 q1 kv4096 d128", 5, CLATTN_KERNEL_ATTN_DECODE_LANES, 4, 1024},
    {"b7 f16 hq32 hkv8 q1 kv4096 d128", 5, CLATTN_KERNEL_ATTN_DECODE_LANES, 4, 1024},
    {"f16 hq32 hkv8 q1 kv32768 d128", 5, CLATTN_KERNEL_ATTN_DECODE_LANES, 4, 2048},
    {"f16 hq32 hkv8 q1 kv32768 d128 window=4095,0", 5, CLATTN_KERNEL_ATTN_DECODE_LANES, 4, 1024},
    {"f16 hq32 hkv8 q1 kv32768 d128 kvlen=4096", 5, CLATTN_KERNEL_ATTN_DECODE_LANES, 4, 1024},
    {"f16 hq40 hkv8 q1 kv32768 d128", 5, CLATTN_KERNEL_ATTN_DECODE_LANES, 4, 256}, /* two passes over a chunk */
};
enum { N_DECODE_CASES = sizeof decode_cases / sizeof *decode_cases };

START_TEST(decode_automatic)
{
    const decode_case *k = &decode_cases[_i];
    const problem p = problem_of(k->text);
    device_profile d = profile_of(&machines[k->machine]);
    const clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
    device_choice c;
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(c.kernel, k->kernel);
    ck_assert_int_eq(choice_splits_keys(&c), k->block_kv > 0);
    if (!k->block_kv) return;
    const int64_t real = p.dtype == CLATTN_DTYPE_F64 ? 8 : 4, step = 64 / real;
    const int64_t row = up(p.head_dim_v, step) + step, chunks = up(p.n_kv, k->block_kv) / k->block_kv;
    ck_assert_int_eq(c.axes[AXIS_BLOCK_Q], k->block_q);
    ck_assert_int_eq(c.axes[AXIS_BLOCK_KV], k->block_kv);
    ck_assert_int_eq(c.workspace_bytes, p.batch * p.n_heads_q * p.n_q * chunks * row * real);
    ck_assert_int_eq(c.stages[0].groups, p.batch * p.n_heads_kv * chunks);
    ck_assert_int_eq(c.stages[1].groups, p.batch * p.n_heads_q * p.n_q);
    ck_assert_int_le(c.local_bytes, d.local_bytes);
    ck_assert(!is_last);
    d.engine = d.is_cpu ? ENGINE_NONE : ENGINE_MMA_SYNC; /* which comes after */
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(c.kernel, k->kernel);
    d.engine = ENGINE_NONE;
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 1, &c, &is_last), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(c.kernel, d.is_cpu ? CLATTN_KERNEL_ATTN_FWD_LANES : CLATTN_KERNEL_ATTN_FWD);
}
END_TEST

static const struct {
    const char *text;
    int chunk;
} host_decode_cases[] = {
    {"f32 hq8 hkv2 q1 kv300 d64", 300},
    {"f32 hq32 hkv8 q1 kv2048 d128", 512},
    {"f32 hq32 hkv8 q1 kv4096 d128", 1024},
    {"b7 f32 hq32 hkv8 q1 kv4096 d128", 1024},
    {"f32 hq32 hkv8 q1 kv32768 d128", 2048},
    {"f32 hq32 hkv8 q1 kv32768 d128 window=4095,0", 1024},
    {"f32 hq32 hkv8 q1 kv32768 d128 kvlen=4096", 1024},
    {"f32 hq32 hkv8 q1 kv32768 d128 kvlen=per-batch", 2048},
    {"f32 hq32 hkv8 q1 kv32768 d128 window=9223372036854775807,9223372036854775807", 2048},
    {"f32 hq32 hkv8 q1 kv32768 d128 window=4095,-1", 2048},
    {"f32 hq32 hkv8 q4 kv32768 d128", 1024}, /* 16 rows */
    {"f32 hq32 hkv1 q4 kv32768 d128", 512},  /* 64 */
};
enum { N_HOST_DECODE_CASES = sizeof host_decode_cases / sizeof *host_decode_cases };

START_TEST(host_decode_chunk)
{
    const problem p = problem_of(host_decode_cases[_i].text);
    const clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
    host_plan h;
    ck_assert_int_eq(clattn__plan_host(&p, &o, 6, &h), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(h.kernel, CLATTN_KERNEL_HOST_DECODE);
    ck_assert_int_eq(h.chunk, host_decode_cases[_i].chunk);
}
END_TEST

/* A device or a head that it does not suit: a sentence, and the next variant. */
START_TEST(decode_refused)
{
    static const char *const texts[] = {"f32 hq8 hkv2 q1 kv600 d64", "f32 hq1 q1 kv600 d20000 dv16"};
    const problem p = problem_of(texts[_i]);
    const device_profile d = profile_of(&machines[_i ? 0 : 2]);
    const clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
    device_choice c;
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "attn_decode with head_dim_qk"));
    ck_assert(!is_last);
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 1, &c, &is_last), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(c.kernel, CLATTN_KERNEL_ATTN_FWD);
}
END_TEST

/* ---- shares: what a call copies at a time */

static const char *const cut_texts[] = {
    "f32 b3 hq6 hkv2 q300 kv70 d20 bias=1,h,q,kv mask=b,1,q,kv alibi sinks",
    "f16 b1 hq8 hkv1 q1000 kv100 d64 causal",
    "f32 b7 hq3 hkv3 q1 kv600 d16",
    "f16 hq8 hkv4 d40 varlen=70,3,200:100,9,230 bias=b,h,q,kv",
    "f64 b5 hq4 hkv4 q33 kv65 d33 bias=b,1,1,kv",
    "f32 b2 hq2 hkv2 q0 kv65 d33",
};
enum { N_CUT_TEXTS = sizeof cut_texts / sizeof *cut_texts, MOST_ROWS = 1 << 15 };

/* Every row of every head of every entry in one share, or in one for each part of the keys, which are all there in order and
 * the last of which merges; no share beyond the first's bytes, and all within the limit. */
static void expect_cut(const problem *p, const device_profile *d, const device_choice *c, const char *what)
{
    static char seen[MOST_ROWS];
    const device_cut *cut = &c->cut;
    const int64_t rows = p->batch * p->n_heads_q * p->n_q, block_q = c->axes[AXIS_BLOCK_Q];
    int64_t set_bytes = 0, counted = 0, keys_before = 0;
    ck_assert_int_le(rows, MOST_ROWS);
    memset(seen, 0, sizeof seen);
    ck_assert_int_le(cut->n_sets * cut->share_bytes + cut->common_bytes, cut->bytes_most);
    for (int64_t nth = 0; nth < cut->n_shares; nth++) {
        const share s = clattn__share_of(p, cut, nth);
        int64_t bytes = 0;
        ck_assert_msg(s.row % block_q == 0 && (s.row_end == p->n_q || s.row_end % block_q == 0), "%s: a tile is cut",
                      what);
        for (tensor_name i = 0; i < TENSOR_COUNT; i++) {
            const tensor_part part = clattn__share_part(p, &s, i);
            const int64_t all = clattn__tensor_copy_bytes(&p->tensor[i]), own = clattn__tensor_copy_bytes(&part.shape);
            for (int k = 0; k < 3; k++)
                ck_assert(part.first[k] >= 0 && part.first[k] + part.shape.count[k] <= p->tensor[i].count[k]);
            ck_assert_int_le(own, d->max_alloc_bytes);
            ck_assert_int_le(own, all);
            bytes += own;
        }
        if (nth == 0) set_bytes = bytes;
        ck_assert_int_le(bytes, set_bytes);
        ck_assert_msg(s.key == keys_before && s.skips_merge == (s.key_end < p->n_kv) && !s.skips_chunks,
                      "%s: keys %d of %d", what, (int)s.key, (int)keys_before);
        keys_before = s.skips_merge ? s.key_end : 0;
        if (cut->keys < p->n_kv) {
            ck_assert(choice_splits_keys(c) && s.key % c->axes[AXIS_BLOCK_KV] == 0 && s.key < s.key_end);
            ck_assert_int_eq(clattn__share_part(p, &s, TENSOR_V).shape.count[2], s.key_end - s.key);
            ck_assert(s.entry_end == s.entry + 1 && s.head_end == s.head + p->gqa_group && s.row_end == p->n_q);
        }
        if (s.skips_merge) continue;
        for (int64_t b = s.entry; b < s.entry_end; b++)
            for (int64_t h = s.head; h < s.head_end; h++)
                for (int64_t i = s.row; i < s.row_end; i++, counted++) seen[(b * p->n_heads_q + h) * p->n_q + i]++;
    }
    ck_assert_int_eq(counted, rows);
    for (int64_t i = 0; i < rows; i++) ck_assert_msg(seen[i] == 1, "%s: row %d in %d shares", what, (int)i, seen[i]);
}

START_TEST(cuts)
{
    const problem p = problem_of(cut_texts[_i]);
    int64_t largest = 0;
    bool refused = false;
    for (int m = 0; m < N_MACHINES; m++)
        for (int64_t limit = 4 << 20; limit > 100; limit = limit * 3 / 4) {
            char what[200];
            device_profile d = profile_of(&machines[m]);
            const clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
            device_choice c;
            d.copy_bytes_most = limit;
            snprintf(what, sizeof what, "%s on %s in %" PRId64, cut_texts[_i], d.name, limit);
            if (p.dtype == CLATTN_DTYPE_F64 && !d.has_fp64) continue;
            if (limit == 4 << 20) refused = false;
            const clattn_status status = clattn__plan_device(&p, &d, &o, 0, &c, &is_last);
            const char *says = clattn_last_error()->message;
            if (status == CLATTN_STATUS_UNSUPPORTED && (strstr(says, "no tile") || strstr(says, "attn_decode with")))
                continue;
            if (status == CLATTN_STATUS_UNSUPPORTED) {
                ck_assert_ptr_nonnull(strstr(says, "may hold"));
                refused = true;
                continue;
            }
            ck_assert_msg(status == CLATTN_STATUS_SUCCESS, "%s: %s", what, clattn_last_error()->message);
            ck_assert_msg(!refused, "%s: refused with more", what);
            if (limit == 4 << 20) ck_assert_int_eq(c.cut.n_shares, 1);
            if (c.cut.n_shares > largest) largest = c.cut.n_shares;
            expect_cut(&p, &d, &c, what);
        }
    ck_assert_int_ge(largest, p.n_q ? 3 : 1);
}
END_TEST

/* Copies that do not fit are no reason to look no further where calls need none; elsewhere a smaller tile is none. */
START_TEST(cut_that_does_not_fit)
{
    device_profile d = profile_of(&machines[0]);
    const problem p = problem_of("f16 b1 hq8 hkv8 q8192 kv8192 d64");
    const clattn_plan_options o = options_of(CLATTN_KERNEL_ATTN_FWD, 0, 0);
    device_choice c;
    d.copy_bytes_most = 1000;
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_UNSUPPORTED);
    ck_assert(is_last && !clattn__plan_in_place(&p, &d));
    d.shares_host_memory = true;
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
    ck_assert(!is_last && clattn__plan_in_place(&p, &d));
    ck_assert_int_eq(clattn__plan_check_copies(&p, &d, &c), CLATTN_STATUS_SUCCESS);
    d.max_alloc_bytes = p.tensor[TENSOR_K].bytes - 1;
    ck_assert(!clattn__plan_in_place(&p, &d));
    ck_assert_int_eq(clattn__plan_check_copies(&p, &d, &c), CLATTN_STATUS_UNSUPPORTED);
}
END_TEST

/* Multiply-adds of a launch, at most: 2.8e11, of a matrix engine sixteen times as many; but 528 work-groups or all. */
START_TEST(launches)
{
    static const struct {
        const char *text;
        clattn_kernel kernel;
        int64_t n; /* launches that the work asks for */
        matrix_engine engine;
    } cases[] = {
        {"f16 b4 hq16 hkv16 q4096 kv4096 d128", CLATTN_KERNEL_ATTN_FWD, 1, ENGINE_NONE},
        {"f16 b4 hq16 hkv16 q4096 kv8192 d128 causal", CLATTN_KERNEL_ATTN_FWD, 2, ENGINE_NONE},
        {"f16 b4 hq16 hkv16 q4096 kv65536 d128", CLATTN_KERNEL_ATTN_FWD_MMA, 1, ENGINE_MMA_SYNC},
        {"f16 b4 hq16 hkv16 q8192 kv65536 d128", CLATTN_KERNEL_ATTN_FWD_MMA, 2, ENGINE_MMA_SYNC},
        {"f16 b4 hq16 hkv16 q4096 kv8192 d128", CLATTN_KERNEL_ATTN_FWD_MMA, 2, ENGINE_NONE}, /* emulated */
        {"f16 b4 hq16 hkv16 q4096 kv4096 d128", CLATTN_KERNEL_ATTN_BWD, 4, ENGINE_NONE},
        {"f32 b1 hq32 hkv4 q32768 kv32768 d128", CLATTN_KERNEL_ATTN_BWD, 109, ENGINE_NONE}, /* 19 groups each */
        {"f16 b1048576 hq64 hkv64 q1 kv1 d1", CLATTN_KERNEL_ATTN_FWD, 1, ENGINE_NONE}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        device_profile d = profile_of(&machines[0]);
        const problem p = problem_of(cases[i].text);
        clattn_plan_options o = options_of(cases[i].kernel, 0, 0);
        device_choice c;
        if (cases[i].kernel == CLATTN_KERNEL_ATTN_BWD) o.pass = CLATTN_PASS_BACKWARD;
        d.engine = cases[i].engine;
        for (int is_cut = 0; is_cut < 2; is_cut++) {
            d.launch_work = is_cut ? INT64_C(132) << 31 : 0;
            d.launch_groups = is_cut ? 528 : 0;
            ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
            for (const device_stage *s = c.stages; s < c.stages + c.n_stages; s++) {
                const int64_t n = is_cut ? cases[i].n : 1, even = (s->groups + n - 1) / n;
                const int64_t busy = even < d.launch_groups ? d.launch_groups : even;
                const int64_t fits = INT32_MAX / s->work_group_size;
                ck_assert_msg(s->launch_groups == (busy < fits ? busy : fits),
                              "%s, %s: %" PRId64 " of %" PRId64 " groups", cases[i].text, s->name, s->launch_groups,
                              s->groups);
            }
        }
    }
}
END_TEST

/* Where copies take time beside the kernels, what is large goes in shares though it fits, two at a time. */
START_TEST(cut_to_overlap)
{
    static const struct {
        const char *text;
        int64_t n_shares, heads;
    } cases[] = {
        {"f16 b1 hq8 hkv8 q8192 kv8192 d64", 1, 8},      /* 33 MiB with LSE */
        {"f16 b1 hq16 hkv16 q8192 kv8192 d64", 2, 8},    /* 64.5 MiB */
        {"f16 b8 hq16 hkv16 q8192 kv8192 d64", 8, 16},   /* 516 MiB */
        {"f16 b64 hq16 hkv4 q8192 kv8192 d64", 8, 16},   /* 2.6 GiB */
        {"f16 b1 hq64 hkv8 q32768 kv32768 d128", 8, 8},  /* 1.1 GiB */
        {"f16 b1 hq8 hkv1 q131072 kv131072 d128", 1, 8}, /* one GQA group is not cut without need */
        {"f16 b1 hq32 hkv8 q1 kv131072 d128", 8, 4},     /* K and V of 8 heads */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        device_profile d = profile_of(&machines[0]);
        const problem p = problem_of(cases[i].text);
        const clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
        device_choice c;
        d.copy_bytes_most = 24 * GIB;
        ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
        ck_assert_msg(c.cut.n_shares == cases[i].n_shares && c.cut.heads == cases[i].heads &&
                          c.cut.n_sets == (c.cut.n_shares == 1 ? 1 : 2),
                      "%s: %d shares of %d heads, %d sets", cases[i].text, (int)c.cut.n_shares, (int)c.cut.heads,
                      c.cut.n_sets);
        d.shares_host_memory = true;
        ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
        ck_assert_int_eq(c.cut.n_shares, 1);
    }
}
END_TEST

/* ---- the table itself */

START_TEST(table_forced_blocks)
{
    for (int i = 0; i < N_HEAD_DIMS; i++)
        for (int block_q = 1; block_q <= 160; block_q += 3)
            for (int block_kv = 1; block_kv <= 160; block_kv += 13) {
                clattn__tile t;
                char what[64];
                if (!clattn__tile_pick(head_dims[i], head_dims[i], 4, 227 * KIB, 1024, block_q, block_kv, 0, &t)) {
                    ck_abort_msg("d%d block_q %d block_kv %d: no tile in 227 KiB", head_dims[i], block_q, block_kv);
                    continue;
                }
                const machine roomy = {"roomy", false, true, 227 * KIB, 1024, GIB};
                int axes[AXIS_COUNT] = {0};
                axes[AXIS_STORAGE] = CLATTN_DTYPE_F32;
                axes[AXIS_HEAD_DIM_QK] = axes[AXIS_HEAD_DIM_V] = head_dims[i];
                axes[AXIS_BLOCK_Q] = t.block_q;
                axes[AXIS_BLOCK_KV] = t.block_kv;
                axes[AXIS_WG_SIZE] = t.wg_size;
                axes[AXIS_WG_COLS] = t.wg_cols;
                axes[AXIS_D_SLICE] = t.d_slice;
                axes[AXIS_V_SLICE] = t.v_slice;
                axes[AXIS_Q_RESIDENT] = t.q_resident;
                snprintf(what, sizeof what, "d%d block_q %d block_kv %d", head_dims[i], block_q, block_kv);
                expect_attn_fwd(axes, t.wg_size, clattn__tile_local_bytes(&t, head_dims[i], head_dims[i], false),
                                &roomy, what);
                ck_assert_msg(t.block_q == (block_q > 112 ? 128 : up(block_q, 16)), "%s: %d", what, t.block_q);
                ck_assert_msg(t.block_kv == (block_kv > 112 ? 128 : up(block_kv, 16)), "%s: %d", what, t.block_kv);
            }
}
END_TEST

START_TEST(table_refuses)
{
    clattn__tile t;
    ck_assert_ptr_null(clattn__tile_pick(0, 64, 4, 48 * KIB, 1024, 0, 0, 0, &t));
    ck_assert_ptr_null(clattn__tile_pick(64, 0, 4, 48 * KIB, 1024, 0, 0, 0, &t));
    ck_assert_ptr_null(clattn__tile_pick(-1, -1, 4, 48 * KIB, 1024, 0, 0, 0, &t));
    ck_assert_ptr_null(clattn__tile_pick(64, 64, 2, 48 * KIB, 1024, 0, 0, 0, &t));
    ck_assert_ptr_null(clattn__tile_pick(64, 64, 4, 0, 1024, 0, 0, 0, &t));
    ck_assert_ptr_null(clattn__tile_pick(64, 64, 4, 48 * KIB, 0, 0, 0, 0, &t));
    ck_assert_ptr_null(clattn__tile_pick(64, 64, 4, 48 * KIB, 1024, 0, 0, 1000, &t));
    ck_assert_ptr_null(clattn__tile_pick(INT64_MAX, 64, 4, INT64_MAX, 1024, 0, 0, 0, &t));
    ck_assert_ptr_null(clattn__tile_pick(64, 64, 4, 1, 1024, INT64_MAX, INT64_MAX, 0, &t));
    ck_assert_ptr_eq(clattn__tile_pick(64, 64, 4, 48 * KIB, 1024, 0, 0, 0, &t), &t);
}
END_TEST

/* ---- the host's plan, and the path */

typedef struct host_case {
    const char *text;
    int64_t block_q, block_kv;
    int n_threads, got_q, got_kv, got_threads; /* got_q 0: many tiles of 16 bits have all panels, some half, few one */
} host_case;
static const host_case host_cases[] = {
    {"f32 hq1 q300 kv300 d64", 0, 0, 0, 0, -1, 6},
    {"f32 hq1 q300 kv300 d64", 1, 1, 3, 1, 1, 3},
    {"f32 hq1 q300 kv300 d64", 5, 7, 0, 5, 7, 6},
    {"f32 hq1 q3 kv5 d64", 0, 0, 0, 3, 5, 6},
    {"f32 hq1 q3 kv5 d64", 1000, 1000, 0, 3, 5, 6},
    {"f32 hq1 q0 kv0 d64", 0, 0, 0, 1, 1, 6},
    {"f32 hq1 q300 kv100000 d64", 0, 100000, 1, 0, 4096, 1},
    {"f16 hq1 q60 kv300 d64", 0, 0, 0, 0, -1, 6},
    {"f16 hq16 q300 kv300 d64", 0, 0, 0, 0, -1, 6},
    {"f16 b4 hq8 q200 kv300 d64", 0, 0, 0, 0, -1, 6},
    {"f32 hq32 q300 kv300 d64", 0, 0, 0, 0, -1, 6},
    {"f64 hq1 q4 kv4 d64", 2, 3, 9, 2, 3, 9},
};
enum { N_HOSTS = sizeof host_cases / sizeof *host_cases };

/* The sums of every row's dQ would overflow; a decoding plan that would keep a row of Q on a thread's stack. */
START_TEST(refuses_what_is_too_large)
{
    clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
    host_plan h;
    problem p = problem_of("f32 hq1 d8 varlen=1"); /* n_q is an upper bound: any number is legal */
    p.batch = p.n_heads_q = 1 << 21;
    p.n_q = 300000000;
    ck_assert_int_eq(clattn__plan_host(&p, &o, 6, &h), CLATTN_STATUS_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "together they count up to 4503599627370496 rows"));
    p.batch = 1;
    p.n_q = 300000;
    p.head_dim_qk = 8000000;
    o.pass = CLATTN_PASS_BACKWARD;
    ck_assert_int_eq(clattn__plan_host(&p, &o, 6, &h), CLATTN_STATUS_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "host_backward would keep sums of 300000 rows"));
    const device_profile d = profile_of(&machines[5]);
    device_choice c;
    p = problem_of("f32 hq1 q1 kv600 d524288 dv16");
    o = options_of(CLATTN_KERNEL_ATTN_DECODE_LANES, 0, 0);
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "attn_decode_lanes with head_dim_qk 524288"));
}
END_TEST

START_TEST(host_plan_of)
{
    const host_case *k = &host_cases[_i];
    const problem p = problem_of(k->text);
    clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, k->block_q, k->block_kv);
    host_plan h;
    o.n_threads = k->n_threads;
    ck_assert_int_eq(clattn__plan_host(&p, &o, 6, &h), CLATTN_STATUS_SUCCESS);
    const host_ops *ops = clattn__host_ops(p.dtype);
    const int64_t all = ops->block_q, half = all / 2, heads = p.n_heads_q;
    const bool many = p.dtype == CLATTN_DTYPE_F16 && heads * (up(p.n_q, all) / all) >= 32;
    const int64_t rows = many ? all : heads * (up(p.n_q, half) / half) >= 6 ? half : ops->panel_rows;
    ck_assert_int_eq(all, 4 * ops->panel_rows);
    ck_assert_int_eq(h.block_q, k->got_q ? k->got_q : rows < p.n_q ? rows : p.n_q);
    ck_assert_int_eq(h.block_kv, k->got_kv > 0 ? k->got_kv : ops->block_kv < p.n_kv ? ops->block_kv : p.n_kv);
    ck_assert_int_eq(h.n_threads, k->got_threads);
    ck_assert_ptr_eq(h.ops, h.kernel == CLATTN_KERNEL_HOST_TILE ? ops : NULL);
}
END_TEST

typedef struct path_case {
    const char *text;
    clattn_path path;
    clattn_kernel kernel;
    clattn_path wanted;
    const char *says;
} path_case;
static const path_case path_cases[] = {
    {"f32 hq1 q128 kv128 d8", CLATTN_PATH_AUTO, CLATTN_KERNEL_AUTO, CLATTN_PATH_HOST, "at most 128"},
    {"f32 hq1 q129 kv128 d8", CLATTN_PATH_AUTO, CLATTN_KERNEL_AUTO, CLATTN_PATH_AUTO, ""},
    {"f32 hq1 q128 kv129 d8", CLATTN_PATH_AUTO, CLATTN_KERNEL_AUTO, CLATTN_PATH_AUTO, ""},
    {"f32 hq1 q1 kv1 d8", CLATTN_PATH_DEVICE, CLATTN_KERNEL_AUTO, CLATTN_PATH_DEVICE, "asked for"},
    {"f32 hq1 q9999 kv9999 d8", CLATTN_PATH_HOST, CLATTN_KERNEL_AUTO, CLATTN_PATH_HOST, "asked for"},
    {"f32 hq1 q9999 kv9999 d8", CLATTN_PATH_AUTO, CLATTN_KERNEL_HOST_TILE, CLATTN_PATH_HOST, "host_tile, asked for"},
    {"f32 hq1 q1 kv1 d8", CLATTN_PATH_AUTO, CLATTN_KERNEL_ATTN_FWD, CLATTN_PATH_DEVICE, "attn_fwd, asked for"},
    {"f32 hq1 q1 kv1 d8", CLATTN_PATH_AUTO, CLATTN_KERNEL_ATTN_FWD_LANES, CLATTN_PATH_DEVICE, "lanes, asked for"},
};
enum { N_PATHS = sizeof path_cases / sizeof *path_cases };

START_TEST(path_wanted)
{
    const path_case *k = &path_cases[_i];
    const problem p = problem_of(k->text);
    clattn_plan_options o = options_of(k->kernel, 0, 0);
    char said[256] = "";
    text why = {said, sizeof said, 0};
    o.path = k->path;
    ck_assert_int_eq(clattn__plan_check_options(&o), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn__plan_wanted_path(&p, &o, 128, &why), k->wanted);
    ck_assert_msg(strstr(said, k->says) && (*k->says || !*said), "'%s' lacks '%s'", said, k->says);
}
END_TEST

START_TEST(axis_names)
{
    for (int i = 0; i < AXIS_COUNT; i++) {
        ck_assert_ptr_nonnull(clattn__axis_names[i]);
        for (int j = 0; j < i; j++) ck_assert_str_ne(clattn__axis_names[i], clattn__axis_names[j]);
    }
    ck_assert_str_eq(clattn__axis_names[AXIS_HEAD_DIM_QK], "HEAD_DIM_QK");
}
END_TEST

/* A canonical problem has every default filled in. */
START_TEST(canonical_problem)
{
    clattn_problem g;
    problem p;
    clattn_problem_init(&g, CLATTN_DTYPE_F16, 2, 6, 3, 5, 7, 16);
    g.head_dim_v = 4;
    ck_assert_int_eq(clattn__problem_make(&g, &p), CLATTN_STATUS_SUCCESS);
    ck_assert(p.gqa_group == 2 && p.kv_length == 7 && p.query_offset == 0 && p.scale == 0.25);
    ck_assert(p.tensor[TENSOR_Q].stride[0] == 480 && p.tensor[TENSOR_Q].stride[2] == 16);
    ck_assert(p.tensor[TENSOR_V].bytes == 2 * 3 * 7 * 4 * 2 && p.tensor[TENSOR_LSE].bytes == 2 * 6 * 5 * 4);
    g.k = clattn_strides_bshd(3, 7, 16);
    g.query_offset = 9;
    g.query_offset_per_batch = 1;
    ck_assert_int_eq(clattn__problem_make(&g, &p), CLATTN_STATUS_SUCCESS);
    ck_assert(p.tensor[TENSOR_K].bytes == 2 * 3 * 7 * 16 * 2 && p.tensor[TENSOR_K].stride[1] == 16);
    ck_assert(p.query_offset_per_batch == 1 && p.query_offset == 0);
}
END_TEST

/* Two equal descriptions are equal bytes, whatever memory they were made in. */
START_TEST(canonical_problem_has_no_holes)
{
    clattn_problem g;
    problem p, q;
    clattn_problem_init(&g, CLATTN_DTYPE_F16, 2, 6, 3, 5, 7, 16);
    memset(&p, 0x00, sizeof p);
    memset(&q, 0xff, sizeof q);
    ck_assert_int_eq(clattn__problem_make(&g, &p), CLATTN_STATUS_SUCCESS);
    ck_assert_int_eq(clattn__problem_make(&g, &q), CLATTN_STATUS_SUCCESS);
    ck_assert(!memcmp(&p, &q, sizeof p));
}
END_TEST

START_TEST(error_keeps_its_bounds)
{
    char long_text[5000];
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = 0;
    ck_assert_int_eq(clattn__fail(CLATTN_STATUS_INTERNAL, -5, "%s", long_text), CLATTN_STATUS_INTERNAL);
    ck_assert_int_eq(clattn_last_error()->status, CLATTN_STATUS_INTERNAL);
    ck_assert_int_eq(clattn_last_error()->cl_error, -5);
    ck_assert_uint_lt(strlen(clattn_last_error()->message), 1024);
    error_state kept;
    clattn__error_save(&kept);
    clattn__fail(CLATTN_STATUS_UNSUPPORTED, 0, "another");
    ck_assert_str_eq(clattn_last_error()->message, "another");
    clattn__error_restore(&kept);
    ck_assert_int_eq(clattn_last_error()->status, CLATTN_STATUS_INTERNAL);
    ck_assert_int_eq(clattn_last_error()->cl_error, -5);
    ck_assert_int_eq(clattn_last_error()->message[0], 'x');
}
END_TEST

START_TEST(text_is_cut)
{
    char room[8];
    memset(room, '#', sizeof room);
    text t = {room, 5, 0};
    text_add(&t, "%s", "abc");
    ck_assert_str_eq(room, "abc");
    text_add(&t, "%s", "defgh");
    text_add(&t, "%d", 12);
    ck_assert_str_eq(room, "abcd");
    ck_assert_uint_eq(t.length, 10);
    ck_assert_int_eq(room[5], '#');
    text none = {NULL, 0, 0};
    text_add(&none, "%s", "xyz");
    ck_assert_uint_eq(none.length, 3);
}
END_TEST

/* A thread that the child does not have held the lock. */
START_TEST(lock_after_fork)
{
    const float q[2 * 4] = {1}, v[2 * 4] = {3, 1, 4, 1, 5, 9, 2, 6};
    clattn_problem p;
    clattn_context_options options;
    clattn_context *context;
    int status;
    clattn_problem_init(&p, CLATTN_DTYPE_F32, 1, 1, 1, 1, 2, 4);
    clattn_context_options_init(&options);
    options.device = CLATTN_DEVICE_NONE;
    test_ok(clattn_context_create(&options, &context));
    clattn__context_lock(context);
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        float o[4] = {0};
        signal(SIGALRM, SIG_DFL); /* Check's would end more */
        alarm(20);
        bool good = true;
        for (int i = 0; i < 2; i++) /* the second plan is a cached one */
            good = good && clattn_attention(context, &p, q, q, v, o, NULL) == CLATTN_STATUS_SUCCESS && o[3] > 1;
        _exit(!good);
    }
    pthread_mutex_unlock(&context->lock);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    clattn_context_release(context);
}
END_TEST

/* ---- 16-bit formats, against arithmetic in double that knows only what the formats mean */

typedef struct format {
    int exponent_bits, mantissa_bits;
} format;
static const format f16_format = {5, 10}, bf16_format = {8, 7};

/* The value of a pattern, from the definition. */
static double value_of(const format *x, unsigned bits)
{
    const int bias = (1 << (x->exponent_bits - 1)) - 1, most = (1 << x->exponent_bits) - 1;
    const int exponent = (int)(bits >> x->mantissa_bits) & most, mantissa = (int)bits & ((1 << x->mantissa_bits) - 1);
    const double sign = bits >> 15 & 1 ? -1 : 1;
    if (exponent == most) return mantissa ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - x->mantissa_bits);
    return sign * ldexp(mantissa + (1 << x->mantissa_bits), exponent - bias - x->mantissa_bits);
}

/* The pattern nearest to a finite value, ties to even, by looking at the neighbours of the truncated one. */
static unsigned nearest(const format *x, double value)
{
    const unsigned sign = signbit(value) ? 0x8000U : 0;
    const unsigned infinity = (unsigned)((1 << x->exponent_bits) - 1) << x->mantissa_bits;
    const double magnitude = fabs(value);
    unsigned low = 0, high = infinity; /* value_of(low) <= magnitude; infinity stands where the next number would */
    while (high - low > 1) {
        const unsigned middle = (low + high) / 2;
        if (value_of(x, middle) <= magnitude)
            low = middle;
        else
            high = middle;
    }
    const double below = value_of(x, low);
    const double above = high == infinity ? below + (below - value_of(x, low - 1)) : value_of(x, high);
    const double down = magnitude - below, gap = above - magnitude;
    if (down < gap || (down == gap && low % 2 == 0)) return sign | low;
    return sign | high;
}

static bool is_nan_of(const format *x, unsigned bits) { return isnan(value_of(x, bits)); }

START_TEST(half_all_values)
{
    for (unsigned b = 0; b < 65536; b++) {
        const float f = f32_of_f16((uint16_t)b), g = f32_of_bf16((uint16_t)b);
        const double want_f = value_of(&f16_format, b), want_g = value_of(&bf16_format, b);
        if (isnan(want_f)) {
            ck_assert_msg(isnan(f), "f16 %04x is %g", b, (double)f);
            const uint16_t back = f16_of_f32(f);
            ck_assert_msg(is_nan_of(&f16_format, back) && (back & 0x8000U) == (b & 0x8000U), "f16 %04x: %04x", b, back);
        } else {
            ck_assert_msg((double)f == want_f && !signbit(f) == !signbit(want_f), "f16 %04x is %g", b, (double)f);
            ck_assert_msg(f16_of_f32(f) == b, "f16 %04x came back as %04x", b, f16_of_f32(f));
        }
        if (isnan(want_g)) {
            ck_assert_msg(isnan(g), "bf16 %04x is %g", b, (double)g);
            const uint16_t back = bf16_of_f32(g);
            ck_assert_msg(is_nan_of(&bf16_format, back) && (back & 0x8000U) == (b & 0x8000U), "bf16 %04x: %04x", b,
                          back);
        } else {
            ck_assert_msg((double)g == want_g && !signbit(g) == !signbit(want_g), "bf16 %04x is %g", b, (double)g);
            ck_assert_msg(bf16_of_f32(g) == b, "bf16 %04x came back as %04x", b, bf16_of_f32(g));
        }
    }
}
END_TEST

static void expect_nearest(float f)
{
    const unsigned h = f16_of_f32(f), b = bf16_of_f32(f);
    if (isnan(f)) {
        ck_assert_msg(is_nan_of(&f16_format, h) && is_nan_of(&bf16_format, b), "NaN %08x became %04x, %04x",
                      bits_of_f32(f), h, b);
    } else if (isinf(f)) {
        ck_assert_uint_eq(h, f > 0 ? 0x7c00U : 0xfc00U);
        ck_assert_uint_eq(b, f > 0 ? 0x7f80U : 0xff80U);
    } else {
        ck_assert_msg(h == nearest(&f16_format, f), "%a: f16 %04x, not %04x", (double)f, h, nearest(&f16_format, f));
        ck_assert_msg(b == nearest(&bf16_format, f), "%a: bf16 %04x, not %04x", (double)f, b, nearest(&bf16_format, f));
    }
}

/* Every point half-way between two neighbours, its f32 neighbours too, and the points themselves. */
START_TEST(half_of_halfway_points)
{
    const format *formats[] = {&f16_format, &bf16_format};
    for (int t = 0; t < 2; t++) {
        const format *x = formats[t];
        const unsigned infinity = (unsigned)((1 << x->exponent_bits) - 1) << x->mantissa_bits;
        for (unsigned b = 0; b < infinity; b++) {
            const double here = value_of(x, b);
            const double next = b + 1 == infinity ? 2 * here - value_of(x, b - 1) : value_of(x, b + 1);
            const float half = (float)(here + (next - here) / 2);
            const float points[] = {half, nextafterf(half, 0.0F), nextafterf(half, INFINITY), (float)here};
            for (int i = 0; i < 4; i++) {
                expect_nearest(points[i]);
                expect_nearest(-points[i]);
            }
        }
    }
}
END_TEST

START_TEST(half_of_random_bits)
{
    uint64_t x = 88172645463325252U + (uint64_t)_i;
    for (int i = 0; i < 500000; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        expect_nearest(f32_of_bits((uint32_t)(x >> 16)));
    }
}
END_TEST

START_TEST(half_of_special_values)
{
    const uint32_t special[] = {0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007fffff, 0x00800000, 0x7f7fffff,
                                0xff7fffff, 0x7f800000, 0xff800000, 0x7f800001, 0xff800001, 0x7fc00000, 0x7fffffff,
                                0xffffffff, 0x477fe000, 0x477fefff, 0x477ff000, 0x477ff001, 0x33000000, 0x33000001,
                                0x33800000, 0x387fffff, 0x38800000, 0x387fe000, 0x387ff000, 0x7f7f8000, 0x7f7f7fff};
    for (size_t i = 0; i < sizeof special / sizeof *special; i++) {
        expect_nearest(f32_of_bits(special[i]));
        ck_assert_uint_eq(f16_of_f32(f32_of_bits(special[i])) >> 15, special[i] >> 31);
        ck_assert_uint_eq(bf16_of_f32(f32_of_bits(special[i])) >> 15, special[i] >> 31);
    }
    ck_assert_uint_eq(f16_of_f32(65519.0F), 0x7bffU);
    ck_assert_uint_eq(f16_of_f32(65520.0F), 0x7c00U);
    ck_assert_uint_eq(f16_of_f32(0x1p-25F), 0);
    ck_assert_uint_eq(f16_of_f32(0x1.000002p-25F), 1);
    ck_assert_uint_eq(bf16_of_f32(0x1.01p0F), 0x3f80U);
    ck_assert_uint_eq(bf16_of_f32(0x1.03p0F), 0x3f82U);
}
END_TEST

static TCase *add_case(Suite *s, const char *name)
{
    TCase *t = tcase_create(name);
    tcase_set_timeout(t, 300);
    suite_add_tcase(s, t);
    return t;
}

/* ---- backward */

static const char *const gradients_texts[] = {"f32 b2 hq8 hkv2 q300 kv500 d64 causal",
                                              "f16 b1 hq4 hkv4 q1000 kv1000 d128 alibi sinks bias=1,h,q,kv",
                                              "bf16 b3 hq2 hkv1 q17 kv33 d31 dv65 alibi=per-batch",
                                              "f32 hq4 hkv2 d256 varlen=70,0,1,33 bias=1,1,1,kv",
                                              "f32 b1 hq2 hkv2 q0 kv40 d32 sinks",
                                              "f32 b1 hq2 hkv2 q40 kv0 d32 bias"};
enum { N_GRADIENT_TEXTS = sizeof gradients_texts / sizeof *gradients_texts };

static bool has_stage(const device_choice *c, const char *name)
{
    for (int i = 0; i < c->n_stages; i++)
        if (!strcmp(c->stages[i].name, name)) return true;
    return false;
}

/* The kernels, what they share, and that it fits the machine. */
START_TEST(backward_choice)
{
    const machine *m = &machines[_i % N_MACHINES];
    const device_profile d = profile_of(m);
    const problem p = problem_of(gradients_texts[_i / N_MACHINES]);
    clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
    device_choice c;
    o.pass = CLATTN_PASS_BACKWARD;
    ck_assert_msg(clattn__plan_device(&p, &d, &o, 0, &c, &is_last) == CLATTN_STATUS_SUCCESS, "%s on %s: %s",
                  gradients_texts[_i / N_MACHINES], m->what, clattn_last_error()->message);
    ck_assert_int_eq(c.kernel, m->is_cpu ? CLATTN_KERNEL_ATTN_BWD_LANES : CLATTN_KERNEL_ATTN_BWD);
    ck_assert_int_eq(c.axes[AXIS_BLOCK_Q], c.axes[AXIS_BLOCK_KV]);
    ck_assert_int_le(c.local_bytes, d.local_bytes);
    ck_assert_int_eq(has_stage(&c, "attn_bwd_zero"), p.n_q == 0);
    ck_assert_int_eq(has_stage(&c, "attn_bwd_delta"), p.n_q > 0);
    ck_assert_int_eq(has_stage(&c, "attn_bwd_lanes"), p.n_q > 0 && m->is_cpu);
    ck_assert_int_eq(has_stage(&c, "attn_bwd_dq_lanes"), p.n_q > 0 && m->is_cpu);
    ck_assert_int_eq(has_stage(&c, "attn_bwd"), p.n_q > 0 && !m->is_cpu);
    ck_assert_int_eq(has_stage(&c, "attn_bwd_dq"), p.n_q > 0 && !m->is_cpu);
    ck_assert_int_eq(has_stage(&c, "attn_bwd_bias"), p.bias_dtype != 0);
    ck_assert_int_eq(has_stage(&c, "attn_bwd_heads"), p.alibi || p.has_sinks);
    for (int i = 0; i < c.n_stages; i++) {
        ck_assert_int_ge(c.stages[i].work_group_size, 1);
        ck_assert_int_le(c.stages[i].work_group_size, d.max_work_group_size);
        ck_assert_uint_ne(c.stages[i].wanted, 0);
    }
    /* delta, slope sums and partials lie one after the other in the workspace */
    const int64_t heads = p.batch * p.n_heads_q, real = 4;
    ck_assert_int_eq(c.delta_at, 0);
    ck_assert_int_ge(c.slopes_at, heads * p.n_q);
    ck_assert_int_ge(c.partials_at, c.slopes_at + (p.alibi ? heads * c.n_slope_parts : 0));
    ck_assert_int_ge(c.workspace_bytes, (c.partials_at + c.partials_of_entry * c.entries_in_turn) * real);
    ck_assert_int_gt(c.workspace_bytes, 0);
}
END_TEST

/* Shares of the keys: of one batch entry's problem, whatever the batch; partials of no more entries than there is
 * room for. */
START_TEST(backward_splits)
{
    const device_profile d = profile_of(&machines[5]);
    clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
    o.pass = CLATTN_PASS_BACKWARD;
    const struct {
        const char *text;
        int splits, entries;
    } cases[] = {{"f32 b1 hq8 hkv8 q500 kv500 d64", 1, 1},    {"f32 b1 hq4 hkv4 q500 kv500 d64", 2, 1},
                 {"f32 b9 hq4 hkv4 q500 kv500 d64", 2, 9},    {"f32 b1 hq1 hkv1 q500 kv500 d64", 8, 1},
                 {"f32 b1 hq1 hkv1 q500 kv65 d64", 2, 1},     {"f32 b1 hq1 hkv1 q500 kv64 d64", 1, 1},
                 {"f32 b1 hq1 hkv1 q500 kv0 d64", 1, 1},      {"f32 b64 hq8 hkv1 q4096 kv4096 d64", 8, 1},
                 {"f32 b64 hq8 hkv8 q4096 kv4096 d64", 1, 8}, {"f32 b1 hq64 hkv1 q65536 kv4096 d64", 1, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const problem p = problem_of(cases[i].text);
        device_choice c;
        ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_SUCCESS);
        ck_assert_msg(c.n_splits == cases[i].splits, "%s: %d splits", cases[i].text, c.n_splits);
        ck_assert_msg(c.entries_in_turn == cases[i].entries, "%s: %d entries", cases[i].text, (int)c.entries_in_turn);
    }
}
END_TEST

/* What cl/config.clh and cl/tile_backward.clh demand and say of local memory; written from there, not from the
 * table. */
static void expect_attn_bwd(const clattn__tile *t, int64_t qk, int64_t v, const char *what)
{
    const int64_t wide = qk > v ? qk : v, tile_m = t->block_q / (t->wg_size / t->wg_cols);
    const int64_t vectors = (t->real_size == 8 ? 8 : 16) / tile_m, most = 4 * t->wg_cols * (vectors > 1 ? vectors : 1);
    const int64_t columns = up(wide < most ? wide : most, 4 * t->wg_cols);
    const int64_t slices = 2 * t->block_q * (t->d_slice / 4 | 1), rows = t->v_slice * columns / 4;
    const int64_t bytes = 4 * t->real_size * ((slices > rows ? slices : rows) + t->block_q * (t->block_q / 4 | 1));
    ck_assert_msg(t->block_q == t->block_kv && t->q_resident == 0, "%s", what);
    ck_assert_msg(t->wg_size % 16 == 0 && t->wg_size % (2 * t->wg_cols) == 0, "%s: WG_SIZE %d", what, t->wg_size);
    ck_assert_msg(t->block_q % (t->wg_size / t->wg_cols) == 0 && t->block_q % t->wg_cols == 0, "%s", what);
    ck_assert_msg(t->d_slice % 4 == 0 && t->v_slice % 4 == 0 && t->block_q % t->v_slice == 0, "%s", what);
    ck_assert_msg(clattn__tile_backward_local_bytes(t, qk, v) == bytes, "%s: %d bytes", what, (int)bytes);
}

/* Every head dim has tiles, from 8 KiB of local memory and 16 work-items up; they fit, and then there are none. */
START_TEST(backward_tiles_fit)
{
    const int64_t locals[] = {8 * KIB, 16 * KIB, 32 * KIB, 48 * KIB}, groups[] = {16, 64, 256};
    for (int i = 0; i < N_HEAD_DIMS; i++)
        for (int real = 4; real <= 8; real += 4)
            for (int l = 0; l < 4; l++)
                for (int g = 0; g < 3; g++)
                    for (int block = 0; block <= 64; block += 16) {
                        const int64_t qk = head_dims[i], v = head_dims[(i * 7 + block / 16) % N_HEAD_DIMS];
                        char what[128];
                        clattn__tile t;
                        int n = 0;
                        snprintf(what, sizeof what, "real %d d%d dv%d, %d KiB, %d work-items, block %d", real, (int)qk,
                                 (int)v, (int)(locals[l] / KIB), (int)groups[g], block);
                        for (; clattn__tile_pick_backward(qk, v, real, locals[l], groups[g], block, n, &t); n++) {
                            expect_attn_bwd(&t, qk, v, what);
                            ck_assert_msg(clattn__tile_backward_local_bytes(&t, qk, v) <= locals[l], "%s", what);
                            ck_assert_msg(t.wg_size <= groups[g] && (!block || t.block_q <= block), "%s", what);
                            ck_assert_msg(n || locals[l] < 16 * KIB || groups[g] < 64 || block == 16 || t.block_q >= 32,
                                          "%s: %d rows", what, t.block_q);
                        }
                        ck_assert_msg(n >= 1, "%s: no tile", what);
                    }
    clattn__tile t;
    ck_assert_ptr_null(clattn__tile_pick_backward(0, 64, 4, 48 * KIB, 1024, 0, 0, &t));
    ck_assert_ptr_null(clattn__tile_pick_backward(64, 64, 2, 48 * KIB, 1024, 0, 0, &t));
    ck_assert_ptr_null(clattn__tile_pick_backward(64, 64, 4, 1 * KIB, 1024, 0, 0, &t));
    ck_assert_ptr_null(clattn__tile_pick_backward(64, 64, 4, 48 * KIB, 8, 0, 0, &t));
}
END_TEST

START_TEST(backward_refuses)
{
    machine small = machines[5];
    small.max_alloc_bytes = 8 << 20;
    const device_profile d = profile_of(&small), roomy = profile_of(&machines[5]);
    clattn_plan_options o = options_of(CLATTN_KERNEL_ATTN_BWD_LANES, 0, 0);
    device_choice c;
    o.pass = CLATTN_PASS_BACKWARD;
    problem p = problem_of("f16 b1 hq32 hkv32 q1000 kv1000 d64"); /* the tensors fit, the sums of dQ do not */
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "attn_bwd_lanes would keep sums of 1000 rows"));
    p = problem_of("f32 b1 hq1 hkv1 q10 kv10 d4096");
    ck_assert_int_eq(clattn__plan_device(&p, &roomy, &o, 0, &c, &is_last), CLATTN_STATUS_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(clattn_last_error()->message, "bytes of private memory"));
    o.kernel = CLATTN_KERNEL_ATTN_FWD;
    ck_assert_int_eq(clattn__plan_check_options(&o), CLATTN_STATUS_INVALID_ARGUMENT);
    o.kernel = CLATTN_KERNEL_ATTN_BWD;
    ck_assert_int_eq(clattn__plan_check_options(&o), CLATTN_STATUS_SUCCESS);
    o.pass = CLATTN_PASS_FORWARD;
    ck_assert_int_eq(clattn__plan_check_options(&o), CLATTN_STATUS_INVALID_ARGUMENT);
}
END_TEST

/* ---- tuning tables */

#define LANES_64 "attn_fwd_lanes f32 d64 full q300 kv300"

typedef struct table_case {
    const char *lines;
    int64_t block_q, block_kv; /* that a problem of 300 rows gets; 0: none */
} table_case;
static const table_case tables[] = {
    {"tile 32 256 | " LANES_64 " | device cpu 256 KiB, 4096 | 3.1", 32, 256},
    {"  tile\t32  256|" LANES_64 "|device   cpu 256 KiB, 4096|3.1  \r\n", 32, 256},
    {"tile 32 256 | " LANES_64 " | device cpu 256 KiB, 4096", 32, 256},
    {"tile 32 256 | " LANES_64 " | vendor A Vendor", 32, 256},
    {"tile 32 256 | " LANES_64 " | class cpu", 32, 256},
    {"tile 1 1 | " LANES_64 " | class cpu", 1, 1},
    {"tile 4096 4096 | " LANES_64 " | class cpu", 4096, 4096},
    {"\n# no entry\nnor this\ntile 32 256 | " LANES_64 " | class cpu\ntile 1", 32, 256},
    {"tile 32 256 | attn_fwd_lanes f32 d64 full q600 kv300 | class cpu", 32, 256}, /* of half as many rows on */
    {"tile 32 256 | attn_fwd_lanes f32 d64 full q0 kv300 | class cpu", 0, 0},
    {"tile 32 256 | attn_fwd_lanes f32 d64 full q602 kv300 | class cpu", 0, 0},
    {"tile 32 256 | attn_fwd_lanes f32 d64 full q75 kv601 | class cpu", 32, 256}, /* up to four times */
    {"tile 32 256 | attn_fwd_lanes f32 d64 full q74 kv601 | class cpu", 0, 0},
    {"tile 32 256 | attn_fwd_lanes f32 d64 full q300 kv602 | class cpu", 0, 0},
    {"tile 32 256 | attn_fwd_lanes f32 d64 full q300 kv74 | class cpu", 0, 0},
    {"tile 0 256 | " LANES_64 " | class cpu", 0, 256},
    {"tile 0 0 | " LANES_64 " | class cpu", 0, 0}, /* what is shipped */
    /* others' */
    {"tile 32 256 | " LANES_64 " | device cpu 256 KiB, 4096 | 3.2", 0, 0},
    {"tile 32 256 | " LANES_64 " | device cpu 256 KiB | 3.1", 0, 0},
    {"tile 32 256 | " LANES_64 " | vendor Vendor", 0, 0},
    {"tile 32 256 | " LANES_64 " | class gpu", 0, 0},
    {"tile 32 256 | attn_fwd f32 d64 full q300 kv300 | class cpu", 0, 0},
    {"tile 32 256 | attn_fwd_lanes f16 d64 full q300 kv300 | class cpu", 0, 0},
    {"tile 32 256 | attn_fwd_lanes f32 d63 full q300 kv300 | class cpu", 0, 0},
    {"tile 32 256 | attn_fwd_lanes f32 d64 band q300 kv300 | class cpu", 0, 0},
    {"host 64 | class cpu", 0, 0},
    /* no entries */
    {"", 0, 0},
    {"tile 32 256 | attn_fwd_lanes f32 d64 full q300 | class cpu", 0, 0},
    {"tile 32 256 | attn_fwd_lanes f32 d64 full q300 kv | class cpu", 0, 0},
    {"tile -16 256 | " LANES_64 " | class cpu", 0, 0},
    {"tile 32 4097 | " LANES_64 " | class cpu", 0, 0},
    {"tile 99999999999999999999 256 | " LANES_64 " | class cpu", 0, 0},
    {"tile 32 | " LANES_64 " | class cpu", 0, 0},
    {"tile 32 256 64 | " LANES_64 " | class cpu", 0, 0},
    {"tile 3x2 256 | " LANES_64 " | class cpu", 0, 0},
    {"tile 32 256 | attn_decode_lanes f32 d64 full q300 kv300 | class cpu", 0, 0},
    {"tile 32 256 | attn_fwd_lanes f8 d64 full q300 kv300 | class cpu", 0, 0},
    {"tile 32 256 | attn_fwd_lanes f32 d64 half q300 kv300 | class cpu", 0, 0},
    {"tile 32 256 | attn_fwd_lanes f32 d64 full | class cpu", 0, 0},
    {"tile 32 256 | attn_fwd_lanes f32 d64 full q99999999999999999999 kv300 | class cpu", 0, 0},
    {"tile 32 256 | " LANES_64, 0, 0},
    {"tile 32 256 | " LANES_64 " |", 0, 0},
    {"tile 32 256 | " LANES_64 " | class", 0, 0},
    {"tile 32 256 | " LANES_64 " | device | 3.1", 0, 0},
    {"tile 32 256 | " LANES_64 " | nobody cpu", 0, 0},
    {"TILE 32 256 | " LANES_64 " | class cpu", 0, 0},
    /* of several the narrowest, of those the one of most rows, of those the last */
    {"tile 16 16 | " LANES_64 " | device cpu 256 KiB, 4096 | 3.1\ntile 32 32 | " LANES_64
     " | device cpu 256 KiB, 4096\ntile 48 48 | " LANES_64 " | vendor A Vendor\ntile 64 64 | " LANES_64 " | class cpu",
     16, 16},
    {"tile 32 32 | " LANES_64 " | device cpu 256 KiB, 4096\ntile 48 48 | " LANES_64
     " | vendor A Vendor\ntile 64 64 | " LANES_64 " | class cpu",
     32, 32},
    {"tile 64 64 | " LANES_64 " | class cpu\ntile 48 48 | " LANES_64 " | vendor A Vendor\n", 48, 48},
    {"tile 16 16 | attn_fwd_lanes f32 d64 full q512 kv300 | class cpu\ntile 32 32 | " LANES_64 " | class cpu\n", 16,
     16},
    {"tile 16 16 | " LANES_64 " | class cpu\ntile 32 32 | " LANES_64 " | class cpu\n", 32, 32},
};
enum { N_TABLES = sizeof tables / sizeof *tables };

static device_profile tuned_profile(const char *table)
{
    device_profile d = profile_of(&machines[5]);
    snprintf(d.driver, sizeof d.driver, " 3.1 ");
    snprintf(d.vendor, sizeof d.vendor, "A Vendor");
    d.tuning = table;
    return d;
}

START_TEST(tuning_lines)
{
    const table_case *k = &tables[_i];
    const problem p = problem_of("f32 hq4 q300 kv300 d64");
    const device_profile d = tuned_profile(k->lines);
    int64_t block_q = 0, block_kv = 0;
    const bool has = clattn__tuning_tile(&d, &p, CLATTN_KERNEL_ATTN_FWD_LANES, &block_q, &block_kv);
    ck_assert_msg(has == (k->block_q || k->block_kv) && block_q == k->block_q && block_kv == k->block_kv,
                  "'%s': %d x %d", k->lines, (int)block_q, (int)block_kv);
}
END_TEST

/* A table cut at any place, with any byte changed, and one of a line without end: some sizes that are legal, or
 * none. */
START_TEST(tuning_mangled)
{
    const char *good =
        "clattn tuning 1\ntile 32 256 | " LANES_64 " | device cpu 256 KiB, 4096 | 3.1\nhost 64 | class cpu\n";
    const problem p = problem_of("f32 hq4 q300 kv300 d64");
    const size_t n = strlen(good), huge = 1 << 20;
    char *table = malloc(huge + 1);
    ck_assert_ptr_nonnull(table);
    for (size_t i = 0; i <= 256 * n + n; i++) {
        strcpy(table, good);
        if (i < n)
            table[i] = 0;
        else if (i < 257 * n)
            table[i % n] = (char)(i / n - 1);
        else
            memset(table, "1| d"[i % 4], huge), table[huge] = 0;
        const device_profile d = tuned_profile(table);
        int64_t q = 1, kv = 1, least, most;
        clattn__tuning_tile(&d, &p, CLATTN_KERNEL_ATTN_FWD_LANES, &q, &kv);
        ck_assert(q >= 0 && q <= 4096 && kv >= 0 && kv <= 4096);
        clattn__tuning_host_range(table, &least, &most);
        const int64_t rows = clattn__tuning_host_rows(&d);
        ck_assert(least >= 0 && least <= rows && rows <= most);
    }
    free(table);
}
END_TEST

START_TEST(tuning_host_rows)
{
    int64_t least, most;
    device_profile d = tuned_profile(NULL);
    clattn__tuning_host_range(NULL, &least, &most);
    ck_assert(least == 128 && most == 128 && clattn__tuning_host_rows(&d) == 128); /* as documented */
    d.tuning =
        "host 4 | class gpu\nhost 99999 | device cpu 256 KiB, 4096 | 3.1\nhost -1 | class cpu\nhost 0 | class cpu\n";
    clattn__tuning_host_range(d.tuning, &least, &most);
    ck_assert(least == 0 && most == 99999 && clattn__tuning_host_rows(&d) == 99999);
    d.name[0] = 'C';
    ck_assert_int_eq(clattn__tuning_host_rows(&d), 0);
    d.is_cpu = false;
    ck_assert_int_eq(clattn__tuning_host_rows(&d), 4);
}
END_TEST

static void ck_variant(const char *line, const device_profile *d, const clattn_plan_options *o, int nth,
                       clattn_kernel kernel, bool is_tuned, int block_q, int block_kv)
{
    const problem p = problem_of(line);
    device_choice c;
    ck_assert_msg(clattn__plan_device(&p, d, o, nth, &c, &is_last) == CLATTN_STATUS_SUCCESS, "%s: %s", line,
                  clattn_last_error()->message);
    ck_assert_msg(c.kernel == kernel && c.is_tuned == is_tuned && c.axes[AXIS_BLOCK_Q] == block_q &&
                      c.axes[AXIS_BLOCK_KV] == block_kv,
                  "%s, variant %d: %s%s %d x %d", line, nth, clattn_kernel_name(c.kernel), c.is_tuned ? ", tuned" : "",
                  c.axes[AXIS_BLOCK_Q], c.axes[AXIS_BLOCK_KV]);
}

/* A table's sizes go first, cut as forced ones are; then what is there without. */
START_TEST(tuning_of_variants)
{
    const char *line = "f32 hq4 q300 kv300 d64";
    device_profile d =
        tuned_profile("tile 32 200 | " LANES_64 " | class cpu\ntile 4096 4096 | attn_fwd_lanes f32 d32 full "
                      "q300 kv300 | class cpu\ntile 64 1024 | attn_fwd_lanes f32 d4000 full q300 kv300 | class cpu\n"
                      "tile 48 17 | attn_fwd f32 d64 full q300 kv300 | class gpu\n"
                      "tile 32 16 | attn_fwd_mma f16 d64 full q300 kv300 | class gpu");
    clattn_plan_options o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
    problem p;
    device_choice c;
    ck_variant(line, &d, &o, 0, CLATTN_KERNEL_ATTN_FWD_LANES, true, 32, 200);
    ck_assert(!is_last);
    ck_variant(line, &d, &o, 1, CLATTN_KERNEL_ATTN_FWD_LANES, false, 64, 128);
    ck_variant(line, &d, &o, 2, CLATTN_KERNEL_ATTN_FWD, false, 64, 64);
    ck_variant("f32 hq4 q300 kv300 d64 causal", &d, &o, 0, CLATTN_KERNEL_ATTN_FWD_LANES, false, 32, 128);
    ck_variant("f32 hq4 q300 kv300 d32", &d, &o, 0, CLATTN_KERNEL_ATTN_FWD_LANES, true, 256, 300);
    ck_variant("f32 hq4 q40 kv20 d64", &d, &o, 0, CLATTN_KERNEL_ATTN_FWD_LANES, false, 48, 20);
    o = options_of(CLATTN_KERNEL_AUTO, 16, 0); /* forced sizes want no table */
    ck_variant(line, &d, &o, 0, CLATTN_KERNEL_ATTN_FWD_LANES, false, 16, 128);
    o = options_of(CLATTN_KERNEL_AUTO, 0, 16);
    ck_variant(line, &d, &o, 0, CLATTN_KERNEL_ATTN_FWD_LANES, false, 64, 16);
    o = options_of(CLATTN_KERNEL_ATTN_FWD_LANES, 0, 0);
    ck_variant(line, &d, &o, 0, CLATTN_KERNEL_ATTN_FWD_LANES, true, 32, 200);
    ck_assert(!is_last);
    ck_variant(line, &d, &o, 1, CLATTN_KERNEL_ATTN_FWD_LANES, false, 64, 128);
    ck_assert(is_last);
    p = problem_of(line);
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 2, &c, &is_last), CLATTN_STATUS_UNSUPPORTED);
    p = problem_of("f32 hq4 q300 kv1200 d4000"); /* too large for the kernel */
    ck_assert_int_eq(clattn__plan_device(&p, &d, &o, 0, &c, &is_last), CLATTN_STATUS_UNSUPPORTED);
    ck_assert(!is_last && clattn__plan_device(&p, &d, &o, 1, &c, &is_last) == CLATTN_STATUS_SUCCESS && !c.is_tuned);

    device_profile gpu = profile_of(&machines[0]);
    gpu.tuning = d.tuning;
    o = options_of(CLATTN_KERNEL_AUTO, 0, 0);
    ck_variant(line, &gpu, &o, 0, CLATTN_KERNEL_ATTN_FWD, true, 48, 32);
    ck_variant(line, &gpu, &o, 1, CLATTN_KERNEL_ATTN_FWD, false, 64, 64);
    gpu.engine = ENGINE_MMA_SYNC;
    ck_variant("f16 hq4 q300 kv300 d64", &gpu, &o, 0, CLATTN_KERNEL_ATTN_FWD_MMA, true, 32, 16);
    ck_variant("f16 hq4 q300 kv300 d64", &gpu, &o, 1, CLATTN_KERNEL_ATTN_FWD_MMA, false, 128, 64);
    ck_variant("f16 hq4 q300 kv300 d64", &gpu, &o, 2, CLATTN_KERNEL_ATTN_FWD, false, 64, 64);
    o = options_of(CLATTN_KERNEL_ATTN_FWD_MMA, 0, 0);
    ck_variant("f16 hq4 q300 kv300 d64", &gpu, &o, 0, CLATTN_KERNEL_ATTN_FWD_MMA, true, 32, 16);
    ck_variant("f16 hq4 q300 kv300 d64", &gpu, &o, 2, CLATTN_KERNEL_ATTN_FWD_MMA, false, 64, 64);
}
END_TEST

Suite *test_suite(void)
{
    Suite *s = suite_create("plan");
    TCase *t = add_case(s, "device");
    tcase_add_loop_test(t, tiles_fit, 0, N_MACHINES);
    tcase_add_test(t, tiles_exist);
    tcase_add_test(t, tiles_grow_with_the_device);
    tcase_add_loop_test(t, variants_end, 0, N_MACHINES);
#if CLATTN_HAVE_OPENCL
    tcase_add_test(t, ptx);
#endif
    tcase_add_test(t, engine_automatic);
    tcase_add_test(t, pairs_automatic);
    tcase_add_test(t, pairs_decode);
    tcase_add_loop_test(t, engine_tiles_fit, 0, N_MACHINES);
    tcase_add_loop_test(t, slices_ahead, 0, N_MACHINES);
    tcase_add_loop_test(t, lanes_has_one_variant, 0, N_MACHINES);
    tcase_add_loop_test(t, lanes_blocks, 0, N_LANES);
    tcase_add_test(t, variants_of_a_huge_head);
    tcase_add_loop_test(t, device_refuses, 0, N_REFUSALS);
    tcase_add_test(t, largest_allocation);
    tcase_add_loop_test(t, decode_automatic, 0, N_DECODE_CASES);
    tcase_add_loop_test(t, host_decode_chunk, 0, N_HOST_DECODE_CASES);
    tcase_add_loop_test(t, decode_refused, 0, 2);
    tcase_add_loop_test(t, cuts, 0, N_CUT_TEXTS);
    tcase_add_test(t, cut_to_overlap);
    tcase_add_test(t, cut_that_does_not_fit);
    tcase_add_test(t, launches);
    tcase_add_test(t, table_forced_blocks);
    tcase_add_test(t, table_refuses);

    t = add_case(s, "backward");
    tcase_add_loop_test(t, backward_choice, 0, N_GRADIENT_TEXTS * N_MACHINES);
    tcase_add_test(t, backward_splits);
    tcase_add_test(t, backward_tiles_fit);
    tcase_add_test(t, backward_refuses);

    t = add_case(s, "tuning");
    tcase_add_loop_test(t, tuning_lines, 0, N_TABLES);
    tcase_add_test(t, tuning_mangled);
    tcase_add_test(t, tuning_host_rows);
    tcase_add_test(t, tuning_of_variants);

    t = add_case(s, "host");
    tcase_add_loop_test(t, host_plan_of, 0, N_HOSTS);
    tcase_add_test(t, refuses_what_is_too_large);
    tcase_add_loop_test(t, path_wanted, 0, N_PATHS);
    tcase_add_test(t, axis_names);
    tcase_add_test(t, canonical_problem);
    tcase_add_test(t, canonical_problem_has_no_holes);
    tcase_add_test(t, error_keeps_its_bounds);
    tcase_add_test(t, text_is_cut);
    tcase_add_test(t, lock_after_fork);

    t = add_case(s, "half");
    tcase_add_test(t, half_all_values);
    tcase_add_test(t, half_of_halfway_points);
    tcase_add_loop_test(t, half_of_random_bits, 0, 4);
    tcase_add_test(t, half_of_special_values);
    return s;
}
