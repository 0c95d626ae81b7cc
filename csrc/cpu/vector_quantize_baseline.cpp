// vector_quantize for any processor (SSE2 on x86-64, NEON on arm64). CMakeLists.txt gives this file
// its flags.

#define COLAWORLD_ISA baseline
#define COLAWORLD_VECTOR_BYTES 16
#define COLAWORLD_ROWS 4  // 8 sums, 2 codes, 1 row value and a product in 16 registers
#include "vector_quantize_kernel.h"
