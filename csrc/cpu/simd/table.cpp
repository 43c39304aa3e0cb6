// The table of kernels of one instruction set, SSD_ISA.

#include "table.h"

#define SSD_TEXT_OF(name) #name
#define SSD_TEXT(name) SSD_TEXT_OF(name)

namespace ssd::SSD_ISA {

extern const Kernels table;
const Kernels table = {SSD_TEXT(SSD_ISA), linear_bf16,    linear_float, linear_int8,   attention_bf16, attention_float,
                       rms_norm_bf16,     rms_norm_float, largest,      probabilities, race_times,     sum};

}  // namespace ssd::SSD_ISA
