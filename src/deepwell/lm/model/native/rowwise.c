/* What is done to each row or value by itself, in one pass over memory: norms, gates, softmax with its loss. bf16 in and
 * out, float32 in between. */

#include "tiles.h"

enum { ROWS = 32, VALUES = 8192 };

typedef struct {
    int64_t rows, width;
    float eps;
    int32_t unused;
    const bf16 *x, *grad;
    const float *weight;
    bf16 *out;
    float *inverse;
    float *partial; /* gradient of the weight, a row for each ROWS rows; or NULL */
} dw_norm;

INLINE __mmask16 some16(int64_t left) { return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1); }

INLINE void put16(__mmask16 some, bf16 *to, __m512 value) { _mm256_mask_storeu_epi16(to, some, narrow16(value)); }

static void norm_rows(const void *args, int64_t which, char *scratch) {
    (void)scratch;
    const dw_norm *of = args;
    int64_t last = (which + 1) * ROWS < of->rows ? (which + 1) * ROWS : of->rows, width = of->width;
    for (int64_t row = which * ROWS; row < last; row++) {
        const bf16 *x = of->x + row * width;
        __m512 squares = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 16) {
            __m512 value = wide16_some(some16(width - i), x + i);
            squares = _mm512_fmadd_ps(value, value, squares);
        }
        float inverse = 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)width + of->eps);
        of->inverse[row] = inverse;
        for (int64_t i = 0; i < width; i += 16) {
            __mmask16 some = some16(width - i);
            /* Rounded before the weight, as in the modules of transformers that weights were trained with. */
            __m512 normed = _mm512_mul_ps(wide16_some(some, x + i), _mm512_set1_ps(inverse));
            normed = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow16(normed)), 16));
            put16(some, of->out + row * width + i, _mm512_mul_ps(normed, _mm512_maskz_loadu_ps(some, of->weight + i)));
        }
    }
}

static void norm_rows_backward(const void *args, int64_t which, char *scratch) {
    (void)scratch;
    const dw_norm *of = args;
    int64_t last = (which + 1) * ROWS < of->rows ? (which + 1) * ROWS : of->rows, width = of->width;
    float *partial = of->partial == NULL ? NULL : of->partial + which * width;
    if (partial != NULL) memset(partial, 0, (size_t)width * 4);
    for (int64_t row = which * ROWS; row < last; row++) {
        const bf16 *x = of->x + row * width, *grad = of->grad + row * width;
        __m512 inverse = _mm512_set1_ps(of->inverse[row]), along = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 16) {
            __mmask16 some = some16(width - i);
            __m512 g = wide16_some(some, grad + i), normed = _mm512_mul_ps(wide16_some(some, x + i), inverse);
            __m512 both = _mm512_mul_ps(g, normed);
            along = _mm512_fmadd_ps(both, _mm512_maskz_loadu_ps(some, of->weight + i), along);
            if (partial != NULL)
                _mm512_mask_storeu_ps(partial + i, some,
                                      _mm512_add_ps(_mm512_maskz_loadu_ps(some, partial + i), both));
        }
        if (of->out == NULL) continue;
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(along) / (float)width);
        for (int64_t i = 0; i < width; i += 16) {
            __mmask16 some = some16(width - i);
            __m512 normed = _mm512_mul_ps(wide16_some(some, x + i), inverse);
            __m512 g = _mm512_mul_ps(wide16_some(some, grad + i), _mm512_maskz_loadu_ps(some, of->weight + i));
            put16(some, of->out + row * width + i, _mm512_mul_ps(_mm512_fnmadd_ps(normed, mean, g), inverse));
        }
    }
}

typedef struct {
    int64_t rows, width, gate_row, up_row;
    const bf16 *gate, *up, *grad; /* ``grad``, ``out`` and the gradients are contiguous */
    bf16 *out, *grad_gate, *grad_up;
} dw_gated;

INLINE __m512 sigmoid16(__m512 x) {
    __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp16(_mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_sub_ps(_mm512_setzero_ps(), x)))));
}

INLINE int64_t rows_each(int64_t width) { return width > 0 && width < VALUES ? VALUES / width : 1; }

static void gated_rows(const void *args, int64_t which, char *scratch) {
    (void)scratch;
    const dw_gated *of = args;
    int64_t each = rows_each(of->width), last = (which + 1) * each < of->rows ? (which + 1) * each : of->rows;
    for (int64_t row = which * each; row < last; row++)
        for (int64_t i = 0; i < of->width; i += 16) {
            __mmask16 some = some16(of->width - i);
            __m512 gate = wide16_some(some, of->gate + row * of->gate_row + i);
            __m512 up = wide16_some(some, of->up + row * of->up_row + i);
            put16(some, of->out + row * of->width + i, _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid16(gate)), up));
        }
}

