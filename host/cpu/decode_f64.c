/* Decoding with f64 accumulation. */
#define REAL_BITS 64
#include "decode.inc"
