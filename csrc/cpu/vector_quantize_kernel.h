// The vector_quantize kernel, written once and compiled once per instruction set.
//
//   score(n, k) = |e_k|^2 / 2 - z_n . e_k       has the same minimum over k as |z_n - e_k|^2
//
// The codebook is packed so that one SIMD vector holds the same coordinate of `lanes` codes. ROWS
// rows of z against two such vectors keep 2 * ROWS sums in registers:
//
//            codes 0..15   codes 16..31
//   row 0    sum           sum            each step of the inner loop: two vector loads,
//   row 1    sum           sum            ROWS broadcasts, 2 * ROWS multiply-adds
//   ...
//
// Each lane keeps its own (best score, block) with a strict <, and the lanes are compared at the
// end by (score, index): the lowest index wins a tie, a NaN never wins, a row of NaN keeps index 0.
// The sum over d runs in the same order for every row and code, so a result does not depend on
// where a row stands, how many rows there are, or how the rows are shared among threads.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd.h"
#include "vector_quantize.h"

namespace colaworld {
namespace COLAWORLD_ISA {

// 2 * ROWS sums, 2 vectors of codes, a row value (and a product where there is no FMA) in
// registers.
constexpr int64_t ROWS = COLAWORLD_VECTOR_REGISTERS == 32 ? 12
                         : COLAWORLD_VECTOR_BYTES == 32   ? 6
                                                          : 4;
constexpr int64_t SPAN = ROWS * 8;  // rows that share one pass over the codebook
constexpr int64_t TILE_BYTES = 16 * 1024;  // packed codes per pass: half of a 32 KB L1 cache

template <typename In>
void pack(const In* codebook,
          int64_t K,
          int64_t d,
          int64_t first,
          int64_t last,
          typename accumulate<In>::type* packed,
          typename accumulate<In>::type* half_norm) {
  using Acc = typename accumulate<In>::type;
  constexpr int64_t L = simd<Acc>::lanes;
  for (int64_t block = first; block < last; ++block) {
    for (int64_t lane = 0; lane < L; ++lane) {
      const int64_t k = block * L + lane;
      Acc* to = packed + block * d * L + lane;
      if (k >= K) {
        for (int64_t j = 0; j < d; ++j) to[j * L] = 0;
        half_norm[k] = static_cast<Acc>(__builtin_inf());
        continue;
      }
      const In* from = codebook + k * d;
      double sum = 0;
      for (int64_t j = 0; j < d; ++j) {
        const Acc e = widen(from[j]);
        to[j * L] = e;
        sum += static_cast<double>(e) * static_cast<double>(e);
      }
      half_norm[k] = static_cast<Acc>(sum / 2);
    }
  }
}

// R rows against V neighbouring blocks of codes; best and where: [R], one value per lane.
template <typename Acc, int R, int V>
inline void score_block(const Acc* rows,  // [d, R]
                        const Acc* packed,
                        const Acc* half_norm,
                        int64_t d,
                        int64_t block,
                        typename simd<Acc>::vec* best,
                        typename simd<Acc>::ivec* where) {
  using vec = typename simd<Acc>::vec;
  using ivec = typename simd<Acc>::ivec;
  using Int = typename simd<Acc>::Int;
  constexpr int64_t L = simd<Acc>::lanes;
  vec sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[r][v] = vec{};
  }
  const Acc* from = packed + block * d * L;
  for (int64_t j = 0; j < d; ++j) {
    vec e[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) e[v] = *reinterpret_cast<const vec*>(from + (v * d + j) * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const vec x = broadcast<Acc>(rows[j * R + r]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] += x * e[v];
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const vec norm = *reinterpret_cast<const vec*>(half_norm + (block + v) * L);
    const ivec here = ivec{} + static_cast<Int>(block + v);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const vec score = norm - sum[r][v];
      const auto closer = score < best[r];
      best[r] = closer ? score : best[r];
      where[r] = closer ? here : where[r];
    }
  }
}

template <typename Acc, int R>
inline void score_tile(const Acc* rows,
                       const Acc* packed,
                       const Acc* half_norm,
                       int64_t d,
                       int64_t first,
                       int64_t last,
                       typename simd<Acc>::vec* best,
                       typename simd<Acc>::ivec* where) {
  int64_t block = first;
  for (; block + 2 <= last; block += 2) {
    score_block<Acc, R, 2>(rows, packed, half_norm, d, block, best, where);
  }
  if (block < last) score_block<Acc, R, 1>(rows, packed, half_norm, d, block, best, where);
}

// The (score, index) minimum over the lanes of one row, by halves: 16 -> 8 -> 4 -> one by one.
template <typename Acc, int Lanes>
inline int64_t nearest_of_lanes(const Acc* score, const typename simd<Acc>::Int* index) {
  using Int = typename simd<Acc>::Int;
  if constexpr (Lanes > 4) {
    constexpr int half = Lanes / 2;
    typedef Acc vec __attribute__((vector_size(half * sizeof(Acc))));
    typedef Int ivec __attribute__((vector_size(half * sizeof(Acc))));
    vec low, high;
    ivec low_index, high_index;
    std::memcpy(&low, score, sizeof(vec));
    std::memcpy(&high, score + half, sizeof(vec));
    std::memcpy(&low_index, index, sizeof(ivec));
    std::memcpy(&high_index, index + half, sizeof(ivec));
    const ivec closer = (high < low) | ((high == low) & (high_index < low_index));
    low = closer ? high : low;
    low_index = closer ? high_index : low_index;
    Acc half_score[half];
    Int half_index[half];
    std::memcpy(half_score, &low, sizeof(vec));
    std::memcpy(half_index, &low_index, sizeof(ivec));
    return nearest_of_lanes<Acc, half>(half_score, half_index);
  } else {
    int best = 0;
    for (int i = 1; i < Lanes; ++i) {
      if (score[i] < score[best] || (score[i] == score[best] && index[i] < index[best])) best = i;
    }
    return index[best];
  }
}

// R rows of z become [d, R], widened, so that the inner loop reads them with one pointer.
template <typename In, int R>
inline void turn(const In* z, int64_t d, typename accumulate<In>::type* to) {
  int64_t done = 0;  // columns whose rows up to `quads` are in place
  int quads = 0;
  if constexpr (std::is_same_v<In, typename accumulate<In>::type>) {
    quads = R / 4 * 4;
    if (quads > 0) {
      for (; done + 4 <= d; done += 4) {
#pragma GCC unroll 4
        for (int r = 0; r + 4 <= R; r += 4) {
          transpose_four(z + r * d + done, d, to + done * R + r, R);
        }
      }
    }
  }
  for (int64_t j = 0; j < d; ++j) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      if (r >= quads || j >= done) to[j * R + r] = widen(z[r * d + j]);
    }
  }
}

