// The relative position bias of one head, looked up for many pairs of tokens at a time.

#pragma once

#include <vector>

#include "vectors.hpp"

namespace spt {

constexpr int LENGTH = 64;            // tokens of a container, at most: windows of up to 8
constexpr int ENTRIES = 256;          // more than such a window's 15 x 15
constexpr uint16_t NO_KEY = 255;      // the entry of a key that is none
constexpr float NO_SCORE = -1e30f;    // its bias: far enough for exp to be 0, and finite

#if defined(__AVX512BW__)
// Halves of numbers lie in registers, or in the nearest cache, and are permuted from there: a fifth of the time that
// as many loads take.
class BiasTable {
public:
    void set(int entry, float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        m_low[entry] = static_cast<uint16_t>(bits);
        m_high[entry] = static_cast<uint16_t>(bits >> 16);
    }

    // Add to each score the bias of its entry; the largest of each lane. Vectors are taken by two.
    Floats add(const uint16_t* entries, float* scores, int vectors) const {
        Floats largest = all(NO_SCORE);
        for (int first = 0; first < vectors * WIDTH; first += 32) {
            const __m512i entry = _mm512_loadu_si512(entries + first);
            const __mmask32 odd = _mm512_test_epi16_mask(entry, _mm512_set1_epi16(64));
            const __mmask32 upper = _mm512_test_epi16_mask(entry, _mm512_set1_epi16(128));
            const __m512i low = found(m_low, entry, odd, upper), high = found(m_high, entry, odd, upper);
            const __m512i even_words = _mm512_unpacklo_epi16(low, high), odd_words = _mm512_unpackhi_epi16(low, high);
            // Unpacking works within quarters of a register; these are put in order again.
            const __m512i left = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), right = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
            add(scores + first, _mm512_permutex2var_epi64(even_words, left, odd_words), largest);
            if (first + WIDTH < vectors * WIDTH)
                add(scores + first + WIDTH, _mm512_permutex2var_epi64(even_words, right, odd_words), largest);
        }
        return largest;
    }

private:
    static __m512i found(const uint16_t* halves, __m512i entry, __mmask32 odd, __mmask32 upper) {
        const auto of = [&](int at) {
            return _mm512_permutex2var_epi16(_mm512_load_si512(halves + at), entry, _mm512_load_si512(halves + at + 32));
        };
        return _mm512_mask_blend_epi16(upper, _mm512_mask_blend_epi16(odd, of(0), of(64)),
                                       _mm512_mask_blend_epi16(odd, of(128), of(192)));
    }

    static void add(float* scores, __m512i bias, Floats& largest) {
        const Floats sum = load(scores) + reinterpret_cast<Floats>(bias);
        store(scores, sum);
        largest = sum > largest ? sum : largest;
    }

    alignas(64) uint16_t m_low[ENTRIES], m_high[ENTRIES];
};
#else
class BiasTable {
public:
    void set(int entry, float value) { m_values[entry] = value; }

    // Add to each score the bias of its entry; the largest of each lane.
    Floats add(const uint16_t* entries, float* scores, int vectors) const {
        Floats largest = all(NO_SCORE);
        for (int first = 0; first < vectors * WIDTH; first += WIDTH) {
            float bias[WIDTH];
            for (int lane = 0; lane < WIDTH; lane++) bias[lane] = m_values[entries[first + lane]];
            const Floats sum = load(scores + first) + load(bias);
            store(scores + first, sum);
            largest = sum > largest ? sum : largest;
        }
        return largest;
    }

private:
    float m_values[ENTRIES];
};
#endif

// One for each head, of (2M - 1)^2 x heads.
inline std::vector<BiasTable> tables_of(const float* bias, int heads, int window) {
    const int entries = (2 * window - 1) * (2 * window - 1);
    std::vector<BiasTable> tables(static_cast<size_t>(heads));
    for (int head = 0; head < heads; head++)
        for (int entry = 0; entry < ENTRIES; entry++)
            tables[head].set(entry, entry < entries ? bias[static_cast<size_t>(entry) * heads + head] : NO_SCORE);
    return tables;
}

}  // namespace spt
