// What one compiled variant of the adaln kernel offers to its caller.
// Not here: tensors, threads, memory. The caller owns every buffer.

#pragma once

#include <cstdint>

#include "number.h"

namespace colaworld {

// Neighbouring rows of one frame. Strides count elements; the C columns of a row are neighbours.
template <typename In, typename Y>
struct AdalnForwardRows {
  using Acc = typename accumulate<In>::type;
  int64_t rows, C;
  const In* x;  // [rows, C]
  int64_t x_stride;
  const Y* y;  // [rows, C], or null: then x_out is not written and the norm reads x
  int64_t y_stride;
  const Acc* gate;  // [C]
  const Acc* factor;  // [C] 1 + scale
  const Acc* shift;  // [C]
  Acc eps;
  In* x_out;  // [rows, C] contiguous
  In* out;  // [rows, C] contiguous
  Acc* mean;  // [rows]
  Acc* rstd;  // [rows]
};

template <typename In, typename Y>
struct AdalnBackwardRows {
  using Acc = typename accumulate<In>::type;
  int64_t rows, C;
  const In* grad_x_out;  // [rows, C]
  int64_t grad_x_out_stride;
  const In* grad_out;  // [rows, C]
  int64_t grad_out_stride;
  const In* x;  // [rows, C] what the norm read
  int64_t x_stride;
  const Y* y;  // [rows, C], or null: then dy is not written and sum_gate not touched
  int64_t y_stride;
  const Acc* gate;  // [C]
  const Acc* factor;  // [C] 1 + scale
  const Acc* mean;  // [rows]
  const Acc* rstd;  // [rows]
  In* dx;  // [rows, C] contiguous
  Y* dy;  // [rows, C] contiguous
  Acc* sum_gate;  // [C] each of the three is added to
  Acc* sum_shift;  // [C]
  Acc* sum_scale;  // [C]
};

template <typename In, typename Y>
struct AdalnKernel {
  void (*forward)(const AdalnForwardRows<In, Y>&);
  void (*backward)(const AdalnBackwardRows<In, Y>&);
};

// Named after the dtypes of x and of y: a y of another dtype than x comes from autocast.
struct AdalnKernels {
  AdalnKernel<float, float> f32_f32;
  AdalnKernel<float, bfloat16> f32_bf16;
  AdalnKernel<double, double> f64_f64;
  AdalnKernel<bfloat16, bfloat16> bf16_bf16;
  AdalnKernel<bfloat16, float> bf16_f32;
};

// One per translation unit.
AdalnKernels adaln_baseline();
AdalnKernels adaln_avx2();
AdalnKernels adaln_avx512();

}  // namespace colaworld
