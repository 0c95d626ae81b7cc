// gelu on the CPU: checks, memory, threads. The arithmetic is in gelu_kernel.h, compiled once per
// instruction set and chosen here at run time.

#include <cstdint>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "../checks.h"
#include "gelu.h"
#include "instruction_set.h"

namespace colaworld {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An element takes about half a nanosecond; a thread should be worth some 20 microseconds.
constexpr int64_t ELEMENTS_PER_TASK = 1 << 15;

const GeluKernels& kernels() {
  static const GeluKernels chosen = COLAWORLD_KERNELS(gelu);
  return chosen;
}

void check(const char* op, const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  expect(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
         op, ": x: expected float32, float64 or bfloat16, got ", dtype);
}

// `use` is called with the kernel of the dtype.
template <typename Use>
void with_kernel(ScalarType dtype, const Use& use) {
  switch (dtype) {
    case ScalarType::Float:
      return use(kernels().f32, float{});
    case ScalarType::Double:
      return use(kernels().f64, double{});
    default:
      return use(kernels().bf16, bfloat16{});
  }
}

Tensor gelu(const Tensor& x) {  // any shape and strides
  check("gelu", x);
  const Tensor from = as_contiguous(x);
  Tensor y = torch::stable::new_empty(from, x.sizes());
  with_kernel(x.scalar_type(), [&](const auto& kernel, auto number) {
    using In = decltype(number);
    const In* in = static_cast<const In*>(from.const_data_ptr());
    In* out = static_cast<In*>(y.mutable_data_ptr());
    torch::stable::parallel_for(0, x.numel(), ELEMENTS_PER_TASK, [&](int64_t first, int64_t last) {
      kernel.forward(in, first, last, out);
    });
  });
  return y;
}

Tensor gelu_backward(const Tensor& grad, const Tensor& x) {  // of one shape
  check("gelu_backward", x);
  expect(grad.scalar_type() == x.scalar_type(), "gelu_backward: grad: expected ", x.scalar_type(),
         " as x is, got ", grad.scalar_type());
  expect(grad.is_cpu(), "gelu_backward: grad: expected on the CPU as x is");
  bool alike = grad.dim() == x.dim();
  for (int64_t i = 0; alike && i < x.dim(); ++i) alike = grad.size(i) == x.size(i);
  expect(alike, "gelu_backward: grad: expected ", shape_of(x), ", got ", shape_of(grad));
  const Tensor gradient = as_contiguous(grad), from = as_contiguous(x);
  Tensor dx = torch::stable::new_empty(from, x.sizes());
  with_kernel(x.scalar_type(), [&](const auto& kernel, auto number) {
    using In = decltype(number);
    const In* g = static_cast<const In*>(gradient.const_data_ptr());
    const In* in = static_cast<const In*>(from.const_data_ptr());
    In* out = static_cast<In*>(dx.mutable_data_ptr());
    torch::stable::parallel_for(0, x.numel(), ELEMENTS_PER_TASK, [&](int64_t first, int64_t last) {
      kernel.backward(g, in, first, last, out);
    });
  });
  return dx;
}

}  // namespace
}  // namespace colaworld

STABLE_TORCH_LIBRARY_IMPL(colaworld, CPU, m) {
  m.impl("gelu", TORCH_BOX(&colaworld::gelu));
  m.impl("gelu_backward", TORCH_BOX(&colaworld::gelu_backward));
}
