// Operators on rows: norms, gated activations, and what stands between the qkv product and attention.

#include "operators.h"

#include <omp.h>

namespace {

constexpr i64 PARALLEL = 1 << 15;  // elements below which waking a thread takes longer than the work

float square_sum(const bf16* x, i64 count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < count; i++) sum += wide(x[i]) * wide(x[i]);
    return sum;
}

template <class Weight>
void weighted(const bf16* x, float scale, const Weight* weight, i64 count, bf16* to) {
#pragma omp simd
    for (i64 i = 0; i < count; i++) to[i] = narrow(wide(x[i]) * scale * wide(weight[i]));
}

// to = x / rms(x) * weight, which holds floats or bf16
void normed(const bf16* x, const void* weight, bool float_weight, i64 count, float eps, bf16* to) {
    float scale = 1.0f / std::sqrt(square_sum(x, count) / float(count) + eps);
    if (float_weight)
        weighted(x, scale, static_cast<const float*>(weight), count, to);
    else
        weighted(x, scale, static_cast<const bf16*>(weight), count, to);
}

// One head turned in place; cos and sin [half].
void turned(bf16* x, const float* cos, const float* sin, i64 half, bool interleaved) {
    if (interleaved) {
        for (i64 i = 0; i < half; i++) {
            float a = wide(x[2 * i]), b = wide(x[2 * i + 1]);
            x[2 * i] = narrow(a * cos[i] - b * sin[i]);
            x[2 * i + 1] = narrow(b * cos[i] + a * sin[i]);
        }
        return;
    }
#pragma omp simd
    for (i64 i = 0; i < half; i++) {
        float a = wide(x[i]), b = wide(x[i + half]);
        x[i] = narrow(a * cos[i] - b * sin[i]);
        x[i + half] = narrow(b * cos[i] + a * sin[i]);
    }
}

float gelu_tanh(float x) {
    float y = 0.79788456f * (x + 0.044715f * x * x * x);
    return x / (1.0f + exponential(-2.0f * y));  // (1 + tanh(y)) / 2 as a sigmoid
}

}  // namespace

extern "C" {

// out [rows, cols] = rms_norm(x + residual) * weight, and sum_out = x + residual; without a residual sum_out is not used.
// The weight [cols] is of floats if `float_weight`, else of bf16.
void sirocco_rms_norm(const bf16* x, const bf16* residual, const void* weight, int float_weight, i64 rows, i64 cols,
                      float eps, bf16* out, bf16* sum_out, int threads) {
    if (rows * cols < PARALLEL) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (i64 row = 0; row < rows; row++) {
        const bf16* from = x + row * cols;
        if (residual) {
            const bf16* other = residual + row * cols;
            bf16* sum = sum_out + row * cols;
#pragma omp simd
            for (i64 i = 0; i < cols; i++) sum[i] = narrow(wide(from[i]) + wide(other[i]));
            from = sum;
        }
        normed(from, weight, float_weight, cols, eps, out + row * cols);
    }
}

// out [rows, inner] = act(gate) * up of gate_up [rows, 2 inner]; kind 0 is silu, 1 gelu by tanh.
void sirocco_gated(const bf16* gate_up, i64 rows, i64 inner, int kind, bf16* out, int threads) {
    if (rows * inner < PARALLEL) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (i64 row = 0; row < rows; row++) {
        const bf16 *gate = gate_up + row * 2 * inner, *up = gate + inner;
        bf16* to = out + row * inner;
        if (kind == 0) {
#pragma omp simd
            for (i64 i = 0; i < inner; i++) {
                float g = wide(gate[i]);
                to[i] = narrow(g / (1.0f + exponential(-g)) * wide(up[i]));
            }
        } else {
#pragma omp simd
            for (i64 i = 0; i < inner; i++) to[i] = narrow(gelu_tanh(wide(gate[i])) * wide(up[i]));
        }
    }
}

// Split qkv [tokens, (heads + 2 kv_heads) dim], norm and turn q and k, store k and v at slots [tokens]; q to q_out.
// Weights [dim] are of floats if `float_weights`, else of bf16. A null weight skips its norm, null tables [tokens, half]
// skip the turn, a negative slot stores nothing.
void sirocco_norm_rope_write(const bf16* qkv, i64 tokens, i64 heads, i64 kv_heads, i64 dim, const void* q_weight,
                             const void* k_weight, int float_weights, float eps, const float* cos, const float* sin,
                             i64 half, int interleaved, bf16* k_cache, bf16* v_cache, i64 block_size, const i64* slots,
                             bf16* q_out, int threads) {
    i64 width = (heads + 2 * kv_heads) * dim;
    if (tokens * width < PARALLEL) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (i64 t = 0; t < tokens; t++) {
        const bf16* from = qkv + t * width;
        i64 block = slots[t] / block_size, offset = slots[t] % block_size;
        for (i64 h = 0; h < heads + kv_heads; h++, from += dim) {
            bool is_q = h < heads;
            if (!is_q && slots[t] < 0) continue;
            bf16* to = is_q ? q_out + (t * heads + h) * dim
                            : k_cache + ((block * kv_heads + h - heads) * block_size + offset) * dim;
            const void* weight = is_q ? q_weight : k_weight;
            if (weight)
                normed(from, weight, float_weights, dim, eps, to);
            else
                std::memcpy(to, from, dim * sizeof(bf16));
            if (cos) turned(to, cos + t * half, sin + t * half, half, interleaved);
        }
        if (slots[t] < 0) continue;
        for (i64 h = 0; h < kv_heads; h++, from += dim)
            std::memcpy(v_cache + ((block * kv_heads + h) * block_size + offset) * dim, from, dim * sizeof(bf16));
    }
}

}  // extern "C"
