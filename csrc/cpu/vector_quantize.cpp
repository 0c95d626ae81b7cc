// vector_quantize on the CPU: checks, memory, threads. The arithmetic is in
// vector_quantize_kernel.h, compiled once per instruction set and chosen here at run time.

#include <cstdint>
#include <limits>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "../checks.h"
#include "buffer.h"
#include "instruction_set.h"
#include "vector_quantize.h"

namespace colaworld {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A multiply-add takes about 1 / 16 ns; a thread should be worth some 20 microseconds.
constexpr int64_t MULTIPLY_ADDS_PER_TASK = 1 << 19;

const VectorQuantizeKernels& kernels() {
  static const VectorQuantizeKernels chosen = COLAWORLD_KERNELS(vector_quantize);
  return chosen;
}

template <typename In>
void run(const VectorQuantizeKernel<In>& kernel,
         const Tensor& z,  // [N, d] contiguous
         const Tensor& codebook,  // [K, d] contiguous
         const Tensor& codes,  // [N, d]
         const Tensor& indices) {  // [N] int64
  using Acc = typename accumulate<In>::type;
  const int64_t N = z.size(0), K = codebook.size(0), d = z.size(1);
  const int64_t blocks = (K + kernel.lanes - 1) / kernel.lanes;
  const AlignedBuffer<Acc> packed(blocks * d * kernel.lanes);
  const AlignedBuffer<Acc> half_norm(blocks * kernel.lanes);

  const In* rows = static_cast<const In*>(z.const_data_ptr());
  const In* book = static_cast<const In*>(codebook.const_data_ptr());
  In* to_codes = static_cast<In*>(codes.mutable_data_ptr());
  int64_t* to_indices = static_cast<int64_t*>(indices.mutable_data_ptr());

  const int64_t pack_grain = 1 + MULTIPLY_ADDS_PER_TASK / (kernel.lanes * d);
  torch::stable::parallel_for(0, blocks, pack_grain, [&](int64_t first, int64_t last) {
    kernel.pack(book, K, d, first, last, packed.get(), half_norm.get());
  });
  const int64_t assign_grain = kernel.span + MULTIPLY_ADDS_PER_TASK / (K * d);
  torch::stable::parallel_for(0, N, assign_grain, [&](int64_t first, int64_t last) {
    const AlignedBuffer<Acc> scratch(kernel.span * d);
    kernel.assign(rows, first, last, book, K, d, packed.get(), half_norm.get(), scratch.get(),
                  to_codes, to_indices);
  });
}

std::tuple<Tensor, Tensor> vector_quantize(
    const Tensor& z,  // [N, d] float32, float64 or bfloat16, any strides
    const Tensor& codebook) {  // [K, d] same dtype, any strides
  expect(z.dim() == 2, "vector_quantize: z: expected [N, d], got ", shape_of(z));
  expect(codebook.dim() == 2 && codebook.size(1) == z.size(1),
         "vector_quantize: codebook: expected [K, ", z.size(1), "], got ", shape_of(codebook));
  expect(codebook.size(0) >= 1 && codebook.size(1) >= 1,
         "vector_quantize: codebook: expected K >= 1 and d >= 1, got ", shape_of(codebook));
  expect(codebook.is_cpu(), "vector_quantize: codebook: expected on the CPU as z is");
  expect(codebook.size(0) <= std::numeric_limits<int32_t>::max(),
         "vector_quantize: codebook: expected K < 2^31, got ", shape_of(codebook));
  const ScalarType dtype = z.scalar_type();
  expect(codebook.scalar_type() == dtype, "vector_quantize: codebook: expected ", dtype,
         " as z is, got ", codebook.scalar_type());
  expect(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
         "vector_quantize: z: expected float32, float64 or bfloat16, got ", dtype);

  const Tensor rows = as_contiguous(z);
  const Tensor book = as_contiguous(codebook);
  Tensor codes = torch::stable::new_empty(book, z.sizes());
  Tensor indices = torch::stable::new_empty(book, {z.size(0)}, ScalarType::Long);
  if (z.size(0) > 0) {
    switch (dtype) {
      case ScalarType::Float:
        run(kernels().f32, rows, book, codes, indices);
        break;
      case ScalarType::Double:
        run(kernels().f64, rows, book, codes, indices);
        break;
      default:
        run(kernels().bf16, rows, book, codes, indices);
    }
  }
  return {codes, indices};
}

}  // namespace
}  // namespace colaworld

STABLE_TORCH_LIBRARY_IMPL(colaworld, CPU, m) {
  m.impl("vector_quantize", TORCH_BOX(&colaworld::vector_quantize));
}
