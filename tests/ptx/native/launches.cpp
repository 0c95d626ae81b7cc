// The launch code of csrc/cuda as functions that Python can call; what it launched can be read
// back. Every function of csrc/cuda/*.h that launches needs its few lines here.

#include "st_attention.cu"
#include "vector_quantize.cu"

using namespace colaworld::cuda;

extern "C" {

void forget() { recorded.clear(); }
void set_resident_blocks(int64_t blocks) { resident_blocks = blocks; }
int count() { return static_cast<int>(recorded.size()); }
void* base() { return reinterpret_cast<void*>(&forget); }
void* kernel_of(int i) { return recorded[i].kernel; }
int64_t blocks_of(int i) { return recorded[i].blocks; }
int threads_of(int i) { return recorded[i].threads; }
int bytes_of(int i) { return recorded[i].bytes; }
int parameters_of(int i, const char** at) {
  *at = recorded[i].parameters.data();
  return static_cast<int>(recorded[i].parameters.size());
}

int attention_alignment(int element) {
  return st_attention_alignment(static_cast<Element>(element));
}
int64_t attention_blocks(int element, const StAttentionCall* call, int backward) {
  int64_t blocks = 0;
  st_attention_blocks(static_cast<Element>(element), *call, backward != 0, &blocks);
  return blocks;
}
void attention(int element, const StAttentionCall* call, int backward, int64_t blocks) {
  (backward != 0 ? st_attention_backward : st_attention_forward)(static_cast<Element>(element),
                                                                 *call, blocks, nullptr);
}
void attention_sum(const float* partial, int64_t blocks, int D, float* q_sum, float* k_sum) {
  st_attention_sum(partial, blocks, D, q_sum, k_sum, nullptr);
}
int size_of_StAttentionCall() { return sizeof(StAttentionCall); }

void quantize(int element, const VectorQuantizeCall* call) {
  vector_quantize(static_cast<Element>(element), *call, nullptr);
}
int size_of_VectorQuantizeCall() { return sizeof(VectorQuantizeCall); }

void plan(int64_t N, int64_t K, int64_t d, int64_t width, CodeStatisticsPlan* made) {
  *made = code_statistics_plan(N, K, d, width);
}
void statistics(int element, const CodeStatisticsCall* call, const CodeStatisticsPlan* plan) {
  code_statistics(static_cast<Element>(element), *call, *plan, nullptr);
}
int size_of_CodeStatisticsCall() { return sizeof(CodeStatisticsCall); }
int size_of_CodeStatisticsPlan() { return sizeof(CodeStatisticsPlan); }

}  // extern "C"
