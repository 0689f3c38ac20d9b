// The operators that a layer is made of; each is described where it is defined.
#pragma once

#include "common.h"

extern "C" {

void sirocco_linear(const bf16* x, i64 ldx, i64 m, i64 k, const bf16* packed, i64 n, const bf16* bias, void* y, i64 ldy,
                    int wide_out, int threads);
void sirocco_rms_norm(const bf16* x, const bf16* residual, const void* weight, int float_weight, i64 rows, i64 cols,
                      float eps, bf16* out, bf16* sum_out, int threads);
void sirocco_gated(const bf16* gate_up, i64 rows, i64 inner, int kind, bf16* out, int threads);
void sirocco_norm_rope_write(const bf16* qkv, i64 tokens, i64 heads, i64 kv_heads, i64 dim, const void* q_weight,
                             const void* k_weight, int float_weights, float eps, const float* cos, const float* sin,
                             i64 half, int interleaved, bf16* k_cache, bf16* v_cache, i64 block_size, const i64* slots,
                             bf16* q_out, int threads);
void sirocco_paged_attention(const bf16* q, const bf16* k_cache, const bf16* v_cache, const i64* query_lens,
                             const i64* kv_lens, i64 requests, const int32_t* tables, i64 table_width, i64 heads,
                             i64 kv_heads, i64 dim, i64 block_size, float scale, i64 window, float softcap,
                             const float* sinks, bf16* out, int threads);
}
