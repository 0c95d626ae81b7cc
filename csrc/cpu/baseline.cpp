// Every CPU kernel, compiled for any processor (SSE2 on x86-64, NEON on arm64).
// CMakeLists.txt gives this file its flags and its list of kernels.

#define COLAWORLD_ISA baseline
#define COLAWORLD_VECTOR_BYTES 16
#define COLAWORLD_VECTOR_REGISTERS 16
#include "every_kernel.h"  // written by CMake: each *_kernel.h of this folder
