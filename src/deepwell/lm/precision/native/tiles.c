/* Rounding to float8_e4m3fn with a scale for every tile, and back. fp8_tiles.py describes tiles and has the same in
 * PyTorch; both give the same bits.
 *
 * Every loop over columns is free of branches, so that the compiler makes vectors of it. Where the C library can choose
 * among builds of a function when it is loaded (glibc on x86), each is built for AVX-512, AVX2 and any processor.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_PROCESSOR
#endif

enum { F32, BF16 };

#define LARGEST 448.0f
#define SMALLEST_AMAX 1e-4f
#define INFINITE 0x7f800000u
#define NOT_A_NUMBER 0x7fc00000u

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* `yes` where the condition holds, as masks: of a ?: over floats the compiler makes branches and no vectors. */
static inline uint32_t chosen(int condition, uint32_t yes, uint32_t no) {
    uint32_t mask = -(uint32_t)condition;
    return (yes & mask) | (no & ~mask);
}

/* To nearest, ties to even; beyond 448 to 448; NaN and infinity to NaN. */
static inline uint8_t rounded(float value) {
    uint32_t bits = bits_of(value), size = bits & 0x7fffffffu;
    uint32_t normal = ((size + 0x7ffffu + ((size >> 20) & 1)) >> 20) - (120 << 3);
    /* Beside 2^14, float32 counts in steps of 2^-9, as FP8 does below 2^-6. */
    uint32_t tiny = bits_of(float_of(chosen(size < 0x3c800000u, size, 0)) + 16384.0f) - 0x46800000u;
    uint32_t code = chosen(size < 0x3c800000u, tiny, normal);
    code = chosen(size > 0x43e00000u, 0x7e, code);
    code = chosen(size >= INFINITE, 0x7f, code);
    return (uint8_t)(code | ((bits >> 24) & 0x80));
}

static inline float widened(uint8_t code) {
    uint32_t size = code & 0x7f;
    uint32_t normal = (size << 20) + (120u << 23);
    uint32_t tiny = bits_of((float)(int32_t)size * 0x1p-9f); /* no subnormal float32: processors are slow with them */
    uint32_t bits = chosen(size < 8, tiny, normal);
    bits = chosen(size == 0x7f, NOT_A_NUMBER, bits);
    return float_of(bits | (uint32_t)(code & 0x80) << 24);
}

static inline uint16_t narrowed(float value) {
    uint32_t bits = bits_of(value);
    uint32_t near = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)chosen((bits & 0x7fffffffu) > INFINITE, 0x7fc0u, near);
}

static float scale_for(uint32_t size, int power_of_two) {
    if (size >= INFINITE) return float_of(NOT_A_NUMBER);
    float amax = float_of(size), scale = (amax < SMALLEST_AMAX ? SMALLEST_AMAX : amax) / LARGEST;
    if (power_of_two) scale = float_of((bits_of(scale) + 0x7fffffu) & INFINITE);
    return scale;
}

/* The bits of a NaN's size are above those of infinity, and those above all others: a maximum of integers keeps them. */
EACH_PROCESSOR static void widen_maxima(uint32_t *maxima, const void *row, int format, long columns) {
    if (format == F32) {
        const uint32_t *values = row;
        for (long c = 0; c < columns; c++) {
            uint32_t size = values[c] & 0x7fffffffu;
            maxima[c] = size > maxima[c] ? size : maxima[c];
        }
    } else {
        const uint16_t *values = row;
        for (long c = 0; c < columns; c++) {
            uint32_t size = (uint32_t)(values[c] & 0x7fff) << 16;
            maxima[c] = size > maxima[c] ? size : maxima[c];
        }
    }
}

EACH_PROCESSOR static uint32_t largest(const uint32_t *maxima, long count) {
    uint32_t found = 0;
    for (long c = 0; c < count; c++) found = maxima[c] > found ? maxima[c] : found;
    return found;
}

EACH_PROCESSOR static void round_row(uint8_t *out, const void *row, int format, const float *scales, long columns) {
    if (format == F32) {
        const float *values = row;
        for (long c = 0; c < columns; c++) out[c] = rounded(values[c] / scales[c]);
    } else {
        const uint16_t *values = row;
        for (long c = 0; c < columns; c++) out[c] = rounded(float_of((uint32_t)values[c] << 16) / scales[c]);
    }
}

EACH_PROCESSOR static void widen_row(void *out, const uint8_t *row, int format, const float *scales, long columns) {
    if (format == F32) {
        float *values = out;
        for (long c = 0; c < columns; c++) values[c] = widened(row[c]) * scales[c];
    } else {
        uint16_t *values = out;
        for (long c = 0; c < columns; c++) values[c] = narrowed(widened(row[c]) * scales[c]);
    }
}

static void by_column(float *each, const float *scales, long columns, long width) {
    for (long c = 0; c < columns; c += width) {
        long end = c + width < columns ? c + width : columns;
        for (long k = c; k < end; k++) each[k] = scales[c / width];
    }
}

/* Rows borders[b] to borders[b + 1] of x, `stride` values apart, make a band of tiles, each `width` columns wide.
 * Returns 0, or 1 where there is no memory. */
int dw_quantise(const void *x, int format, long stride, long columns, const int64_t *borders, long bands, long width,
                int power_of_two, uint8_t *values, float *scales) {
    long across = (columns + width - 1) / width, size = format == F32 ? 4 : 2;
    uint32_t *maxima = malloc((size_t)columns * 4 + 4);
    float *each = malloc((size_t)columns * 4 + 4);
    if (!maxima || !each) {
        free(maxima), free(each);
        return 1;
    }
    for (long band = 0; band < bands; band++) {
        memset(maxima, 0, (size_t)columns * 4);
        for (int64_t r = borders[band]; r < borders[band + 1]; r++)
            widen_maxima(maxima, (const char *)x + r * stride * size, format, columns);
        float *own = scales + band * across;
        for (long t = 0; t < across; t++) {
            long first = t * width, count = first + width < columns ? width : columns - first;
            own[t] = scale_for(width == 1 ? maxima[first] : largest(maxima + first, count), power_of_two);
        }
        by_column(each, own, columns, width);
        for (int64_t r = borders[band]; r < borders[band + 1]; r++)
            round_row(values + r * columns, (const char *)x + r * stride * size, format, each, columns);
    }
    free(maxima), free(each);
    return 0;
}

/* The way back; `out` is packed and of the given format. */
int dw_dequantise(const uint8_t *values, const float *scales, long columns, const int64_t *borders, long bands,
                  long width, int format, void *out) {
    long across = (columns + width - 1) / width, size = format == F32 ? 4 : 2;
    float *each = malloc((size_t)columns * 4 + 4);
    if (!each) return 1;
    for (long band = 0; band < bands; band++) {
        by_column(each, scales + band * across, columns, width);
        for (int64_t r = borders[band]; r < borders[band + 1]; r++)
            widen_row((char *)out + r * columns * size, values + r * columns, format, each, columns);
    }
    free(each);
    return 0;
}
