/* Products of rows with matrices in four formats.
 *
 * A matrix lies in panels of 16 outputs. In a panel, from the first input to the last:
 *
 *   float32, bf16   for each input its 16 weights
 *   int8            for each group of 32 inputs: pairs of inputs, each as 16 outputs x 2 weights; then 16 scales (f16)
 *   int4            for each group: two halves of 8 outputs, each 4 x 32 bytes: byte 4c + i of the j-th holds the weights
 *                   of output c for the inputs 4j + i (low four bits) and 16 + 4j + i (high); then 16 scales and 16
 *                   minima (f16)
 *
 * Integers: a weight is scale * q (+ minimum), an input scale * a, rounded for each group of each row; products and sums
 * within a group are exact, groups are added up in order in float32. int8 weights meet inputs of 16 bits, so that only
 * the weights are coarse; int4 weights meet inputs of 8 bits, four of which are multiplied and added in one lane at once:
 * 15 * 127 * 2 * 8 = 30480 fits the 16 bits in which a group is summed. */

#include "program.h"
#include "vectors.h"

#define QUADS (DW_GROUP / 4)
#define PAIRS (DW_GROUP / 2)
#define INT8_GROUP (DW_GROUP * DW_PANEL + 2 * DW_PANEL)
#define INT4_GROUP (DW_GROUP * DW_PANEL / 2 + 4 * DW_PANEL)
#define FEW 4 /* rows up to which bf16 is widened as it is read; for more, a panel is widened once */
#define TILE_INT_ROWS 4
#define ROWS_AT_ONCE_BYTES 262144 /* of inputs that every panel meets before the next rows come: half of a usual L2 */

static size_t panel_stored(const dw_matrix *matrix) {
    switch (matrix->format) {
    case DW_F32: return (size_t)matrix->in * DW_PANEL * 4;
    case DW_BF16: return (size_t)matrix->in * DW_PANEL * 2;
    case DW_INT8: return (size_t)dw_groups(matrix) * INT8_GROUP;
    default: return (size_t)dw_groups(matrix) * INT4_GROUP;
    }
}

/* ---- panels ---- */

size_t dw_panel_bytes(const dw_matrix *matrix) {
    return matrix->format == DW_BF16 ? (size_t)matrix->in * DW_PANEL * 4 : 0;
}

static void widen_bf16(const dw_matrix *matrix, const uint16_t *panel, float *scratch) {
    for (int64_t i = 0; i < (int64_t)matrix->in * DW_PANEL; i += 8) store8(scratch + i, load8_bf16(panel + i));
}

/* ---- tiles: some rows, 16 outputs ---- */

INLINE void tile_bf16(const int rows, int count, const float *const *a, const uint16_t *b, f32x8 acc[][2]) {
    for (int k = 0; k < count; k++, b += DW_PANEL) {
        f32x8 left = load8_bf16(b), right = load8_bf16(b + 8);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            acc[r][0] += a[r][k] * left;
            acc[r][1] += a[r][k] * right;
        }
    }
}

#ifdef __AVX2__

#define UNROLL _Pragma("GCC unroll 4")

/* Holds the compiler to the order in which rows stand here: it would load all rows' inputs first, and run out of
 * registers for the sums. */
#define ROW_DONE(sum) __asm__ volatile("" : "+x"((sum)[0]), "+x"((sum)[1]))

INLINE __m256i four_bytes(const void *from) {
    int32_t value;
    memcpy(&value, from, 4);
    return _mm256_set1_epi32(value);
}

