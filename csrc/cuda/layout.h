// Who holds what: index arithmetic of the CUDA kernels, the same on the host, where it is tested.
// Not here: memory, instructions, launches.

#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define COLAWORLD_BOTH __host__ __device__ __forceinline__
#else
#define COLAWORLD_BOTH inline
#endif

namespace colaworld {
namespace cuda {

// Of the 8 x 8 tiles that tensor cores work on, lane l holds row l / 4, columns 2 (l % 4) + {0, 1}.
COLAWORLD_BOTH constexpr int row_of(int lane) { return lane / 4; }
COLAWORLD_BOTH constexpr int quad_of(int lane) { return lane % 4; }

// The first of the two neighbouring channels that a lane holds in channel block p of a row.
COLAWORLD_BOTH constexpr int channel_of(int p, int quad) { return 8 * p + 2 * quad; }

// Which sequence and head a warp works on; heads are neighbours in memory, so they come first.
struct Place {
  int64_t b;
  int64_t s;
  int64_t h;
};

COLAWORLD_BOTH Place place_of(int64_t pair, int64_t S, int64_t H) {
  if ((static_cast<uint64_t>(pair | S | H) >> 32) ==
      0) {  // 64-bit divisions cost ten times as much
    const uint32_t n = static_cast<uint32_t>(pair), heads = static_cast<uint32_t>(H);
    const uint32_t sequence = n / heads, places = static_cast<uint32_t>(S);
    return {sequence / places, sequence % places, n % heads};
  }
  const int64_t sequence = pair / H;
  return {sequence / S, sequence % S, pair % H};
}

// The place `step` pairs further on: what place_of would say, without a division.
COLAWORLD_BOTH Place after(const Place& at, const Place& step, int64_t S, int64_t H) {
  Place next{at.b + step.b, at.s + step.s, at.h + step.h};
  if (next.h >= H) {
    next.h -= H;
    ++next.s;
  }
  if (next.s >= S) {
    next.s -= S;
    ++next.b;
  }
  return next;
}

// Attention among T positions: does `row` see `column`? Rows beyond T are padding and see anything.
COLAWORLD_BOTH constexpr bool sees(int row, int column, int T, bool causal) {
  return column < T && (!causal || column <= row);
}

}  // namespace cuda
}  // namespace colaworld