// How many of the n rows that are left go into the next block.
inline int64_t block_of(int64_t n) { return n >= ROWS ? ROWS : n >= 4 ? 4 : 1; }

template <typename In>
void assign(const In* z,
            int64_t first,
            int64_t last,
            const In* codebook,
            int64_t K,
            int64_t d,
            const typename accumulate<In>::type* packed,
            const typename accumulate<In>::type* half_norm,
            typename accumulate<In>::type* scratch,
            In* codes,
            int64_t* indices) {
  using Acc = typename accumulate<In>::type;
  using vec = typename simd<Acc>::vec;
  using ivec = typename simd<Acc>::ivec;
  using Int = typename simd<Acc>::Int;
  constexpr int64_t L = simd<Acc>::lanes;
  const int64_t blocks = (K + L - 1) / L;
  int64_t tile = TILE_BYTES / (d * COLAWORLD_VECTOR_BYTES) / 2 * 2;
  if (tile < 2) tile = 2;

  const ivec lane = lane_numbers<Acc>();
  vec best[SPAN];
  ivec where[SPAN];
  for (int64_t start = first; start < last; start += SPAN) {
    const int64_t n = last - start < SPAN ? last - start : SPAN;
    for (int64_t i = 0; i < n; ++i) {
      best[i] = broadcast<Acc>(static_cast<Acc>(__builtin_inf()));
      where[i] = ivec{};
    }
    for (int64_t i = 0, R; i < n; i += R) {
      R = block_of(n - i);
      const In* from = z + (start + i) * d;
      if (R == ROWS) {
        turn<In, ROWS>(from, d, scratch + i * d);
      } else if (R == 4) {
        turn<In, 4>(from, d, scratch + i * d);
      } else {
        turn<In, 1>(from, d, scratch + i * d);
      }
    }
    for (int64_t block = 0; block < blocks; block += tile) {
      const int64_t end = block + tile < blocks ? block + tile : blocks;
      for (int64_t i = 0, R; i < n; i += R) {
        R = block_of(n - i);
        const Acc* rows = scratch + i * d;
        if (R == ROWS) {
          score_tile<Acc, ROWS>(rows, packed, half_norm, d, block, end, best + i, where + i);
        } else if (R == 4) {
          score_tile<Acc, 4>(rows, packed, half_norm, d, block, end, best + i, where + i);
        } else {
          score_tile<Acc, 1>(rows, packed, half_norm, d, block, end, best + i, where + i);
        }
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      const ivec candidates = where[i] * static_cast<Int>(L) + lane;
      Acc lane_score[L];
      Int lane_index[L];
      std::memcpy(lane_score, &best[i], sizeof(vec));
      std::memcpy(lane_index, &candidates, sizeof(ivec));
      const int64_t index = nearest_of_lanes<Acc, L>(lane_score, lane_index);
      indices[start + i] = index;
      std::memcpy(codes + (start + i) * d, codebook + index * d, sizeof(In) * d);
    }
  }
}

template <typename In>
VectorQuantizeKernel<In> kernel() {
  return {simd<typename accumulate<In>::type>::lanes, SPAN, &pack<In>, &assign<In>};
}

}  // namespace COLAWORLD_ISA

VectorQuantizeKernels COLAWORLD_JOIN(vector_quantize_, COLAWORLD_ISA)() {
  return {COLAWORLD_ISA::kernel<float>(), COLAWORLD_ISA::kernel<double>(),
          COLAWORLD_ISA::kernel<bfloat16>()};
}

}  // namespace colaworld
