// The functions in the table of one instruction set, SSD_ISA.
#pragma once

#include "kernels.h"

namespace ssd::SSD_ISA {

void linear_bf16(const LinearTile<bf16>& tile);
void linear_float(const LinearTile<float>& tile);
void linear_int8_bf16(const LinearTile<bf16, uint8_t>& tile);
void linear_int8_float(const LinearTile<float, uint8_t>& tile);
void round_rows_bf16(const bf16* x, int64_t rows, int64_t in, char* tile);
void round_rows_float(const float* x, int64_t rows, int64_t in, char* tile);
void attention_bf16(const AttentionRun<bf16>& run);
void attention_float(const AttentionRun<float>& run);
void rms_norm_bf16(const bf16* x, const bf16* weight, float eps, int64_t d, bf16* y);
void rms_norm_float(const float* x, const float* weight, float eps, int64_t d, float* y);
int largest(const float* logits, int64_t size, int n, int32_t excluded, Entry* out);
void probabilities(const float* logits, const float* stats, int32_t first, int64_t n, float* out);
void race_times(const float* weights, int64_t n, int64_t seed, int32_t position, uint32_t purpose, float* times);
double sum(const float* values, int64_t n);

}  // namespace ssd::SSD_ISA
