// st_attention for CUDA tensors: checks and memory. Launches are in st_attention.cu, the arithmetic
// in st_attention_kernel.cuh and st_attention_float_kernel.cuh. Temporal attention of at most 32
// frames only: the spatial axis has no kernel of its own.

#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "st_attention.h"
#include "tensor.h"

namespace colaworld {
namespace cuda {
namespace {

// What a call asks for beside qkv.
struct Options {
  const std::optional<Tensor>& q_weight;  // [D]
  const std::optional<Tensor>& k_weight;  // [D]
  const std::optional<Tensor>& cos;  // [T, D/2]
  const std::optional<Tensor>& sin;  // [T, D/2]
  bool temporal;
  bool causal;
  double eps;
  double scale;
};

void check(const char* op,
           const Tensor& qkv,  // [B, T, S, 3, H, D]
           const Options& options) {
  expect(qkv.dim() == 6 && qkv.size(3) == 3, op, ": qkv: expected [B, T, S, 3, H, D], got ",
         shape_of(qkv));
  const ScalarType dtype = qkv.scalar_type();
  expect(is_element(dtype), op, ": qkv: expected float32, bfloat16 or float16, got ", dtype);
  expect(options.temporal, op, ": temporal: the CUDA kernel has the temporal axis only");
  const int64_t T = qkv.size(1), D = qkv.size(5);
  expect(T == 0 || st_attention_takes(element_of(dtype), T, D), op,
         ": qkv: expected T <= 32 and D 64, 72, 96 or 128 (float32: a multiple of 8 up to 128), "
         "got ",
         shape_of(qkv));
  expect(qkv.size(0) * qkv.size(2) * qkv.size(4) <= INT32_MAX, op,
         ": qkv: expected fewer than 2^31 sequences (B S H), got ", shape_of(qkv));
  const auto check_beside = [&](const char* name, const Tensor& tensor) {
    expect(tensor.is_cuda() && tensor.get_device_index() == qkv.get_device_index(), op, ": ", name,
           ": expected on the GPU that qkv is on");
    const ScalarType is = tensor.scalar_type();
    expect(is_element(is) || is == ScalarType::Double, op, ": ", name,
           ": expected a floating-point tensor, got ", is);
  };
  const auto check_weight = [&](const char* name, const std::optional<Tensor>& weight) {
    if (!weight) return;
    check_beside(name, *weight);
    expect(weight->dim() == 1 && weight->size(0) == D, op, ": ", name, ": expected [", D, "], got ",
           shape_of(*weight));
  };
  check_weight("q_weight", options.q_weight);
  check_weight("k_weight", options.k_weight);
  expect(options.cos.has_value() == options.sin.has_value(), op,
         ": cos and sin: expected both or neither, got one");
  if (!options.cos) return;
  const auto check_table = [&](const char* name, const Tensor& table) {
    check_beside(name, table);
    expect(table.dim() == 2 && table.size(0) == T && table.size(1) == D / 2, op, ": ", name,
           ": expected [", T, ", ", D / 2, "], got ", shape_of(table));
  };
  check_table("cos", *options.cos);
  check_table("sin", *options.sin);
}

bool has_none(const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) == 0) return true;
  }
  return false;
}

// The kernels read rows of neighbours that start on 8 bytes (16-bit numbers: 16); anything else is
// copied.
Tensor readable(const Tensor& tensor) {
  const Element element = element_of(tensor.scalar_type());
  const int64_t bytes = st_attention_alignment(element), last = tensor.dim() - 1;
  const int64_t unit = bytes / (element == Element::float32 ? 4 : 2);
  const auto aligned = [&](const Tensor& x) {
    return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % bytes == 0;
  };
  bool fits = tensor.stride(last) == 1 && aligned(tensor);
  for (int64_t i = 0; i < last; ++i) {
    fits = fits && (tensor.size(i) == 1 || tensor.stride(i) % unit == 0);
  }
  if (fits) return tensor;
  const Tensor dense = torch::stable::contiguous(tensor);
  return aligned(dense) ? dense : torch::stable::clone(dense);
}

// The arguments as the kernels take them, and the memory behind its pointers.
class Call {
 public:
  StAttentionCall call{};

  Call(const Tensor& qkv, const Options& options)
      : qkv_(readable(qkv)),
        q_weight_(options.q_weight),
        k_weight_(options.k_weight),
        cos_(options.cos),
        sin_(options.sin) {
    call.x = qkv_.const_data_ptr();
    call.x_b = qkv_.stride(0);
    call.x_t = qkv_.stride(1);
    call.x_s = qkv_.stride(2);
    call.x_part = qkv_.stride(3);
    call.x_h = qkv_.stride(4);
    call.q_weight = q_weight_.get();
    call.k_weight = k_weight_.get();
    call.cos = cos_.get();
    call.sin = sin_.get();
    call.T = static_cast<int>(qkv.size(1));
    call.S = qkv.size(2);
    call.H = qkv.size(4);
    call.D = static_cast<int>(qkv.size(5));
    call.pairs = qkv.size(0) * call.S * call.H;
    call.eps = static_cast<float>(options.eps);
    call.scale = static_cast<float>(options.scale);
    call.causal = options.causal;
  }

 private:
  Tensor qkv_;
  Floats q_weight_, k_weight_, cos_, sin_;
};

