/* Products of small bf16 tiles with float32 sums, and what goes with them: packing, exp, shares of work for threads.
 *
 * A product here is C [rows, columns] = A [rows, 2 * pairs] B. The processor multiplies pairs of bf16 that lie side by
 * side (vdpbf16ps), so B comes packed: [pairs][columns][2], columns in whole sixteens. A is read a pair at a time, at any
 * stride: rows as they are, or the transpose of something that was packed.
 */

#ifndef DEEPWELL_TILES_H
#define DEEPWELL_TILES_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;

/* OpenMP's own entry, so that torch's pool of threads does the work and no second one competes with it. */
typedef void (*dw_parallel)(void (*work)(void *), void *data, unsigned threads, unsigned flags);

typedef struct {
    void (*item)(const void *args, int64_t which, char *scratch);
    const void *args;
    int64_t items, next, scratch_bytes;
    int failed;
} dw_job;

/* What every thread does: take the next item until none is left. An item's result depends on nothing but the item. */
static void dw_take(void *data) {
    dw_job *job = data;
    char *scratch = NULL;
    if (job->scratch_bytes) {
        scratch = aligned_alloc(64, (size_t)((job->scratch_bytes + 63) & ~INT64_C(63)));
        if (scratch == NULL) {
            __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
            return;
        }
    }
    for (;;) {
        int64_t which = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (which >= job->items) break;
        job->item(job->args, which, scratch);
    }
    free(scratch);
}

INLINE int dw_share(dw_parallel parallel, int32_t threads, dw_job *job) {
    if (parallel != NULL && threads > 1 && job->items > 1) {
        parallel(dw_take, job, (unsigned)threads, 0);
    } else {
        dw_take(job);
    }
    return job->failed;
}

INLINE __m512 wide16(const bf16 *from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}

INLINE __m512 wide16_some(__mmask16 some, const bf16 *from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from)), 16));
}

/* To the nearest bf16, ties to even. */
INLINE __m256i narrow16(__m512 value) { return (__m256i)_mm512_cvtneps_pbh(value); }

INLINE float wide1(bf16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

/* e^x to a few units of the last place of float32; 0 below -104, NaN of NaN and of infinity. */
INLINE __m512 exp16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x); /* where one is NaN, the second is taken: NaN stays */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* One tile: up to 12 rows by 32 or 16 columns, all sums in registers. */
#define DEFINE_TILE(ROWS, VECTORS)                                                                                      \
    static void tile_##ROWS##_##VECTORS(const int32_t *a, int64_t row, int64_t pair, const bf16 *b, int64_t b_pair,     \
                                        float *c, int64_t c_row, int64_t pairs, int add) {                              \
        __m512 sum[ROWS][VECTORS];                                                                                      \
        _Pragma("GCC unroll 12") for (int i = 0; i < ROWS; i++)                                                         \
            _Pragma("GCC unroll 2") for (int j = 0; j < VECTORS; j++)                                                   \
                sum[i][j] = add ? _mm512_loadu_ps(c + i * c_row + j * 16) : _mm512_setzero_ps();                        \
        for (int64_t k = 0; k < pairs; k++) {                                                                           \
            __m512bh right[VECTORS];                                                                                    \
            _Pragma("GCC unroll 2") for (int j = 0; j < VECTORS; j++)                                                   \
                right[j] = (__m512bh)_mm512_loadu_si512(b + k * b_pair + j * 32);                                       \
            _Pragma("GCC unroll 12") for (int i = 0; i < ROWS; i++) {                                                   \
                __m512bh left = (__m512bh)_mm512_set1_epi32(a[i * row + k * pair]);                                     \
                _Pragma("GCC unroll 2") for (int j = 0; j < VECTORS; j++)                                               \
                    sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);                                            \
            }                                                                                                           \
        }                                                                                                               \
        _Pragma("GCC unroll 12") for (int i = 0; i < ROWS; i++)                                                         \
            _Pragma("GCC unroll 2") for (int j = 0; j < VECTORS; j++)                                                   \
                _mm512_storeu_ps(c + i * c_row + j * 16, sum[i][j]);                                                    \
    }

#define DEFINE_TILES(ROWS) DEFINE_TILE(ROWS, 1) DEFINE_TILE(ROWS, 2)
DEFINE_TILES(1) DEFINE_TILES(2) DEFINE_TILES(3) DEFINE_TILES(4) DEFINE_TILES(5) DEFINE_TILES(6)
DEFINE_TILES(7) DEFINE_TILES(8) DEFINE_TILES(9) DEFINE_TILES(10) DEFINE_TILES(11) DEFINE_TILES(12)

typedef void (*dw_tile)(const int32_t *, int64_t, int64_t, const bf16 *, int64_t, float *, int64_t, int64_t, int);
static const dw_tile TILES[12][2] = {
    {tile_1_1, tile_1_2}, {tile_2_1, tile_2_2},   {tile_3_1, tile_3_2},   {tile_4_1, tile_4_2},
    {tile_5_1, tile_5_2}, {tile_6_1, tile_6_2},   {tile_7_1, tile_7_2},   {tile_8_1, tile_8_2},
    {tile_9_1, tile_9_2}, {tile_10_1, tile_10_2}, {tile_11_1, tile_11_2}, {tile_12_1, tile_12_2},
};

/* C (+)= A B. Strides: ``row`` and ``pair`` of A in pairs of bf16, ``c_row`` in floats; B is packed, ``width`` columns
 * in all, of which ``columns`` (whole sixteens) from ``b`` on are taken. */
static void dw_product(const void *a, int64_t row, int64_t pair, const bf16 *b, int64_t width, float *c, int64_t c_row,
                       int64_t rows, int64_t columns, int64_t pairs, int add) {
    for (int64_t j = 0; j < columns; j += 32) {
        int vectors = columns - j >= 32;
        for (int64_t i = 0; i < rows; i += 12) {
            int64_t count = rows - i < 12 ? rows - i : 12;
            TILES[count - 1][vectors]((const int32_t *)a + i * row, row, pair, b + j * 2, width * 2, c + i * c_row + j,
                                      c_row, pairs, add);
        }
    }
}

/* Rows two by two: [rows, width] -> [rows / 2][width][2], a missing last row as zeros. ``width`` in whole sixteens. */
static void dw_pack_rows(const bf16 *from, int64_t stride, int64_t rows, int64_t width, bf16 *to) {
    for (int64_t r = 0; r < rows; r += 2)
        for (int64_t i = 0; i < width; i += 16) {
            const bf16 *first = from + r * stride + i;
            __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)first)), high = _mm512_setzero_si512();
            if (r + 1 < rows) high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(first + stride)));
            _mm512_storeu_si512(to + (r / 2 * width + i) * 2, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

/* Rows as columns: [rows, width] -> [width / 2][padded rows][2], zeros behind the last row. */
static void dw_pack_columns(const bf16 *from, int64_t stride, int64_t rows, int64_t padded, int64_t width, bf16 *to) {
    int32_t *out = (int32_t *)to;
    for (int64_t r = 0; r < padded; r += 16)
        for (int64_t i = 0; i < width / 2; i++)
            for (int64_t s = 0; s < 16; s++) {
                int32_t two = 0;
                if (r + s < rows) memcpy(&two, from + (r + s) * stride + i * 2, 4);
                out[i * padded + r + s] = two;
            }
}

#endif
