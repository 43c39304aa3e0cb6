// The table of kernels of one instruction set, SSD_ISA.

#include "table.h"

#define SSD_TEXT_OF(name) #name
#define SSD_TEXT(name) SSD_TEXT_OF(name)

namespace ssd::SSD_ISA {

extern const Kernels table = {
    .name = SSD_TEXT(SSD_ISA),
    .linear_bf16 = linear_bf16,
    .linear_float = linear_float,
    .linear_int8_bf16 = linear_int8_bf16,
    .linear_int8_float = linear_int8_float,
    .round_rows_bf16 = round_rows_bf16,
    .round_rows_float = round_rows_float,
    .attention_bf16 = attention_bf16,
    .attention_float = attention_float,
    .rms_norm_bf16 = rms_norm_bf16,
    .rms_norm_float = rms_norm_float,
    .largest = largest,
    .probabilities = probabilities,
    .race_times = race_times,
    .sum = sum,
};

}  // namespace ssd::SSD_ISA
