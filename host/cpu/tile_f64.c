/* The tile with f64 accumulation: f64 storage. */
#define REAL_BITS 64
#include "tile.inc"
