// The shared memory of a block of the 16-bit st_attention kernels: tables that all warps look up,
// and for each warp a tile for each kind of row that it works on. Not here: arithmetic.
//
// Rows come and go in pieces of 16 bytes, a row's pieces by neighbouring lanes: whole lines and,
// but for half a sector at an end, whole sectors. In between a tile is read and written in the
// order of the tensor cores (layout.h), which would use half of every sector.

#pragma once

#include "device.cuh"
#include "layout.h"
#include "st_attention.h"

namespace colaworld {
namespace cuda {
namespace st_attention {

// Two neighbouring channel blocks of 8 of the rows of a sequence, in R blocks of 8: a lane's words,
// in block e of row block r at [r / 2][2 e + r % 2]. The last block of D = 72 has no neighbour.
template <int R>
using Chunk = uint32_t[R / 2][4];

// What a chunk is loaded for: a product's first operand, its second one, or, transposed, a second
// one whose contraction runs over the rows. The words are those of FIRST; neighbours in registers
// are those that the product wants there.
enum class As { first, second, turned };

// The rows of one sequence. Rows from T on are zeros and stay so.
template <int D, int R>
struct Tile {
  static constexpr int PIECES = D / 8;  // of 16 bytes in a row
  // Bytes from row to row: an odd number of pieces, so that eight rows lie in different banks.
  static constexpr int PITCH = 16 * (PIECES | 1);
  static constexpr int BYTES = 8 * R * PITCH;
  static constexpr int CHUNKS = (PIECES + 1) / 2;
  // Of loops over chunks: a last block on its own must be known to the compiler.
  static constexpr int UNROLL = R == 2 || D % 16 != 0 ? CHUNKS : 1;
  static constexpr int TOGETHER = LANES / PIECES;  // rows that a warp copies at a time
  static constexpr int TIMES = (8 * R + TOGETHER - 1) / TOGETHER;

  char* memory;
  int lane, T;

  // The first piece that a lane copies, in a tensor with `step` bytes from row to row.
  __device__ __forceinline__ static int64_t first_piece(int lane, int64_t step) {
    return opaque(lane / PIECES) * step + lane % PIECES * 16;
  }
  // Calls copy(in the tile, in the tensor) for a lane's pieces; `there` is the first of them.
  template <typename Copy>
  __device__ __forceinline__ void each_piece(char* there, int64_t step, Copy&& copy) const {
    const int below = lane < TOGETHER * PIECES ? T - lane / PIECES : 0;  // rows, from the first on
    char* here = memory + lane / PIECES * PITCH + lane % PIECES * 16;
#pragma unroll
    for (int i = 0; i < TIMES; ++i) {
      if (i * TOGETHER < below) copy(here + i * TOGETHER * PITCH, there);
      there += TOGETHER * step;
    }
  }
  // Starts to read; close_copies() comes after.
  __device__ __forceinline__ void fetch(char* from, int64_t step) const {
    each_piece(from, step, [](char* here, const char* there) { copy_16(here, there); });
  }
  __device__ __forceinline__ void write(char* to, int64_t step) const {
    each_piece(to, step, [](const char* here, char* there) {
      *reinterpret_cast<uint4*>(there) = *reinterpret_cast<const uint4*>(here);
    });
  }

  template <As AS>
  __device__ __forceinline__ void load(int c, Chunk<R>& x) const {
    constexpr bool TURNED = AS == As::turned;
#pragma unroll
    for (int i = 0; i < R / 2; ++i) {
      uint32_t (&to)[4] = x[i];
      const char* rows = memory + i * 16 * PITCH + c * 32;
      if (AS == As::second && 2 * c + 1 < PIECES) {
        rows += (lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 16;
        read_tiles<TURNED>(rows, to[0], to[2], to[1], to[3]);
        continue;
      }
      rows += lane % 16 * PITCH + lane / 16 * 16;
      if (2 * c + 1 < PIECES) {
        read_tiles<TURNED>(rows, to[0], to[1], to[2], to[3]);
      } else {
        read_tiles<TURNED>(rows, to[0], to[1]);
      }
    }
  }
  // The two numbers that a lane holds of row block r and channel block p.
  __device__ __forceinline__ void store(int p, int r, uint32_t word) const {
    if (8 * r >= T - row_of(lane)) return;
    char* row = memory + (8 * r + row_of(lane)) * PITCH;
    *reinterpret_cast<uint32_t*>(row + 2 * channel_of(p, quad_of(lane))) = word;
  }
};

template <int D, int R, bool BACKWARD>
struct Memory {
  static constexpr int P = D / 8;
  static constexpr int TABLES = (R * P * LANES + 2 * P * 4) * 8;
  static constexpr int TILES = (BACKWARD ? 4 : 3) * Tile<D, R>::BYTES;
  static constexpr int SUMS = BACKWARD ? 2 * P * LANES * 8 : 0;
  // Warps of a block: as many as every architecture has the memory for (sm_89: 99 KiB a block).
  static constexpr int fitting(int warps) {
    return TABLES + warps * (TILES + SUMS) <= 99 * 1024 ? warps : fitting(warps / 2);
  }
  static constexpr int WARPS = fitting(4);
  static constexpr int BYTES = TABLES + WARPS * (TILES + SUMS);
  static_assert(WARPS > 0 && TABLES >= WARPS * 2 * D * 4, "last sums take the tables' place");

