/* f16 and bf16 <-> f32, round to nearest even. Plain integer arithmetic: the same bits on every machine. */
#ifndef CLATTN_HALF_H
#define CLATTN_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t bits_of_f32(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float f32_of_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float f32_of_bf16(uint16_t b) { return f32_of_bits((uint32_t)b << 16); }

static inline uint16_t bf16_of_f32(float x)
{
    const uint32_t u = bits_of_f32(x);
    const uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16, nan = u >> 16 | 0x40u;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

static inline float f32_of_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = (uint32_t)(h & 0x7fffu) << 13;
    /* The exponent moves up by 112; the product does that for subnormals too. Infinity and NaN keep all ones. */
    const uint32_t finite = bits_of_f32(f32_of_bits(magnitude) * 0x1p112f), special = magnitude | 0x7f800000u;
    return f32_of_bits(sign | (magnitude >= 0x0f800000u ? special : finite));
}

static inline uint16_t f16_of_f32(float x)
{
    const uint32_t u = bits_of_f32(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds past 65504 */
    if (magnitude < 0x38800000u) /* subnormal: one addition puts the rounding at 2^-24 */
        return (uint16_t)(sign | (bits_of_f32(f32_of_bits(magnitude) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}
#endif
