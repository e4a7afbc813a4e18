// Vectors of the processor that this is compiled for, and numbers of 16 bits.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace spt {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;  // NEON and SSE
#endif

typedef float Floats __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t Ints __attribute__((vector_size(WIDTH * 4)));
typedef float UnalignedFloats __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

inline Floats load(const float* from) { return *reinterpret_cast<const UnalignedFloats*>(from); }
inline void store(float* to, Floats value) { *reinterpret_cast<UnalignedFloats*>(to) = value; }
inline Floats all(float value) { return Floats{} + value; }

inline float largest_of(Floats value) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(reinterpret_cast<__m512>(value));
#else
    float largest = value[0];
    for (int lane = 1; lane < WIDTH; lane++) largest = value[lane] > largest ? value[lane] : largest;
    return largest;
#endif
}

inline float sum_of(Floats value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(reinterpret_cast<__m512>(value));
#else
    float sum = value[0];
    for (int lane = 1; lane < WIDTH; lane++) sum += value[lane];
    return sum;
#endif
}

// exp(x) of x <= 0, as 2^whole * 2^rest with a polynomial of degree 5 (largest relative error 2e-7, near 0). NaN stays.
inline Floats exp_of(Floats x) {
    x *= 1.44269504f;
    x = x < all(-126.0f) ? all(-126.0f) : x;
    const Floats shifted = x + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are x, rounded
    const Floats rest = x - (shifted - 12582912.0f);
    Floats power = rest * 0.00132764725f + 0.00967554096f;
    power = power * rest + 0.0555071309f;
    power = power * rest + 0.240221202f;
    power = power * rest + 0.693146944f;
    power = power * rest + 1.00000012f;
    return reinterpret_cast<Floats>(reinterpret_cast<Ints>(power) + (reinterpret_cast<Ints>(shifted) << 23));
}

// Rows of `columns` words, whole vectors of them, become columns; `rows` are whole vectors, too.
inline void transpose(const float* from, int rows, int columns, float* to, int stride) {
#if defined(__AVX512F__)
    for (int row = 0; row < rows; row += 16)
        for (int column = 0; column < columns; column += 16) {
            __m512 a[16], b[16];
            for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_ps(from + (row + i) * columns + column);
            for (int i = 0; i < 16; i += 2) {
                b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
                b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
            }
            for (int i = 0; i < 16; i += 4)
                for (int k = 0; k < 2; k++) {
                    const __m512d first = _mm512_castps_pd(b[i + k]), second = _mm512_castps_pd(b[i + 2 + k]);
                    a[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(first, second));
                    a[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(first, second));
                }
            // Quarter q of a[4 i + k] is column 4 q + k of rows 4 i to 4 i + 3.
            for (int i = 0; i < 16; i += 8)
                for (int k = 0; k < 4; k++) {
                    b[i + k] = _mm512_shuffle_f32x4(a[i + k], a[i + 4 + k], 0x88);
                    b[i + 4 + k] = _mm512_shuffle_f32x4(a[i + k], a[i + 4 + k], 0xdd);
                }
            float* at = to + column * stride + row;
            for (int k = 0; k < 8; k++) {
                _mm512_storeu_ps(at + k * stride, _mm512_shuffle_f32x4(b[k], b[8 + k], 0x88));
                _mm512_storeu_ps(at + (8 + k) * stride, _mm512_shuffle_f32x4(b[k], b[8 + k], 0xdd));
            }
        }
#else
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++) to[column * stride + row] = from[row * columns + column];
#endif
}

// bfloat16: the upper half of a float32, rounded to the nearest, ties to even.
struct Bfloat16 {
    uint16_t bits;
};

inline float number(Bfloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline Bfloat16 rounded(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    return {is_nan ? uint16_t{0x7fc0} : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline Floats load(const Bfloat16* from) {
#if defined(__AVX512F__)
    __m256i halves;
    std::memcpy(&halves, from, sizeof halves);
    return reinterpret_cast<Floats>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
#else
    Floats result;
    for (int lane = 0; lane < WIDTH; lane++) result[lane] = number(from[lane]);
    return result;
#endif
}

inline void put(float* to, Floats value) { store(to, value); }
inline void put(Bfloat16* to, Floats value) {
#if defined(__AVX512BF16__)
    const __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(value));
    std::memcpy(to, &half, sizeof half);
#else
    for (int lane = 0; lane < WIDTH; lane++) to[lane] = rounded(value[lane]);
#endif
}

}  // namespace spt
