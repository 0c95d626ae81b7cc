// Rows of queries, keys and values for the 16-bit st_attention kernels: what a block looks up in
// shared memory, reading and writing, norm and rotation. Not here: scores, softmax, products.
//
// A row of D channels is cut into blocks of 8, P = D / 8 of them, and two blocks make a chunk; the
// rows of a sequence are cut into R row blocks of 8. A lane holds a word of two neighbouring
// channels of a row in each block: what mma.sync takes as an operand (layout.h).

#pragma once

#include "device.cuh"
#include "layout.h"
#include "st_attention.h"

namespace colaworld {
namespace cuda {
namespace st_attention {

constexpr int WARPS = 4;  // of a thread block

// The shared memory of a block: what its warps look up, then what they sum.
template <int D, int R>
struct Tables {
  static constexpr int P = D / 8;
  float2* turns;  // [R * P, LANES] (cos, sin) of the pair that a lane holds in a row and block
  float2* q_weight;  // [P, 4] of the pair that a quad's lane holds
  float2* k_weight;  // [P, 4]
  float2* sums;  // [WARPS, 2, P, LANES], backward only

  static constexpr int size = R * P * LANES + 2 * P * 4;
  static_assert(size * 8 >= WARPS * 2 * D * 4, "the last sums take the place of the tables");
  static constexpr int bytes(bool with_sums) {
    return (size + (with_sums ? WARPS * 2 * P * LANES : 0)) * 8;
  }

  __device__ __forceinline__ Tables() {
    turns = reinterpret_cast<float2*>(shared_memory());
    q_weight = turns + R * P * LANES;
    k_weight = q_weight + P * 4;
    sums = turns + size;
  }

  __device__ __forceinline__ void fill(const StAttentionCall& call) const {
    for (int i = threadIdx.x; i < R * P * LANES; i += blockDim.x) {
      const int lane = i % LANES, p = i / LANES % P, row = i / LANES / P * 8 + row_of(lane);
      float2 turn = make_float2(1.f, 0.f);
      if (call.cos != nullptr && row < call.T) {
        const int at = row * (D / 2) + channel_of<D>(p, quad_of(lane)) / 2;
        turn = make_float2(call.cos[at], call.sin[at]);
      }
      turns[i] = turn;
    }
    for (int i = threadIdx.x; i < P * 4; i += blockDim.x) {
      const int at = channel_of<D>(i / 4, i % 4);
      const float2 one = make_float2(1.f, 1.f);
      const float *q = call.q_weight, *k = call.k_weight;
      q_weight[i] = q == nullptr ? one : make_float2(q[at], q[at + 1]);
      k_weight[i] = k == nullptr ? one : make_float2(k[at], k[at + 1]);
    }
    sync_block();
  }
};

__device__ __forceinline__ float sum_of_quad(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// Blocks 2 c and 2 c + 1 of the rows (the last one may be alone); padding rows are zeros.
template <int D, int R>
__device__ __forceinline__ void read_chunk(const uint16_t* from,  // row 0
                                           int64_t step,  // from row to row, in elements
                                           int c,
                                           int T,
                                           int lane,
                                           uint32_t (&x)[R][2]) {
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = 8 * r + row_of(lane);
    const uint16_t* at = from + row * step + channel_of<D>(2 * c, quad_of(lane));
    x[r][0] = x[r][1] = 0u;
    if (row >= T) continue;
    if (D % 16 != 0 && c == D / 16) {
      x[r][0] = read_one(at);
    } else {
      const uint2 two = read_two(at);
      x[r][0] = two.x;
      x[r][1] = two.y;
    }
  }
}

// RMSNorm, weight and rotation of a chunk.
template <typename E, int D, int R>
__device__ __forceinline__ void prepare_chunk(uint32_t (&x)[R][2],
                                              int c,
                                              const float2* weight,  // [P, 4]
                                              const float2* turns,  // [R * P, LANES]
                                              const float (&rms)[R],
                                              int lane) {
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int p = 2 * c + e;
    if (p == D / 8) break;
    const float2 w = look_up(weight + p * 4 + quad_of(lane));
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float2 turn = look_up(turns + (r * (D / 8) + p) * LANES + lane);
      const float2 v = words<E>::unpack(x[r][e]);
      const float even = v.x * rms[r] * w.x, odd = v.y * rms[r] * w.y;
      x[r][e] = words<E>::pack(even * turn.x - odd * turn.y, odd * turn.x + even * turn.y);
    }
  }
}

// The rows of one sequence: in registers (HOLD), or read, from a cache near the core, as often as
// they are used. Long rows would not fit otherwise.
template <typename E, int D, int R, bool HOLD>
struct Rows {
  static constexpr int CHUNKS = (D / 8 + 1) / 2;
  static constexpr int UNROLL = HOLD ? CHUNKS : 1;
  const uint16_t* from;  // row 0
  int64_t step;  // from row to row, in elements
  int T, lane;
  const float2* weight;  // of prepared rows
  const float2* turns;
  float rms[R];  // of prepared rows: 1 / root mean square, 1 without a norm, 0 of padding
  uint32_t held[HOLD ? CHUNKS : 1][R][2];

