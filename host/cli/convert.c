/* Arithmetic in double, where every 16-bit float is exact and scaling by a power of two is too. */
#include "convert.h"

#include <math.h>

enum { F16_EXPONENT_BITS = 5, BF16_EXPONENT_BITS = 8 };

/* A 16-bit float is a sign, exponent_bits of exponent and the rest mantissa, as IEEE 754 lays them out. */
static uint16_t narrow(double x, int exponent_bits)
{
    const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    const int sign = signbit(x) ? 0x8000 : 0, infinity = ((1 << exponent_bits) - 1) << mantissa_bits;
    int exponent;
    if (isnan(x)) return (uint16_t)(sign | infinity | 1 << (mantissa_bits - 1));
    if (isinf(x)) return (uint16_t)(sign | infinity);
    frexp(x, &exponent);                                                /* |x| in [2^(exponent - 1), 2^exponent) */
    exponent = x == 0 || exponent < 2 - bias ? 1 - bias : exponent - 1; /* subnormals share the least exponent */
    if (exponent > bias) return (uint16_t)(sign | infinity);
    /* In units of the last place; a carry out of the mantissa moves the exponent up by itself. */
    const int units = (int)rint(ldexp(fabs(x), mantissa_bits - exponent));
    return (uint16_t)(sign | (((exponent + bias - 1) << mantissa_bits) + units));
}

static double widen(uint16_t bits, int exponent_bits)
{
    const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = (bits & 0x7fff) >> mantissa_bits, mantissa = bits & ((1 << mantissa_bits) - 1);
    double x;
    if (exponent == (1 << exponent_bits) - 1)
        x = mantissa ? (double)NAN : (double)INFINITY;
    else if (exponent == 0)
        x = ldexp(mantissa, 1 - bias - mantissa_bits);
    else
        x = ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
    return bits & 0x8000 ? -x : x;
}

double element_get(const void *data, clattn_dtype dtype, int64_t at)
{
    switch (dtype) {
    case CLATTN_DTYPE_F32: return ((const float *)data)[at];
    case CLATTN_DTYPE_F16: return widen(((const uint16_t *)data)[at], F16_EXPONENT_BITS);
    case CLATTN_DTYPE_BF16: return widen(((const uint16_t *)data)[at], BF16_EXPONENT_BITS);
    case CLATTN_DTYPE_F64: return ((const double *)data)[at];
    }
    return (double)NAN;
}

void element_put(void *data, clattn_dtype dtype, int64_t at, double value)
{
    switch (dtype) {
    case CLATTN_DTYPE_F32: ((float *)data)[at] = (float)value; break;
    case CLATTN_DTYPE_F16: ((uint16_t *)data)[at] = narrow(value, F16_EXPONENT_BITS); break;
    case CLATTN_DTYPE_BF16: ((uint16_t *)data)[at] = narrow(value, BF16_EXPONENT_BITS); break;
    case CLATTN_DTYPE_F64: ((double *)data)[at] = value; break;
    }
}

void convert_elements(const void *from, clattn_dtype from_dtype, void *to, clattn_dtype to_dtype, int64_t count)
{
    for (int64_t i = 0; i < count; i++) element_put(to, to_dtype, i, element_get(from, from_dtype, i));
}
