#include "instruction_set.h"

#include <cstdlib>
#include <stdexcept>

namespace colaworld {
namespace {

bool processor_has(InstructionSet set) {
#if defined(COLAWORLD_HAS_AVX2) || defined(COLAWORLD_HAS_AVX512)
  // The flags of each kernel file in CMakeLists.txt, one by one.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (set == InstructionSet::avx2) return avx2;
  if (set == InstructionSet::avx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return set == InstructionSet::baseline;
}

InstructionSet choose() {
  const char* asked = std::getenv("COLAWORLD_CPU_ISA");
  const bool automatic = asked == nullptr || *asked == '\0';
  InstructionSet best = InstructionSet::baseline;
  std::string runnable;
  for (InstructionSet set : compiled_instruction_sets()) {
    if (!processor_has(set)) continue;
    best = set;
    if (!automatic && std::string(asked) == name_of(set)) return set;
    runnable += (runnable.empty() ? "" : ", ") + std::string(name_of(set));
  }
  if (!automatic) {
    throw std::invalid_argument("COLAWORLD_CPU_ISA: expected one of " + runnable +
                                " (compiled and offered by this processor), got '" + asked + "'");
  }
  return best;
}

}  // namespace

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx2:
      return "avx2";
    case InstructionSet::avx512:
      return "avx512";
    default:
      return "baseline";
  }
}

std::vector<InstructionSet> compiled_instruction_sets() {
  return {
      InstructionSet::baseline,
#if defined(COLAWORLD_HAS_AVX2)
      InstructionSet::avx2,
#endif
#if defined(COLAWORLD_HAS_AVX512)
      InstructionSet::avx512,
#endif
  };
}

InstructionSet chosen_instruction_set() {
  static const InstructionSet chosen = choose();  // a throw leaves it to be tried again
  return chosen;
}

}  // namespace colaworld
