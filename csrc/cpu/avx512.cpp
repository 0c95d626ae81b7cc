// Every CPU kernel, compiled for AVX-512 (F, DQ, BW, VL).
// CMakeLists.txt gives this file its flags and its list of kernels.

#define COLAWORLD_ISA avx512
#define COLAWORLD_VECTOR_BYTES 64
#define COLAWORLD_VECTOR_REGISTERS 32
#include "every_kernel.h"  // written by CMake: each *_kernel.h of this folder
