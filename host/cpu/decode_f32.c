/* Decoding with f32 accumulation: f32, f16 and bf16 storage. */
#define REAL_BITS 32
#include "decode.inc"
