// Causal attention over the paged cache in bfloat16, with an online softmax (arXiv:2205.14135) in float32.
//
// A task is a run of queries of one request with some KV heads, and the query heads that share them. A few rows multiply
// the keys as they lie in the cache, where a block holds all heads side by side; many rows first lay blocks of keys and
// values of one head out as linear layers do their weights.

#include "operators.h"
#include "tile.h"

#include <omp.h>
#include <vector>

namespace {

constexpr int KEYS = 2 * PANEL;   // keys that are laid out and multiplied at a time
constexpr int FEW = 8;            // rows up to which laying keys out costs more than it saves
constexpr i64 TASK_ROWS = 192;    // rows of a task of a prompt: their outputs stay in L2

struct Shape {
    i64 heads, kv_heads, dim, block_size;
    float scale, softcap;
    i64 window;
};

struct Task {
    i64 kv_head, kv_heads, token, queries, position;  // first head and query, the query's row of q and its position
    const int32_t* blocks;
};

float dot(const bf16* a, const bf16* b, i64 count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < count; i++) sum += wide(a[i]) * wide(b[i]);
    return sum;
}

// scores [count] of a query against keys [count, dim]; out [dim] += weights [count] times values [count, dim].
void score_keys(const bf16* query, const bf16* keys, i64 count, i64 dim, float* scores) {
    for (i64 j = 0; j < count; j++) scores[j] = dot(query, keys + j * dim, dim);
}

void add_values(const float* weights, const bf16* values, i64 count, i64 dim, float* out) {
    for (i64 j = 0; j < count; j++) {
        const bf16* value = values + j * dim;
#pragma omp simd
        for (i64 d = 0; d < dim; d++) out[d] += weights[j] * wide(value[d]);
    }
}

#if HAS_BF16_DOT
// The same for head sizes known in advance, whose query and output stay in registers.
template <int DIM>
void score_keys_of(const bf16* query, const bf16* keys, i64 count, i64, float* scores) {
    __m512bh q[DIM / 32];
    for (int i = 0; i < DIM / 32; i++) q[i] = (__m512bh)_mm512_loadu_si512(query + 32 * i);
    for (i64 j = 0; j < count; j++) {
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < DIM / 32; i++)
            sum = _mm512_dpbf16_ps(sum, q[i], (__m512bh)_mm512_loadu_si512(keys + j * DIM + 32 * i));
        scores[j] = _mm512_reduce_add_ps(sum);
    }
}

template <int DIM>
void add_values_of(const float* weights, const bf16* values, i64 count, i64, float* out) {
    __m512 acc[DIM / 16];
    for (int i = 0; i < DIM / 16; i++) acc[i] = _mm512_loadu_ps(out + 16 * i);
    for (i64 j = 0; j < count; j++) {
        __m512 weight = _mm512_set1_ps(weights[j]);
        for (int i = 0; i < DIM / 16; i++) {
            __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + j * DIM + 16 * i));
            __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
            acc[i] = _mm512_fmadd_ps(weight, value, acc[i]);
        }
    }
    for (int i = 0; i < DIM / 16; i++) _mm512_storeu_ps(out + 16 * i, acc[i]);
}
#endif

using ScoreKeys = void (*)(const bf16*, const bf16*, i64, i64, float*);
using AddValues = void (*)(const float*, const bf16*, i64, i64, float*);

void choose(i64 dim, ScoreKeys& score, AddValues& add) {
    score = score_keys, add = add_values;
#if HAS_BF16_DOT
    if (dim == 64) score = score_keys_of<64>, add = add_values_of<64>;
    if (dim == 96) score = score_keys_of<96>, add = add_values_of<96>;
    if (dim == 128) score = score_keys_of<128>, add = add_values_of<128>;
    if (dim == 256) score = score_keys_of<256>, add = add_values_of<256>;
#endif
}

void prefetch(const bf16* at) { __builtin_prefetch(at, 0, 3); }

float scored(float product, const Shape& shape) {
    float score = product * shape.scale;
    return shape.softcap > 0 ? shape.softcap * std::tanh(score / shape.softcap) : score;
}

