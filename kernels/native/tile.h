// Products of a few rows with 64 outputs: the inner loop of linear layers and of attention over prompts.
#pragma once

#include "common.h"

constexpr int PANEL = 32;  // outputs whose weights lie together, as [pairs, 32, 2]
// A tile is as many sums as fit in the 32 registers of AVX-512 beside the weights and an input: 6 rows by two panels, or
// 12 by one, which reads each weight for twice as many rows.
constexpr int FLAT = 6, TALL = 12;

// sums [R, 16 J] = x [R, 2 pairs] times J / 2 panels that follow each other; meanwhile as many at `next` come into the
// caches.
template <int R, int J>
static void tile(const bf16* x, i64 ldx, const bf16* panel, i64 pairs, const bf16* next, float* sums) {
#if HAS_BF16_DOT
    __m512 acc[R][J];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < J; j++) acc[r][j] = _mm512_setzero_ps();
    for (i64 k = 0; k < pairs; k++) {
        __m512bh b[J];
        for (int j = 0; j < J; j++) {
            i64 at = (j / 2 * pairs + k) * 2 * PANEL + j % 2 * 32;
            _mm_prefetch(reinterpret_cast<const char*>(next + at), _MM_HINT_T0);
            b[j] = (__m512bh)_mm512_loadu_si512(panel + at);
        }
        for (int r = 0; r < R; r++) {
            int32_t both;
            std::memcpy(&both, x + r * ldx + 2 * k, 4);
            __m512bh a = (__m512bh)_mm512_set1_epi32(both);
            for (int j = 0; j < J; j++) acc[r][j] = _mm512_dpbf16_ps(acc[r][j], a, b[j]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < J; j++) _mm512_storeu_ps(sums + r * 16 * J + 16 * j, acc[r][j]);
#else
    constexpr int WIDTH = 16 * J;
    for (int i = 0; i < R * WIDTH; i++) sums[i] = 0;
    for (i64 k = 0; k < pairs; k++) {
        for (int r = 0; r < R; r++) {
            float first = wide(x[r * ldx + 2 * k]), second = wide(x[r * ldx + 2 * k + 1]);
            for (int j = 0; j < WIDTH; j++) {
                const bf16* w = panel + (j / PANEL * pairs + k) * 2 * PANEL + 2 * (j % PANEL);
                sums[r * WIDTH + j] += first * wide(w[0]) + second * wide(w[1]);
            }
        }
    }
    (void)next;
#endif
}

// A tile of 1 to 6 rows by two panels.
static inline void flat_tile(i64 rows, const bf16* x, i64 ldx, const bf16* panel, i64 pairs, const bf16* next,
                             float* sums) {
    switch (rows) {
        case 1: return tile<1, 4>(x, ldx, panel, pairs, next, sums);
        case 2: return tile<2, 4>(x, ldx, panel, pairs, next, sums);
        case 3: return tile<3, 4>(x, ldx, panel, pairs, next, sums);
        case 4: return tile<4, 4>(x, ldx, panel, pairs, next, sums);
        case 5: return tile<5, 4>(x, ldx, panel, pairs, next, sums);
        default: return tile<6, 4>(x, ldx, panel, pairs, next, sums);
    }
}

// A tile of 1 to 12 rows by one panel.
static inline void tall_tile(i64 rows, const bf16* x, i64 ldx, const bf16* panel, i64 pairs, const bf16* next,
                             float* sums) {
    switch (rows) {
        case 1: return tile<1, 2>(x, ldx, panel, pairs, next, sums);
        case 2: return tile<2, 2>(x, ldx, panel, pairs, next, sums);
        case 3: return tile<3, 2>(x, ldx, panel, pairs, next, sums);
        case 4: return tile<4, 2>(x, ldx, panel, pairs, next, sums);
        case 5: return tile<5, 2>(x, ldx, panel, pairs, next, sums);
        case 6: return tile<6, 2>(x, ldx, panel, pairs, next, sums);
        case 7: return tile<7, 2>(x, ldx, panel, pairs, next, sums);
        case 8: return tile<8, 2>(x, ldx, panel, pairs, next, sums);
        case 9: return tile<9, 2>(x, ldx, panel, pairs, next, sums);
        case 10: return tile<10, 2>(x, ldx, panel, pairs, next, sums);
        case 11: return tile<11, 2>(x, ldx, panel, pairs, next, sums);
        default: return tile<12, 2>(x, ldx, panel, pairs, next, sums);
    }
}

// The rows of the tile that begins at `row`: `count` rows in tiles of about the same height.
static inline i64 tile_rows(i64 row, i64 count, i64 most) {
    i64 tiles = (count + most - 1) / most, height = (count + tiles - 1) / tiles;
    return std::min(height, count - row);
}
