// What the CPU kernels share: bfloat16 as its bits, and an exponential that compilers vectorise.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#include <immintrin.h>
#define HAS_BF16_DOT 1
#else
#define HAS_BF16_DOT 0
#endif

using bf16 = uint16_t;
using i64 = int64_t;

static inline float wide(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

static inline float wide(float x) { return x; }

// To nearest, ties to even; written without branches so that loops over it vectorise.
static inline bf16 narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return bf16((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// exp(x) to 2e-7 relative for x <= 88; anything below -87 gives about 1e-38.
static inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    float n = std::nearbyint(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return p * scale;
}

// The part of `count` items that is `part`'s, of `parts`; parts differ by at most one item.
static inline void share(i64 count, int part, int parts, i64& first, i64& last) {
    first = count * part / parts;
    last = count * (part + 1) / parts;
}
