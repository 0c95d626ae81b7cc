// st_attention on CUDA: grids and launches. The arithmetic is in st_attention_kernel.cuh (16-bit
// numbers) and st_attention_float_kernel.cuh. Not here: tensors (st_attention_cuda.cpp).

#include "st_attention.h"

#include "launch.cuh"
#include "listing.cuh"
#include "st_attention_choose.h"

namespace colaworld {
namespace cuda {
namespace {

constexpr int SUM_COLUMNS = 32, SUM_ROWS = 16;  // threads of a block

// A thread adds every sixteenth row, then a column's sixteen threads meet in their order.
__global__ void __launch_bounds__(SUM_COLUMNS* SUM_ROWS)
    sum(const float* partial, int64_t blocks, int D, float* q_sum, float* k_sum) {
  __shared__ float held[SUM_ROWS][SUM_COLUMNS];
  const int column = blockIdx.x * SUM_COLUMNS + threadIdx.x % SUM_COLUMNS;
  const int row = threadIdx.x / SUM_COLUMNS;
  float total = 0.f;
  if (column < 2 * D) {
    for (int64_t block = row; block < blocks; block += SUM_ROWS) {
      total += partial[block * 2 * D + column];
    }
  }
  held[row][threadIdx.x % SUM_COLUMNS] = total;
  __syncthreads();
  if (row != 0 || column >= 2 * D) return;
  for (int r = 1; r < SUM_ROWS; ++r) total += held[r][threadIdx.x];
  float* to = column < D ? q_sum : k_sum;
  if (to != nullptr) to[column % D] = total;
}

const char* run(
    Element element, const StAttentionCall& call, bool backward, int64_t blocks, void* stream) {
  return st_attention_choose(element, call.T, call.D, backward,
                             [&](auto kernel, int warps, int bytes) {
                               return launch(kernel, blocks, warps * LANES, bytes, stream, call);
                             });
}

}  // namespace

bool st_attention_takes(Element element, int64_t T, int64_t D) {
  if (T < 1 || T > ST_ATTENTION_LONGEST) return false;
  if (element == Element::float32) {
    return D >= 8 && D <= st_attention_float::MOST_CHANNELS && D % 8 == 0;
  }
  return D == 64 || D == 72 || D == 96 || D == 128;
}

const char* st_attention_blocks(Element element,
                                const StAttentionCall& call,
                                bool backward,
                                int64_t* blocks) {
  return st_attention_choose(element, call.T, call.D, backward,
                             [&](auto kernel, int warps, int bytes) {
                               const char* error = resident(kernel, warps * LANES, bytes, blocks);
                               const int64_t enough = (call.pairs + warps - 1) / warps;
                               if (enough < *blocks) *blocks = enough;
                               return error;
                             });
}

const char* st_attention_forward(Element element,
                                 const StAttentionCall& call,
                                 int64_t blocks,
                                 void* stream) {
  return run(element, call, false, blocks, stream);
}

const char* st_attention_backward(Element element,
                                  const StAttentionCall& call,
                                  int64_t blocks,
                                  void* stream) {
  return run(element, call, true, blocks, stream);
}

const char* st_attention_sum(
    const float* partial, int64_t blocks, int D, float* q_sum, float* k_sum, void* stream) {
  return launch(sum, (2 * D + SUM_COLUMNS - 1) / SUM_COLUMNS, SUM_COLUMNS * SUM_ROWS, 0, stream,
                partial, blocks, D, q_sum, k_sum);
}

void list_st_attention(Listing& listing) {
  for (const Element element : {Element::bfloat16, Element::float16, Element::float32}) {
    for (const int D : {64, 72, 96, 128}) {
      // One kernel for every D; the longest rows ask for the most.
      if (element == Element::float32 && D != st_attention_float::MOST_CHANNELS) continue;
      for (const int T : {16, 32}) {
        for (const bool back : {false, true}) {
          const std::string name = std::string("st_attention ") + (back ? "backward" : "forward") +
                                   ", " + name_of(element) + ", D " + std::to_string(D) +
                                   ", T <= " + std::to_string(T);
          st_attention_choose(element, T, D, back, [&](auto kernel, int warps, int bytes) {
            listing.add(name, kernel, warps * LANES, bytes);
          });
        }
      }
    }
  }
  listing.add("st_attention, sums of the weights", sum, SUM_COLUMNS * SUM_ROWS, 0);
}

}  // namespace cuda
}  // namespace colaworld
