/* Queries over the rows of a paged cache.
 *
 * A row of the cache holds what a token left there: for each group of heads a key and a value somewhere in it (`key +
 * group * key_group` and so on). Grouped attention has several groups; MLA in its absorbed form (V2 section 2.1.2) has
 * one, whose key is the whole row and whose value is the row's latent.
 *
 * A piece of work is some queries of one sequence and one group: they are a small matrix, keys and values of the group
 * are unpacked once for all of them, and scores and sums are two products by tiles. The scores of a query stand in
 * memory whole, so softmax is exact and each sum over tokens runs from the first to the last. */

#include "program.h"
#include "vectors.h"

#include <math.h>

#define KEYS 16          /* tokens whose keys are unpacked together */
#define VALUES 64        /* tokens whose values are */
#define MOST_QUERIES 48
#define AHEAD 2 /* pieces of keys that are asked for in advance */
#define SCORES_BYTES 262144 /* that a piece's scores should not exceed */

static int32_t min32(int32_t a, int32_t b) { return a < b ? a : b; }

static int32_t rounded(int32_t value, int32_t to) { return (value + to - 1) / to * to; }

/* How a stretch is cut: so many heads of a group and so many rows make a piece. */
typedef struct {
    int32_t heads, rows, head_pieces, row_pieces, length;
} cut;

static cut cut_of(const dw_op *op, const dw_batch *batch, const dw_stretch *stretch) {
    int32_t each = op->heads / op->groups, count = stretch->last - stretch->first;
    cut c = {.length = rounded(stretch->start + count, VALUES)};
    int32_t queries = SCORES_BYTES / 4 / c.length;
    queries = queries < 1 ? 1 : min32(queries, MOST_QUERIES);
    /* One row and one group, as MLA decodes, is to be work for all threads. */
    int32_t heads = op->groups * count < batch->threads ? (each + batch->threads - 1) / batch->threads : each;
    c.heads = min32(heads, queries);
    c.rows = queries / c.heads < 1 ? 1 : min32(queries / c.heads, count);
    c.head_pieces = (each + c.heads - 1) / c.heads;
    c.row_pieces = (count + c.rows - 1) / c.rows;
    return c;
}

static size_t value_columns(const dw_op *op) { return (size_t)rounded(op->value_width, DW_PANEL); }

dw_needs dw_attend_needs(const dw_op *op, const dw_batch *batch) {
    size_t scores = 0;
    for (int32_t s = 0; s < batch->stretches; s++) {
        cut c = cut_of(op, batch, batch->stretch + s);
        size_t here = (size_t)c.heads * (size_t)c.rows * (size_t)c.length;
        scores = here > scores ? here : scores;
    }
    size_t keys = (size_t)op->key_width * (KEYS + 1), values = value_columns(op) * VALUES;
    return (dw_needs){.own = 4 * (scores + keys + values + MOST_QUERIES * value_columns(op)) + 5 * DW_ALIGN};
}

typedef struct {
    const dw_op *op;
    const dw_batch *batch;
    const int32_t *table;
    int32_t key, value; /* where this group's begin in a row */
    float *keys, *values, *scores, *found;
    const float *nothing; /* a row of zeros */
    int32_t length;
} place;

INLINE const char *row_in(const place *p, int64_t slot, int32_t at) {
    return (const char *)p->op->cache + (slot * p->op->cache_width + at) * (p->op->cache_format == DW_F32 ? 4 : 2);
}

/* Where part `at` of the rows of `count` tokens lies; zeros from `end` on. */
INLINE void find_rows(const place *p, int32_t first, int32_t count, int32_t end, int32_t at, const char **rows) {
    int32_t block = p->batch->block, index = first / block, within = first % block;
    for (int32_t t = 0; t < count; t++) {
        rows[t] = first + t < end ? row_in(p, (int64_t)p->table[index] * block + within, at) : (const char *)p->nothing;
        if (++within == block) within = 0, index++;
    }
}

/* Asks memory for part `at` of some rows. In decoding they come from afar, in short pieces that the processor does not
 * foresee, and waiting for them took longer than all else. The first line of a row is read and not only asked for: what
 * is asked for from a page that was not in use is not fetched. */
static void foresee(const place *p, int32_t first, int32_t end, int32_t at, int32_t width) {
    const char *rows[KEYS];
    int32_t count = min32(KEYS, end - first);
    size_t bytes = (size_t)width * (p->op->cache_format == DW_F32 ? 4 : 2);
    if (count <= 0) return;
    find_rows(p, first, count, end, at, rows);
    for (int32_t t = 0; t < count; t++) {
        (void)*(const volatile char *)rows[t];
        for (size_t line = DW_ALIGN; line < bytes; line += DW_ALIGN) __builtin_prefetch(rows[t] + line);
    }
}

