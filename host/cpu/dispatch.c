/* CPU flags -> the tile's code: a ladder over a C table. */
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

extern const backward_ops clattn__backward_ops_f32_portable, clattn__backward_ops_f64_portable;
#ifdef CLATTN_X86
extern const backward_ops clattn__backward_ops_f32_avx2, clattn__backward_ops_f64_avx2;
extern const backward_ops clattn__backward_ops_f32_avx512, clattn__backward_ops_f64_avx512;
#endif

extern const decode_ops clattn__decode_ops_f32_portable, clattn__decode_ops_f64_portable;
#ifdef CLATTN_X86
extern const decode_ops clattn__decode_ops_f32_avx2, clattn__decode_ops_f64_avx2;
extern const decode_ops clattn__decode_ops_f32_avx512, clattn__decode_ops_f64_avx512;
#endif

enum { RUNG_PORTABLE, RUNG_AVX2, RUNG_AVX512, RUNG_AVX512_BF16, RUNG_COUNT };

/* f64, bf16, other types: the same code where a rung has no products of its own */
static const host_ops *const ladder[RUNG_COUNT][3] = {
    [RUNG_PORTABLE] = {&clattn__host_ops_f64_portable, &clattn__host_ops_f32_portable, &clattn__host_ops_f32_portable},
#ifdef CLATTN_X86
    [RUNG_AVX2] = {&clattn__host_ops_f64_avx2, &clattn__host_ops_f32_avx2, &clattn__host_ops_f32_avx2},
    [RUNG_AVX512] = {&clattn__host_ops_f64_avx512, &clattn__host_ops_f32_avx512, &clattn__host_ops_f32_avx512},
    [RUNG_AVX512_BF16] = {&clattn__host_ops_f64_avx512, &clattn__host_ops_bf16_avx512_bf16,
                          &clattn__host_ops_f32_avx512},
#endif
};

static const backward_ops *const backward_ladder[RUNG_COUNT][2] = {
    [RUNG_PORTABLE] = {&clattn__backward_ops_f32_portable, &clattn__backward_ops_f64_portable},
#ifdef CLATTN_X86
    [RUNG_AVX2] = {&clattn__backward_ops_f32_avx2, &clattn__backward_ops_f64_avx2},
    [RUNG_AVX512] = {&clattn__backward_ops_f32_avx512, &clattn__backward_ops_f64_avx512},
    [RUNG_AVX512_BF16] = {&clattn__backward_ops_f32_avx512, &clattn__backward_ops_f64_avx512},
#endif
};

static const decode_ops *const decode_ladder[RUNG_COUNT][2] = {
    [RUNG_PORTABLE] = {&clattn__decode_ops_f32_portable, &clattn__decode_ops_f64_portable},
#ifdef CLATTN_X86
    [RUNG_AVX2] = {&clattn__decode_ops_f32_avx2, &clattn__decode_ops_f64_avx2},
    [RUNG_AVX512] = {&clattn__decode_ops_f32_avx512, &clattn__decode_ops_f64_avx512},
    [RUNG_AVX512_BF16] = {&clattn__decode_ops_f32_avx512, &clattn__decode_ops_f64_avx512},
#endif
};

static int highest_rung(void)
{
#ifdef CLATTN_X86
    unsigned a, b, c = 0, d;
    __builtin_cpu_init(); /* asks the operating system too; clang's does not know f16c, which is then CPUID's word */
    const int has_f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c) {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
            return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5) ? RUNG_AVX512_BF16 : RUNG_AVX512;
        return RUNG_AVX2;
    }
#endif
    return RUNG_PORTABLE;
}

static const char *const rung_names[RUNG_COUNT] = {"portable", "avx2", "avx512", "avx512_bf16"};

static int rung_in_use(void)
{
    const char *most = getenv("CLATTN_CPU");
    int rung = highest_rung();
    for (int i = 0; most && i < RUNG_COUNT; i++)
        if (!strcmp(most, rung_names[i]) && i < rung) rung = i;
    return rung;
}

const host_ops *clattn__host_ops(clattn_dtype dtype)
{
    return ladder[rung_in_use()][dtype == CLATTN_DTYPE_F64 ? 0 : dtype == CLATTN_DTYPE_BF16 ? 1 : 2];
}

const backward_ops *clattn__backward_ops(clattn_dtype dtype)
{
    return backward_ladder[rung_in_use()][dtype == CLATTN_DTYPE_F64];
}

const decode_ops *clattn__decode_ops(clattn_dtype dtype)
{
    return decode_ladder[rung_in_use()][dtype == CLATTN_DTYPE_F64];
}
