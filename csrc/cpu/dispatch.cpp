// Chooses the table of kernels for this machine: SSD_CPU_ISA names one, otherwise it is the best that the CPU can run.

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "simd/kernels.h"

namespace ssd {

namespace portable {
extern const Kernels table;
}

#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avxvnni {
extern const Kernels table;
}
namespace avx512vnni {
extern const Kernels table;
}
namespace avx512bf16 {
extern const Kernels table;
}
#endif

namespace {

struct InstructionSet {
  const Kernels& table;
  bool available;
};

// The best comes first.
std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512vnni = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni");
  sets.push_back({avx512bf16::table, avx512vnni && __builtin_cpu_supports("avx512bf16")});
  sets.push_back({avx512vnni::table, avx512vnni});
  sets.push_back({avxvnni::table, avx2 && __builtin_cpu_supports("avxvnni")});
  sets.push_back({avx2::table, avx2});
#endif
  sets.push_back({portable::table, true});
  return sets;
}

const Kernels& pick() {
  const char* asked = std::getenv("SSD_CPU_ISA");
  const std::string name = asked != nullptr ? asked : "";
  std::string names;
  for (const InstructionSet& set : instruction_sets()) {
    if (!set.available) continue;
    if (name.empty() || name == set.table.name) return set.table;
    names += names.empty() ? set.table.name : std::string(", ") + set.table.name;
  }
  throw std::runtime_error("SSD_CPU_ISA=" + name + " is not available here; use one of " + names + ".");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = pick();
  return chosen;
}

}  // namespace ssd
