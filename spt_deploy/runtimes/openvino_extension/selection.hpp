// What lies around the attention of packed tokens: listing the kept ones, gathering them, and adding them back.

#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "vectors.hpp"

namespace spt {

constexpr size_t ROWS_AT_ONCE = 16;  // that a thread takes: enough to be worth its while

// A row times a factor; rows are whole vectors, as channels are whole heads.
inline void scale_row(const float* from, float factor, float* to, size_t channels) {
    for (size_t c = 0; c < channels; c++) to[c] = from[c] * factor;
}
inline void scale_row(const Bfloat16* from, float factor, Bfloat16* to, size_t channels) {
    for (size_t c = 0; c < channels; c += WIDTH) put(to + c, load(from + c) * factor);
}

inline void add_rows(const float* one, const float* other, float* to, size_t channels) {
    for (size_t c = 0; c < channels; c++) to[c] = one[c] + other[c];
}
inline void add_rows(const Bfloat16* one, const Bfloat16* other, Bfloat16* to, size_t channels) {
    for (size_t c = 0; c < channels; c += WIDTH) put(to + c, load(one + c) + load(other + c));
}

// Args: logits B x N, order N; slot_of_token B x N and cu_seqlens B + 1 are filled, and the list is returned.
inline std::vector<int32_t> select_tokens(const float* logits, const int32_t* order, float threshold, int images,
                                          int tokens, int32_t* slot_of_token, int32_t* cu_seqlens) {
    std::vector<int32_t> token_of_slot(static_cast<size_t>(images) * tokens);
    int32_t kept = 0;
    cu_seqlens[0] = 0;
    for (int image = 0; image < images; image++) {
        for (int place = 0; place < tokens; place++) {
            const int32_t token = image * tokens + order[place];
            const bool keep = logits[token] > threshold;
            token_of_slot[kept] = token;
            slot_of_token[token] = keep ? kept : -1;
            kept += keep;
        }
        cu_seqlens[image + 1] = kept;
    }
    token_of_slot.resize(kept);
    return token_of_slot;
}

// Args: h T x C, gate T, token_of_slot S, rows S x C.
template <typename Number, typename Parallel>
void gather_gated(const Number* h, const float* gate, const int32_t* token_of_slot, size_t slots, size_t channels,
                  Number* rows, Parallel in_parallel) {
    in_parallel((slots + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, [&](size_t block) {
        const size_t end = std::min(slots, (block + 1) * ROWS_AT_ONCE);
        for (size_t slot = block * ROWS_AT_ONCE; slot < end; slot++) {
            const size_t token = token_of_slot[slot];
            scale_row(h + token * channels, gate[token], rows + slot * channels, channels);
        }
    });
}

// Args: branch S x C, slot_of_token T, residual and out T x C.
template <typename Number, typename Parallel>
void add_scattered(const Number* branch, const int32_t* slot_of_token, const Number* residual, size_t tokens,
                   size_t channels, Number* out, Parallel in_parallel) {
    in_parallel((tokens + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, [&](size_t block) {
        const size_t end = std::min(tokens, (block + 1) * ROWS_AT_ONCE);
        for (size_t token = block * ROWS_AT_ONCE; token < end; token++) {
            const Number* row = residual + token * channels;
            if (slot_of_token[token] < 0)
                std::memcpy(out + token * channels, row, channels * sizeof *row);
            else
                add_rows(row, branch + slot_of_token[token] * channels, out + token * channels, channels);
        }
    });
}

}  // namespace spt