INLINE f32x8 load8_of(const int format, const char *row, int32_t at) {
    return format == DW_F32 ? load8((const float *)row + at) : load8_bf16((const uint16_t *)row + at);
}

INLINE float load_of(const int format, const char *row, int32_t at) {
    return format == DW_F32 ? ((const float *)row)[at] : from_bf16(((const uint16_t *)row)[at]);
}

/* keys[d][t] of the tokens first..first+15; 0 from `end` on. */
INLINE void unpack_keys(const int format, const place *p, int32_t first, int32_t end) {
    int32_t width = p->op->key_width, whole = width / 8 * 8;
    const char *rows[KEYS];
    find_rows(p, first, KEYS, end, p->key, rows);
    for (int32_t d = 0; d < whole; d += 8)
        for (int side = 0; side < KEYS; side += 8) {
            f32x8 block[8];
            for (int t = 0; t < 8; t++) block[t] = load8_of(format, rows[side + t], d);
            transpose8(block, p->keys + (int64_t)d * KEYS + side, KEYS);
        }
    for (int32_t d = whole; d < width; d++)
        for (int t = 0; t < KEYS; t++) p->keys[(int64_t)d * KEYS + t] = load_of(format, rows[t], d);
}

/* values[t][d] of `count` tokens. */
INLINE void unpack_values(const int format, const place *p, int32_t first, int32_t count) {
    int32_t width = p->op->value_width, columns = (int32_t)value_columns(p->op), whole = width / 8 * 8;
    const char *rows[VALUES];
    find_rows(p, first, count, first + count, p->value, rows);
    for (int32_t t = 0; t < count; t++) {
        float *to = p->values + (int64_t)t * columns;
        for (int32_t d = 0; d < whole; d += 8) store8(to + d, load8_of(format, rows[t], d));
        for (int32_t d = whole; d < width; d++) to[d] = load_of(format, rows[t], d);
        for (int32_t d = width; d < columns; d++) to[d] = 0.0f;
    }
}

INLINE void score_rows(const int rows, const place *p, const float *const *queries, int32_t at) {
    f32x8 acc[TILE_F32_ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = all8(0.0f);
    tile_f32(rows, p->op->key_width, queries, p->keys, KEYS, acc);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        store8(p->scores + (int64_t)r * p->length + at, acc[r][0]);
        store8(p->scores + (int64_t)r * p->length + at + 8, acc[r][1]);
    }
}

INLINE void sum_rows(const int rows, const place *p, int32_t at, int32_t count, int32_t columns) {
    const float *shares[TILE_F32_ROWS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) shares[r] = p->scores + (int64_t)r * p->length + at;
    for (int32_t column = 0; column < columns; column += DW_PANEL) {
        f32x8 acc[TILE_F32_ROWS][2];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            acc[r][0] = load8(p->found + (int64_t)r * columns + column);
            acc[r][1] = load8(p->found + (int64_t)r * columns + column + 8);
        }
        tile_f32(rows, count, shares, p->values + column, columns, acc);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            store8(p->found + (int64_t)r * columns + column, acc[r][0]);
            store8(p->found + (int64_t)r * columns + column + 8, acc[r][1]);
        }
    }
}

#define BY_ROWS(call, rows, ...)                                                                                         \
    switch (rows) {                                                                                                      \
    case 1: call(1, __VA_ARGS__); break;                                                                                 \
    case 2: call(2, __VA_ARGS__); break;                                                                                 \
    case 3: call(3, __VA_ARGS__); break;                                                                                 \
    case 4: call(4, __VA_ARGS__); break;                                                                                 \
    case 5: call(5, __VA_ARGS__); break;                                                                                 \
    default: call(6, __VA_ARGS__); break;                                                                                \
    }

/* Scores of one query to shares, not yet divided by their sum, which is returned. Tokens outside of [from, to) get 0. */
static float soften(float *scores, int32_t begin, int32_t end, int32_t from, int32_t to, float scale) {
    for (int32_t t = begin; t < from; t++) scores[t - begin] = -INFINITY;
    for (int32_t t = to; t < end; t++) scores[t - begin] = -INFINITY;
    f32x8 top = all8(-INFINITY), sum = all8(0.0f);
    for (int32_t i = 0; i < end - begin; i += 8) top = max8(load8(scores + i), top);
    float shift = max_of8(top);
    for (int32_t i = 0; i < end - begin; i += 8) {
        f32x8 share = exp8((load8(scores + i) - shift) * scale);
        sum += share;
        store8(scores + i, share);
    }
    return sum_of8(sum);
}

