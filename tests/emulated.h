/* What AVX512-BF16 and AMX-BF16 do, in portable C, in the order of Intel's manual: over this text host/cpu/pairs.inc
 * and products_amx.inc run on any machine. A vector is 64 bytes. */
#ifndef CLATTN_TEST_EMULATED_H
#define CLATTN_TEST_EMULATED_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

typedef uint32_t uvec __attribute__((vector_size(VECTOR_BYTES)));

/* Subnormals to 0. */
INLINE vec flush(vec x) { return vec_select(((ivec)x & 0x7f800000) == 0, (vec)((ivec)x & INT32_MIN), x); }
INLINE vec low_of(vec pairs) { return flush((vec)((uvec)pairs << 16)); }
INLINE vec high_of(vec pairs) { return flush((vec)((uvec)pairs & 0xffff0000u)); }

/* ---- AVX512-BF16, and the permutations beside it */

INLINE vec product(vec sum, word x, vec y)
{
    const vec pairs = (vec)ivec_all(x);
    sum = flush(flush(sum) + high_of(pairs) * high_of(y));
    return flush(sum + low_of(pairs) * low_of(y));
}

/* To nearest even, as bf16's bits in the high half. */
INLINE uvec rounded(vec x)
{
    const uvec u = (uvec)flush(x), nearest = u + (0x7fffu + (u >> 16 & 1u)), nan = u | 0x400000u;
    return (uvec)vec_select(u << 1 > 0xff000000u, (vec)nan, (vec)nearest) & 0xffff0000u;
}

INLINE vec words_of(vec low, vec high) { return (vec)(rounded(low) >> 16 | rounded(high)); }

INLINE vec halves_load(const void *from, int64_t at, int n)
{
    vec x = {0};
    memcpy(&x, (const uint16_t *)from + at, sizeof(uint16_t) * (size_t)n);
    return x;
}

INLINE vec zip_from(vec even, vec odd, int column)
{
    uint16_t x[2][32], zipped[16][2];
    vec words;
    memcpy(x[0], &even, sizeof even);
    memcpy(x[1], &odd, sizeof odd);
    for (int i = 0; i < 16; i++) zipped[i][0] = x[0][column + i], zipped[i][1] = x[1][column + i];
    memcpy(&words, zipped, sizeof words);
    return words;
}
INLINE vec zip_low(vec even, vec odd) { return zip_from(even, odd, 0); }
INLINE vec zip_high(vec even, vec odd) { return zip_from(even, odd, 16); }

#ifdef PRODUCTS_AMX
/* ---- AMX-BF16, of tiles that are whole; anything that the processor would refuse ends the process */

/* The test defines these: how many threads have tiles, and a planted fault (0: none). */
extern atomic_int amx_threads;
extern atomic_int amx_fault;
enum { AMX_NO_FAULT, AMX_ODD_ELEMENT_LOST, AMX_LAST_ROW_LOST, AMX_NOT_ADDED, AMX_FAULTS };

extern _Thread_local bool amx_is_configured;
static _Thread_local vec amx_tile[8][16];

INLINE void amx_check(bool good)
{
    if (!good || !amx_is_configured) abort();
}

/* As the structure lies in memory: palette 1, then from byte 16 the tiles' bytes a row, from byte 48 their rows. */
static NOINLINE void amx_configure(const void *tiles)
{
    unsigned char given[64], expected[64] = {1};
    for (int i = 0; i < 8; i++) expected[16 + 2 * i] = 64, expected[48 + i] = 16;
    memcpy(given, tiles, sizeof given);
    atomic_fetch_add(&amx_threads, !amx_is_configured);
    amx_is_configured = true;
    memset(amx_tile, 0xff, sizeof amx_tile); /* the processor clears them: nobody may count on either */
    amx_check(!memcmp(given, expected, sizeof given));
}

INLINE void amx_release(void)
{
    atomic_fetch_sub(&amx_threads, amx_is_configured);
    amx_is_configured = false;
}

static NOINLINE void amx_zero(int tile)
{
    amx_check(tile >= 0 && tile < 8);
    memset(amx_tile[tile], 0, sizeof amx_tile[tile]);
}

static NOINLINE void amx_load(int tile, const void *from, int64_t stride)
{
    amx_check(tile >= 0 && tile < 8);
    for (int i = 0; i < 16; i++) memcpy(&amx_tile[tile][i], (const char *)from + i * stride, sizeof(vec));
}

static NOINLINE void amx_store(int tile, void *to, int64_t stride)
{
    amx_check(tile >= 0 && tile < 8);
    for (int i = 0; i < 16; i++) memcpy((char *)to + i * stride, &amx_tile[tile][i], sizeof(vec));
}

static NOINLINE void amx_product(int c, int a, int b)
{
    amx_check(c != a && c != b && a != b);
    const int fault = atomic_load_explicit(&amx_fault, memory_order_relaxed);
    vec low[16], high[16];
    for (int k = 0; k < 16; k++) low[k] = low_of(amx_tile[b][k]), high[k] = high_of(amx_tile[b][k]);
    for (int i = 0; i < 16 - (fault == AMX_LAST_ROW_LOST); i++) {
        vec even = {0}, odd = {0};
        const vec x_low = low_of(amx_tile[a][i]), x_high = high_of(amx_tile[a][i]);
        for (int k = 0; k < 16; k++) {
            even = flush(even + x_low[k] * low[k]);
            if (fault != AMX_ODD_ELEMENT_LOST) odd = flush(odd + x_high[k] * high[k]);
        }
        const vec sum = flush(even + odd);
        amx_tile[c][i] = fault == AMX_NOT_ADDED ? sum : flush(flush(amx_tile[c][i]) + sum);
    }
}
#endif
#endif
