// Argument checks whose message names the argument, what was expected and what came.
// Not here: checks of a single op; those stand at the top of its entry function.

#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace colaworld {

// Throws std::invalid_argument made of the streamed parts; Python sees a ValueError.
template <typename... Parts>
void expect(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// "[4, 32]"
inline std::string shape_of(const torch::stable::Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ']';
  return text.str();
}

}  // namespace colaworld
