// Per codebook entry the sum of its rows and how many there are: no atomics, a fixed order.
//
// A block owns some entries, a slice of the channels and a part of the rows, which its warps share
// out. A warp reads the indices of its rows, 128 at a time, puts those that name an entry of the
// block into a queue, and adds their rows to its own table in shared memory, in their order. Then
// the block adds the tables of its warps, in their order, and `merge` the parts, again in their
// order. Every row's channels are read once; the indices are read by each range of entries (8 bytes
// a row, from L2). Up to ALONE rows there is one part, so one launch.
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
constexpr int STEPS = 4, ROUND = STEPS * LANES;  // rows that a warp looks at together
constexpr int FEW = 1, MANY = MOST_COLUMNS / LANES;  // columns of a row that a lane adds
constexpr int TABLES = 11264;  // numbers in the tables of a block: with the queues 48 kB at most
constexpr int64_t ALONE = 8192;  // from so many rows on there are parts ...
constexpr int64_t ROWS_PER_PART = 1024;  // ... of at least so many
constexpr int64_t ENOUGH_BLOCKS = 256;  // from so many on a block takes more than one entry
constexpr int64_t MOST_BLOCKS = 2048;  // more than any GPU works on at a time
constexpr int64_t MOST_PARTIAL = 1 << 22;  // numbers in all parts: 16 MB

COLAWORLD_BOTH CodeStatisticsPlan plan(int64_t N, int64_t K, int64_t d, int64_t width) {
  CodeStatisticsPlan plan;
  plan.columns = static_cast<int>(d < MOST_COLUMNS ? d : MOST_COLUMNS);
  plan.slices = (d + plan.columns - 1) / plan.columns;
  plan.parts = N < ALONE ? 1 : N / ROWS_PER_PART;
  const int64_t fit = TABLES / (WARPS * (plan.columns + 1));
  int64_t entries = (K * plan.slices * plan.parts + ENOUGH_BLOCKS - 1) / ENOUGH_BLOCKS;
  if (entries > fit) entries = fit;
  if (entries > K) entries = K;
  plan.entries = static_cast<int>(entries);
  plan.ranges = (K + entries - 1) / entries;
  int64_t most = MOST_PARTIAL / (K * width);
  const int64_t blocks = MOST_BLOCKS / (plan.ranges * plan.slices);
  if (blocks < most) most = blocks;
  if (plan.parts > most) plan.parts = most;
  if (plan.parts < 1) plan.parts = 1;
  return plan;
}

// Of shared memory: a table and a queue for each warp.
COLAWORLD_BOTH int bytes(const CodeStatisticsPlan& plan) {
  return WARPS * (plan.entries * (plan.columns + 1) + ROUND) * 4;
}

template <typename In, int EACH>
__global__ void __launch_bounds__(WARPS* LANES, RESIDENT)
    add(const CodeStatisticsCall call, const CodeStatisticsPlan plan) {
  constexpr int AHEAD = EACH == FEW ? 8 : 4;  // rows whose loads are under way together
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, stride = plan.columns + 1;
  const int64_t block = blockIdx.x, slice = block % plan.slices;
  const int64_t range = block / plan.slices % plan.ranges;
  const int64_t piece = block / plan.slices / plan.ranges * WARPS + warp;  // of the rows
  const int64_t pieces = plan.parts * WARPS, rest = call.N % pieces;
  const int64_t begin = call.N / pieces * piece + (piece < rest ? piece : rest);
  const int64_t end = begin + call.N / pieces + (piece < rest ? 1 : 0);
  const int64_t first = range * plan.entries;  // of the block's entries
  const int entries =
      static_cast<int>(call.K - first < plan.entries ? call.K - first : plan.entries);
  const int64_t channel = slice * plan.columns;
  const int columns =
      static_cast<int>(call.d - channel < plan.columns ? call.d - channel : plan.columns);
  const bool counts = slice == 0 && call.width > call.d, watches = slice == 0 && range == 0;
  const In* z = static_cast<const In*>(call.z) + channel;
  float* tables = reinterpret_cast<float*>(shared_memory());
  int* queue = reinterpret_cast<int*>(tables + WARPS * plan.entries * stride) + warp * ROUND;
  float* table = tables + warp * plan.entries * stride;
  for (int i = lane; i < entries * stride; i += LANES) table[i] = 0.f;

  for (int64_t n = begin; n < end; n += ROUND) {
    const In* rows = z + n * call.d;
    int local[STEPS];  // of the block's entries; -1: of another's
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const int64_t row = n + step * LANES + lane, index = row < end ? call.indices[row] : -1;
      if (watches && row < end && (index < 0 || index >= call.K)) stop();
      const int64_t from = index - first;
      local[step] = from >= 0 && from < entries ? static_cast<int>(from) : -1;
    }
    sync_warp();  // the queue has been read
    int waiting = 0;
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const uint32_t all = ballot(local[step] >= 0);
      if (local[step] >= 0) {
        const int before = count_bits(all & ((1u << lane) - 1u));
        queue[waiting + before] = local[step] * ROUND + step * LANES + lane;
      }
      waiting += count_bits(all);
    }
    sync_warp();
    for (int next = 0; next < waiting; next += AHEAD) {
      In x[AHEAD][EACH];  // widened only when all of them are under way
#pragma unroll
      for (int i = 0; i < AHEAD; ++i) {
        const bool there = next + i < waiting;
        const In* row = rows + (there ? queue[next + i] % ROUND : 0) * call.d;
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
          const int column = j * LANES + lane;
          x[i][j] = there && column < columns ? row[column] : In{};
        }
      }
#pragma unroll
      for (int i = 0; i < AHEAD; ++i) {
        if (next + i >= waiting) break;
        float* to = table + queue[next + i] / ROUND * stride;
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
          const int column = j * LANES + lane;
          if (column < columns) to[column] += widen(x[i][j]);
        }
        if (counts && lane == 0) to[plan.columns] += 1.f;
      }
    }
  }
  sync_block();
  float* out = call.partial + (block / plan.slices / plan.ranges * call.K + first) * call.width;
  for (int entry = warp; entry < entries; entry += WARPS) {
    for (int column = lane; column <= columns; column += LANES) {
      const bool count = column == columns;  // stands behind all columns of the table
      if (count && !counts) continue;
      const float* from = tables + entry * stride + (count ? plan.columns : column);
      float sum = from[0];
      for (int of = 1; of < WARPS; ++of) sum += from[of * plan.entries * stride];
      out[entry * call.width + (count ? call.d : channel + column)] = sum;
    }
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
