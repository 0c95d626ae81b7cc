// In the place of csrc/cuda/listing.cuh, for a C++ compiler: there is no driver to ask about kernels.

#pragma once

#include <string>

#include "element.h"
#include "launch.cuh"

namespace colaworld {
namespace cuda {

inline const char* name_of(Element) { return ""; }

struct Listing {
  template <typename Kernel>
  void add(const std::string&, Kernel*, int, int) {}
};

}  // namespace cuda
}  // namespace colaworld