// What the rows of a task have gathered so far.
struct Sums {
    std::vector<float> most, total, out;
    std::vector<float> scores;
    std::vector<bf16> queries, shares, key_panels, value_panels;

    void begin(i64 rows, i64 dim) {
        most.assign(rows, -INFINITY);
        total.assign(rows, 0.0f);
        out.assign(rows * dim, 0.0f);
    }
};

// Turn scores [count] of a row into exponentials against the row's greatest so far; rescale what it has gathered.
// Unseen keys have a score of -inf.
inline void absorb(float* scores, i64 count, float& most, float& total, float* out, i64 dim) {
    float top = most;
#pragma omp simd reduction(max : top)
    for (i64 j = 0; j < count; j++) top = std::max(top, scores[j]);
    if (top == -INFINITY) {  // nothing seen yet
        std::fill(scores, scores + count, 0.0f);
        return;
    }
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 j = 0; j < count; j++) {
        float e = scores[j] < -1e30f ? 0.0f : exponential(scores[j] - top);
        scores[j] = e;
        sum += e;
    }
    if (top > most) {
        float kept = most == -INFINITY ? 0.0f : exponential(most - top);
        total *= kept;
#pragma omp simd
        for (i64 d = 0; d < dim; d++) out[d] *= kept;
        most = top;
    }
    total += sum;
}

// Keys that any query of a task sees: [first, last).
void seen(const Task& task, const Shape& shape, i64& first, i64& last) {
    last = task.position + task.queries;
    first = shape.window > 0 ? std::max<i64>(0, task.position - shape.window + 1) : 0;
}

// Hide the keys that a query at `position` does not see, of `count` from `key` on.
void mask(float* scores, i64 key, i64 count, i64 position, const Shape& shape) {
    i64 first = shape.window > 0 ? position - shape.window + 1 - key : 0, last = position + 1 - key;
    for (i64 j = 0; j < std::min(first, count); j++) scores[j] = -INFINITY;
    for (i64 j = std::max<i64>(last, 0); j < count; j++) scores[j] = -INFINITY;
}

// The task's rows, KV head by KV head and query by query with its heads, as [rows, dim].
void gather_queries(const bf16* q, const Task& task, const Shape& shape, bf16* to) {
    i64 group = shape.heads / shape.kv_heads, count = group * shape.dim;
    for (i64 h = task.kv_head; h < task.kv_head + task.kv_heads; h++)
        for (i64 i = 0; i < task.queries; i++, to += count)
            std::memcpy(to, q + ((task.token + i) * shape.heads + h * group) * shape.dim, count * sizeof(bf16));
}

void few_rows(const bf16* k_cache, const bf16* v_cache, const Task& task, const Shape& shape, Sums& sums) {
    i64 group = shape.heads / shape.kv_heads, rows = task.queries * group, dim = shape.dim, size = shape.block_size;
    i64 first, last;
    seen(task, shape, first, last);
    sums.scores.resize(size);
    ScoreKeys score;
    AddValues add;
    choose(dim, score, add);
    for (i64 block = first / size; block * size < last; block++) {
        i64 count = std::min(size, last - block * size);
        i64 at = (task.blocks[block] * shape.kv_heads + task.kv_head) * size * dim;
        for (i64 h = 0; h < task.kv_heads; h++, at += size * dim) {
            const bf16 *keys = k_cache + at, *values = v_cache + at;
            if (h + 1 == task.kv_heads && (block + 1) * size < last) {  // the next block lies anywhere
                i64 next = (task.blocks[block + 1] * shape.kv_heads + task.kv_head) * size * dim;
                for (i64 i = 0; i < size * dim; i += 32) prefetch(k_cache + next + i), prefetch(v_cache + next + i);
            }
            for (i64 row = h * rows; row < (h + 1) * rows; row++) {
                float *scores = sums.scores.data(), *out = sums.out.data() + row * dim;
                score(sums.queries.data() + row * dim, keys, count, dim, scores);
                for (i64 j = 0; j < count; j++) scores[j] = scored(scores[j], shape);
                mask(scores, block * size, count, task.position + row % rows / group, shape);
                absorb(scores, count, sums.most[row], sums.total[row], out, dim);
                add(scores, values, count, dim, out);
            }
        }
    }
}

