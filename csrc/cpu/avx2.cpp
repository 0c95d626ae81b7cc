// Every CPU kernel, compiled for AVX2 with FMA.
// CMakeLists.txt gives this file its flags and its list of kernels.

#define COLAWORLD_ISA avx2
#define COLAWORLD_VECTOR_BYTES 32
#define COLAWORLD_VECTOR_REGISTERS 16
#include "every_kernel.h"  // written by CMake: each *_kernel.h of this folder
