// The number types of the CPU kernels. Not here: arithmetic on them (simd.h).

#pragma once

#include <cstdint>

namespace colaworld {

// bfloat16 as its bits; sums over it run in float.
struct bfloat16 {
  uint16_t bits;
};

// What sums over a stored type run in.
template <typename In>
struct accumulate {
  using type = In;
};
template <>
struct accumulate<bfloat16> {
  using type = float;
};

}  // namespace colaworld