// Lay `count` keys from `key` on out as panels [dim / 2, 32, 2] of 32 keys, and their values as panels [32, 32, 2] of 32
// outputs; what is missing is zero.
void lay_out(const bf16* k_cache, const bf16* v_cache, i64 key, i64 count, const Task& task, const Shape& shape,
             Sums& sums) {
    i64 dim = shape.dim, size = shape.block_size, pairs = dim / 2;
    const bf16 *keys[KEYS], *values[KEYS];
    for (i64 j = 0; j < KEYS; j++) {
        i64 block = (key + std::min(j, count - 1)) / size, offset = (key + std::min(j, count - 1)) % size;
        i64 at = ((task.blocks[block] * shape.kv_heads + task.kv_head) * size + offset) * dim;
        keys[j] = k_cache + at, values[j] = v_cache + at;
    }
    uint32_t* k_to = reinterpret_cast<uint32_t*>(sums.key_panels.data());
    for (i64 j = 0; j < KEYS; j++) {
        uint32_t* to = k_to + j / PANEL * pairs * PANEL + j % PANEL;
        for (i64 i = 0; i < pairs; i++) {
            uint32_t both;
            std::memcpy(&both, keys[j] + 2 * i, 4);
            to[i * PANEL] = j < count ? both : 0;
        }
    }
    uint32_t* v_to = reinterpret_cast<uint32_t*>(sums.value_panels.data());
    for (i64 j = 0; j < KEYS; j += 2) {
        uint32_t first = j < count ? 0xffffu : 0, second = j + 1 < count ? 0xffffu : 0;
        for (i64 at = 0; at < dim; at += PANEL) {
            uint32_t* to = v_to + at * KEYS / 2 + j / 2 * PANEL;
            i64 width = std::min<i64>(PANEL, dim - at);
            const bf16 *a = values[j] + at, *b = values[j + 1] + at;
#pragma omp simd
            for (i64 d = 0; d < width; d++) to[d] = (a[d] & first) | (uint32_t(b[d] & second) << 16);
        }
    }
}

void many_rows(const bf16* k_cache, const bf16* v_cache, const Task& task, const Shape& shape, Sums& sums) {
    i64 group = shape.heads / shape.kv_heads, rows = task.queries * group, dim = shape.dim;
    i64 spans = (dim + 2 * PANEL - 1) / (2 * PANEL), first, last;
    seen(task, shape, first, last);
    sums.scores.resize(FLAT * KEYS);
    sums.shares.resize(FLAT * KEYS);
    sums.key_panels.resize(dim * KEYS);
    sums.value_panels.assign(spans * 2 * PANEL * KEYS, 0);
    alignas(64) float products[FLAT * KEYS];
    for (i64 key = first / KEYS * KEYS; key < last; key += KEYS) {
        i64 count = std::min<i64>(KEYS, last - key);
        lay_out(k_cache, v_cache, key, count, task, shape, sums);
        for (i64 row = 0, height; row < rows; row += height) {
            height = tile_rows(row, rows, FLAT);
            i64 newest = task.position + (row + height - 1) / group, oldest = task.position + row / group;
            if (newest < key || (shape.window > 0 && oldest - shape.window >= key + count - 1)) continue;
            bool whole = count == KEYS && oldest >= key + KEYS - 1 && (shape.window <= 0 || newest - shape.window < key);
            flat_tile(height, sums.queries.data() + row * dim, dim, sums.key_panels.data(), dim / 2,
                          sums.value_panels.data(), products);
            for (i64 r = 0; r < height; r++) {
                float* scores = products + r * KEYS;
                if (shape.softcap > 0) {
                    for (i64 j = 0; j < KEYS; j++) scores[j] = scored(scores[j], shape);
                } else {
#pragma omp simd
                    for (i64 j = 0; j < KEYS; j++) scores[j] *= shape.scale;
                }
                i64 at = row + r;
                if (!whole) mask(scores, key, KEYS, task.position + at / group, shape);
                absorb(scores, KEYS, sums.most[at], sums.total[at], sums.out.data() + at * dim, dim);
                bf16* shares = sums.shares.data() + r * KEYS;
#pragma omp simd
                for (i64 j = 0; j < KEYS; j++) shares[j] = narrow(scores[j]);
            }
            for (i64 at = 0; at < dim; at += 2 * PANEL) {
                const bf16* panel = sums.value_panels.data() + at * KEYS;
                flat_tile(height, sums.shares.data(), KEYS, panel, KEYS / 2, panel, products);
                i64 width = std::min<i64>(2 * PANEL, dim - at);
                for (i64 r = 0; r < height; r++) {
                    float* out = sums.out.data() + (row + r) * dim + at;
#pragma omp simd
                    for (i64 d = 0; d < width; d++) out[d] += products[r * 2 * PANEL + d];
                }
            }
        }
    }
}

