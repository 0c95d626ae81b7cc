// The nearest entry of a codebook for each row, in exact float32: a running best over tiles of the
// codebook, so that no N x K matrix exists anywhere.
//
// A block takes 16 M rows and walks over the codebook, 64 entries and 32 channels at a time; a
// thread makes M x 4 scores |e|^2 / 2 - z . e, each a sum in the order of the channels, so that
// equal entries get equal scores. Strict < from (inf, 0) on, then the 16 threads of a row compare
// (score, index): the lowest index wins a tie, and a score that is not a number never wins.
//
// Not here: sums over the rows of an entry (code_statistics_kernel.cuh), launches.

#pragma once

#include "device.cuh"
#include "vector_quantize.h"

namespace colaworld {
namespace cuda {
namespace vector_quantize_kernels {

constexpr int THREADS = 256, SIDE = 16;  // of a block; threads along its rows and its entries
constexpr int ENTRIES = 64, CHANNELS = 32;  // of a tile
constexpr int PAD = 4;  // keeps rows of a tile on 16 bytes and their columns on different banks

constexpr int bytes(int M) {
  return (CHANNELS * (SIDE * M + PAD) + CHANNELS * (ENTRIES + PAD) + ENTRIES + SIDE * M) * 4;
}

// tile[c, row] = from[first + row, channel + c], zeros beyond the ends.
template <typename In>
__device__ __forceinline__ void read_tile(const In* from,
                                          int64_t first,
                                          int64_t rows,  // of `from`
                                          int64_t channel,
                                          int64_t d,
                                          int size,  // rows of the tile
                                          float* tile) {
  const int c = threadIdx.x % CHANNELS;
  for (int row = threadIdx.x / CHANNELS; row < size; row += THREADS / CHANNELS) {
    float x = 0.f;
    if (first + row < rows && channel + c < d) x = widen(from[(first + row) * d + channel + c]);
    tile[c * (size + PAD) + row] = x;
  }
}

template <typename In, int M>
__global__ void __launch_bounds__(THREADS) assign(const VectorQuantizeCall call) {
  constexpr int ROWS = SIDE * M;
  float* rows = reinterpret_cast<float*>(shared_memory());  // [CHANNELS, ROWS + PAD]
  float* entries = rows + CHANNELS * (ROWS + PAD);  // [CHANNELS, ENTRIES + PAD]
  float* half_norm = entries + CHANNELS * (ENTRIES + PAD);  // [ENTRIES]
  int* found = reinterpret_cast<int*>(half_norm + ENTRIES);  // [ROWS]
  const In* z = static_cast<const In*>(call.z);
  const In* codebook = static_cast<const In*>(call.codebook);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * ROWS, d = call.d;
  const int along = threadIdx.x % SIDE, down = threadIdx.x / SIDE;

  float best[M];
  int index[M];
#pragma unroll
  for (int m = 0; m < M; ++m) {
    best[m] = infinity();
    index[m] = 0;
  }
  for (int64_t k = 0; k < call.K; k += ENTRIES) {
    float dot[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) dot[m][0] = dot[m][1] = dot[m][2] = dot[m][3] = 0.f;
    float square = 0.f;  // of entry k + threadIdx.x
    for (int64_t channel = 0; channel < d; channel += CHANNELS) {
      sync_block();
      read_tile(codebook, k, call.K, channel, d, ENTRIES, entries);
      if (k == 0 || d > CHANNELS) read_tile(z, first, call.N, channel, d, ROWS, rows);
      sync_block();
#pragma unroll 4
      for (int c = 0; c < CHANNELS; ++c) {
        const float4 e =
            *reinterpret_cast<const float4*>(entries + c * (ENTRIES + PAD) + 4 * along);
#pragma unroll
        for (int m = 0; m < M; m += 4) {
          const float4 x = *reinterpret_cast<const float4*>(rows + c * (ROWS + PAD) + M * down + m);
          const float four[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            dot[m + n][0] += four[n] * e.x;
            dot[m + n][1] += four[n] * e.y;
            dot[m + n][2] += four[n] * e.z;
            dot[m + n][3] += four[n] * e.w;
          }
        }
      }
      if (threadIdx.x < ENTRIES) {
        for (int c = 0; c < CHANNELS; ++c) {
          const float e = entries[c * (ENTRIES + PAD) + threadIdx.x];
          square += e * e;
        }
      }
    }
    if (threadIdx.x < ENTRIES) {
      half_norm[threadIdx.x] = k + threadIdx.x < call.K ? square * 0.5f : infinity();
    }
    sync_block();
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float half = half_norm[4 * along + n];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const float score = half - dot[m][n];
        if (score < best[m]) {
          best[m] = score;
          index[m] = static_cast<int>(k) + 4 * along + n;
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int mask = 1; mask < SIDE; mask *= 2) {
      const float score = shuffle_xor(best[m], mask);
      const int other = shuffle_xor(index[m], mask);
      if (score < best[m] || (score == best[m] && other < index[m])) {
        best[m] = score;
        index[m] = other;
      }
    }
    const int row = M * down + m;
    if (along == 0) {
      found[row] = index[m];
      if (first + row < call.N) call.indices[first + row] = index[m];
    }
  }
  sync_block();
  In* codes = static_cast<In*>(call.codes);
  for (int row = threadIdx.x / LANES; row < ROWS && first + row < call.N; row += THREADS / LANES) {
    const In* entry = codebook + found[row] * d;
    for (int64_t c = threadIdx.x % LANES; c < d; c += LANES) {
      codes[(first + row) * d + c] = entry[c];
    }
  }
}

}  // namespace vector_quantize_kernels
}  // namespace cuda
}  // namespace colaworld
