// Causal attention over the paged cache in bfloat16, with an online softmax (arXiv:2205.14135) in float32.
//
// A task is a run of queries of one request with some KV heads, and the query heads that share them. A few rows multiply
// the keys as they lie in the cache, where a block holds all heads side by side; many rows first lay blocks of keys and
// values of one head out as linear layers do their weights. Where rows are few, so that there might be more threads than
// tasks, a long context is cut into runs of keys, whatever else is computed, and what they gather is added up.

#include "operators.h"
#include "tile.h"

#include <memory>
#include <omp.h>
#include <vector>

namespace {

constexpr int KEYS = 2 * PANEL;   // keys that are laid out and multiplied at a time
constexpr int FEW = 8;            // rows up to which laying keys out costs more than it saves
constexpr i64 TASK_ROWS = 192;    // rows of a task of a prompt: their outputs stay in L2
constexpr i64 RUN = 2048;         // keys of a run, a multiple of KEYS,
constexpr i64 RUN_ROWS = 64;      // in tasks of up to so many rows

struct Shape {
    i64 heads, kv_heads, dim, block_size;
    float scale, softcap;
    i64 window;
};

struct Task {
    i64 kv_head, kv_heads, token, queries, position;  // first head and query, the query's row of q and its position
    const int32_t* blocks;
    i64 first, last;  // the keys [first, last), of those that any of the queries sees
    i64 run, runs;    // of so many tasks over the same queries this is the one of this number;
    i64 kept;         // where what the first of them gathered is kept, [rows, dim + 2]

    i64 rows(const Shape& shape) const { return kv_heads * queries * (shape.heads / shape.kv_heads); }
    i64 floats(const Shape& shape) const { return rows(shape) * (shape.dim + 2); }
};

float dot(const bf16* a, const bf16* b, i64 count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < count; i++) sum += wide(a[i]) * wide(b[i]);
    return sum;
}

// scores [rows, count] of queries [rows, dim] against keys [count, dim], a row of scores every `stride`.
void score_keys(const bf16* queries, i64 rows, const bf16* keys, i64 count, i64 dim, float* scores, i64 stride) {
    for (i64 r = 0; r < rows; r++)
        for (i64 j = 0; j < count; j++) scores[r * stride + j] = dot(queries + r * dim, keys + j * dim, dim);
}

// out [rows, dim] += weights [rows, count] times values [count, dim].
void add_values(const float* weights, i64 rows, i64 stride, const bf16* values, i64 count, i64 dim, float* out) {
    for (i64 r = 0; r < rows; r++)
        for (i64 j = 0; j < count; j++) {
            const bf16* value = values + j * dim;
            float weight = weights[r * stride + j];
#pragma omp simd
            for (i64 d = 0; d < dim; d++) out[r * dim + d] += weight * wide(value[d]);
        }
}

#if HAS_BF16_DOT
constexpr int LANES = 16;

// The sums of sixteen registers, each in the lane of its number.
inline __m512 sums_of(const __m512* x) {
    __m512 four[4], two[2];
    for (int i = 0; i < 4; i++) {
        __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(x[4 * i], x[4 * i + 1]), _mm512_unpackhi_ps(x[4 * i], x[4 * i + 1]));
        __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(x[4 * i + 2], x[4 * i + 3]),
                                 _mm512_unpackhi_ps(x[4 * i + 2], x[4 * i + 3]));
        __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
        four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
    }
    for (int i = 0; i < 2; i++)
        two[i] = _mm512_add_ps(_mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0x88),
                               _mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(two[0], two[1], 0x88), _mm512_shuffle_f32x4(two[0], two[1], 0xdd));
}

// The same for head sizes known in advance, whose queries and outputs stay in registers. Keys are taken sixteen at a
// time: past `count`, as far as the next multiple, they are read and their scores mean nothing.
template <int DIM>
void score_keys_of(const bf16* queries, i64 rows, const bf16* keys, i64 count, i64, float* scores, i64 stride) {
    for (i64 r = 0; r < rows; r++) {
        __m512bh q[DIM / 32];
        for (int i = 0; i < DIM / 32; i++) q[i] = (__m512bh)_mm512_loadu_si512(queries + r * DIM + 32 * i);
        for (i64 first = 0; first < count; first += LANES) {
            __m512 products[LANES];
#pragma GCC unroll 16
            for (int j = 0; j < LANES; j++) {
                const bf16* key = keys + (first + j) * DIM;
                products[j] = _mm512_setzero_ps();
#pragma GCC unroll 8
                for (int i = 0; i < DIM / 32; i++)
                    products[j] = _mm512_dpbf16_ps(products[j], q[i], (__m512bh)_mm512_loadu_si512(key + 32 * i));
            }
            _mm512_storeu_ps(scores + r * stride + first, sums_of(products));
        }
    }
}

