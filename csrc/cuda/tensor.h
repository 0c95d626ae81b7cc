// What the CUDA ops share between tensors and kernels: the stream, element types, errors.
// Not here: kernels and launches, which know no torch.

#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include "../checks.h"
#include "element.h"

// Weak: a torch without CUDA does not have it, and this library loads there all the same.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace colaworld {
namespace cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The stream that torch works on, on the device of `tensor`.
inline void* stream_of(const Tensor& tensor) {
  if (aoti_torch_get_current_cuda_stream == nullptr) {
    throw std::runtime_error("colaworld: this torch was built without CUDA");
  }
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

// Throws what a launch has returned, if anything.
inline void launched(const char* op, const char* error) {
  if (error == nullptr) return;
  throw std::runtime_error(std::string(op) + ": the CUDA kernel did not start: " + error);
}

inline bool is_element(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}
inline Element element_of(ScalarType dtype) {
  if (dtype == ScalarType::Float) return Element::float32;
  return dtype == ScalarType::BFloat16 ? Element::bfloat16 : Element::float16;
}

// float32, contiguous, and a pointer that may be null.
class Floats {
 public:
  explicit Floats(const std::optional<Tensor>& tensor) {
    if (tensor) held_ = torch::stable::contiguous(torch::stable::to(*tensor, ScalarType::Float));
  }
  const float* get() const {
    return held_ ? static_cast<const float*>(held_->const_data_ptr()) : nullptr;
  }

 private:
  std::optional<Tensor> held_;
};

}  // namespace cuda
}  // namespace colaworld
