/* Eight floats at once, in the compiler's own vectors: AVX2 where the build has it, else what the processor offers. */

#ifndef DEEPWELL_VECTORS_H
#define DEEPWELL_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));

INLINE f32x8 load8(const float *from) {
    f32x8 value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void store8(float *to, f32x8 value) { memcpy(to, &value, sizeof value); }

INLINE f32x8 all8(float value) { return value - (f32x8){0}; }

INLINE f32x8 choose8(i32x8 mask, f32x8 yes, f32x8 no) { return (f32x8)((mask & (i32x8)yes) | (~mask & (i32x8)no)); }

INLINE f32x8 max8(f32x8 a, f32x8 b) {
#ifdef __AVX2__
    return (f32x8)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose8(a > b, a, b);
#endif
}

INLINE float sum_of8(f32x8 v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

INLINE float max_of8(f32x8 v) {
#ifdef __AVX2__
    __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
#else
    float best = v[0];
    for (int i = 1; i < 8; i++) best = v[i] > best ? v[i] : best;
    return best;
#endif
}

INLINE i32x8 max8_i32(i32x8 a, i32x8 b) {
#ifdef __AVX2__
    return (i32x8)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    i32x8 greater = a > b;
    return (greater & a) | (~greater & b);
#endif
}

INLINE int32_t max_of8_i32(i32x8 v) {
#ifdef __AVX2__
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
#else
    int32_t best = v[0];
    for (int i = 1; i < 8; i++) best = v[i] > best ? v[i] : best;
    return best;
#endif
}

INLINE float float_of(int32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* bf16 is the upper half of a float. */
INLINE f32x8 load8_bf16(const uint16_t *from) {
    u16x8 half;
    memcpy(&half, from, sizeof half);
    return (f32x8)(__builtin_convertvector(half, i32x8) << 16);
}

INLINE uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 64); /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE float from_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023, bits;
    float value;
    if (exponent == 0) { /* zero and what is below 2^-14 */
        value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE f32x8 load8_f16(const uint16_t *from) {
#ifdef __F16C__
    return (f32x8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else
    f32x8 value;
    for (int i = 0; i < 8; i++) value[i] = from_f16(from[i]);
    return value;
#endif
}

#define ROUNDS 12582912.0f /* 1.5 * 2^23: adding it rounds to a whole number, half to even */

/* e^x to 2 units in the last place; 0 below -87, infinity above 88. */
INLINE f32x8 exp8(f32x8 x) {
    i32x8 gone = x < -87.0f;
    f32x8 within = choose8(x > 88.0f, all8(88.0f), choose8(gone, all8(-87.0f), x));
    f32x8 shifted = within * 1.44269504f + ROUNDS, whole = shifted - ROUNDS;
    f32x8 rest = within - whole * 0.693359375f - whole * -2.12194440e-4f;
    f32x8 sum = all8(1.9875691500e-4f);
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    f32x8 power = (f32x8)((((i32x8)shifted - 0x4b400000) + 127) << 23);
    return choose8(gone, all8(0.0f), choose8(x > 88.0f, all8(INFINITY), sum * power));
}

/* A block of 8 rows by 8 columns on its side: to[c * to_step + r] = from[r][c]. */
INLINE void transpose8(const f32x8 from[8], float *to, int to_step) {
#ifdef __AVX2__
    __m256 a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_ps((__m256)from[2 * i], (__m256)from[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_ps((__m256)from[2 * i], (__m256)from[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
        b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
        b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
        b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        store8(to + i * to_step, (f32x8)_mm256_permute2f128_ps(b[i], b[i + 4], 0x20));
        store8(to + (i + 4) * to_step, (f32x8)_mm256_permute2f128_ps(b[i], b[i + 4], 0x31));
    }
#else
    for (int r = 0; r < 8; r++)
        for (int c = 0; c < 8; c++) to[c * to_step + r] = from[r][c];
#endif
}

/* acc[r] += a[r][k] * b[k] over k in order, for `rows` rows (a constant) and 16 columns. */
INLINE void tile_f32(const int rows, int count, const float *const *a, const float *b, int64_t b_step, f32x8 acc[][2]) {
    for (int k = 0; k < count; k++) {
        f32x8 left = load8(b + k * b_step), right = load8(b + k * b_step + 8);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            acc[r][0] += a[r][k] * left;
            acc[r][1] += a[r][k] * right;
        }
    }
}

#define TILE_F32_ROWS 6

#endif
