// colaworld._C: what is not a tensor. Tensors go through the ops.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/instruction_set.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_info() {
  std::vector<std::string> compiled;
  for (auto set : colaworld::compiled_instruction_sets())
    compiled.push_back(colaworld::name_of(set));
  std::vector<int> architectures;
#if defined(COLAWORLD_CUDA_ARCHITECTURES)
  architectures = {COLAWORLD_CUDA_ARCHITECTURES};
#endif
  py::dict info;
  info["version"] = COLAWORLD_VERSION;
  info["compiler"] = compiler();
  info["compiled_instruction_sets"] = compiled;
  info["chosen_instruction_set"] = colaworld::name_of(colaworld::chosen_instruction_set());
  info["cuda"] = !architectures.empty();
  info["cuda_architectures"] = architectures;
  info["cuda_note"] = COLAWORLD_CUDA_NOTE;  // why there is no CUDA, or the compiler that built it
  info["torch_built_against"] = COLAWORLD_TORCH_VERSION;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the compiled part of colaworld.";
  m.def("build_info", &build_info,
        "dict: version, compiler, compiled_instruction_sets, chosen_instruction_set, cuda, "
        "cuda_architectures, cuda_note, torch_built_against");
}