/* `a` are rows of int16, `as` their scales. */
INLINE void tile_int8(const int rows, int groups, const int16_t *const *a, const float *const *as, const void *panel,
                      f32x8 acc[][2]) {
    const __m128i *stored = panel;
    for (int g = 0; g < groups; g++) {
        __m256i sum[TILE_F32_ROWS][2];
        UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 2
        for (int p = 0; p < PAIRS; p++) {
            __m256i left = _mm256_cvtepi8_epi16(_mm_loadu_si128(stored++));
            __m256i right = _mm256_cvtepi8_epi16(_mm_loadu_si128(stored++));
            UNROLL for (int r = 0; r < rows; r++) {
                __m256i pair = four_bytes(a[r] + g * DW_GROUP + 2 * p);
                sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(left, pair));
                sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(right, pair));
                ROW_DONE(sum[r]);
            }
        }
        f32x8 left = load8_f16((const uint16_t *)stored), right = load8_f16((const uint16_t *)stored + 8);
        stored += 2;
        UNROLL for (int r = 0; r < rows; r++) {
            acc[r][0] += (f32x8)_mm256_cvtepi32_ps(sum[r][0]) * (left * as[r][g]);
            acc[r][1] += (f32x8)_mm256_cvtepi32_ps(sum[r][1]) * (right * as[r][g]);
        }
    }
}

/* `a` are rows of int8, `as` their scales, `sums` what each group's inputs are together. */
INLINE void tile_int4(const int rows, int groups, const int8_t *const *a, const float *const *as,
                      const float *const *sums, const void *panel, f32x8 acc[][2]) {
    const uint8_t *stored = panel;
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
    for (int g = 0; g < groups; g++) {
        __m256i sum[TILE_F32_ROWS][2];
        UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 2
        for (int q = 0; q < QUADS / 2; q++) {
            __m256i left = _mm256_loadu_si256((const __m256i *)(stored + 32 * q));
            __m256i right = _mm256_loadu_si256((const __m256i *)(stored + 128 + 32 * q));
            __m256i left_low = _mm256_and_si256(left, low), right_low = _mm256_and_si256(right, low);
            left = _mm256_and_si256(_mm256_srli_epi16(left, 4), low);
            right = _mm256_and_si256(_mm256_srli_epi16(right, 4), low);
            UNROLL for (int r = 0; r < rows; r++) {
                __m256i quad = four_bytes(a[r] + g * DW_GROUP + 4 * q);
                __m256i later = four_bytes(a[r] + g * DW_GROUP + DW_GROUP / 2 + 4 * q);
                sum[r][0] = _mm256_add_epi16(sum[r][0], _mm256_maddubs_epi16(left_low, quad));
                sum[r][1] = _mm256_add_epi16(sum[r][1], _mm256_maddubs_epi16(right_low, quad));
                ROW_DONE(sum[r]);
                sum[r][0] = _mm256_add_epi16(sum[r][0], _mm256_maddubs_epi16(left, later));
                sum[r][1] = _mm256_add_epi16(sum[r][1], _mm256_maddubs_epi16(right, later));
                ROW_DONE(sum[r]);
            }
        }
        f32x8 number[4];
        for (int i = 0; i < 4; i++)
            number[i] = load8_f16((const uint16_t *)(stored + DW_GROUP * DW_PANEL / 2) + 8 * i);
        stored += INT4_GROUP;
        UNROLL for (int r = 0; r < rows; r++) {
            for (int half = 0; half < 2; half++) {
                f32x8 whole = (f32x8)_mm256_cvtepi32_ps(_mm256_madd_epi16(sum[r][half], ones));
                acc[r][half] += whole * (number[half] * as[r][g]);
                acc[r][half] += number[2 + half] * sums[r][g];
            }
        }
    }
}

#else /* The same sums by plain loops, for processors that are neither. */

INLINE void tile_int8(const int rows, int groups, const int16_t *const *a, const float *const *as, const void *panel,
                      f32x8 acc[][2]) {
    const int8_t *stored = panel;
    for (int g = 0; g < groups; g++) {
        for (int r = 0; r < rows; r++) {
            int32_t sum[DW_PANEL] = {0};
            const int16_t *at = a[r] + g * DW_GROUP;
            for (int k = 0; k < DW_GROUP; k++)
                for (int c = 0; c < DW_PANEL; c++) sum[c] += at[k] * stored[k / 2 * 2 * DW_PANEL + 2 * c + k % 2];
            for (int c = 0; c < DW_PANEL; c++) {
                float scale = from_f16(((const uint16_t *)(stored + DW_GROUP * DW_PANEL))[c]);
                acc[r][c / 8][c % 8] += (float)sum[c] * (scale * as[r][g]);
            }
        }
        stored += INT8_GROUP;
    }
}

