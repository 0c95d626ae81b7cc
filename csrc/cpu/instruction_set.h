// Which instruction set the CPU kernels run on: what was compiled, what this processor has, what
// was asked for. Not here: any kernel.

#pragma once

#include <string>
#include <vector>

namespace colaworld {

// In order: a later one implies that the earlier ones run as well.
enum class InstructionSet { baseline = 0, avx2 = 1, avx512 = 2 };

// "baseline", "avx2", "avx512".
const char* name_of(InstructionSet set);

// What this build holds, baseline first.
std::vector<InstructionSet> compiled_instruction_sets();

// The best compiled set that this processor runs, or the one that COLAWORLD_CPU_ISA names. The
// variable is read once. Throws std::invalid_argument when it names a set that cannot run here.
InstructionSet chosen_instruction_set();

}  // namespace colaworld