// out = gathered values / (their weights and the sink's)
void finish(const Task& task, const Shape& shape, const float* sinks, const Sums& sums, bf16* out) {
    i64 group = shape.heads / shape.kv_heads, dim = shape.dim, rows = task.queries * group;
    for (i64 row = 0; row < task.kv_heads * rows; row++) {
        i64 head = (task.kv_head + row / rows) * group + row % group;
        float total = sums.total[row];
        if (sinks) total += std::exp(std::min(sinks[head] - sums.most[row], 80.0f));
        float share = total > 0 ? 1.0f / total : 0.0f;
        bf16* to = out + ((task.token + row % rows / group) * shape.heads + head) * dim;
        const float* from = sums.out.data() + row * dim;
        for (i64 d = 0; d < dim; d++) to[d] = narrow(from[d] * share);
    }
}

}  // namespace

extern "C" {

// q and out [tokens, heads, dim], caches [blocks, kv_heads, block_size, dim]; requests stand side by side in q, with
// query_lens and kv_lens [requests] and tables [requests, table_width]. sinks [heads] or null; 0 means no window, no cap.
void sirocco_paged_attention(const bf16* q, const bf16* k_cache, const bf16* v_cache, const i64* query_lens,
                             const i64* kv_lens, i64 requests, const int32_t* tables, i64 table_width, i64 heads,
                             i64 kv_heads, i64 dim, i64 block_size, float scale, i64 window, float softcap,
                             const float* sinks, bf16* out, int threads) {
    Shape shape{heads, kv_heads, dim, block_size, scale, softcap, window};
    i64 group = heads / kv_heads, most = std::max<i64>(1, TASK_ROWS / group), token = 0, work = 0;
    std::vector<Task> tasks;
    for (i64 b = 0; b < requests; b++) {
        for (i64 i = 0; i < query_lens[b]; i += most) {
            i64 queries = std::min(most, query_lens[b] - i), position = kv_lens[b] - query_lens[b] + i;
            // A few rows take as many heads as leave work for every thread: they lie together.
            i64 parts = queries * group > FEW ? kv_heads : std::min<i64>(kv_heads, (threads + requests - 1) / requests);
            for (i64 part = 0; part < parts; part++) {
                i64 h, end;
                share(kv_heads, int(part), int(parts), h, end);
                tasks.push_back({h, end - h, token + i, queries, position, tables + b * table_width});
            }
            work += queries * heads * (position + queries);
        }
        token += query_lens[b];
    }
    // Long ones first, so that no thread ends up with one alone.
    std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) {
        return a.queries * (a.position + a.queries) > b.queries * (b.position + b.queries);
    });
    if (work * dim < (1 << 17)) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Sums sums;
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < tasks.size(); i++) {
            const Task& task = tasks[i];
            i64 rows = task.queries * group;
            sums.begin(task.kv_heads * rows, dim);
            sums.queries.resize(task.kv_heads * rows * dim);
            gather_queries(q, task, shape, sums.queries.data());
            (rows <= FEW ? few_rows : many_rows)(k_cache, v_cache, task, shape, sums);
            finish(task, shape, sinks, sums, out);
        }
    }
}

}  // extern "C"