INLINE void tile_int4(const int rows, int groups, const int8_t *const *a, const float *const *as,
                      const float *const *sums, const void *panel, f32x8 acc[][2]) {
    const uint8_t *stored = panel;
    for (int g = 0; g < groups; g++) {
        for (int r = 0; r < rows; r++) {
            int32_t sum[DW_PANEL] = {0};
            const int8_t *at = a[r] + g * DW_GROUP;
            for (int k = 0; k < DW_GROUP; k++)
                for (int c = 0; c < DW_PANEL; c++) {
                    int within = k % (DW_GROUP / 2);
                    int byte = stored[c / 8 * 128 + within / 4 * 32 + c % 8 * 4 + within % 4];
                    sum[c] += at[k] * (k < DW_GROUP / 2 ? byte & 15 : byte >> 4);
                }
            for (int c = 0; c < DW_PANEL; c++) {
                const uint16_t *halves = (const uint16_t *)(stored + DW_GROUP * DW_PANEL / 2);
                float scale = from_f16(halves[c]);
                float minimum = from_f16(halves[DW_PANEL + c]);
                acc[r][c / 8][c % 8] += (float)sum[c] * (scale * as[r][g]);
                acc[r][c / 8][c % 8] += minimum * sums[r][g];
            }
        }
        stored += INT4_GROUP;
    }
}

#endif

/* ---- a panel and all rows ---- */

INLINE void put(const dw_matrix *matrix, const f32x8 acc[2], int32_t panel, float *y, int32_t add) {
    int32_t column = panel * DW_PANEL, count = matrix->out - column < DW_PANEL ? matrix->out - column : DW_PANEL;
    const float *bias = matrix->bias;
    y += column;
    if (count == DW_PANEL) {
        for (int half = 0; half < 2; half++) {
            f32x8 value = acc[half];
            if (bias) value += load8(bias + column + 8 * half);
            if (add) value += load8(y + 8 * half);
            store8(y + 8 * half, value);
        }
        return;
    }
    for (int c = 0; c < count; c++) {
        float value = acc[c / 8][c % 8];
        if (bias) value += bias[column + c];
        y[c] = add ? value + y[c] : value;
    }
}

typedef struct {
    const dw_matrix *matrix;
    const dw_input *input;
    const int32_t *index;
    int32_t panel, groups, add;
    const void *weights;
    float *y;
    int64_t y_row;
} work;

INLINE void some_rows(const int rows, const int format, const work *w, int32_t row) {
    f32x8 acc[TILE_F32_ROWS][2];
    const void *a[TILE_F32_ROWS];
    const float *scales[TILE_F32_ROWS], *sums[TILE_F32_ROWS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        int64_t from = w->index ? w->index[row + r] : row + r;
        acc[r][0] = acc[r][1] = all8(0.0f);
        if (format < DW_INT8) {
            a[r] = w->input->rows + from * w->input->step;
        } else {
            int size = format == DW_INT8 ? 2 : 1;
            a[r] = (const char *)w->input->integers + from * w->groups * DW_GROUP * size;
            scales[r] = w->input->scales + from * w->groups;
            sums[r] = w->input->sums + from * w->groups;
        }
    }
    if (format == DW_F32)
        tile_f32(rows, w->matrix->in, (const float *const *)a, w->weights, DW_PANEL, acc);
    else if (format == DW_BF16)
        tile_bf16(rows, w->matrix->in, (const float *const *)a, w->weights, acc);
    else if (format == DW_INT8)
        tile_int8(rows, w->groups, (const int16_t *const *)a, scales, w->weights, acc);
    else
        tile_int4(rows, w->groups, (const int8_t *const *)a, scales, sums, w->weights, acc);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) put(w->matrix, acc[r], w->panel, w->y + (row + r) * w->y_row, w->add);
}