static void gated_rows_backward(const void *args, int64_t which, char *scratch) {
    (void)scratch;
    const dw_gated *of = args;
    int64_t each = rows_each(of->width), last = (which + 1) * each < of->rows ? (which + 1) * each : of->rows;
    for (int64_t row = which * each; row < last; row++)
        for (int64_t i = 0; i < of->width; i += 16) {
            __mmask16 some = some16(of->width - i);
            __m512 gate = wide16_some(some, of->gate + row * of->gate_row + i), open = sigmoid16(gate);
            __m512 up = wide16_some(some, of->up + row * of->up_row + i);
            __m512 grad = wide16_some(some, of->grad + row * of->width + i);
            __m512 silu = _mm512_mul_ps(gate, open);
            /* d silu = open * (1 + gate * (1 - open)) */
            __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(_mm512_set1_ps(1.0f), open), open);
            put16(some, of->grad_gate + row * of->width + i, _mm512_mul_ps(_mm512_mul_ps(grad, up), slope));
            put16(some, of->grad_up + row * of->width + i, _mm512_mul_ps(grad, silu));
        }
}

typedef struct {
    int64_t rows, width;
    float scale;
    int32_t wants_gradient;
    bf16 *logits; /* become their gradient times scale */
    const int64_t *labels;
    float *losses;
} dw_entropy;

static void entropy_row(const void *args, int64_t row, char *scratch) {
    (void)scratch;
    const dw_entropy *of = args;
    bf16 *logits = of->logits + row * of->width;
    int64_t width = of->width, label = of->labels[row];
    float aim = wide1(logits[label]);
    __m512 lowest = _mm512_set1_ps(-INFINITY), most = lowest, sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) {
        __mmask16 some = some16(width - i);
        most = _mm512_mask_max_ps(most, some, wide16_some(some, logits + i), most);
    }
    float top = _mm512_reduce_max_ps(most);
    most = _mm512_set1_ps(top);
    for (int64_t i = 0; i < width; i += 16) {
        __mmask16 some = some16(width - i);
        sum = _mm512_mask_add_ps(sum, some, sum, exp16(_mm512_sub_ps(wide16_some(some, logits + i), most)));
    }
    float normaliser = top + logf(_mm512_reduce_add_ps(sum));
    of->losses[row] = normaliser - aim;
    if (!of->wants_gradient) return;
    __m512 offset = _mm512_set1_ps(normaliser), scale = _mm512_set1_ps(of->scale);
    for (int64_t i = 0; i < width; i += 16) {
        __mmask16 some = some16(width - i);
        put16(some, logits + i, _mm512_mul_ps(scale, exp16(_mm512_sub_ps(wide16_some(some, logits + i), offset))));
    }
    __m512 right = _mm512_set1_ps((expf(aim - normaliser) - 1.0f) * of->scale);
    put16(1, logits + label, right);
}

#define ENTRY(NAME, KIND, ITEM, ITEMS)                                       \
    int NAME(const KIND *of, dw_parallel parallel, int32_t threads) {        \
        dw_job job = {ITEM, of, ITEMS, 0, 0, 0};                             \
        return dw_share(parallel, threads, &job);                            \
    }

ENTRY(dw_norm_forward, dw_norm, norm_rows, (of->rows + ROWS - 1) / ROWS)
ENTRY(dw_norm_backward, dw_norm, norm_rows_backward, (of->rows + ROWS - 1) / ROWS)
ENTRY(dw_gated_forward, dw_gated, gated_rows, (of->rows + rows_each(of->width) - 1) / rows_each(of->width))
ENTRY(dw_gated_backward, dw_gated, gated_rows_backward, (of->rows + rows_each(of->width) - 1) / rows_each(of->width))
ENTRY(dw_entropy_rows, dw_entropy, entropy_row, of->rows)

int64_t dw_size_of_norm(void) { return sizeof(dw_norm); }
int64_t dw_size_of_gated(void) { return sizeof(dw_gated); }
int64_t dw_size_of_entropy(void) { return sizeof(dw_entropy); }
int64_t dw_norm_chunk(void) { return ROWS; }

typedef struct {
    int64_t rows, columns, inner, a_row, b_row; /* strides in values */
    const bf16 *a, *b;                           /* [inner, rows] and [inner, columns] */
    float *c;                                    /* [rows, columns], contiguous */
    bf16 *packed;                                /* room for inner (made even) times columns */
    int64_t add;                                 /* to what C holds */
} dw_outer;

enum { BLOCK = 48 };

static void outer_pack(const void *args, int64_t which, char *scratch) {
    (void)scratch;
    const dw_outer *of = args;
    int64_t first = which * BLOCK * 2, left = of->inner - first;
    dw_pack_rows(of->b + first * of->b_row, of->b_row, left < BLOCK * 2 ? left : BLOCK * 2, of->columns,
                 of->packed + first * of->columns);
}