static void attend_piece(const dw_op *op, const dw_thread *thread, const dw_stretch *stretch, const cut *c, int32_t piece) {
    const dw_batch *batch = thread->batch;
    int32_t each = op->heads / op->groups;
    int32_t row = piece % c->row_pieces * c->rows, rest = piece / c->row_pieces;
    int32_t head = rest % c->head_pieces * c->heads, group = rest / c->head_pieces;
    int32_t rows = min32(c->rows, stretch->last - stretch->first - row), heads = min32(c->heads, each - head);
    int32_t queries = rows * heads, columns = (int32_t)value_columns(op);
    int32_t first_place = stretch->start + row, end = first_place + rows;
    int32_t begin = op->window && first_place - op->window + 1 > 0 ? (first_place - op->window + 1) / VALUES * VALUES : 0;
    char *memory = thread->scratch;
    place p = {.op = op, .batch = batch, .table = batch->tables + stretch->table, .length = c->length,
               .key = op->key + group * op->key_group, .value = op->value + group * op->value_group};
    p.keys = (float *)memory;
    memory += dw_padded((size_t)op->key_width * KEYS * 4);
    p.values = (float *)memory;
    memory += dw_padded((size_t)columns * VALUES * 4);
    p.found = (float *)memory;
    memory += dw_padded((size_t)columns * MOST_QUERIES * 4);
    p.nothing = memset(memory, 0, (size_t)op->key_width * 4);
    memory += dw_padded((size_t)op->key_width * 4);
    p.scores = (float *)memory;
    float *scores = p.scores, *found = p.found;
    const float *query[MOST_QUERIES];
    for (int32_t q = 0; q < queries; q++)
        query[q] = op->x + (stretch->first + row + q / heads) * op->x_row + (group * each + head + q % heads) * op->x_head;

    for (int32_t token = begin; token < begin + AHEAD * KEYS; token += KEYS) foresee(&p, token, end, p.key, op->key_width);
    for (int32_t token = begin; token < end; token += KEYS) {
        foresee(&p, token + AHEAD * KEYS, end, p.key, op->key_width);
        foresee(&p, token, end, p.value, op->value_width);
        if (op->cache_format == DW_F32) unpack_keys(DW_F32, &p, token, end);
        else unpack_keys(DW_BF16, &p, token, end);
        for (int32_t q = 0; q < queries; q += TILE_F32_ROWS) {
            p.scores = scores + (int64_t)q * c->length;
            BY_ROWS(score_rows, queries - q, &p, query + q, token - begin)
        }
    }
    int32_t stop = begin + rounded(end - begin, KEYS);
    float sums[MOST_QUERIES];
    for (int32_t q = 0; q < queries; q++) {
        int32_t at = first_place + q / heads, from = op->window && at - op->window + 1 > begin ? at - op->window + 1 : begin;
        sums[q] = soften(scores + (int64_t)q * c->length, begin, stop, from, at + 1, op->number);
    }
    memset(found, 0, (size_t)queries * (size_t)columns * 4);
    for (int32_t token = begin; token < end; token += VALUES) {
        int32_t count = min32(VALUES, end - token);
        if (op->cache_format == DW_F32) unpack_values(DW_F32, &p, token, count);
        else unpack_values(DW_BF16, &p, token, count);
        for (int32_t q = 0; q < queries; q += TILE_F32_ROWS) {
            p.scores = scores + (int64_t)q * c->length;
            p.found = found + (int64_t)q * columns;
            BY_ROWS(sum_rows, queries - q, &p, token - begin, count, columns)
        }
    }
    for (int32_t q = 0; q < queries; q++) {
        float *y = op->y + (stretch->first + row + q / heads) * op->y_row + (group * each + head + q % heads) * op->y_head;
        float scale = 1.0f / sums[q];
        for (int32_t d = 0; d < op->value_width; d++) y[d] = found[(int64_t)q * columns + d] * scale;
    }
}

void dw_attend(const dw_op *op, const dw_thread *thread) {
    const dw_batch *batch = thread->batch;
    int32_t before = 0, at, stretch = 0, all = 0;
    for (int32_t s = 0; s < batch->stretches; s++) {
        cut c = cut_of(op, batch, batch->stretch + s);
        all += op->groups * c.head_pieces * c.row_pieces;
    }
    while (dw_take(thread, all, 1, &at)) {
        for (;; stretch++) {
            cut c = cut_of(op, batch, batch->stretch + stretch);
            int32_t here = op->groups * c.head_pieces * c.row_pieces;
            if (at - before < here) {
                attend_piece(op, thread, batch->stretch + stretch, &c, at - before);
                break;
            }
            before += here;
        }
    }
}
