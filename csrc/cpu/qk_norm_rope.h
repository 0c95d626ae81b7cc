// What one compiled variant of the qk_norm_rope kernel offers to its caller.
// Not here: tensors, threads, memory. The caller owns every buffer.

#pragma once

#include <cstdint>

#include "number.h"

namespace colaworld {

// The heads of one token, of q or of k alone. The D channels of a head are neighbours.
template <typename In>
struct NormRopeToken {
  using Acc = typename accumulate<In>::type;
  int64_t H, D;
  const In* x;  // [H, D]
  int64_t x_stride;  // elements from head to head
  const Acc* weight;  // [D], or [H, D] when across; null: no norm
  bool across;  // the mean square runs over all heads
  Acc eps;
  const Acc* cos;  // [D], each value twice, for pairs (0, 1), (2, 3), ...; null: no rotation
  const Acc* sin;  // [D], each value as -s, s
  In* out;  // [H, D] contiguous
};

template <typename In>
struct NormRopeTokenBackward {
  using Acc = typename accumulate<In>::type;
  int64_t H, D;
  const In* grad;  // [H, D]
  int64_t grad_stride;
  const In* x;  // [H, D]; not read without a norm
  int64_t x_stride;
  const Acc* weight;  // [D], or [H, D] when across; null: no norm
  bool across;
  Acc eps;
  const Acc* cos;  // [D], each value twice, for pairs (0, 1), (2, 3), ...; null: no rotation
  const Acc* sin;  // [D], each value as -s, s
  Acc* scratch;  // [H, D]
  Acc* token_sum;  // [D] scratch
  In* dx;  // [H, D] contiguous
  Acc* sum_weight;  // [D], or [H, D] when across; added to; not touched without a norm
};

template <typename In>
struct QkNormRopeKernel {
  void (*forward)(const NormRopeToken<In>&);
  void (*backward)(const NormRopeTokenBackward<In>&);
};

struct QkNormRopeKernels {
  QkNormRopeKernel<float> f32;
  QkNormRopeKernel<double> f64;
  QkNormRopeKernel<bfloat16> bf16;
};

// One per translation unit.
QkNormRopeKernels qk_norm_rope_baseline();
QkNormRopeKernels qk_norm_rope_avx2();
QkNormRopeKernels qk_norm_rope_avx512();

}  // namespace colaworld
