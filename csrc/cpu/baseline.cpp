// Every CPU kernel, compiled for any processor (SSE2 on x86-64, NEON on arm64).
// CMakeLists.txt gives this file its flags.

#define COLAWORLD_ISA baseline
#define COLAWORLD_VECTOR_BYTES 16
#define COLAWORLD_VECTOR_REGISTERS 16
#include "adaln_kernel.h"
#include "code_statistics_kernel.h"
#include "qk_norm_rope_kernel.h"
#include "st_attention_kernel.h"
#include "vector_quantize_kernel.h"
