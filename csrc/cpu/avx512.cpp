// Every CPU kernel, compiled for AVX-512 (F, DQ, BW, VL).
// CMakeLists.txt gives this file its flags.

#define COLAWORLD_ISA avx512
#define COLAWORLD_VECTOR_BYTES 64
#define COLAWORLD_VECTOR_REGISTERS 32
#include "adaln_kernel.h"
#include "code_statistics_kernel.h"
#include "qk_norm_rope_kernel.h"
#include "st_attention_kernel.h"
#include "vector_quantize_kernel.h"
