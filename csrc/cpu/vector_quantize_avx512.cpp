// vector_quantize for AVX-512 (F, DQ, BW, VL). CMakeLists.txt gives this file its flags.

#define COLAWORLD_ISA avx512
#define COLAWORLD_VECTOR_BYTES 64
#define COLAWORLD_ROWS 12  // 24 sums, 2 codes, 1 row value in 32 registers
#include "vector_quantize_kernel.h"
