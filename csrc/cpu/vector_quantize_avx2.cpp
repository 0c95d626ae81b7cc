// vector_quantize for AVX2 with FMA. CMakeLists.txt gives this file its flags.

#define COLAWORLD_ISA avx2
#define COLAWORLD_VECTOR_BYTES 32
#define COLAWORLD_ROWS 6  // 12 sums, 2 codes, 1 row value in 16 registers
#include "vector_quantize_kernel.h"
