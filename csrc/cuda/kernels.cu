// The list of all CUDA kernels. Not here: kernels; what an op launches stands in its own file.

#include "kernels.h"

#include "listing.cuh"

extern "C" __attribute__((visibility("default"))) const char* colaworld_cuda_kernels(
    int ask_driver, ColaworldVisit visit, void* context) {
  colaworld::cuda::Listing listing(ask_driver != 0, visit, context);
  list_st_attention(listing);
  list_vector_quantize(listing);
  return listing.error();
}
