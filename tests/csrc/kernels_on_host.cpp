// The CUDA kernels as functions on CPU memory, for test_cuda_kernels.py: simt.h runs them.
// Not here: launch code (.cu), which needs the CUDA runtime, and tensors.

#include "code_statistics_kernel.cuh"
#include "st_attention_choose.h"
#include "vector_quantize_kernel.cuh"

using namespace colaworld::cuda;

extern "C" {

// Sizes of the structs, so that their Python twins cannot drift.
int size_of_st_attention_call() { return sizeof(StAttentionCall); }
int size_of_vector_quantize_call() { return sizeof(VectorQuantizeCall); }
int size_of_code_statistics_call() { return sizeof(CodeStatisticsCall); }

void host_st_attention(int element, const StAttentionCall* call, int backward, int blocks) {
  st_attention_choose(static_cast<Element>(element), call->T, call->D, backward != 0,
                      [&](auto kernel, int warps, int bytes) {
                        simt::launch(blocks, warps * LANES, bytes, [&] { kernel(*call); });
                      });
}

void host_vector_quantize(int element, const VectorQuantizeCall* call, int rows_per_thread) {
  namespace kernels = vector_quantize_kernels;
  const auto run = [&](auto kernel, int m) {
    const int64_t rows = kernels::SIDE * m;
    simt::launch((call->N + rows - 1) / rows, kernels::THREADS, kernels::bytes(m),
                 [&] { kernel(*call); });
  };
  if (element == 0 && rows_per_thread == 4) run(kernels::assign<float, 4>, 4);
  if (element == 0 && rows_per_thread == 8) run(kernels::assign<float, 8>, 8);
  if (element == 1) run(kernels::assign<bf16, 4>, 4);
  if (element == 2) run(kernels::assign<fp16, 4>, 4);
}

int64_t host_code_statistics_parts(const CodeStatisticsCall* call) {
  return code_statistics_kernels::plan(call->N, call->K, call->d, call->width).parts;
}

void host_code_statistics(int element, const CodeStatisticsCall* call) {
  namespace kernels = code_statistics_kernels;
  const CodeStatisticsPlan plan = kernels::plan(call->N, call->K, call->d, call->width);
  const auto run = [&](auto kernel) {
    simt::launch(plan.parts * plan.ranges * plan.slices, kernels::WARPS * LANES,
                 kernels::bytes(plan), [&] { kernel(*call, plan); });
  };
  const auto choose = [&](auto few, auto many) { run(plan.columns <= LANES ? few : many); };
  if (element == 0) choose(kernels::add<float, kernels::FEW>, kernels::add<float, kernels::MANY>);
  if (element == 1) choose(kernels::add<bf16, kernels::FEW>, kernels::add<bf16, kernels::MANY>);
  if (element == 2) choose(kernels::add<fp16, kernels::FEW>, kernels::add<fp16, kernels::MANY>);
  if (plan.parts > 1) {
    simt::launch(3, 32, 0, [&] {
      kernels::merge(call->partial, plan.parts, call->K * call->width, call->out);
    });
  }
}

// layout.h
void host_place_of(int64_t pair, int64_t S, int64_t H, int64_t* place) {
  const Place at = place_of(pair, S, H);
  place[0] = at.b;
  place[1] = at.s;
  place[2] = at.h;
}

}  // extern "C"
