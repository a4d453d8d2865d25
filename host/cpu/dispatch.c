/* CPU flags -> the tile's code: a ladder over a C table. */
#ifdef CLATTN_AMX
#define _DEFAULT_SOURCE /* syscall */
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <stdlib.h>
#include <string.h>
#ifdef CLATTN_X86
#include <cpuid.h>
#endif

#include "backward.h"
#include "decode.h"
#include "tile.h"

extern const host_ops clattn__host_ops_f32_portable, clattn__host_ops_f64_portable;
#ifdef CLATTN_X86
extern const host_ops clattn__host_ops_f32_avx2, clattn__host_ops_f64_avx2;
extern const host_ops clattn__host_ops_f32_avx512, clattn__host_ops_f64_avx512;
extern const host_ops clattn__host_ops_bf16_avx512_bf16;
#endif
#ifdef CLATTN_AMX
extern const host_ops clattn__host_ops_bf16_amx_bf16;
#endif

extern const backward_ops clattn__backward_ops_f32_portable, clattn__backward_ops_f64_portable;
#ifdef CLATTN_X86
extern const backward_ops clattn__backward_ops_f32_avx2, clattn__backward_ops_f64_avx2;
extern const backward_ops clattn__backward_ops_f32_avx512, clattn__backward_ops_f64_avx512;
extern const backward_ops clattn__backward_ops_bf16_avx512_bf16;
#endif

extern const decode_ops clattn__decode_ops_f32_portable, clattn__decode_ops_f64_portable;
#ifdef CLATTN_X86
extern const decode_ops clattn__decode_ops_f32_avx2, clattn__decode_ops_f64_avx2;
extern const decode_ops clattn__decode_ops_f32_avx512, clattn__decode_ops_f64_avx512;
#endif

enum { RUNG_PORTABLE, RUNG_AVX2, RUNG_AVX512, RUNG_AVX512_BF16, RUNG_AMX_BF16, RUNG_COUNT };

/* f64, bf16, other types: the same code where a rung has no products of its own */
static const host_ops *const ladder[RUNG_COUNT][3] = {
    [RUNG_PORTABLE] = {&clattn__host_ops_f64_portable, &clattn__host_ops_f32_portable, &clattn__host_ops_f32_portable},
#ifdef CLATTN_X86
    [RUNG_AVX2] = {&clattn__host_ops_f64_avx2, &clattn__host_ops_f32_avx2, &clattn__host_ops_f32_avx2},
    [RUNG_AVX512] = {&clattn__host_ops_f64_avx512, &clattn__host_ops_f32_avx512, &clattn__host_ops_f32_avx512},
    [RUNG_AVX512_BF16] = {&clattn__host_ops_f64_avx512, &clattn__host_ops_bf16_avx512_bf16,
                          &clattn__host_ops_f32_avx512},
#endif
#ifdef CLATTN_AMX
    [RUNG_AMX_BF16] = {&clattn__host_ops_f64_avx512, &clattn__host_ops_bf16_amx_bf16, &clattn__host_ops_f32_avx512},
#endif
};

static const backward_ops *const backward_ladder[RUNG_COUNT][3] = {
    [RUNG_PORTABLE] = {&clattn__backward_ops_f64_portable, &clattn__backward_ops_f32_portable,
                       &clattn__backward_ops_f32_portable},
#ifdef CLATTN_X86
    [RUNG_AVX2] = {&clattn__backward_ops_f64_avx2, &clattn__backward_ops_f32_avx2, &clattn__backward_ops_f32_avx2},
    [RUNG_AVX512] = {&clattn__backward_ops_f64_avx512, &clattn__backward_ops_f32_avx512,
                     &clattn__backward_ops_f32_avx512},
    [RUNG_AVX512_BF16] = {&clattn__backward_ops_f64_avx512, &clattn__backward_ops_bf16_avx512_bf16,
                          &clattn__backward_ops_f32_avx512},
    [RUNG_AMX_BF16] = {&clattn__backward_ops_f64_avx512, &clattn__backward_ops_f32_avx512,
                       &clattn__backward_ops_f32_avx512},
#endif
};

