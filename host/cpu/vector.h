/* One vector type, `vec`, of LANES reals, and the dozen operations that the tile needs: GNU C's vector extension, with
 * an instruction named only where the compilers do not find it. REAL_BITS is 32 or 64. */
#ifndef CLATTN_CPU_VECTOR_H
#define CLATTN_CPU_VECTOR_H

#include <stddef.h>
#include <stdint.h>

#if defined(__AVX__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__) || defined(EMULATED)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

/* Bytes of the vectors whose instructions are named below; none where tests emulate them. */
#ifdef EMULATED
#define NAMED_BYTES 0
#else
#define NAMED_BYTES VECTOR_BYTES
#endif

#if REAL_BITS == 32
typedef float real;
typedef int32_t real_int;
#else
typedef double real;
typedef int64_t real_int;
#endif
#define LANES (VECTOR_BYTES * 8 / REAL_BITS)

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef real_int ivec __attribute__((vector_size(VECTOR_BYTES)));
typedef real vec_anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(REAL_BITS / 8), may_alias));

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define NOINLINE __attribute__((noinline))
#define UNROLL_FOR(header) _Pragma("clang loop unroll(full)") for (header)
#else
#define NOINLINE __attribute__((noinline, noclone))
#define UNROLL_FOR(header) _Pragma("GCC unroll 16") for (header)
#endif

INLINE vec vec_all(real x) { return x - (vec){0}; }
INLINE ivec ivec_all(real_int x) { return x - (ivec){0}; }
INLINE vec vec_load(const real *p) { return *(const vec_anywhere *)p; }
INLINE void vec_store(real *p, vec x) { *(vec_anywhere *)p = x; }

/* a b + c, rounded once where the target has the instruction. Named, so that no compiler's mood decides it. */
INLINE vec vec_fma(vec a, vec b, vec c)
{
#if NAMED_BYTES == 64 && REAL_BITS == 32
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif NAMED_BYTES == 64
    return (vec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif NAMED_BYTES == 32 && REAL_BITS == 32
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif NAMED_BYTES == 32
    return (vec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__) && REAL_BITS == 32
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(__aarch64__)
    return (vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

INLINE vec vec_select(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }

/* The larger; b where either is NaN, as the instructions have it. */
INLINE vec vec_max(vec a, vec b)
{
#if NAMED_BYTES == 64 && REAL_BITS == 32
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif NAMED_BYTES == 64
    return (vec)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif NAMED_BYTES == 32 && REAL_BITS == 32
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif NAMED_BYTES == 32
    return (vec)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
    return vec_select(a > b, a, b);
#endif
}

INLINE int vec_any_nan(vec a)
{
#if NAMED_BYTES == 64 && REAL_BITS == 32
    return _mm512_cmp_ps_mask((__m512)a, (__m512)a, _CMP_UNORD_Q) != 0;
#elif NAMED_BYTES == 64
    return _mm512_cmp_pd_mask((__m512d)a, (__m512d)a, _CMP_UNORD_Q) != 0;
#elif NAMED_BYTES == 32 && REAL_BITS == 32
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)a, _CMP_UNORD_Q)) != 0;
#elif NAMED_BYTES == 32
    return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)a, _CMP_UNORD_Q)) != 0;
#else
    int any = 0;
    for (int i = 0; i < LANES; i++) any |= a[i] != a[i];
    return any;
#endif
}

#if defined(__clang__) || __GNUC__ >= 12
#define vec_shuffle(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define vec_shuffle(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

/* 0, 1, 2, ... and the two halves of a perfect shuffle */
#if LANES == 16
#define IVEC_IOTA ((ivec){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#define vec_zip_low(a, b) vec_shuffle(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define vec_zip_high(a, b) vec_shuffle(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif LANES == 8
#define IVEC_IOTA ((ivec){0, 1, 2, 3, 4, 5, 6, 7})
#define vec_zip_low(a, b) vec_shuffle(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define vec_zip_high(a, b) vec_shuffle(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#elif LANES == 4
#define IVEC_IOTA ((ivec){0, 1, 2, 3})
#define vec_zip_low(a, b) vec_shuffle(a, b, 0, 4, 1, 5)
#define vec_zip_high(a, b) vec_shuffle(a, b, 2, 6, 3, 7)
#else
#define IVEC_IOTA ((ivec){0, 1})
#define vec_zip_low(a, b) vec_shuffle(a, b, 0, 2)
#define vec_zip_high(a, b) vec_shuffle(a, b, 1, 3)
#endif

/* x becomes its transpose. */
#if LANES ==                                                                                                           \
    8 /* with shuffles inside the halves of a register, which are one instruction each, and one exchange of them */
