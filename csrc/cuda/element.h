// The number types that the CUDA kernels take, as their callers name them.

#pragma once

namespace colaworld {
namespace cuda {

enum class Element { float32, bfloat16, float16 };

}  // namespace cuda
}  // namespace colaworld
