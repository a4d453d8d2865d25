#define REAL_BITS 32
#define PRODUCTS_BF16 1
#include "tile.inc"
