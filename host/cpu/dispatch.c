/* CPU flags -> the tile's code: a ladder over a C table. */
#include <stdlib.h>
#include <string.h>
#ifdef CLATTN_X86
#include <cpuid.h>
#endif

#include "tile.h"

extern const host_ops clattn__host_ops_f32_portable, clattn__host_ops_f64_portable;
#ifdef CLATTN_X86
extern const host_ops clattn__host_ops_f32_avx2, clattn__host_ops_f64_avx2;
extern const host_ops clattn__host_ops_f32_avx512, clattn__host_ops_f64_avx512;
#endif

enum { RUNG_PORTABLE, RUNG_AVX2, RUNG_AVX512, RUNG_COUNT };

static const host_ops *const ladder[RUNG_COUNT][2] = {
    [RUNG_PORTABLE] = {&clattn__host_ops_f32_portable, &clattn__host_ops_f64_portable},
#ifdef CLATTN_X86
    [RUNG_AVX2] = {&clattn__host_ops_f32_avx2, &clattn__host_ops_f64_avx2},
    [RUNG_AVX512] = {&clattn__host_ops_f32_avx512, &clattn__host_ops_f64_avx512},
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
            return RUNG_AVX512;
        return RUNG_AVX2;
    }
#endif
    return RUNG_PORTABLE;
}

const host_ops *clattn__host_ops(clattn_dtype dtype)
{
    const char *most = getenv("CLATTN_CPU");
    const int is_f64 = dtype == CLATTN_DTYPE_F64;
    int rung = highest_rung();
    for (int i = rung; most && i > RUNG_PORTABLE; i--)
        if (!strcmp(most, "portable") || (!strcmp(most, "avx2") && i > RUNG_AVX2)) rung = i - 1;
    return ladder[rung][is_f64];
}
