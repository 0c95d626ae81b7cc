// Argument checks whose message names the argument, what was expected and what came, and what else
// every op does with its arguments.
// Not here: checks of a single op; those stand at the top of its entry function.

#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/ops.h>
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

// Streamed as "[4, 32]". No text is made of the tensors of a check that holds: on a small call that
// took longer than the work.
struct ShapeOf {
  const torch::stable::Tensor& tensor;

  friend std::ostream& operator<<(std::ostream& out, const ShapeOf& shape) {
    out << '[';
    for (int64_t i = 0; i < shape.tensor.dim(); ++i) {
      out << (i ? ", " : "") << shape.tensor.size(i);
    }
    return out << ']';
  }
};

inline ShapeOf shape_of(const torch::stable::Tensor& tensor) { return {tensor}; }

// The same, without a call of the dispatcher where nothing is to be copied.
inline torch::stable::Tensor as_contiguous(const torch::stable::Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

}  // namespace colaworld
