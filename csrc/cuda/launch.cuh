// How every kernel is launched: the right to use more shared memory, the launch, its error.
// Not here: kernels; sizes of grids.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace colaworld {
namespace cuda {

constexpr int FREE_SHARED_MEMORY = 48 * 1024;  // more must be asked for, kernel by kernel

// Null, or the runtime's words for what went wrong. Nothing waits for the GPU, nothing is
// allocated: launches may be captured into a CUDA graph.
inline const char* message_of(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename Kernel>
cudaError_t allow(Kernel* kernel, int bytes) {
  if (bytes <= FREE_SHARED_MEMORY) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

template <typename... Parameters, typename... Arguments>
const char* launch(void (*kernel)(Parameters...),
                   int64_t blocks,
                   int threads,
                   int bytes,
                   void* stream,
                   const Arguments&... arguments) {
  if (const cudaError_t error = allow(kernel, bytes)) return message_of(error);
  kernel<<<static_cast<unsigned>(blocks), threads, bytes, static_cast<cudaStream_t>(stream)>>>(
      arguments...);
  return message_of(cudaGetLastError());
}

// Blocks that the current device works on at a time.
template <typename Kernel>
const char* resident(Kernel* kernel, int threads, int bytes, int64_t* blocks) {
  int device = 0, processors = 0, each = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) error = allow(kernel, bytes);
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, bytes);
  }
  *blocks = static_cast<int64_t>(processors) * (each > 0 ? each : 1);
  return message_of(error);
}

}  // namespace cuda
}  // namespace colaworld
