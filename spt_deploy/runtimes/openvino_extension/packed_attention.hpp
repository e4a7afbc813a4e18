// Attention of packed tokens, as PackedAttention of the operator set has it (export/README.md).
//
//   o[i] = sum_j p[i, j] v[j],   p[i] = softmax_j(q[i] . k[j] + bias[clamp(y_i - y_j), clamp(x_i - x_j)])
//
// A container is cut into pieces of one image, so that nothing has to be masked, and every piece and head is read where
// the projection put it and written where the next one looks for it. Its scores stay in the cache.
// Queries come scaled. Source: arXiv 2410.23608, section 3.2; the bias is Swin's (arXiv 2103.14030, equation 4).

#pragma once

#include <algorithm>
#include <vector>

#include "bias_table.hpp"
#include "vectors.hpp"

namespace spt {

constexpr int HEAD = 32;    // channels of a head
#if defined(__AVX512F__)
constexpr int QUERIES = 7;  // whose scores fit the registers together, with CHUNK vectors of keys
#else
constexpr int QUERIES = 3;
#endif
constexpr int CHUNK = 4;
constexpr int ROWS = LENGTH + QUERIES;  // the last block of queries may end beyond the last one

struct AttentionShape {
    int heads, window, tokens, width;
    bool per_image;
};

struct Piece {
    int first, count;  // slots
};

// The list of kept tokens, cut where images and containers end.
inline std::vector<Piece> pieces_of(const int32_t* ends, int images, const AttentionShape& shape) {
    const int length = shape.window * shape.window;
    std::vector<Piece> pieces;
    for (int image = 0; image < images; image++)
        for (int slot = ends[image]; slot < ends[image + 1];) {
            const int whole = shape.per_image ? slot + length : (slot / length + 1) * length;
            const int stop = std::min(whole, static_cast<int>(ends[image + 1]));
            pieces.push_back({slot, stop - slot});
            slot = stop;
        }
    return pieces;
}

// One channel of float32 in each lane.
struct Single {
    static constexpr int CHANNELS = 1;
    static Floats add_product(Floats sum, Floats a, Floats b) { return sum + a * b; }
    static void row(const float* from, float* to) { std::memcpy(to, from, HEAD * sizeof *to); }
    static void row(const Bfloat16* from, float* to) {
        for (int d = 0; d < HEAD; d++) to[d] = number(from[d]);
    }
    template <typename Number>
    static void rows(const Number* first, const Number*, float* to) { row(first, to); }
    static void terms(float*, int) {}
};

#if defined(__AVX512BF16__)
// Two channels of bfloat16 in each lane, which one instruction multiplies and adds up.
struct Double {
    static constexpr int CHANNELS = 2;
    static Floats add_product(Floats sum, Floats a, Floats b) {
        return reinterpret_cast<Floats>(_mm512_dpbf16_ps(
            reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
    }
    static void row(const Bfloat16* from, float* to) { std::memcpy(to, from, HEAD * sizeof *from); }
    static void rows(const Bfloat16* first, const Bfloat16* second, float* to) {
        uint32_t words[HEAD];
        for (int d = 0; d < HEAD; d++) words[d] = first[d].bits | static_cast<uint32_t>(second[d].bits) << 16;
        std::memcpy(to, words, sizeof words);
    }
    // A row of float32 becomes one of half as many lanes.
    static void terms(float* row, int padded) {
        for (int at = 0; at < padded; at += WIDTH) {
            const __m256bh half = _mm512_cvtneps_pbh(_mm512_loadu_ps(row + at));
            std::memcpy(row + at / 2, &half, sizeof half);
        }
    }
};
#endif

template <typename Number>
struct Lanes {
    using Unit = Single;
};
#if defined(__AVX512BF16__)
template <>
struct Lanes<Bfloat16> {
    using Unit = Double;
};
#endif

// What one piece and head needs, of a thread. Of rows that no token has nothing is written to the output.
struct Scratch {
    alignas(64) float queries[ROWS * HEAD];       // a row each
    alignas(64) float keys[HEAD * LENGTH];        // a column each
    alignas(64) float values[LENGTH * HEAD];      // a row each, or two
    alignas(64) float scores[ROWS * LENGTH];      // a row for each query
    alignas(64) uint16_t entries[ROWS * LENGTH];  // of the bias table, for each pair of tokens
};

inline void find_entries(const int32_t* token, int count, int padded, const AttentionShape& shape,
                         uint16_t* entries) {
    const int reach = shape.window - 1, side = 2 * shape.window - 1;
    alignas(64) int32_t y[LENGTH] = {}, x[LENGTH] = {};
    for (int i = 0; i < count; i++) {
        const int place = token[i] % shape.tokens;
        y[i] = place / shape.width;
        x[i] = place % shape.width;
    }
    for (int i = 0; i < count; i++) {
        uint16_t* row = entries + i * LENGTH;
        for (int j = 0; j < padded; j++) {
            const int dy = std::min(std::max(y[i] - y[j], -reach), reach) + reach;
            const int dx = std::min(std::max(x[i] - x[j], -reach), reach) + reach;
            row[j] = static_cast<uint16_t>(dy * side + dx);
        }
        for (int j = count; j < padded; j++) row[j] = NO_KEY;
    }
}

// Scores of a block of queries with as many vectors of keys.
template <typename Unit, int VECTORS>
inline void score(const float* queries, const float* keys, float* scores) {
    constexpr int STEPS = HEAD / Unit::CHANNELS;
    Floats sum[QUERIES][VECTORS] = {};
    for (int d = 0; d < STEPS; d++) {
        Floats key[VECTORS];
        for (int w = 0; w < VECTORS; w++) key[w] = load(keys + d * LENGTH + w * WIDTH);
        for (int i = 0; i < QUERIES; i++) {
            const Floats query = all(queries[i * STEPS + d]);
            for (int w = 0; w < VECTORS; w++) sum[i][w] = Unit::add_product(sum[i][w], query, key[w]);
        }
    }
    for (int i = 0; i < QUERIES; i++)
        for (int w = 0; w < VECTORS; w++) store(scores + i * LENGTH + w * WIDTH, sum[i][w]);
}

template <typename Unit>
inline void score_all(const float* queries, const float* keys, float* scores, int vectors) {
    int w = 0;
    for (; w + CHUNK <= vectors; w += CHUNK) score<Unit, CHUNK>(queries, keys + w * WIDTH, scores + w * WIDTH);
    keys += w * WIDTH, scores += w * WIDTH;
    if (vectors - w == 3) score<Unit, 3>(queries, keys, scores);
    if (vectors - w == 2) score<Unit, 2>(queries, keys, scores);
    if (vectors - w == 1) score<Unit, 1>(queries, keys, scores);
}

// Scores of a block become the terms of their softmax; a factor for each row is left, by which to weigh. Rows take each
// step together, for within a row the steps wait for each other.
template <typename Unit>
inline void soften(float* scores, const uint16_t* entries, const BiasTable& table, int rows, int vectors,
                   float* factors) {
    float largest[QUERIES];
    for (int i = 0; i < rows; i++)
        largest[i] = largest_of(table.add(entries + i * LENGTH, scores + i * LENGTH, vectors));
    for (int i = 0; i < rows; i++) {
        const Floats top = all(largest[i]);
        Floats sum{};
        for (int w = 0; w < vectors; w++) {
            float* at = scores + i * LENGTH + w * WIDTH;
            const Floats term = exp_of(load(at) - top);
            store(at, term);
            sum += term;
        }
        factors[i] = 1.0f / sum_of(sum);
        Unit::terms(scores + i * LENGTH, vectors * WIDTH);
    }
}

// Values of a block of queries: weighed by the terms, and by a factor for each.
template <typename Unit, typename Number>
inline void weigh(const float* terms, const float* factors, const float* values, int steps, int rows, Number* out,
                  size_t stride) {
    constexpr int VECTORS = HEAD / WIDTH < CHUNK ? HEAD / WIDTH : CHUNK;
    for (int first = 0; first < HEAD; first += VECTORS * WIDTH) {
        Floats sum[QUERIES][VECTORS] = {};
        for (int j = 0; j < steps; j++) {
            Floats value[VECTORS];
            for (int w = 0; w < VECTORS; w++) value[w] = load(values + j * HEAD + first + w * WIDTH);
            for (int i = 0; i < QUERIES; i++) {
                const Floats term = all(terms[i * LENGTH + j]);
                for (int w = 0; w < VECTORS; w++) sum[i][w] = Unit::add_product(sum[i][w], term, value[w]);
            }
        }
        for (int i = 0; i < QUERIES && i < rows; i++)
            for (int w = 0; w < VECTORS; w++)
                put(out + i * stride + first + w * WIDTH, sum[i][w] * factors[i]);
    }
}

// One head of one piece; qkv and out are where its first token begins.
template <typename Number>
void attend(const Number* qkv, size_t channels, int count, const BiasTable& table, Scratch& own, Number* out) {
    using Unit = typename Lanes<Number>::Unit;
    constexpr int STEPS = HEAD / Unit::CHANNELS;
    const size_t stride = 3 * channels;
    const int vectors = (count + WIDTH - 1) / WIDTH, steps = (count + Unit::CHANNELS - 1) / Unit::CHANNELS;
    alignas(64) float keys[LENGTH][STEPS];
    for (int i = 0; i < count; i++) {
        Unit::row(qkv + i * stride, own.queries + i * STEPS);
        Unit::row(qkv + i * stride + channels, keys[i]);
    }
    std::memset(keys[count], 0, (vectors * WIDTH - count) * sizeof keys[0]);
    transpose(keys[0], vectors * WIDTH, STEPS, own.keys, LENGTH);
    static const Number nothing[HEAD] = {};
    for (int j = 0; j < steps; j++) {
        const Number* row = qkv + j * Unit::CHANNELS * stride + 2 * channels;
        Unit::rows(row, j * Unit::CHANNELS + 1 < count ? row + stride : nothing, own.values + j * HEAD);
    }
    for (int i = 0; i < count; i += QUERIES) {
        float* scores = own.scores + i * LENGTH;
        float factors[QUERIES];
        score_all<Unit>(own.queries + i * STEPS, own.keys, scores, vectors);
        soften<Unit>(scores, own.entries + i * LENGTH, table, std::min(QUERIES, count - i), vectors, factors);
        weigh<Unit>(scores, factors, own.values, steps, count - i, out + i * channels, channels);
    }
}

// Args: qkv S x 3C, token_of_slot S, cu_seqlens B + 1, bias (2M - 1)^2 x heads, out S x C; `in_parallel(n, f)` calls
// f(0) to f(n - 1), from as many threads as it says.
template <typename Number, typename Parallel>
void packed_attention(const Number* qkv, const int32_t* token_of_slot, const int32_t* cu_seqlens, int images,
                      const float* bias, const AttentionShape& shape, Number* out, int threads, Parallel in_parallel) {
    const size_t channels = static_cast<size_t>(shape.heads) * HEAD;
    const std::vector<BiasTable> tables = tables_of(bias, shape.heads, shape.window);
    const std::vector<Piece> pieces = pieces_of(cu_seqlens, images, shape);
    // Heads of a piece stay together, for they share its entries, unless threads would have nothing to do.
    const int wanted = threads == 1 || pieces.empty() ? 1 : (4 * threads - 1) / static_cast<int>(pieces.size()) + 1;
    const int parts = std::min(wanted, shape.heads);
    in_parallel(pieces.size() * parts, [&](size_t item) {
        static thread_local Scratch own;
        const Piece piece = pieces[item / parts];
        const int part = static_cast<int>(item % parts);
        const int padded = (piece.count + WIDTH - 1) / WIDTH * WIDTH;
        find_entries(token_of_slot + piece.first, piece.count, padded, shape, own.entries);
        for (int head = shape.heads * part / parts; head < shape.heads * (part + 1) / parts; head++)
            attend(qkv + 3 * channels * piece.first + head * HEAD, channels, piece.count, tables[head], own,
                   out + channels * piece.first + head * HEAD);
    });
}

}  // namespace spt
