// code_statistics on the CPU: checks, memory, threads. The arithmetic is in
// code_statistics_kernel.h, compiled once per instruction set and chosen here at run time.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "../checks.h"
#include "buffer.h"
#include "code_statistics.h"
#include "instruction_set.h"

namespace colaworld {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Parts that the rows are cut into, at most: it bounds the memory by so many codebooks, whatever
// the number of rows, and the threads that can help.
constexpr int64_t MOST_PARTS = 16;
// A row of a part should outweigh the part's own table, which is filled and merged ...
constexpr int64_t ROWS_PER_ENTRY = 4;
// ... and the additions of a part the 20 microseconds that a thread should be worth.
constexpr int64_t ADDITIONS_PER_PART = 1 << 17;

const CodeStatisticsKernels& kernels() {
  static const CodeStatisticsKernels chosen = COLAWORLD_KERNELS(code_statistics);
  return chosen;
}

// A function of the sizes alone, so that the sums do not depend on the number of threads.
int64_t parts_of(int64_t N, int64_t K, int64_t d) {
  const int64_t parts =
      std::min(N / ROWS_PER_ENTRY / K,
               static_cast<int64_t>(static_cast<double>(N) * d / ADDITIONS_PER_PART));
  return std::clamp<int64_t>(parts, 1, MOST_PARTS);
}

template <typename In>
void run(const CodeStatisticsKernel<In>& kernel,
         const Tensor& z,  // [N, d] contiguous
         const Tensor& indices,  // [N] int64 contiguous
         const Tensor& out) {  // [K, d] or [K, d + 1]
  using Acc = typename accumulate<In>::type;
  const int64_t N = z.size(0), d = z.size(1), K = out.size(0), width = out.size(1);
  const int64_t parts = parts_of(N, K, d), size = K * width;
  const In* rows = static_cast<const In*>(z.const_data_ptr());
  const int64_t* names = static_cast<const int64_t*>(indices.const_data_ptr());
  Acc* to = static_cast<Acc*>(out.mutable_data_ptr());

  // The first part is summed in the output itself.
  const AlignedBuffer<Acc> others((parts - 1) * size);
  int64_t stopped[MOST_PARTS];
  const auto begin = [&](int64_t part) { return N / parts * part + std::min(part, N % parts); };
  torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      Acc* table = part == 0 ? to : others.get() + (part - 1) * size;
      std::memset(table, 0, size * sizeof(Acc));
      stopped[part] = kernel.add(rows, names, begin(part), begin(part + 1), K, d, width, table);
    }
  });
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t n = stopped[part];
    expect(n == begin(part + 1), "code_statistics: indices: expected values in [0, ", K, "), got ",
           n < N ? names[n] : 0, " in row ", n);
  }
  if (parts > 1) {
    const int64_t grain = 1 + ADDITIONS_PER_PART / parts;
    torch::stable::parallel_for(0, size, grain, [&](int64_t first, int64_t last) {
      kernel.merge(others.get(), parts - 1, size, first, last, to);
    });
  }
}

Tensor code_statistics(const Tensor& z,  // [N, d] float32, float64 or bfloat16, any strides
                       const Tensor& indices,  // [N] int64 in [0, K), any strides
                       int64_t K,
                       bool counts) {
  expect(z.dim() == 2 && z.size(1) >= 1, "code_statistics: z: expected [N, d] with d >= 1, got ",
         shape_of(z));
  expect(indices.dim() == 1 && indices.size(0) == z.size(0), "code_statistics: indices: expected [",
         z.size(0), "], got ", shape_of(indices));
  expect(indices.scalar_type() == ScalarType::Long, "code_statistics: indices: expected Long, got ",
         indices.scalar_type());
  expect(z.is_cpu() && indices.is_cpu(), "code_statistics: indices: expected on the CPU as z is");
  expect(K >= 1, "code_statistics: K: expected >= 1, got ", K);
  const ScalarType dtype = z.scalar_type();
  expect(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
         "code_statistics: z: expected float32, float64 or bfloat16, got ", dtype);

  const Tensor rows = as_contiguous(z);
  const Tensor names = as_contiguous(indices);
  const ScalarType wide = dtype == ScalarType::Double ? dtype : ScalarType::Float;
  Tensor out = torch::stable::new_empty(rows, {K, z.size(1) + (counts ? 1 : 0)}, wide);
  switch (dtype) {
    case ScalarType::Float:
      run(kernels().f32, rows, names, out);
      break;
    case ScalarType::Double:
      run(kernels().f64, rows, names, out);
      break;
    default:
      run(kernels().bf16, rows, names, out);
  }
  return out;
}

}  // namespace
}  // namespace colaworld

STABLE_TORCH_LIBRARY_IMPL(colaworld, CPU, m) {
  m.impl("code_statistics", TORCH_BOX(&colaworld::code_statistics));
}
