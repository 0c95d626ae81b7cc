// The schemas of the ops: one line each. Kernels register themselves beside their code; fake and
// backward are registered from Python on these same ops. Not here: any computation.
//
// LibTorch stable ABI only (TORCH_TARGET_VERSION, set by CMake): the library loads on torch 2.11
// and later, whatever torch it was built against.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(colaworld, m) {
  m.def("vector_quantize(Tensor z, Tensor codebook) -> (Tensor codes, Tensor indices)");
  m.def("code_statistics(Tensor z, Tensor indices, SymInt K, bool counts) -> Tensor");
}
