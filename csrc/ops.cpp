// The schemas of the ops: one line each. Kernels register themselves beside their code; fake and
// backward are registered from Python on these same ops. Not here: any computation.
//
// LibTorch stable ABI only (TORCH_TARGET_VERSION, set by CMake): the library loads on torch 2.11
// and later, whatever torch it was built against.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(colaworld, m) {
  m.def(
      "qk_norm_rope(Tensor q, Tensor k, Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? "
      "sin, "
      "Tensor? position, int[] sections, float eps, bool across, bool half) -> (Tensor q_out, "
      "Tensor "
      "k_out)");
  m.def(
      "qk_norm_rope_backward(Tensor grad_q, Tensor grad_k, Tensor? q, Tensor? k, Tensor? q_weight, "
      "Tensor? k_weight, Tensor? cos, Tensor? sin, Tensor? position, int[] sections, float eps, "
      "bool "
      "across, bool half) -> (Tensor dq, Tensor dk, Tensor dq_weight, Tensor dk_weight)");
  m.def("vector_quantize(Tensor z, Tensor codebook) -> (Tensor codes, Tensor indices)");
  m.def(
      "adaln(Tensor x, Tensor? y, Tensor? gate, Tensor shift, Tensor scale, Tensor? index, float "
      "eps, "
      "bool rms) -> (Tensor x_out, Tensor out, Tensor mean, Tensor rstd)");
  m.def(
      "adaln_backward(Tensor grad_x_out, Tensor grad_out, Tensor x, Tensor? y, Tensor? gate, "
      "Tensor "
      "scale, Tensor? index, Tensor mean, Tensor rstd, bool rms) -> (Tensor dx, Tensor dy, Tensor "
      "dgate, Tensor dshift, Tensor dscale)");
}