  float2* turns;  // [R * P, LANES] (cos, sin) of the pair that a lane holds in a row and block
  float2* q_weight;  // [P, 4] of the pair that a quad's lane holds
  float2* k_weight;  // [P, 4]
  char* tiles;  // of this warp
  float2* sums;  // of this warp [2, P, LANES], backward only

  __device__ __forceinline__ Memory() {
    turns = reinterpret_cast<float2*>(shared_memory());
    q_weight = turns + R * P * LANES;
    k_weight = q_weight + P * 4;
    tiles = shared_memory() + TABLES + threadIdx.x / LANES * (TILES + SUMS);
    sums = reinterpret_cast<float2*>(tiles + TILES);
  }

  __device__ __forceinline__ Tile<D, R> tile(int i, int T) const {
    return {tiles + i * Tile<D, R>::BYTES, static_cast<int>(threadIdx.x % LANES), T};
  }

  // Fills the tables; tiles and sums become zeros.
  __device__ __forceinline__ void fill(const StAttentionCall& call) const {
    for (int i = threadIdx.x; i < R * P * LANES; i += blockDim.x) {
      const int lane = i % LANES, p = i / LANES % P, row = i / LANES / P * 8 + row_of(lane);
      float2 turn = make_float2(1.f, 0.f);
      if (call.cos != nullptr && row < call.T) {
        const int at = row * (D / 2) + channel_of(p, quad_of(lane)) / 2;
        turn = make_float2(call.cos[at], call.sin[at]);
      }
      turns[i] = turn;
    }
    for (int i = threadIdx.x; i < P * 4; i += blockDim.x) {
      const int at = channel_of(i / 4, i % 4);
      const float2 one = make_float2(1.f, 1.f);
      const float *q = call.q_weight, *k = call.k_weight;
      q_weight[i] = q == nullptr ? one : make_float2(q[at], q[at + 1]);
      k_weight[i] = k == nullptr ? one : make_float2(k[at], k[at + 1]);
    }
    for (int i = threadIdx.x % LANES; i < (TILES + SUMS) / 16; i += LANES) {
      reinterpret_cast<uint4*>(tiles)[i] = make_uint4(0u, 0u, 0u, 0u);
    }
    sync_block();
  }
};

// The pairs (place, head) of a warp: one, then every `stride`-th on, without a division.
struct Pairs {
  int H, S, left;
  int b, s, h;
  int jump_b, jump_s, jump_h;

  __device__ __forceinline__ Pairs(const StAttentionCall& call, int warps)
      : H(static_cast<int>(call.H)), S(static_cast<int>(call.S)) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * warps;
    const int64_t pair = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / LANES;
    const Place first = place_of(pair, call.S, call.H), jump = place_of(stride, call.S, call.H);
    left = pair < call.pairs ? static_cast<int>((call.pairs - pair + stride - 1) / stride) : 0;
    b = static_cast<int>(first.b);
    s = static_cast<int>(first.s);
    h = static_cast<int>(first.h);
    jump_b = static_cast<int>(jump.b);
    jump_s = static_cast<int>(jump.s);
    jump_h = static_cast<int>(jump.h);
  }
  __device__ __forceinline__ bool here() const { return left > 0; }
  __device__ __forceinline__ void go_on() {
    --left;
    b += jump_b;
    s += jump_s;
    h += jump_h;
    if (h >= H) {
      h -= H;
      ++s;
    }
    if (s >= S) {
      s -= S;
      ++b;
    }
  }
  // In a tensor with these strides in elements of two bytes.
  __device__ __forceinline__ char* in(const void* x,
                                      int64_t of_b,
                                      int64_t of_s,
                                      int64_t of_h) const {
    return const_cast<char*>(static_cast<const char*>(x)) + 2 * (b * of_b + s * of_s + h * of_h);
  }
};

}  // namespace st_attention
}  // namespace cuda
}  // namespace colaworld
