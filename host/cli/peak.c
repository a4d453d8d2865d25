/* Loops that do nothing but the one thing, on all threads for the same span of time. */
#include "peak.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "cli.h"
#include "parallel.h"

#ifdef __clang__
#define UNROLL_FOR(header) _Pragma("clang loop unroll(full)") for (header)
#else
#define UNROLL_FOR(header) _Pragma("GCC unroll 32") for (header)
#endif

/* ---- the two loops: multiply-adds in chains that do not wait for each other, as many as the registers hold, and reading */

enum {
    STEPS = 1 << 12,      /* of a chain, in one call: some tens of microseconds */
    READ_PIECE = 1 << 20, /* bytes */
    READ_PIECES = 256     /* more than a last-level cache holds */
};

/* The results keep the compiler from leaving the work out. */
typedef struct loops {
    float (*multiply_add)(void);        /* STEPS times in each chain */
    int64_t (*read)(const char *piece); /* READ_PIECE bytes */
    int lanes, chains;
} loops;

#define LOOPS(name, target, vector, chains, fma)                                                                       \
    target static float name##_multiply_add(void)                                                                      \
    {                                                                                                                  \
        const vector factor = (vector){0} + 0.9999999F, term = (vector){0} + 1e-9F;                                    \
        vector a[chains], sum = {0};                                                                                   \
        UNROLL_FOR (int i = 0; i < (chains); i++) a[i] = (vector){0} + (float)i;                                       \
        for (int step = 0; step < STEPS; step++) {                                                                     \
            UNROLL_FOR (int i = 0; i < (chains); i++) a[i] = fma(a[i], factor, term);                                  \
        }                                                                                                              \
        UNROLL_FOR (int i = 0; i < (chains); i++) sum += a[i];                                                         \
        return sum[0];                                                                                                 \
    }                                                                                                                  \
    typedef int64_t name##_words __attribute__((vector_size(sizeof(vector))));                                         \
    target static int64_t name##_read(const char *piece)                                                               \
    {                                                                                                                  \
        const name##_words *p = (const name##_words *)piece;                                                           \
        name##_words a = {0}, b = {0}, c = {0}, d = {0};                                                               \
        for (size_t i = 0; i < READ_PIECE / sizeof *p; i += 4) {                                                       \
            a ^= p[i];                                                                                                 \
            b ^= p[i + 1];                                                                                             \
            c ^= p[i + 2];                                                                                             \
            d ^= p[i + 3];                                                                                             \
        }                                                                                                              \
        a ^= b ^ c ^ d;                                                                                                \
        return a[0] ^ a[1];                                                                                            \
    }                                                                                                                  \
    static const loops name = {name##_multiply_add, name##_read, sizeof(vector) / sizeof(float), chains};

typedef float vec128 __attribute__((vector_size(16)));
#if defined(__aarch64__)
#define FMA_128(a, b, c) ((vec128)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
LOOPS(portable, , vec128, 24, FMA_128)
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
LOOPS(portable, , vec128, 12, MULTIPLY_ADD)
#endif
#if defined(__x86_64__)
LOOPS(avx2, __attribute__((target("avx2,fma"))), __m256, 12, _mm256_fmadd_ps)
LOOPS(avx512, __attribute__((target("avx512f"))), __m512, 24, _mm512_fmadd_ps)
#endif

/* CLATTN_CPU lowers it, as it does the library's choice. */
static const loops *best_loops(void)
{
#if defined(__x86_64__)
    const char *most = getenv("CLATTN_CPU");
    const bool upto_avx2 = most && !strcmp(most, "avx2");
    __builtin_cpu_init();
    if ((most && !strcmp(most, "portable")) || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return &portable;
    return upto_avx2 || !__builtin_cpu_supports("avx512f") ? &avx2 : &avx512;
#else
    return &portable;
#endif
}

/* ---- the span: every thread works from `start` to `end`, and counts */

enum { TRIES = 5 };
static const double first_seconds = 1e-3; /* for the threads to come up */

typedef struct span {
    const loops *loops;
    char *buffer; /* to read: READ_PIECES of READ_PIECE bytes, each thread its share, round and round; or NULL */
    int64_t threads;
    double start, end;
    double *rates;  /* [threads], calls or pieces a second */
    int64_t *sinks; /* [threads] */
} span;

static void work_of_thread(void *argument, int64_t thread)
{
    const span *s = argument;
    const int64_t first = READ_PIECES * thread / s->threads, pieces = READ_PIECES * (thread + 1) / s->threads - first;
    int64_t done = 0;
    double now = cli_now();
    while (now < s->start) now = cli_now();
    while (now < s->end) {
        if (s->buffer)
            s->sinks[thread] ^= s->loops->read(s->buffer + (first + (pieces ? done % pieces : 0)) * READ_PIECE);
        else
            s->sinks[thread] += (int64_t)s->loops->multiply_add();
        done++;
        now = cli_now();
    }
    s->rates[thread] = (double)done / (now - s->start);
}

/* Calls or pieces a second of all threads, the best of TRIES spans; 0: no memory. */
static double best_rate(span *s, double seconds)
{
    double best = 0;
    if (s->threads <= 0) s->threads = sysconf(_SC_NPROCESSORS_ONLN);
    s->rates = calloc((size_t)s->threads, sizeof *s->rates);
    s->sinks = calloc((size_t)s->threads, sizeof *s->sinks);
    for (int i = 0; s->rates && s->sinks && i < TRIES; i++) {
        double sum = 0;
        s->start = cli_now() + first_seconds;
        s->end = s->start + seconds;
        parallel_for(s->threads, s->threads, work_of_thread, s);
        for (int64_t t = 0; t < s->threads; t++) sum += s->rates[t];
        if (sum > best) best = sum;
    }
    free(s->rates);
    free(s->sinks);
    return best;
}

double peak_gflops(int64_t threads, clattn_dtype dtype)
{
    span s = {.loops = best_loops(), .threads = threads};
    const int lanes = dtype == CLATTN_DTYPE_F64 ? s.loops->lanes / 2 : s.loops->lanes;
    return best_rate(&s, 8e-3) * STEPS * s.loops->chains * lanes * 2 * 1e-9;
}

static void touch(void *buffer, int64_t piece) { memset((char *)buffer + piece * READ_PIECE, 1, READ_PIECE); }

double peak_gbs(int64_t threads)
{
    span s = {.loops = best_loops(), .buffer = aligned_alloc(64, (size_t)READ_PIECE * READ_PIECES), .threads = threads};
    if (!s.buffer) return 0;
    parallel_for(threads, READ_PIECES, touch, s.buffer);
    const double rate = best_rate(&s, 5e-2);
    free(s.buffer);
    return rate * READ_PIECE * 1e-9;
}
