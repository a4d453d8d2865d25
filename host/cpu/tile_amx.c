/* The tile for bf16 storage, by AMX. */
#define REAL_BITS 32
#define PRODUCTS_BF16 1
#define PRODUCTS_AMX 1
#include "tile.inc"