/* A block of rows of C: its columns of A are packed too, pairs of them then lie as the product wants them. */
static void outer_block(const void *args, int64_t which, char *scratch) {
    const dw_outer *of = args;
    int64_t first = which * BLOCK, count = of->rows - first < BLOCK ? of->rows - first : BLOCK;
    int64_t pairs = (of->inner + 1) / 2;
    bf16 *left = (bf16 *)scratch;
    if (count == BLOCK) {
        dw_pack_rows(of->a + first, of->a_row, of->inner, BLOCK, left);
    } else {
        for (int64_t r = 0; r < pairs * 2; r++)
            for (int64_t i = 0; i < count; i++)
                left[(r / 2 * BLOCK + i) * 2 + r % 2] = r < of->inner ? of->a[r * of->a_row + first + i] : 0;
    }
    if (pairs == 0 && !of->add) memset(of->c + first * of->columns, 0, (size_t)(count * of->columns) * 4);
    for (int64_t k = 0; k < pairs; k += 128) {
        int64_t some = pairs - k < 128 ? pairs - k : 128;
        dw_product(left + k * BLOCK * 2, 1, BLOCK, of->packed + k * of->columns * 2, of->columns,
                   of->c + first * of->columns, of->columns, count, of->columns, some, k > 0 || of->add);
    }
}

/* C (+)= A^T B with float32 sums: gradients of weights, for which nothing is rounded on the way. */
int dw_outer_product(const dw_outer *of, dw_parallel parallel, int32_t threads) {
    int64_t blocks = (of->inner + BLOCK * 2 - 1) / (BLOCK * 2);
    dw_job pack = {outer_pack, of, blocks, 0, 0, 0};
    if (dw_share(parallel, threads, &pack)) return 1;
    dw_job all = {outer_block, of, (of->rows + BLOCK - 1) / BLOCK, 0, (of->inner + 1) / 2 * BLOCK * 4, 0};
    return dw_share(parallel, threads, &all);
}

int64_t dw_size_of_outer(void) { return sizeof(dw_outer); }

typedef struct {
    int64_t groups, inner, columns, x_row;
    int32_t turned, count; /* matrices are [columns, inner] (turned) or [inner, columns] */
    const int32_t *ends;    /* the row of x at which each group ends */
    const bf16 *x;
    const float *matrices;
    bf16 *packed, *out; /* room for all matrices; [rows, columns] contiguous */
    const int64_t *blocks; /* for each block of rows: its group and its first row */
} dw_grouped;

static void grouped_pack(const void *args, int64_t group, char *scratch) {
    (void)scratch;
    const dw_grouped *of = args;
    if (of->ends[group] == (group ? of->ends[group - 1] : 0)) return; /* nobody's matrix */
    const float *matrix = of->matrices + group * of->inner * of->columns;
    int32_t *to = (int32_t *)(of->packed + group * of->inner * of->columns);
    int64_t inner = of->inner, columns = of->columns;
    if (!of->turned) {
        for (int64_t k = 0; k < inner / 2; k++)
            for (int64_t j = 0; j < columns; j += 16) {
                __m512i low = _mm512_cvtepu16_epi32(narrow16(_mm512_loadu_ps(matrix + 2 * k * columns + j)));
                __m512i high = _mm512_cvtepu16_epi32(narrow16(_mm512_loadu_ps(matrix + (2 * k + 1) * columns + j)));
                _mm512_storeu_si512(to + k * columns + j, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
        return;
    }
    for (int64_t k = 0; k < inner; k += 32)
        for (int64_t j = 0; j < columns; j++) {
            const float *from = matrix + j * inner + k;
            int32_t two[16] __attribute__((aligned(64)));
            _mm512_store_si512(two, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from)));
            for (int64_t i = 0; i < 16; i++) to[(k / 2 + i) * columns + j] = two[i];
        }
}

static void grouped_block(const void *args, int64_t which, char *scratch) {
    const dw_grouped *of = args;
    int64_t group = of->blocks[2 * which], first = of->blocks[2 * which + 1], columns = of->columns;
    int64_t count = of->ends[group] - first < BLOCK ? of->ends[group] - first : BLOCK;
    float *sums = (float *)scratch;
    dw_product(of->x + first * of->x_row, of->x_row / 2, 1, of->packed + group * of->inner * columns, columns, sums,
               columns, count, columns, of->inner / 2, 0);
    bf16 *out = of->out + first * columns;
    for (int64_t i = 0; i < count * columns; i += 16)
        _mm256_storeu_si256((__m256i *)(out + i), narrow16(_mm512_loadu_ps(sums + i)));
}

/* Rows by the float32 matrix of their group, narrowed to bf16; ``count`` blocks of them. */
int dw_grouped_product(const dw_grouped *of, dw_parallel parallel, int32_t threads) {
    dw_job pack = {grouped_pack, of, of->groups, 0, 0, 0};
    if (dw_share(parallel, threads, &pack)) return 1;
    dw_job all = {grouped_block, of, of->count, 0, BLOCK * of->columns * 4, 0};
    return dw_share(parallel, threads, &all);
}

int64_t dw_size_of_grouped(void) { return sizeof(dw_grouped); }
int64_t dw_block(void) { return BLOCK; }