// R rows, for which each value is read and widened once.
template <int DIM, int R>
void add_values_to(const float* weights, i64 stride, const bf16* values, i64 count, float* out) {
    __m512 acc[R][DIM / 16];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < DIM / 16; i++) acc[r][i] = _mm512_loadu_ps(out + r * DIM + 16 * i);
    for (i64 j = 0; j < count; j++) {
#pragma GCC unroll 16
        for (int i = 0; i < DIM / 16; i++) {
            __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + j * DIM + 16 * i));
            __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
                acc[r][i] = _mm512_fmadd_ps(_mm512_set1_ps(weights[r * stride + j]), value, acc[r][i]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < DIM / 16; i++) _mm512_storeu_ps(out + r * DIM + 16 * i, acc[r][i]);
}

template <int DIM>
void add_values_of(const float* weights, i64 rows, i64 stride, const bf16* values, i64 count, i64, float* out) {
    constexpr int MOST = DIM <= 64 ? 4 : DIM <= 128 ? 2 : 1;  // rows whose outputs fit in the registers
    i64 r = 0;
    for (; r + MOST <= rows; r += MOST)
        add_values_to<DIM, MOST>(weights + r * stride, stride, values, count, out + r * DIM);
    for (; r < rows; r++) add_values_to<DIM, 1>(weights + r * stride, stride, values, count, out + r * DIM);
}
#endif

using ScoreKeys = void (*)(const bf16*, i64, const bf16*, i64, i64, float*, i64);
using AddValues = void (*)(const float*, i64, i64, const bf16*, i64, i64, float*);

void choose(const Shape& shape, ScoreKeys& score, AddValues& add) {
    score = score_keys, add = add_values;
#if HAS_BF16_DOT
    if (shape.block_size % LANES) return;
    if (shape.dim == 64) score = score_keys_of<64>, add = add_values_of<64>;
    if (shape.dim == 96) score = score_keys_of<96>, add = add_values_of<96>;
    if (shape.dim == 128) score = score_keys_of<128>, add = add_values_of<128>;
    if (shape.dim == 256) score = score_keys_of<256>, add = add_values_of<256>;
#endif
}

void prefetch(const bf16* from, i64 count) {
    for (i64 i = 0; i < count; i += 32) __builtin_prefetch(from + i, 0, 3);
}

