// Every CPU kernel, compiled for AVX2 with FMA.
// CMakeLists.txt gives this file its flags.

#define COLAWORLD_ISA avx2
#define COLAWORLD_VECTOR_BYTES 32
#define COLAWORLD_VECTOR_REGISTERS 16
#include "adaln_kernel.h"
#include "code_statistics_kernel.h"
#include "qk_norm_rope_kernel.h"
#include "st_attention_kernel.h"
#include "vector_quantize_kernel.h"
