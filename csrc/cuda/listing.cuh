// Where an op lists its kernels (kernels.h), each with the threads and bytes that it launches it
// with. Not here: launches.

#pragma once

#include <string>

#include "element.h"
#include "kernels.h"
#include "launch.cuh"

namespace colaworld {
namespace cuda {

inline const char* name_of(Element element) {
  if (element == Element::float32) return "float32";
  return element == Element::bfloat16 ? "bfloat16" : "float16";
}

class Listing {
 public:
  Listing(bool ask_driver, ColaworldVisit visit, void* context)
      : ask_driver_(ask_driver), visit_(visit), context_(context) {}

  template <typename Kernel>
  void add(const std::string& name, Kernel* kernel, int threads, int bytes) {
    ColaworldKernel found{name.c_str(), threads, bytes, -1, -1, -1, -1};
    if (ask_driver_) {
      cudaFuncAttributes attributes{};
      cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
      if (error == cudaSuccess) error = allow(kernel, bytes);
      if (error == cudaSuccess) {
        error =
            cudaOccupancyMaxActiveBlocksPerMultiprocessor(&found.blocks, kernel, threads, bytes);
      }
      if (error != cudaSuccess) {
        error_ = message_of(error);
        return;
      }
      found.registers = attributes.numRegs;
      found.local = static_cast<int>(attributes.localSizeBytes);
      found.static_shared = static_cast<int>(attributes.sharedSizeBytes);
    }
    visit_(context_, &found, sizeof(found));
  }

  const char* error() const { return error_; }

 private:
  bool ask_driver_;
  ColaworldVisit visit_;
  void* context_;
  const char* error_ = nullptr;
};

// One function per file of launches, at its end.
void list_st_attention(Listing& listing);
void list_vector_quantize(Listing& listing);

}  // namespace cuda
}  // namespace colaworld
