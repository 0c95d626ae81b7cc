// The CUDA ops as torch's CPU ops: the same host code, compiled by a C++ compiler. Every file of
// csrc/cuda but launch.cuh is the real one.

#include "gpu_on_host.h"
//
#include "launch.cuh"
//
#include "st_attention.cu"
#include "st_attention_cuda.cpp"
#include "vector_quantize.cu"
#include "vector_quantize_cuda.cpp"

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = colaworld::cuda::STREAM;
  return 0;
}