Tensor forward(const Tensor& qkv,  // [B, T, S, 3, H, D] float32, bfloat16 or float16
               const std::optional<Tensor>& q_weight,  // [D]
               const std::optional<Tensor>& k_weight,  // [D]
               const std::optional<Tensor>& cos,  // [T, D/2]
               const std::optional<Tensor>& sin,  // [T, D/2]
               bool temporal,
               bool causal,
               double eps,
               double scale) {
  const char* op = "st_attention";
  const Options options{q_weight, k_weight, cos, sin, temporal, causal, eps, scale};
  check(op, qkv, options);
  const torch::stable::accelerator::DeviceGuard guard(qkv.get_device_index());
  Tensor out = torch::stable::new_empty(
      qkv, {qkv.size(0), qkv.size(1), qkv.size(2), qkv.size(4), qkv.size(5)});
  if (has_none(qkv)) return out;
  const Element element = element_of(qkv.scalar_type());
  Call of(qkv, options);
  of.call.out = out.mutable_data_ptr();
  int64_t blocks = 0;
  launched(op, st_attention_blocks(element, of.call, false, &blocks));
  launched(op, st_attention_forward(element, of.call, blocks, stream_of(qkv)));
  return out;
}

// Where the gradient of a weight is summed: float32 [D]; nothing where there is no weight.
Tensor weight_sum(const Tensor& qkv, const std::optional<Tensor>& weight) {
  if (!weight) return torch::stable::new_empty(qkv, {0});
  return torch::stable::new_empty(qkv, {qkv.size(5)}, ScalarType::Float);
}
Tensor weight_gradient(const std::optional<Tensor>& weight, const Tensor& sum) {
  return weight ? torch::stable::to(sum, weight->scalar_type()) : sum;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad,  // [B, T, S, H, D] as qkv is
                                            const Tensor& qkv,  // [B, T, S, 3, H, D]
                                            const std::optional<Tensor>& q_weight,  // [D]
                                            const std::optional<Tensor>& k_weight,  // [D]
                                            const std::optional<Tensor>& cos,  // [T, D/2]
                                            const std::optional<Tensor>& sin,  // [T, D/2]
                                            bool temporal,
                                            bool causal,
                                            double eps,
                                            double scale) {
  const char* op = "st_attention_backward";
  const Options options{q_weight, k_weight, cos, sin, temporal, causal, eps, scale};
  check(op, qkv, options);
  const int64_t shape[] = {qkv.size(0), qkv.size(1), qkv.size(2), qkv.size(4), qkv.size(5)};
  bool same = grad.dim() == 5;
  for (int64_t i = 0; same && i < 5; ++i) same = grad.size(i) == shape[i];
  expect(same, op, ": grad: expected [", shape[0], ", ", shape[1], ", ", shape[2], ", ", shape[3],
         ", ", shape[4], "], got ", shape_of(grad));
  expect(grad.is_cuda() && grad.get_device_index() == qkv.get_device_index(), op,
         ": grad: expected on the GPU that qkv is on");
  expect(grad.scalar_type() == qkv.scalar_type(), op, ": grad: expected ", qkv.scalar_type(),
         " as qkv is, got ", grad.scalar_type());

  const torch::stable::accelerator::DeviceGuard guard(qkv.get_device_index());
  const int64_t D = qkv.size(5);
  Tensor dqkv = torch::stable::new_empty(qkv, qkv.sizes());
  Tensor q_sum = weight_sum(qkv, q_weight), k_sum = weight_sum(qkv, k_weight);
  if (has_none(qkv)) {
    torch::stable::zero_(q_sum);
    torch::stable::zero_(k_sum);
  } else {
    const Element element = element_of(qkv.scalar_type());
    const Tensor from = readable(grad);
    Call of(qkv, options);
    of.call.grad = from.const_data_ptr();
    of.call.grad_b = from.stride(0);
    of.call.grad_t = from.stride(1);
    of.call.grad_s = from.stride(2);
    of.call.grad_h = from.stride(3);
    of.call.out = dqkv.mutable_data_ptr();
    int64_t blocks = 0;
    launched(op, st_attention_blocks(element, of.call, true, &blocks));
    Tensor partial = torch::stable::new_empty(qkv, {blocks, 2, D}, ScalarType::Float);
    of.call.partial = static_cast<float*>(partial.mutable_data_ptr());
    void* stream = stream_of(qkv);
    launched(op, st_attention_backward(element, of.call, blocks, stream));
    if (q_weight || k_weight) {
      const auto pointer = [](const std::optional<Tensor>& weight, const Tensor& sum) {
        return weight ? static_cast<float*>(sum.mutable_data_ptr()) : nullptr;
      };
      launched(op, st_attention_sum(of.call.partial, blocks, of.call.D, pointer(q_weight, q_sum),
                                    pointer(k_weight, k_sum), stream));
    }
  }
  return {dqkv, weight_gradient(q_weight, q_sum), weight_gradient(k_weight, k_sum)};
}

}  // namespace
}  // namespace cuda
}  // namespace colaworld

STABLE_TORCH_LIBRARY_IMPL(colaworld, CUDA, m) {
  m.impl("st_attention", TORCH_BOX(&colaworld::cuda::forward));
  m.impl("st_attention_backward", TORCH_BOX(&colaworld::cuda::backward));
}
