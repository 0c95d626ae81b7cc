// vector_quantize and code_statistics for CUDA tensors: checks and memory. Launches are in
// vector_quantize.cu, the arithmetic in vector_quantize_kernel.cuh and code_statistics_kernel.cuh.

#include <limits>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "tensor.h"
#include "vector_quantize.h"

namespace colaworld {
namespace cuda {
namespace {

constexpr const char* TAKES = "float32, bfloat16 or float16";

std::tuple<Tensor, Tensor> quantize(
    const Tensor& z,  // [N, d] float32, bfloat16 or float16, any strides
    const Tensor& codebook) {  // [K, d] same dtype, any strides
  expect(z.dim() == 2, "vector_quantize: z: expected [N, d], got ", shape_of(z));
  expect(codebook.dim() == 2 && codebook.size(1) == z.size(1),
         "vector_quantize: codebook: expected [K, ", z.size(1), "], got ", shape_of(codebook));
  expect(codebook.size(0) >= 1 && codebook.size(1) >= 1,
         "vector_quantize: codebook: expected K >= 1 and d >= 1, got ", shape_of(codebook));
  expect(codebook.is_cuda() && codebook.get_device_index() == z.get_device_index(),
         "vector_quantize: codebook: expected on the GPU that z is on");
  expect(codebook.size(0) <= std::numeric_limits<int32_t>::max(),
         "vector_quantize: codebook: expected K < 2^31, got ", shape_of(codebook));
  const ScalarType dtype = z.scalar_type();
  expect(codebook.scalar_type() == dtype, "vector_quantize: codebook: expected ", dtype,
         " as z is, got ", codebook.scalar_type());
  expect(is_element(dtype), "vector_quantize: z: expected ", TAKES, ", got ", dtype);

  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  const Tensor rows = torch::stable::contiguous(z);
  const Tensor book = torch::stable::contiguous(codebook);
  Tensor codes = torch::stable::new_empty(book, z.sizes());
  Tensor indices = torch::stable::new_empty(book, {z.size(0)}, ScalarType::Long);
  if (z.size(0) == 0) return {codes, indices};
  VectorQuantizeCall call;
  call.z = rows.const_data_ptr();
  call.codebook = book.const_data_ptr();
  call.codes = codes.mutable_data_ptr();
  call.indices = static_cast<int64_t*>(indices.mutable_data_ptr());
  call.N = z.size(0);
  call.K = book.size(0);
  call.d = z.size(1);
  launched("vector_quantize", vector_quantize(element_of(dtype), call, stream_of(z)));
  return {codes, indices};
}

Tensor statistics(const Tensor& z,  // [N, d] float32, bfloat16 or float16, any strides
                  const Tensor& indices,  // [N] int64 in [0, K), any strides
                  int64_t K,
                  bool counts) {
  expect(z.dim() == 2 && z.size(1) >= 1, "code_statistics: z: expected [N, d] with d >= 1, got ",
         shape_of(z));
  expect(indices.dim() == 1 && indices.size(0) == z.size(0), "code_statistics: indices: expected [",
         z.size(0), "], got ", shape_of(indices));
  expect(indices.scalar_type() == ScalarType::Long, "code_statistics: indices: expected Long, got ",
         indices.scalar_type());
  expect(indices.is_cuda() && indices.get_device_index() == z.get_device_index(),
         "code_statistics: indices: expected on the GPU that z is on");
  expect(K >= 1, "code_statistics: K: expected >= 1, got ", K);
  const ScalarType dtype = z.scalar_type();
  expect(is_element(dtype), "code_statistics: z: expected ", TAKES, ", got ", dtype);

  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  const Tensor rows = torch::stable::contiguous(z);
  const Tensor names = torch::stable::contiguous(indices);
  CodeStatisticsCall call;
  call.z = rows.const_data_ptr();
  call.indices = static_cast<const int64_t*>(names.const_data_ptr());
  call.N = z.size(0);
  call.K = K;
  call.d = z.size(1);
  call.width = call.d + (counts ? 1 : 0);
  Tensor out = torch::stable::new_empty(rows, {K, call.width}, ScalarType::Float);
  const CodeStatisticsPlan plan = code_statistics_plan(call.N, K, call.d, call.width);
  call.out = static_cast<float*>(out.mutable_data_ptr());
  Tensor partial = out;
  if (plan.parts > 1) {
    partial = torch::stable::new_empty(rows, {plan.parts, K, call.width}, ScalarType::Float);
  }
  call.partial = static_cast<float*>(partial.mutable_data_ptr());
  launched("code_statistics", code_statistics(element_of(dtype), call, plan, stream_of(z)));
  return out;
}

}  // namespace
}  // namespace cuda
}  // namespace colaworld

STABLE_TORCH_LIBRARY_IMPL(colaworld, CUDA, m) {
  m.impl("vector_quantize", TORCH_BOX(&colaworld::cuda::quantize));
  m.impl("code_statistics", TORCH_BOX(&colaworld::cuda::statistics));
}