static const decode_ops *const decode_ladder[RUNG_COUNT][2] = {
    [RUNG_PORTABLE] = {&clattn__decode_ops_f32_portable, &clattn__decode_ops_f64_portable},
#ifdef CLATTN_X86
    [RUNG_AVX2] = {&clattn__decode_ops_f32_avx2, &clattn__decode_ops_f64_avx2},
    [RUNG_AVX512] = {&clattn__decode_ops_f32_avx512, &clattn__decode_ops_f64_avx512},
    [RUNG_AVX512_BF16] = {&clattn__decode_ops_f32_avx512, &clattn__decode_ops_f64_avx512},
    [RUNG_AMX_BF16] = {&clattn__decode_ops_f32_avx512, &clattn__decode_ops_f64_avx512},
#endif
};

#ifdef CLATTN_AMX
/* The processor has it and the operating system keeps its registers. */
static bool has_amx(void)
{
    enum { OSXSAVE = 1 << 27, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, XCR0_TILES = 3 << 17 };
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & AMX_BF16) || !(d & AMX_TILE)) return false;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    if ((a & XCR0_TILES) != XCR0_TILES) return false;
    /* palette 1: 8 tiles of 16 rows of 64 bytes */
    return __get_cpuid_count(0x1d, 1, &a, &b, &c, &d) && b == (8u << 16 | 64u) && (c & 0xffff) == 16;
}

/* Of a rung that has not met many processors: Linux lets the process have the registers, all threads of it, and a trial
 * goes well. */
static bool amx_is_good;
static void amx_try(void)
{
    enum { REQUEST = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    amx_is_good = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0 &&
                  clattn__host_ops_agree(&clattn__host_ops_bf16_amx_bf16, &clattn__host_ops_bf16_avx512_bf16);
}

static bool may_use_amx(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, amx_try);
    return amx_is_good;
}
#else
static bool may_use_amx(void) { return false; }
#endif

static int highest_rung(void)
{
#ifdef CLATTN_X86
    unsigned a, b, c = 0, d;
    __builtin_cpu_init(); /* asks the operating system too; clang's does not know f16c, which is then CPUID's word */
    const int has_f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c) {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
            if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return RUNG_AVX512;
#ifdef CLATTN_AMX
            if (has_amx()) return RUNG_AMX_BF16;
#endif
            return RUNG_AVX512_BF16;
        }
        return RUNG_AVX2;
    }
#endif
    return RUNG_PORTABLE;
}

static const char *const rung_names[RUNG_COUNT] = {"portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"};

/* vdpbf16ps does two multiply-adds a lane, on Intel's processors half as often as f32's are done, which need no
 * packing. */
bool clattn__cpu_pairs_pay(void)
{
#ifdef CLATTN_X86
    unsigned a, b, c, d;
    return !__get_cpuid(0, &a, &b, &c, &d) || b != signature_INTEL_ebx;
#else
    return true;
#endif
}

bool clattn__cpu_has_pairs(void) { return highest_rung() >= RUNG_AVX512_BF16; }

/* -1: CLATTN_CPU names none. */
static int named_rung(void)
{
    const char *most = getenv("CLATTN_CPU");
    for (int i = 0; most && i < RUNG_COUNT; i++)
        if (!strcmp(most, rung_names[i])) return i;
    return -1;
}

static int rung_in_use(void)
{
    const int most = named_rung(), rung = highest_rung();
    return most >= 0 && most < rung ? most : rung;
}

/* A column of a ladder. */
static int column_of(clattn_dtype dtype) { return dtype == CLATTN_DTYPE_F64 ? 0 : dtype == CLATTN_DTYPE_BF16 ? 1 : 2; }

/* Where vdpbf16ps does not pay, the rung below, unless the user names it. */
static int rung_that_pays(int rung)
{
    return rung == RUNG_AVX512_BF16 && !clattn__cpu_pairs_pay() && named_rung() < 0 ? RUNG_AVX512 : rung;
}

const host_ops *clattn__host_ops(clattn_dtype dtype)
{
    int rung = rung_in_use();
    if (rung == RUNG_AMX_BF16 && dtype == CLATTN_DTYPE_BF16 && !may_use_amx()) rung = RUNG_AVX512_BF16;
    return ladder[rung_that_pays(rung)][column_of(dtype)];
}

const backward_ops *clattn__backward_ops(clattn_dtype dtype)
{
    return backward_ladder[rung_that_pays(rung_in_use())][column_of(dtype)];
}

const decode_ops *clattn__decode_ops(clattn_dtype dtype)
{
    return decode_ladder[rung_in_use()][dtype == CLATTN_DTYPE_F64];
}