INLINE void vec_transpose(vec x[LANES])
{
    vec y[LANES];
    UNROLL_FOR (int i = 0; i < LANES; i += 2) {
        y[i] = vec_shuffle(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        y[i + 1] = vec_shuffle(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    UNROLL_FOR (int i = 0; i < LANES; i += 4)
        UNROLL_FOR (int k = 0; k < 2; k++) {
            x[i + 2 * k] = vec_shuffle(y[i + k], y[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            x[i + 2 * k + 1] = vec_shuffle(y[i + k], y[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    UNROLL_FOR (int i = 0; i < LANES / 2; i++) {
        const vec low = x[i], high = x[i + LANES / 2];
        x[i] = vec_shuffle(low, high, 0, 1, 2, 3, 8, 9, 10, 11);
        x[i + LANES / 2] = vec_shuffle(low, high, 4, 5, 6, 7, 12, 13, 14, 15);
    }
}
#else /* log2(LANES) rounds of perfect shuffles */
INLINE void vec_transpose(vec x[LANES])
{
    vec y[LANES];
    UNROLL_FOR (int k = 1; k < LANES; k *= 2) {
        UNROLL_FOR (int i = 0; i < LANES; i++) y[i] = x[i];
        UNROLL_FOR (int i = 0; i < LANES / 2; i++) {
            x[2 * i] = vec_zip_low(y[i], y[i + LANES / 2]);
            x[2 * i + 1] = vec_zip_high(y[i], y[i + LANES / 2]);
        }
    }
}
#endif

/* 2^(x unit) for x unit <= 0: exactly 0 from -127 down (-1023 for f64), NaN for NaN, else within 1 ulp. Adding `rounder`
 * leaves the integer nearest to x unit, biased like an exponent, in the low bits of the sum. */
INLINE vec vec_exp2(vec x, real unit)
{
#if REAL_BITS == 32
    const real least = -127.0f;
#ifdef PRODUCTS_BF16 /* 2e-7, far below the rounding of the result to bf16 */
    static const real factor[] = {1.3264727e-3f, 9.671513e-3f, 5.5507336e-2f, 2.4022243e-1f, 6.931470e-1f, 1.0f};
#else
    static const real factor[] = {1.49025174e-4f, 1.33895816e-3f, 9.6200183e-3f, 5.55036515e-2f,
                                  2.40226373e-1f, 6.93147182e-1f, 1.0f};
#endif
    enum { MANTISSA = 23 };
#else
    const real least = -1023.0;
    static const real factor[] = {/* ln(2)^k / k! */
                                  1.3691488853904128e-12, 2.5678435993488206e-11,
                                  4.4455382718708116e-10, 7.0549116208011233e-09,
                                  1.0178086009239699e-07, 1.3215486790144309e-06,
                                  1.5252733804059840e-05, 1.5403530393381609e-04,
                                  1.3333558146428443e-03, 9.6181291076284772e-03,
                                  5.5504108664821579e-02, 2.4022650695910071e-01,
                                  6.9314718055994531e-01, 1.0};
    enum { MANTISSA = 52 };
#endif
#if NAMED_BYTES == 64 && REAL_BITS == 32 /* AVX-512 takes the integer off and puts it into the exponent */
    const __m512 y = (__m512)(unit == 1 ? x : x * unit);
    const __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const vec f = unit == 1 ? x - (vec)n : vec_fma(x, vec_all(unit), -(vec)n);
#else
    const real rounder = (real)3 * ((real_int)1 << (MANTISSA - 1)) - least;
    x = vec_max(vec_all(least / unit), x);
    const vec t = vec_fma(x, vec_all(unit), vec_all(rounder));
    const vec f = vec_fma(x, vec_all(unit), rounder - t); /* in [-0.5, 0.5] */
#endif
    vec p = vec_all(factor[0]);
    UNROLL_FOR (int i = 1; i < (int)(sizeof factor / sizeof factor[0]); i++) p = vec_fma(p, f, vec_all(factor[i]));
#if NAMED_BYTES == 64 && REAL_BITS == 32
    return (vec)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(y, _mm512_set1_ps(least), _CMP_NLE_UQ), (__m512)p, n);
#else
    return p * (vec)((ivec)t << MANTISSA);
#endif
}

INLINE vec vec_abs(vec x) { return vec_select(x < 0, -x, x); }

/* f32: odd polynomial below 0.625 (S. Moshier's Cephes, tanhf), else from 2^(-2 |x| log2 e), which keeps 1 ulp of 1. */
INLINE vec vec_tanh(vec x)
{
#if REAL_BITS == 32
    const vec a = vec_abs(x), z = x * x;
    vec p = vec_all(-5.70498872745e-3f);
    p = vec_fma(p, z, vec_all(2.06390887954e-2f));
    p = vec_fma(p, z, vec_all(-5.37397155531e-2f));
    p = vec_fma(p, z, vec_all(1.33314422036e-1f));
    p = vec_fma(p, z, vec_all(-3.33332819422e-1f));
    const vec e = vec_exp2(-a, 2.88539008f), large = (1 - e) / (1 + e);
    return vec_select(a < 0.625f, vec_fma(p * z, x, x), vec_select(x < 0, -large, large));
#else
    for (int i = 0; i < LANES; i++) x[i] = __builtin_tanh(x[i]);
    return x;
#endif
}
#endif
