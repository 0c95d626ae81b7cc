// vector_quantize and code_statistics on CUDA: grids and launches. The arithmetic is in
// vector_quantize_kernel.cuh and code_statistics_kernel.cuh. Not here: tensors
// (vector_quantize_cuda.cpp).

#include "vector_quantize.h"

#include "code_statistics_kernel.cuh"
#include "launch.cuh"
#include "listing.cuh"
#include "vector_quantize_kernel.cuh"

namespace colaworld {
namespace cuda {
namespace {

// From so many rows on a thread takes 8 rows instead of 4, which halves the reads from shared
// memory and still leaves a block for every processor of the largest GPUs.
constexpr int64_t MANY_ROWS = 1 << 15;

constexpr int MERGE_THREADS = 256;  // of a block that adds up partial sums

template <typename In, int M>
const char* search(const VectorQuantizeCall& call, void* stream) {
  namespace kernels = vector_quantize_kernels;
  const int64_t rows = kernels::SIDE * M, blocks = (call.N + rows - 1) / rows;
  return launch(kernels::assign<In, M>, blocks, kernels::THREADS, kernels::bytes(M), stream, call);
}

template <typename In, int M>
void list_search(Listing& listing, Element element) {
  namespace kernels = vector_quantize_kernels;
  listing.add("vector_quantize, " + std::to_string(kernels::SIDE * M) + " rows a block, " +
                  name_of(element),
              kernels::assign<In, M>, kernels::THREADS, kernels::bytes(M));
}

template <typename In>
void list(Listing& listing, Element element) {
  namespace kernels = code_statistics_kernels;
  list_search<In, 4>(listing, element);
  list_search<In, 8>(listing, element);
  const int most = (kernels::TABLES + kernels::WARPS * kernels::ROUND) * 4;
  const std::string name = std::string("code_statistics at its largest, ") + name_of(element);
  listing.add(name + ", d <= 32", kernels::add<In, kernels::FEW>, kernels::WARPS * LANES, most);
  listing.add(name + ", d > 32", kernels::add<In, kernels::MANY>, kernels::WARPS * LANES, most);
}

template <typename In>
const char* search(const VectorQuantizeCall& call, void* stream) {
  return call.N >= MANY_ROWS ? search<In, 8>(call, stream) : search<In, 4>(call, stream);
}

template <typename In>
const char* add(const CodeStatisticsCall& call, const CodeStatisticsPlan& plan, void* stream) {
  namespace kernels = code_statistics_kernels;
  return launch(
      plan.columns <= LANES ? kernels::add<In, kernels::FEW> : kernels::add<In, kernels::MANY>,
      plan.parts * plan.ranges * plan.slices, kernels::WARPS * LANES, kernels::bytes(plan), stream,
      call, plan);
}

}  // namespace

const char* vector_quantize(Element element, const VectorQuantizeCall& call, void* stream) {
  switch (element) {
    case Element::float32:
      return search<float>(call, stream);
    case Element::bfloat16:
      return search<bf16>(call, stream);
    default:
      return search<fp16>(call, stream);
  }
}

CodeStatisticsPlan code_statistics_plan(int64_t N, int64_t K, int64_t d, int64_t width) {
  return code_statistics_kernels::plan(N, K, d, width);
}

const char* code_statistics(Element element,
                            const CodeStatisticsCall& call,
                            const CodeStatisticsPlan& plan,
                            void* stream) {
  const char* error = nullptr;
  switch (element) {
    case Element::float32:
      error = add<float>(call, plan, stream);
      break;
    case Element::bfloat16:
      error = add<bf16>(call, plan, stream);
      break;
    default:
      error = add<fp16>(call, plan, stream);
  }
  if (error != nullptr || plan.parts == 1) return error;
  const int64_t size = call.K * call.width, blocks = (size + MERGE_THREADS - 1) / MERGE_THREADS;
  return launch(
      code_statistics_kernels::merge<float>,
      blocks < code_statistics_kernels::MOST_BLOCKS ? blocks : code_statistics_kernels::MOST_BLOCKS,
      MERGE_THREADS, 0, stream, call.partial, plan.parts, size, call.out);
}

void list_vector_quantize(Listing& listing) {
  list<float>(listing, Element::float32);
  list<bf16>(listing, Element::bfloat16);
  list<fp16>(listing, Element::float16);
  listing.add("code_statistics, sums of parts", code_statistics_kernels::merge<float>,
              MERGE_THREADS, 0);
}

}  // namespace cuda
}  // namespace colaworld
