/* What the machine's processor can do at most, measured: multiply-adds, and reading memory. */
#ifndef CLATTN_CLI_PEAK_H
#define CLATTN_CLI_PEAK_H

#include <clattn/clattn.h>

/* GFLOP/s of multiply-adds in registers, on that many threads (0: one per processor), with the best instructions that
 * the host path may use, CLATTN_CPU included: of f32, which serves 16-bit storage too, or of f64. It takes some
 * hundredths of a second; the best of a few tries. */
double peak_gflops(int64_t threads, clattn_dtype dtype);

/* GB/s of reading memory that no cache holds, likewise, in about half a second; 0: there is no memory to read. */
double peak_gbs(int64_t threads);

#endif
