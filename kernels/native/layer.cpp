// A whole layer of a decoder in one call: what is called a hundred times a token should not be called from Python.

#include "operators.h"

namespace {

// Sizes and pointers of a layer, as `layer.py` fills them in. Weights of linear layers are laid out; a bias or a norm of
// q and k may be null.
struct Layer {
    i64 width, heads, kv_heads, dim, inner, block_size, window;
    float eps, qk_eps, scale, softcap;
    int interleaved, gate, float_norms;
    const void *mixer_norm, *ffn_norm, *q_norm, *k_norm;  // of floats if float_norms, else of bf16
    const bf16 *qkv, *qkv_bias, *out, *out_bias, *gate_up, *gate_up_bias, *down, *down_bias;
    bf16 *k_cache, *v_cache;
};

// What the layers of one step share; tables of the rotary embedding [rows, half] may be null.
struct Step {
    i64 rows, requests, table_width, half;
    const i64 *slots, *query_lens, *kv_lens;
    const int32_t* tables;
    const float *cos, *sin;
    bf16* scratch;  // as many elements a row as `sirocco_layer_scratch` says
    int threads;
};

}  // namespace

extern "C" {

i64 sirocco_layer_scratch(const Layer* layer) {
    i64 q = layer->heads * layer->dim, kv = layer->kv_heads * layer->dim;
    return layer->width + std::max(3 * q + 2 * kv, 3 * layer->inner);
}

// From the stream before a layer, x still to be added to the residual [rows, width], to the stream after it, which may
// lie in the same place. Without a residual, x is it.
void sirocco_layer(const Layer* layer, const Step* step, const bf16* x, const bf16* residual, bf16* x_out,
                   bf16* residual_out) {
    const Layer& l = *layer;
    const Step& s = *step;
    i64 q = l.heads * l.dim, qkv = q + 2 * l.kv_heads * l.dim;
    bf16* normed = s.scratch;
    bf16* attention = normed + s.rows * l.width;  // its products, then those of the feed-forward
    bf16 *queries = attention + s.rows * qkv, *attended = queries + s.rows * q;
    bf16 *gate_up = attention, *gated = gate_up + s.rows * 2 * l.inner;

    sirocco_rms_norm(x, residual, l.mixer_norm, l.float_norms, s.rows, l.width, l.eps, normed, residual_out,
                     s.threads);
    if (!residual && residual_out != x) std::memcpy(residual_out, x, s.rows * l.width * sizeof(bf16));
    sirocco_linear(normed, l.width, s.rows, l.width, l.qkv, qkv, l.qkv_bias, attention, qkv, 0, s.threads);
    sirocco_norm_rope_write(attention, s.rows, l.heads, l.kv_heads, l.dim, l.q_norm, l.k_norm, l.float_norms,
                            l.qk_eps, s.cos, s.sin, s.half, l.interleaved, l.k_cache, l.v_cache, l.block_size, s.slots,
                            queries, s.threads);
    sirocco_paged_attention(queries, l.k_cache, l.v_cache, s.query_lens, s.kv_lens, s.requests, s.tables, s.table_width,
                            l.heads, l.kv_heads, l.dim, l.block_size, l.scale, l.window, l.softcap, nullptr, attended,
                            s.threads);
    sirocco_linear(attended, q, s.rows, q, l.out, l.width, l.out_bias, x_out, l.width, 0, s.threads);
    sirocco_rms_norm(x_out, residual_out, l.ffn_norm, l.float_norms, s.rows, l.width, l.eps, normed, residual_out,
                     s.threads);
    sirocco_linear(normed, l.width, s.rows, l.width, l.gate_up, 2 * l.inner, l.gate_up_bias, gate_up, 2 * l.inner, 0,
                   s.threads);
    sirocco_gated(gate_up, s.rows, l.inner, l.gate, gated, s.threads);
    sirocco_linear(gated, l.inner, s.rows, l.inner, l.down, l.width, l.down_bias, x_out, l.width, 0, s.threads);
}

}  // extern "C"
