// What this library is: its version, its compiler, what it was built for, what it runs on. One C
// function that returns JSON, so that whoever loads the library can ask it, with ctypes and nothing
// else (colaworld/ops/_native.py). Not here: ops.

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "cpu/instruction_set.h"

#if defined(COLAWORLD_CUDA_ARCHITECTURES)
// As in cuda/tensor.h: null where torch was built without CUDA.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

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

std::string json(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + '"';
}
std::string json(const char* text) { return json(std::string(text)); }
std::string json(bool value) { return value ? "true" : "false"; }
std::string json(int value) { return std::to_string(value); }

template <typename Value>
std::string json(const std::vector<Value>& values) {
  std::string list;
  for (const Value& value : values) list += (list.empty() ? "" : ", ") + json(value);
  return '[' + list + ']';
}

std::string facts() {
  std::vector<int> architectures;
  bool cuda_stream = false;
#if defined(COLAWORLD_CUDA_ARCHITECTURES)
  architectures = {COLAWORLD_CUDA_ARCHITECTURES};
  cuda_stream = aoti_torch_get_current_cuda_stream != nullptr;
#endif
  std::vector<std::string> compiled;
  for (const auto set : colaworld::compiled_instruction_sets()) {
    compiled.push_back(colaworld::name_of(set));
  }
  std::string all;
  const auto add = [&](const char* name, const auto& value) {
    all += (all.empty() ? "" : ", ") + json(name) + ": " + json(value);
  };
  add("version", COLAWORLD_VERSION);
  add("compiler", compiler());
  add("compiled_instruction_sets", compiled);
  add("chosen_instruction_set", colaworld::name_of(colaworld::chosen_instruction_set()));
  add("cuda", !architectures.empty());
  add("cuda_architectures", architectures);
  add("cuda_note", COLAWORLD_CUDA_NOTE);  // why there is no CUDA, or the compiler that built it
  add("cuda_stream", cuda_stream);  // whether torch's current stream was found
  add("torch_built_against", COLAWORLD_TORCH_VERSION);
  return '{' + all + '}';
}

}  // namespace

// A JSON object with the keys above, or {"error": message} when COLAWORLD_CPU_ISA names what cannot
// run here. The text lives as long as the library.
extern "C" __attribute__((visibility("default"))) const char* colaworld_facts() {
  static const std::string told = [] {
    try {
      return facts();
    } catch (const std::exception& error) {
      return "{\"error\": " + json(error.what()) + '}';
    }
  }();
  return told.c_str();
}
