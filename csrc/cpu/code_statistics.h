// What one compiled variant of the code_statistics kernel offers to its caller.
// Not here: tensors, threads, memory. The caller owns every buffer.

#pragma once

#include <cstdint>

#include "number.h"

namespace colaworld {

template <typename In>
struct CodeStatisticsKernel {
  using Acc = typename accumulate<In>::type;

  // Adds rows [first, last) to the entries they name. Returns the first row whose index is outside
  // [0, K), and stops there; `last` when there is none.
  int64_t (*add)(const In* z,  // [N, d]
                 const int64_t* indices,  // [N]
                 int64_t first,
                 int64_t last,
                 int64_t K,
                 int64_t d,
                 int64_t width,  // d, or d + 1 with the count in the last column
                 Acc* to);  // [K, width]

  // to += the parts, in their order, over elements [first, last).
  void (*merge)(const Acc* parts,  // [count, size]
                int64_t count,
                int64_t size,
                int64_t first,
                int64_t last,
                Acc* to);  // [size]
};

struct CodeStatisticsKernels {
  CodeStatisticsKernel<float> f32;
  CodeStatisticsKernel<double> f64;
  CodeStatisticsKernel<bfloat16> bf16;
};

// One per translation unit.
CodeStatisticsKernels code_statistics_baseline();
CodeStatisticsKernels code_statistics_avx2();
CodeStatisticsKernels code_statistics_avx512();

}  // namespace colaworld
