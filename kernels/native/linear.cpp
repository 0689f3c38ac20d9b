// y = x W^T in bfloat16 with float32 sums, for any number of rows, over weights laid out once.
//
// A weight [N, K] is kept as panels of 32 outputs, [N / 32][K / 2][32][2]: a pair of inputs against 32 outputs is two
// registers, and each step reads every panel once, in order. A sum runs over k in order whatever the number of rows is:
// rows computed together and alone are equal bit by bit.

#include "operators.h"
#include "tile.h"

#include <omp.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {
constexpr i64 AHEAD = 2048;  // elements, 4 KiB: the processor's own prefetch ends with a page
// Rows up to which a thread reads one panel at a time, for memory gives one stream more than two; beyond, reading inputs
// costs more than reading weights again.
constexpr i64 MANY = 64;

i64 panels_of(i64 n) { return (n + 2 * PANEL - 1) / (2 * PANEL) * 2; }  // tiles of few rows take two at a time

// One product with a laid out weight, in strips of outputs.
struct Product {
    const bf16* x;
    i64 ldx, m, k;
    const bf16* packed;
    i64 n;
    const bf16* bias;
    void* y;
    i64 ldy;
    bool wide_out;

    bool flat() const { return m > MANY; }
    i64 span() const { return flat() ? 2 * PANEL : PANEL; }
    i64 strips() const { return panels_of(n) * PANEL / span(); }

    void run(i64 first, i64 last) const {
        i64 width = span(), most = flat() ? FLAT : TALL;
        alignas(64) float sums[FLAT * 2 * PANEL], added[2 * PANEL];
        for (i64 column = first * width; column < std::min(last * width, n); column += width) {
            const bf16* strip = packed + column * k;
            i64 outputs = std::min(width, n - column);
            for (i64 j = 0; j < outputs; j++) added[j] = bias ? wide(bias[column + j]) : 0.0f;
            for (i64 row = 0, rows; row < m; row += rows) {
                rows = tile_rows(row, m, most);
                // The first rows read the weights from memory; later ones fetch the next strip behind the arithmetic.
                const bf16* next = row == 0 ? strip + AHEAD : strip + width * k;
                (flat() ? flat_tile : tall_tile)(rows, x + row * ldx, ldx, strip, k / 2, next, sums);
                for (i64 r = 0; r < rows; r++) {
                    const float* sum = sums + r * width;
                    i64 at = (row + r) * ldy + column;
                    if (wide_out)
                        for (i64 j = 0; j < outputs; j++) static_cast<float*>(y)[at + j] = sum[j] + added[j];
                    else
                        for (i64 j = 0; j < outputs; j++) static_cast<bf16*>(y)[at + j] = narrow(sum[j] + added[j]);
                }
            }
        }
    }
};

}  // namespace

extern "C" {

// Whether products run on bfloat16 registers.
int sirocco_has_dot() { return HAS_BF16_DOT; }

// Elements of a laid out weight [n, k].
i64 sirocco_packed_size(i64 n, i64 k) { return panels_of(n) * PANEL * k; }

// Lay w [n, k] out, k even; outputs past n are zero.
void sirocco_pack(const bf16* w, i64 n, i64 k, bf16* out, int threads) {
    i64 panels = panels_of(n), pairs = k / 2;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // A step reads every weight once: fewer pages, fewer walks.
    uintptr_t page = 2 << 20, begin = (uintptr_t(out) + page - 1) / page * page;
    uintptr_t end = (uintptr_t(out) + uintptr_t(panels * PANEL * k) * 2) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 p = 0; p < panels; p++) {
        bf16* to = out + p * pairs * 2 * PANEL;
        const i64 line = 16;  // pairs that lie in one line of the cache: each is read and written once
        for (i64 begin = 0; begin < pairs; begin += line) {
            i64 end = std::min(pairs, begin + line);
            for (i64 j = 0; j < PANEL; j++) {
                const bf16* from = w + (p * PANEL + j) * k;
                bool there = p * PANEL + j < n;
                for (i64 i = begin; i < end; i++) {
                    uint32_t both = 0;
                    if (there) std::memcpy(&both, from + 2 * i, 4);
                    std::memcpy(to + (i * PANEL + j) * 2, &both, 4);
                }
            }
        }
    }
}

// The inverse of sirocco_pack.
void sirocco_unpack(const bf16* packed, i64 n, i64 k, bf16* out) {
    for (i64 j = 0; j < n; j++)
        for (i64 i = 0; i < k; i++)
            out[j * k + i] = packed[(j / PANEL) * PANEL * k + (i / 2) * 2 * PANEL + 2 * (j % PANEL) + i % 2];
}

// y [m, n] = x [m, k] times the laid out weight, plus bias [n] or none; y is float32 if `wide_out`, else bfloat16.
void sirocco_linear(const bf16* x, i64 ldx, i64 m, i64 k, const bf16* packed, i64 n, const bf16* bias, void* y, i64 ldy,
                    int wide_out, int threads) {
    Product product{x, ldx, m, k, packed, n, bias, y, ldy, wide_out != 0};
    if (m * n * k < (1 << 18)) threads = 1;  // waking a thread takes longer
#pragma omp parallel num_threads(threads)
    {
        i64 first, last;
        share(product.strips(), omp_get_thread_num(), omp_get_num_threads(), first, last);
        product.run(first, last);
    }
}

// For each group g: rows starts[g] to starts[g + 1] of y [m, n] = those of x [m, k] times weight g, plus bias g [n] or
// none. Threads take the next piece of any group, so that groups may differ in size.
void sirocco_grouped_linear(const bf16* x, i64 k, const bf16* const* packed, const i64* starts, i64 groups, i64 n,
                            const bf16* const* biases, bf16* y, int threads) {
    const i64 pieces = 4;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (i64 item = 0; item < groups * pieces; item++) {
        i64 g = item / pieces, row = starts[g], first, last;
        const bf16* bias = biases ? biases[g] : nullptr;
        Product product{x + row * k, k, starts[g + 1] - row, k, packed[g], n, bias, y + row * n, n, false};
        share(product.strips(), int(item % pieces), int(pieces), first, last);
        product.run(first, last);
    }
}

}  // extern "C"
