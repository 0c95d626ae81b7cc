// In the place of csrc/cuda/launch.cuh: a launch runs the kernel on the host, lane by lane (simt.h).

#pragma once

#include <cstdint>

#include "device.cuh"

#define __shared__ static
inline void __syncthreads() { colaworld::cuda::sync_block(); }

namespace colaworld {
namespace cuda {

constexpr int64_t RESIDENT_BLOCKS = 3;  // what the device is said to work on at a time
inline void* const STREAM = reinterpret_cast<void*>(0x57);

template <typename... Parameters, typename... Arguments>
const char* launch(void (*kernel)(Parameters...),
                   int64_t blocks,
                   int threads,
                   int bytes,
                   void* stream,
                   const Arguments&... arguments) {
  if (stream != STREAM) return "not on the stream that torch works on";
  simt::launch(static_cast<unsigned>(blocks), threads, bytes, [&] { kernel(arguments...); });
  return nullptr;
}

template <typename Kernel>
const char* resident(Kernel*, int, int, int64_t* blocks) {
  *blocks = RESIDENT_BLOCKS;
  return nullptr;
}

}  // namespace cuda
}  // namespace colaworld
