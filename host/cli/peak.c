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

/* ---- multiply-adds: chains that do not wait for each other, as many as the registers hold */

enum { STEPS = 1 << 12 }; /* of a chain, in one call: some tens of microseconds */

typedef struct fma_loop {
    float (*run)(void); /* STEPS multiply-adds of each chain; the result keeps the compiler from leaving them out */
    int lanes, chains;
} fma_loop;

#define FMA_LOOP(name, target, vector, chains, fma)                                                                    \
    target static float name##_run(void)                                                                               \
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
    static const fma_loop name = {name##_run, sizeof(vector) / sizeof(float), chains};

typedef float vec128 __attribute__((vector_size(16)));
#if defined(__aarch64__)
#define FMA_128(a, b, c) ((vec128)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
FMA_LOOP(portable, , vec128, 24, FMA_128)
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
FMA_LOOP(portable, , vec128, 12, MULTIPLY_ADD)
#endif
#if defined(__x86_64__)
FMA_LOOP(avx2, __attribute__((target("avx2,fma"))), __m256, 12, _mm256_fmadd_ps)
FMA_LOOP(avx512, __attribute__((target("avx512f"))), __m512, 24, _mm512_fmadd_ps)
#endif

/* CLATTN_CPU lowers it, as it does the library's choice. */
static const fma_loop *best_loop(void)
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

/* ---- reading: each thread its share of one buffer, round and round */

enum { READ_PIECE = 1 << 20, READ_PIECES = 256 }; /* bytes; more than a last-level cache holds */

typedef int64_t read_loop(const char *from);

#define READ_LOOP(name, target, bytes)                                                                                 \
    typedef int64_t name##_vector __attribute__((vector_size(bytes)));                                                 \
    target static int64_t name(const char *from)                                                                       \
    {                                                                                                                  \
        const name##_vector *p = (const name##_vector *)from;                                                          \
        name##_vector a = {0}, b = {0}, c = {0}, d = {0};                                                              \
        for (size_t i = 0; i < READ_PIECE / sizeof *p; i += 4) {                                                       \
            a ^= p[i];                                                                                                 \
            b ^= p[i + 1];                                                                                             \
            c ^= p[i + 2];                                                                                             \
            d ^= p[i + 3];                                                                                             \
        }                                                                                                              \
        a ^= b ^ c ^ d;                                                                                                \
        return a[0] ^ a[1];                                                                                            \
    }

READ_LOOP(read_portable, , 16)
#if defined(__x86_64__)
READ_LOOP(read_avx2, __attribute__((target("avx2"))), 32)
READ_LOOP(read_avx512, __attribute__((target("avx512f"))), 64)
#endif

static read_loop *best_read(const fma_loop *fma)
{
#if defined(__x86_64__)
    if (fma != &portable) return fma == &avx2 ? read_avx2 : read_avx512;
#endif
    (void)fma;
    return read_portable;
}

/* ---- the span: every thread works from `start` to `end`, and counts */

enum { TRIES = 5 };
static const double first_seconds = 1e-3; /* for the threads to come up */

typedef struct span {
    const fma_loop *loop; /* or NULL: */
    read_loop *read;
    char *buffer; /* READ_PIECES of READ_PIECE bytes */
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
        if (s->loop)
            s->sinks[thread] += (int64_t)s->loop->run();
        else
            s->sinks[thread] ^= s->read(s->buffer + (first + (pieces ? done % pieces : 0)) * READ_PIECE);
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
    span s = {.loop = best_loop(), .threads = threads};
    const int lanes = dtype == CLATTN_DTYPE_F64 ? s.loop->lanes / 2 : s.loop->lanes;
    return best_rate(&s, 8e-3) * STEPS * s.loop->chains * lanes * 2 * 1e-9;
}

static void touch(void *buffer, int64_t piece) { memset((char *)buffer + piece * READ_PIECE, 1, READ_PIECE); }

double peak_gbs(int64_t threads)
{
    span s = {.read = best_read(best_loop()),
              .buffer = aligned_alloc(64, (size_t)READ_PIECE * READ_PIECES),
              .threads = threads};
    if (!s.buffer) return 0;
    parallel_for(threads, READ_PIECES, touch, s.buffer);
    const double rate = best_rate(&s, 5e-2);
    free(s.buffer);
    return rate * READ_PIECE * 1e-9;
}
