// Every CPU kernel, compiled for AVX2 with FMA.
// CMakeLists.txt gives this file its flags.

#define COLAWORLD_ISA avx2
#define COLAWORLD_VECTOR_BYTES 32
#define COLAWORLD_VECTOR_REGISTERS 16
#include "code_statistics_kernel.h"
#include "vector_quantize_kernel.h"
