// What one compiled variant of the vector_quantize kernel offers to its caller.
// Not here: tensors, threads, memory. The caller owns every buffer.

#pragma once

#include <cstdint>

#include "number.h"

namespace colaworld {

template <typename In>
struct VectorQuantizeKernel {
  using Acc = typename accumulate<In>::type;

  int64_t lanes;  // codes per SIMD vector
  int64_t span;  // rows of z that `assign` works on at a time

  // Codes [first, last) x lanes of the codebook into blocks of `lanes` codes, index fastest.
  void (*pack)(const In* codebook,  // [K, d]
               int64_t K,
               int64_t d,
               int64_t first,
               int64_t last,
               Acc* packed,  // [blocks, d, lanes], 64-byte aligned
               Acc* half_norm);  // [blocks * lanes], |e|^2 / 2, +inf beyond K; 64-byte aligned

  // Nearest code of rows [first, last).
  void (*assign)(const In* z,  // [N, d]
                 int64_t first,
                 int64_t last,
                 const In* codebook,  // [K, d]
                 int64_t K,
                 int64_t d,
                 const Acc* packed,
                 const Acc* half_norm,
                 Acc* scratch,  // [span, d], 64-byte aligned
                 In* codes,  // [N, d]
                 int64_t* indices);  // [N]
};

struct VectorQuantizeKernels {
  VectorQuantizeKernel<float> f32;
  VectorQuantizeKernel<double> f64;
  VectorQuantizeKernel<bfloat16> bf16;
};

// One per translation unit.
VectorQuantizeKernels vector_quantize_baseline();
VectorQuantizeKernels vector_quantize_avx2();
VectorQuantizeKernels vector_quantize_avx512();

}  // namespace colaworld