INLINE void rows_of(const int format, const work *w, int32_t first, int32_t last) {
    const int most = format < DW_INT8 ? TILE_F32_ROWS : TILE_INT_ROWS;
    int32_t row = first;
    for (; row + most <= last; row += most) some_rows(format < DW_INT8 ? 6 : 4, format, w, row);
    switch (last - row) {
    case 5: if (format < DW_INT8) some_rows(5, format, w, row); break;
    case 4: if (format < DW_INT8) some_rows(4, format, w, row); break;
    case 3: some_rows(3, format, w, row); break;
    case 2: some_rows(2, format, w, row); break;
    case 1: some_rows(1, format, w, row); break;
    default: break;
    }
}

/* One function for each format, so that each has its registers to itself. */
static __attribute__((noinline)) void rows_f32(const work *w, int32_t first, int32_t last) { rows_of(DW_F32, w, first, last); }
static __attribute__((noinline)) void rows_bf16(const work *w, int32_t first, int32_t last) { rows_of(DW_BF16, w, first, last); }
static __attribute__((noinline)) void rows_int8(const work *w, int32_t first, int32_t last) { rows_of(DW_INT8, w, first, last); }
static __attribute__((noinline)) void rows_int4(const work *w, int32_t first, int32_t last) { rows_of(DW_INT4, w, first, last); }

void dw_panels(const dw_matrix *matrix, const dw_input *input, const int32_t *index, int32_t rows, int32_t panel,
               int32_t count, float *y, int64_t y_row, int32_t add, void *scratch) {
    size_t stored = panel_stored(matrix);
    int32_t groups = dw_groups(matrix);
    work w = {.matrix = matrix, .input = input, .index = index, .groups = groups, .add = add, .y = y, .y_row = y_row};
    int64_t row_bytes = (int64_t)matrix->in * (matrix->format < DW_INT8 ? 4 : matrix->format == DW_INT8 ? 2 : 1);
    int64_t some = ROWS_AT_ONCE_BYTES / (row_bytes ? row_bytes : 1) / 12 * 12;
    int32_t at_once = some < 48 ? 48 : some > rows ? rows : (int32_t)some;
    for (int32_t first = 0; first < rows; first += at_once) {
        int32_t last = rows - first < at_once ? rows : first + at_once;
        for (int32_t p = panel; p < panel + count; p++) {
            w.panel = p;
            w.weights = (const char *)matrix->panels + (size_t)p * stored;
            if (matrix->format == DW_BF16 && last - first > FEW) {
                widen_bf16(matrix, w.weights, scratch);
                w.weights = scratch;
                rows_f32(&w, first, last);
                continue;
            }
            switch (matrix->format) {
            case DW_F32: rows_f32(&w, first, last); break;
            case DW_BF16: rows_bf16(&w, first, last); break;
            case DW_INT8: rows_int8(&w, first, last); break;
            default: rows_int4(&w, first, last);
            }
        }
    }
}

/* ---- the operation ---- */

dw_needs dw_linear_needs(const dw_op *op, const dw_batch *batch) {
    return (dw_needs){.own = dw_panel_bytes(op->matrix), .shared = dw_input_bytes(op->matrix, batch->rows)};
}

void dw_linear(const dw_op *op, const dw_thread *thread) {
    const dw_matrix *matrix = op->matrix; /* all of `heads` have the same shape and format */
    int32_t rows = thread->batch->rows, panels = (matrix->out + DW_PANEL - 1) / DW_PANEL;
    dw_input input = {.rows = op->x, .step = op->x_row};
    if (matrix->format >= DW_INT8) { /* then there is one head: program.py sees to it */
        int32_t first, last;
        dw_input_place(&input, matrix, rows, thread->shared);
        dw_share(thread, rows, &first, &last);
        dw_input_make(&input, matrix, first, last);
        dw_wait_for_all(thread);
    }
    int32_t all = op->heads * panels, piece = all / (8 * thread->threads), at, count;
    piece = piece < 1 ? 1 : piece > 16 ? 16 : piece;
    while ((count = dw_take(thread, all, piece, &at)) > 0)
        while (count) {
            int32_t head = at / panels, panel = at % panels, here = panels - panel < count ? panels - panel : count;
            input.rows = op->x + head * op->x_head;
            dw_panels(matrix + head, &input, NULL, rows, panel, here, op->y + head * op->y_head, op->y_row,
                      op->flags & DW_ADD, thread->scratch);
            at += here;
            count -= here;
        }
}