  __device__ __forceinline__ Rows(const uint16_t* row, int64_t next, int length, int here)
      : from(row), step(next), T(length), lane(here), weight(nullptr) {
    if constexpr (HOLD) {
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) read_chunk<D, R>(from, step, c, T, lane, held[c]);
    }
  }

  __device__ __forceinline__ void get(int c, uint32_t (&x)[R][2]) const {
    if constexpr (HOLD) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        x[r][0] = held[c][r][0];
        x[r][1] = held[c][r][1];
      }
    } else {
      read_chunk<D, R>(from, step, c, T, lane, x);
      if (weight != nullptr) prepare_chunk<E, D, R>(x, c, weight, turns, rms, lane);
    }
  }

  // From here on `get` gives normed and rotated rows.
  __device__ __forceinline__ void prepare(const float2* weights,
                                          const float2* table,
                                          bool norm,
                                          float eps) {
#pragma unroll
    for (int r = 0; r < R; ++r) rms[r] = 0.f;
#pragma unroll UNROLL
    for (int c = 0; c < CHUNKS; ++c) {
      uint32_t x[R][2];
      get(c, x);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float2 u = words<E>::unpack(x[r][0]), v = words<E>::unpack(x[r][1]);
        rms[r] += u.x * u.x + u.y * u.y + v.x * v.x + v.y * v.y;
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float squares = sum_of_quad(rms[r]);
      rms[r] = norm ? rsqrt_of(squares / D + eps) : 1.f;
      if (8 * r + row_of(lane) >= T) rms[r] = 0.f;
    }
    weight = weights;
    turns = table;
    if constexpr (HOLD) {
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          held[c][r][0] = opaque(held[c][r][0]);
          held[c][r][1] = opaque(held[c][r][1]);
        }
        prepare_chunk<E, D, R>(held[c], c, weight, turns, rms, lane);
      }
    }
  }
};

// Blocks 2 c and 2 c + 1 (the last one alone: `second` is not used) of the rows below T.
template <typename E, int D, int R>
__device__ __forceinline__ void write_rows(const float (&first)[R / 2][4],
                                           const float (&second)[R / 2][4],
                                           int c,
                                           int T,
                                           int lane,
                                           uint16_t* to,  // row 0
                                           int64_t step) {
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = 8 * r + row_of(lane), i = r / 2, j = 2 * (r % 2);
    if (row >= T) continue;
    uint16_t* at = to + row * step + channel_of<D>(2 * c, quad_of(lane));
    const uint32_t low = words<E>::pack(first[i][j], first[i][j + 1]);
    if (D % 16 != 0 && c == D / 16) {
      *reinterpret_cast<uint32_t*>(at) = low;
    } else {
      *reinterpret_cast<uint2*>(at) =
          make_uint2(low, words<E>::pack(second[i][j], second[i][j + 1]));
    }
  }
}

}  // namespace st_attention
}  // namespace cuda
}  // namespace colaworld
