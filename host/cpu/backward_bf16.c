/* Gradients of bf16 with S, dP and dV from pairs. */
#define REAL_BITS 32
#define PRODUCTS_PAIRS 1
#include "backward.inc"
