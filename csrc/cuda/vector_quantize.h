// What the CUDA kernels of vector_quantize and code_statistics offer to their caller: plain
// pointers and a stream. Not here: tensors, memory. The caller owns every buffer.

#pragma once

#include <cstdint>

#include "element.h"

namespace colaworld {
namespace cuda {

struct VectorQuantizeCall {
  const void* z;  // [N, d] contiguous
  const void* codebook;  // [K, d] contiguous, K < 2^31
  void* codes;  // [N, d]
  int64_t* indices;  // [N]
  int64_t N, K, d;
};

// Null, or what went wrong with the launch.
const char* vector_quantize(Element element, const VectorQuantizeCall& call, void* stream);

struct CodeStatisticsCall {
  const void* z;  // [N, d] contiguous
  const int64_t* indices;  // [N] contiguous, in [0, K)
  float* partial;  // [parts, K, width]; out itself when there is one part
  float* out;  // [K, width]
  int64_t N, K, d;
  int64_t width;  // d, or d + 1 with the count in the last column
};

// How the work is cut: a function of the sizes alone, so that sums are equal on every device.
struct CodeStatisticsPlan {
  int64_t parts;  // of the rows; sums of parts meet in their order
  int64_t ranges;  // of the entries
  int64_t slices;  // of the channels
  int entries;  // of a range
  int columns;  // channels of a slice
};
CodeStatisticsPlan code_statistics_plan(int64_t N, int64_t K, int64_t d, int64_t width);

const char* code_statistics(Element element,
                            const CodeStatisticsCall& call,
                            const CodeStatisticsPlan& plan,
                            void* stream);

}  // namespace cuda
}  // namespace colaworld