// Products of queries and keys as scores.
inline void scale(float* scores, i64 count, const Shape& shape) {
#pragma omp simd
    for (i64 j = 0; j < count; j++) scores[j] *= shape.scale;
    if (!(shape.softcap > 0)) return;
    const float twice = 2.0f / shape.softcap;
#pragma omp simd
    for (i64 j = 0; j < count; j++)  // the cap times a tanh, which compilers do not vectorise as they do exponentials
        scores[j] = shape.softcap * (1.0f - 2.0f / (exponential(twice * scores[j]) + 1.0f));
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
    if (top == -INFINITY) {  // nothing seen yet, or all that is seen is NaN, which must not get lost
        for (i64 j = 0; j < count; j++)
            if (scores[j] != scores[j]) total = scores[j];
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
    i64 first = task.first, last = task.last;
    // Several blocks at a time: each time costs a row its greatest score and its exponentials' set-up.
    i64 span = std::max<i64>(1, KEYS / size), stride = span * size, end = (last + size - 1) / size;
    sums.scores.resize(rows * stride);
    ScoreKeys score;
    AddValues add;
    choose(shape, score, add);
    float* scores = sums.scores.data();
    auto place = [&](i64 block, i64 h) { return (task.blocks[block] * shape.kv_heads + task.kv_head + h) * size * dim; };
    for (i64 begin = first / size; begin < end; begin += span) {
        i64 blocks = std::min(span, end - begin), count = std::min(blocks * size, last - begin * size);
        for (i64 h = 0; h < task.kv_heads; h++) {
            // What is multiplied after this comes meanwhile: the next head of these blocks, or the first of the next.
            bool more = h + 1 < task.kv_heads;
            i64 next = more ? begin : begin + span, next_h = more ? h + 1 : 0;
            const bf16* queries = sums.queries.data() + h * rows * dim;
            for (i64 b = 0; b < blocks; b++) {
                if (next + b < end) prefetch(k_cache + place(next + b, next_h), size * dim);
                i64 keys = std::min(size, count - b * size);
                score(queries, rows, k_cache + place(begin + b, h), keys, dim, scores + b * size, stride);
            }
            float* gathered = sums.out.data() + h * rows * dim;
            for (i64 r = 0; r < rows; r++) {
                float* own = scores + r * stride;
                scale(own, count, shape);
                mask(own, begin * size, count, task.position + r / group, shape);
                absorb(own, count, sums.most[h * rows + r], sums.total[h * rows + r], gathered + r * dim, dim);
            }
            for (i64 b = 0; b < blocks; b++) {
                if (next + b < end) prefetch(v_cache + place(next + b, next_h), size * dim);
                i64 keys = std::min(size, count - b * size);
                add(scores + b * size, rows, stride, v_cache + place(begin + b, h), keys, dim, gathered);
            }
        }
    }
}

// Lay the keys [begin, end) of the KEYS from `key` on out as panels [dim / 2, 32, 2] of 32 keys, and their values as
// panels [32, 32, 2] of 32 outputs; the others are not read but zero: blocks before a window may be another request's.
void lay_out(const bf16* k_cache, const bf16* v_cache, i64 key, i64 begin, i64 end, const Task& task, const Shape& shape,
             Sums& sums) {
    i64 dim = shape.dim, size = shape.block_size, pairs = dim / 2;
    const bf16 *keys[KEYS], *values[KEYS];
    bool there[KEYS];
    for (i64 j = 0; j < KEYS; j++) {
        i64 from = std::min(std::max(key + j, begin), end - 1);
        i64 at = ((task.blocks[from / size] * shape.kv_heads + task.kv_head) * size + from % size) * dim;
        keys[j] = k_cache + at, values[j] = v_cache + at, there[j] = from == key + j;
    }
    uint32_t* k_to = reinterpret_cast<uint32_t*>(sums.key_panels.data());
    for (i64 j = 0; j < KEYS; j++) {
        uint32_t* to = k_to + j / PANEL * pairs * PANEL + j % PANEL;
        for (i64 i = 0; i < pairs; i++) {
            uint32_t both;
            std::memcpy(&both, keys[j] + 2 * i, 4);
            to[i * PANEL] = there[j] ? both : 0;
        }
    }
    uint32_t* v_to = reinterpret_cast<uint32_t*>(sums.value_panels.data());
    for (i64 j = 0; j < KEYS; j += 2) {
        uint32_t first = there[j] ? 0xffffu : 0, second = there[j + 1] ? 0xffffu : 0;
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
    i64 spans = (dim + 2 * PANEL - 1) / (2 * PANEL), first = task.first, last = task.last;
    sums.scores.resize(FLAT * KEYS);
    sums.shares.resize(FLAT * KEYS);
    sums.key_panels.resize(dim * KEYS);
    sums.value_panels.assign(spans * 2 * PANEL * KEYS, 0);
    alignas(64) float products[FLAT * KEYS];
    for (i64 key = first / KEYS * KEYS; key < last; key += KEYS) {
        i64 count = std::min<i64>(KEYS, last - key);
        lay_out(k_cache, v_cache, key, std::max(key, first), key + count, task, shape, sums);
        for (i64 row = 0, height; row < rows; row += height) {
            height = tile_rows(row, rows, FLAT);
            i64 newest = task.position + (row + height - 1) / group, oldest = task.position + row / group;
            if (newest < key || (shape.window > 0 && oldest - shape.window >= key + count - 1)) continue;
            bool whole = count == KEYS && oldest >= key + KEYS - 1 && (shape.window <= 0 || newest - shape.window < key);
            flat_tile(height, sums.queries.data() + row * dim, dim, sums.key_panels.data(), dim / 2,
                          sums.value_panels.data(), products);
            for (i64 r = 0; r < height; r++) {
                float* scores = products + r * KEYS;
                scale(scores, KEYS, shape);
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

// Leave what a run has gathered to whoever adds the runs up.
void keep(const Task& task, const Shape& shape, const Sums& sums, float* kept) {
    i64 rows = task.rows(shape), dim = shape.dim;
    float* to = kept + task.kept + task.run * task.floats(shape);
    for (i64 row = 0; row < rows; row++, to += dim + 2) {
        to[0] = sums.most[row], to[1] = sums.total[row];
        std::memcpy(to + 2, sums.out.data() + row * dim, dim * sizeof(float));
    }
}

// What all runs over a task's queries have gathered, in their order.
void add_runs(const Task& task, const Shape& shape, const float* kept, Sums& sums) {
    i64 rows = task.rows(shape), dim = shape.dim, stride = task.floats(shape);
    sums.begin(rows, dim);
    for (i64 row = 0; row < rows; row++) {
        const float* first = kept + task.kept + row * (dim + 2);
        float most = -INFINITY, *out = sums.out.data() + row * dim;
        for (i64 run = 0; run < task.runs; run++) most = std::max(most, first[run * stride]);
        for (i64 run = 0; run < task.runs; run++) {
            const float* own = first + run * stride;
            float share = own[0] == -INFINITY ? 0.0f : exponential(own[0] - most);
            sums.total[row] += own[1] * share;  // NaN where all that a run saw was NaN
#pragma omp simd
            for (i64 d = 0; d < dim; d++) out[d] += own[2 + d] * share;
        }
        sums.most[row] = most;
    }
}

// out = gathered values / (their weights and the sink's)
void finish(const Task& task, const Shape& shape, const float* sinks, const Sums& sums, bf16* out) {
    i64 group = shape.heads / shape.kv_heads, dim = shape.dim, rows = task.queries * group;
    for (i64 row = 0; row < task.kv_heads * rows; row++) {
        i64 head = (task.kv_head + row / rows) * group + row % group;
        float total = sums.total[row];
        if (sinks) total += std::exp(std::min(sinks[head] - sums.most[row], 80.0f));
        float share = total == 0 ? 0.0f : 1.0f / total;
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
    i64 group = heads / kv_heads, most = std::max<i64>(1, TASK_ROWS / group), token = 0, work = 0, kept_floats = 0;
    std::vector<Task> tasks, cut;
    for (i64 b = 0; b < requests; b++) {
        for (i64 i = 0; i < query_lens[b]; i += most) {
            i64 queries = std::min(most, query_lens[b] - i), position = kv_lens[b] - query_lens[b] + i;
            // A few rows take as many heads as leave work for every thread: they lie together.
            i64 parts = queries * group > FEW ? kv_heads : std::min<i64>(kv_heads, (threads + requests - 1) / requests);
            i64 first = window > 0 ? std::max<i64>(0, position - window + 1) : 0, last = position + queries;
            bool in_runs = queries * group <= RUN_ROWS && RUN % block_size == 0;
            i64 begin = in_runs ? first / RUN * RUN : 0, runs = in_runs ? (last - begin + RUN - 1) / RUN : 1;
            i64 floats = runs > 1 ? runs * queries * group * (dim + 2) : 0;  // that are kept of a KV head
            for (i64 run = 0; run < runs; run++)
                for (i64 part = 0; part < parts; part++) {  // heads that lie together at about the same time
                    i64 h, end;
                    share(kv_heads, int(part), int(parts), h, end);
                    Task task{h, end - h, token + i, queries, position, tables + b * table_width,
                              first, last, run, runs, kept_floats + h * floats};
                    if (runs > 1) {
                        task.first = std::max(first, begin + run * RUN);
                        task.last = std::min(last, begin + (run + 1) * RUN);
                        if (run == 0) cut.push_back(task);
                    }
                    tasks.push_back(task);
                }
            kept_floats += kv_heads * floats;
            work += queries * heads * (position + queries);
        }
        token += query_lens[b];
    }
    // Long ones first, so that no thread ends up with one alone.
    std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) {
        return a.queries * (a.last - a.first) > b.queries * (b.last - b.first);
    });
    std::unique_ptr<float[]> kept(kept_floats ? new float[kept_floats] : nullptr);
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
            if (task.runs > 1)
                keep(task, shape, sums, kept.get());
            else
                finish(task, shape, sinks, sums, out);
        }
    }
    Sums sums;
    for (const Task& task : cut) {  // by one thread: less work than waking the others
        add_runs(task, shape, kept.get(), sums);
        finish(task, shape, sinks, sums, out);
    }
}

}  // extern "C"
