// What one compiled variant of the gelu kernel offers to its caller.
// Not here: tensors, threads, memory. The caller owns every buffer.

#pragma once

#include <cstdint>

#include "number.h"

namespace colaworld {

template <typename In>
struct GeluKernel {
  // Elements [first, last) of y = gelu(x).
  void (*forward)(const In* x, int64_t first, int64_t last, In* y);

  // Elements [first, last) of dx = grad * gelu'(x).
  void (*backward)(const In* grad, const In* x, int64_t first, int64_t last, In* dx);
};

struct GeluKernels {
  GeluKernel<float> f32;
  GeluKernel<double> f64;
  GeluKernel<bfloat16> bf16;
};

// One per translation unit.
GeluKernels gelu_baseline();
GeluKernels gelu_avx2();
GeluKernels gelu_avx512();

}  // namespace colaworld
