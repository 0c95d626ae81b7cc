// What the CUDA kernels of st_attention offer to their caller: plain pointers and a stream.
// Not here: tensors, memory. The caller owns every buffer.

#pragma once

#include <cstdint>

#include "element.h"

namespace colaworld {
namespace cuda {

// Temporal attention of T positions at each of B * S places and H heads. Strides in elements; the D
// channels of a row are neighbours, rows start on
// st_attention_alignment() bytes.
struct StAttentionCall {
  const void* x;  // [B, T, S, 3, H, D]
  int64_t x_b, x_t, x_s, x_part, x_h;
  const void* grad;  // [B, T, S, H, D], backward only
  int64_t grad_b, grad_t, grad_s, grad_h;
  void* out;  // [B, T, S, H, D], backward: the gradient of x [B, T, S, 3, H, D]; contiguous
  const float* q_weight;  // [D] or null: no norm
  const float* k_weight;  // [D] or null
  const float* cos;  // [T, D/2] or null: no rotation
  const float* sin;  // [T, D/2]
  float* partial;  // [blocks, 2, D] gradients of the weights, backward only
  int64_t pairs;  // B * S * H
  int64_t S, H;
  int T, D;
  float eps, scale;
  bool causal;
};

constexpr int ST_ATTENTION_LONGEST = 32;
// Rows start on so many bytes, in x and grad as in out.
constexpr int st_attention_alignment(Element element) {
  return element == Element::float32 ? 8 : 16;
}

// Whether there is a kernel: T in [1, 32]; D of 16-bit numbers is 64, 72, 96 or 128, of float32 a
// multiple of 8 up to 128.
bool st_attention_takes(Element element, int64_t T, int64_t D);

// Thread blocks of a launch on the current device: they share out the pairs among themselves.
// A message when the device cannot be asked.
const char* st_attention_blocks(Element element,
                                const StAttentionCall& call,
                                bool backward,
                                int64_t* blocks);

// Each returns null, or what went wrong with the launch.
const char* st_attention_forward(Element element,
                                 const StAttentionCall& call,
                                 int64_t blocks,
                                 void* stream);
const char* st_attention_backward(Element element,
                                  const StAttentionCall& call,
                                  int64_t blocks,
                                  void* stream);
// The sums of partial [blocks, 2, D] over the blocks, always in the same order.
const char* st_attention_sum(const float* partial,
                             int64_t blocks,
                             int D,
                             float* q_sum,  // [D] or null
                             float* k_sum,  // [D] or null
                             void* stream);

}  // namespace cuda
}  // namespace colaworld
