// What one compiled variant of the adaln kernel offers to its caller.
// Not here: tensors, threads, memory. The caller owns every buffer.

#pragma once

#include <cstdint>

#include "number.h"

namespace colaworld {

// Neighbouring rows of one frame. Strides count elements; the C columns of a row are neighbours.
// In is the dtype of the stream x; Out that of what meets a matrix product: the branch y and out.
template <typename In, typename Out>
struct AdalnForwardRows {
  using Acc = typename accumulate<In>::type;
  int64_t rows, C;
  const In* x;  // [rows, C]
  int64_t x_stride;
  const Out* y;  // [rows, C], or null: then x_out is not written and the norm reads x
  int64_t y_stride;
  const Acc* gate;  // [C]
  const Acc* factor;  // [C] 1 + scale
  const Acc* shift;  // [C]
  Acc eps;
  In* x_out;  // [rows, C] contiguous
  Out* out;  // [rows, C] contiguous
  Acc* mean;  // [rows]
  Acc* rstd;  // [rows]
};

template <typename In, typename Out>
struct AdalnBackwardRows {
  using Acc = typename accumulate<In>::type;
  int64_t rows, C;
  const In* grad_x_out;  // [rows, C]
  int64_t grad_x_out_stride;
  const Out* grad_out;  // [rows, C]
  int64_t grad_out_stride;
  const In* x;  // [rows, C] what the norm read
  int64_t x_stride;
  const Out* y;  // [rows, C], or null: then dy is not written and sum_gate not touched
  int64_t y_stride;
  const Acc* gate;  // [C]
  const Acc* factor;  // [C] 1 + scale
  const Acc* mean;  // [rows]
  const Acc* rstd;  // [rows]
  In* dx;  // [rows, C] contiguous
  Out* dy;  // [rows, C] contiguous
  Acc* sum_gate;  // [C] each of the three is added to
  Acc* sum_shift;  // [C]
  Acc* sum_scale;  // [C]
};

template <typename In, typename Out>
struct AdalnKernel {
  void (*forward)(const AdalnForwardRows<In, Out>&);
  void (*backward)(const AdalnBackwardRows<In, Out>&);
};

// Named after In and Out, which differ under autocast: the stream stays in float32.
struct AdalnKernels {
  AdalnKernel<float, float> f32_f32;
  AdalnKernel<float, bfloat16> f32_bf16;
  AdalnKernel<double, double> f64_f64;
  AdalnKernel<bfloat16, bfloat16> bf16_bf16;
};

// One per translation unit.
AdalnKernels adaln_baseline();
AdalnKernels adaln_avx2();
AdalnKernels adaln_avx512();

}  // namespace colaworld
