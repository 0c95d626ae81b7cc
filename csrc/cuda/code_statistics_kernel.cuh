// Per codebook entry the sum of its rows and how many there are: no atomics, a fixed order.
//
// A warp owns some entries, a slice of the channels and a part of the rows. It reads the indices of
// its part, 32 at a time, and adds the rows that name its entries to its table in shared memory, in
// their order: an entry belongs to one warp, so nothing is added at the same time. Every row's
// channels are read once; the indices are read by each range of entries (8 bytes a row, from L2).
// The parts meet in `merge`, again in their order.
//
// Not here: which entry a row belongs to (vector_quantize_kernel.cuh), launches.

#pragma once

#include "device.cuh"
#include "layout.h"
#include "vector_quantize.h"

namespace colaworld {
namespace cuda {
namespace code_statistics_kernels {

constexpr int WARPS = 8;  // of a thread block
constexpr int RESIDENT = 4;  // blocks on a processor: what the tables leave room for
constexpr int MOST_COLUMNS = 128;  // of a slice: 4 a lane
constexpr int TABLE = 12288;  // numbers in the tables of a block: 48 kB, which needs no permission
constexpr int64_t ROWS_PER_PART = 64;  // at least
constexpr int64_t MOST_PARTIAL = 1 << 22;  // numbers in all parts: 16 MB
constexpr int64_t MOST_BLOCKS = 2048;  // more than any GPU works on at a time
constexpr int AHEAD = 4;  // rows whose loads are under way together

COLAWORLD_BOTH CodeStatisticsPlan plan(int64_t N, int64_t K, int64_t d, int64_t width) {
  CodeStatisticsPlan plan;
  plan.columns = static_cast<int>(d < MOST_COLUMNS ? d : MOST_COLUMNS);
  plan.slices = (d + plan.columns - 1) / plan.columns;
  const int64_t fit = TABLE / (WARPS * (plan.columns + 1)), need = (K + WARPS - 1) / WARPS;
  plan.per_warp = static_cast<int>(need < fit ? need : fit);
  plan.ranges = (need + plan.per_warp - 1) / plan.per_warp;
  int64_t most = MOST_PARTIAL / (K * width);
  const int64_t blocks = MOST_BLOCKS / (plan.ranges * plan.slices);
  if (blocks < most) most = blocks;
  plan.parts = N / ROWS_PER_PART;
  if (plan.parts > most) plan.parts = most;
  if (plan.parts < 1) plan.parts = 1;
  return plan;
}

template <typename In>
__global__ void __launch_bounds__(WARPS* LANES, RESIDENT)
    add(const CodeStatisticsCall call, const CodeStatisticsPlan plan) {
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, stride = plan.columns + 1;
  const int64_t block = blockIdx.x, slice = block % plan.slices;
  const int64_t range = block / plan.slices % plan.ranges;
  const int64_t part = block / plan.slices / plan.ranges;
  const int64_t begin =
      call.N / plan.parts * part + (part < call.N % plan.parts ? part : call.N % plan.parts);
  const int64_t end = begin + call.N / plan.parts + (part < call.N % plan.parts ? 1 : 0);
  const int64_t first = (range * WARPS + warp) * plan.per_warp;  // entry
  const int64_t channel = slice * plan.columns;
  const int columns =
      static_cast<int>(call.d - channel < plan.columns ? call.d - channel : plan.columns);
  const bool counts = slice == 0 && call.width > call.d;
  const bool watches = block % (plan.slices * plan.ranges) == 0 && warp == 0;
  const In* z = static_cast<const In*>(call.z) + channel;
  float* table = reinterpret_cast<float*>(shared_memory()) + warp * plan.per_warp * stride;
  for (int i = lane; i < plan.per_warp * stride; i += LANES) table[i] = 0.f;
  sync_warp();

  for (int64_t n = begin; n < end; n += LANES) {
    const int64_t index = n + lane < end ? call.indices[n + lane] : -1;
    if (watches && n + lane < end && (index < 0 || index >= call.K)) stop();
    const int64_t local = index - first;
    const bool mine = local >= 0 && local < plan.per_warp;
    uint32_t left = ballot(mine);
    while (left != 0) {
      int from[AHEAD], entry[AHEAD];
      float x[AHEAD][MOST_COLUMNS / LANES];
#pragma unroll
      for (int i = 0; i < AHEAD; ++i) {
        from[i] = lowest_bit(left);  // -1: there are no more
        left &= left - 1;
        entry[i] = shuffle(static_cast<int>(local), from[i] & (LANES - 1));
#pragma unroll
        for (int j = 0; j < MOST_COLUMNS / LANES; ++j) {
          const int column = j * LANES + lane;
          x[i][j] = 0.f;
          if (from[i] >= 0 && column < columns) x[i][j] = widen(z[(n + from[i]) * call.d + column]);
        }
      }
#pragma unroll
      for (int i = 0; i < AHEAD; ++i) {
        if (from[i] < 0) continue;
        float* to = table + entry[i] * stride;
#pragma unroll
        for (int j = 0; j < MOST_COLUMNS / LANES; ++j) {
          const int column = j * LANES + lane;
          if (column < columns) to[column] += x[i][j];
        }
        if (counts && lane == 0) to[plan.columns] += 1.f;
      }
    }
  }
  sync_warp();
  float* out = call.partial + part * call.K * call.width;
  for (int i = 0; i < plan.per_warp && first + i < call.K; ++i) {
    float* to = out + (first + i) * call.width;
    for (int column = lane; column < columns; column += LANES) {
      to[channel + column] = table[i * stride + column];
    }
    if (counts && lane == 0) to[call.d] = table[i * stride + plan.columns];
  }
}

// out = the parts, in their order.
template <typename Sum>
__global__ void merge(const Sum* partial, int64_t parts, int64_t size, Sum* out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += stride) {
    Sum sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * size + i];
    out[i] = sum;
  }
}

}  // namespace code_statistics_kernels
}  // namespace cuda
}  // namespace colaworld
