/* Attention and its gradients in bf16 with float32 scores and sums: no score leaves the processor's cache, and blocks
 * that no query may look at are not computed (FlashAttention-2, arXiv 2307.08691). */

#include "tiles.h"

enum { QUERIES = 48, KEYS = 96 };

typedef struct {
    const bf16 *data;
    int64_t batch, head, row; /* strides in values; within a row values lie side by side */
} dw_rows;

typedef struct {
    int64_t batch, heads, groups, queries, keys, key_width, value_width;
    float scale;
    int32_t causal;
    dw_rows query, key, value, out, grad;
    const uint8_t *mask; /* one byte a query and key, or NULL */
    int64_t mask_batch, mask_head, mask_row, mask_key;
    float *normaliser;                        /* [batch, heads, queries] */
    bf16 *packed_key, *packed_value;          /* a group after the other: columns for scores, or rows */
    bf16 *packed_key_rows;                    /* for the gradient of queries */
    float *grad_query, *grad_key, *grad_value; /* contiguous, a head after the other */
} dw_attention;

INLINE int64_t up_to(int64_t value, int64_t whole) { return (value + whole - 1) / whole * whole; }

INLINE const bf16 *rows_of(const dw_rows *rows, int64_t batch, int64_t head) {
    return rows->data + batch * rows->batch + head * rows->head;
}

/* Scores of 16 keys that a query may not look at become -inf. */
INLINE __mmask16 seen16(const dw_attention *of, int64_t batch, int64_t head, int64_t query, int64_t key) {
    int64_t last = of->causal ? query + 1 : of->keys;
    if (key + 16 > last && key >= last) return 0;
    __mmask16 some = last - key >= 16 ? 0xffff : (__mmask16)((1u << (last - key)) - 1);
    if (of->mask == NULL) return some;
    const uint8_t *mask = of->mask + batch * of->mask_batch + head * of->mask_head + query * of->mask_row;
    __mmask16 allowed = 0;
    for (int i = 0; i < 16; i++)
        if (some >> i & 1 && mask[(key + i) * of->mask_key]) allowed |= (__mmask16)(1u << i);
    return allowed;
}

/* Whether any of these queries may look at any of these keys. */
static int any_seen(const dw_attention *of, int64_t batch, int64_t head, int64_t first, int64_t last, int64_t key,
                    int64_t key_end) {
    if (of->causal) return key < last;
    if (of->mask == NULL) return 1;
    for (int64_t query = first; query < last; query++)
        for (int64_t at = key; at < key_end; at += 16)
            if (seen16(of, batch, head, query, at)) return 1;
    return 0;
}

static void pack_group(const void *args, int64_t which, char *scratch) {
    (void)scratch;
    const dw_attention *of = args;
    int64_t batch = which / of->groups, group = which % of->groups;
    int64_t padded = up_to(of->keys, KEYS);
    const bf16 *key = rows_of(&of->key, batch, group), *value = rows_of(&of->value, batch, group);
    dw_pack_columns(key, of->key.row, of->keys, padded, of->key_width, of->packed_key + which * padded * of->key_width);
    bf16 *values = of->packed_value + which * padded * of->value_width;
    if (of->packed_key_rows == NULL) {
        dw_pack_rows(value, of->value.row, of->keys, of->value_width, values);
        int64_t done = up_to(of->keys, 2);
        memset(values + done * of->value_width, 0, (size_t)((padded - done) * of->value_width) * 2);
    } else {
        dw_pack_columns(value, of->value.row, of->keys, padded, of->value_width, values);
        bf16 *rows = of->packed_key_rows + which * padded * of->key_width;
        dw_pack_rows(key, of->key.row, of->keys, of->key_width, rows);
        int64_t done = up_to(of->keys, 2);
        memset(rows + done * of->key_width, 0, (size_t)((padded - done) * of->key_width) * 2);
    }
}

/* A block of queries of one head, all its keys at once. */
static void forward_block(const void *args, int64_t which, char *scratch) {
    const dw_attention *of = args;
    int64_t blocks = (of->queries + QUERIES - 1) / QUERIES, padded = up_to(of->keys, KEYS);
    int64_t pair = which / blocks, first = (blocks - 1 - which % blocks) * QUERIES; /* the longest ones first */
    int64_t batch = pair / of->heads, head = pair % of->heads;
    int64_t group = batch * of->groups + head / (of->heads / of->groups);
    int64_t last = first + QUERIES < of->queries ? first + QUERIES : of->queries, count = last - first;
    int64_t seen = up_to(of->causal ? last : of->keys, 32);
    float *scores = (float *)scratch, *sums = scores + QUERIES * padded, *divide = sums + QUERIES * of->value_width;
    bf16 *shares = (bf16 *)(divide + QUERIES);
    const bf16 *query = rows_of(&of->query, batch, head) + first * of->query.row;
    dw_product(query, of->query.row / 2, 1, of->packed_key + group * padded * of->key_width, padded, scores, padded,
               count, seen, of->key_width / 2, 0);
    for (int64_t i = 0; i < count; i++) {
        float *row = scores + i * padded;
        __m512 most = _mm512_set1_ps(-INFINITY);
        for (int64_t j = 0; j < seen; j += 16) {
            __mmask16 some = seen16(of, batch, head, first + i, j);
            __m512 value = _mm512_mask_blend_ps(some, _mm512_set1_ps(-INFINITY), _mm512_loadu_ps(row + j));
            if (some != 0xffff) _mm512_storeu_ps(row + j, value);
            most = _mm512_max_ps(value, most); /* a NaN is passed over here, and makes the sum NaN below */
        }
        float top = _mm512_reduce_max_ps(most);
        if (top == -INFINITY) top = 0;
        __m512 scale = _mm512_set1_ps(of->scale), offset = _mm512_set1_ps(-top * of->scale), sum = _mm512_setzero_ps();
        for (int64_t j = 0; j < seen; j += 16) {
            __m512 score = _mm512_loadu_ps(row + j);
            __mmask16 some = _mm512_cmp_ps_mask(score, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
            __m512 share = _mm512_maskz_mov_ps(some, exp16(_mm512_fmadd_ps(score, scale, offset)));
            sum = _mm512_add_ps(sum, share);
            _mm256_storeu_si256((__m256i *)(shares + i * padded + j), narrow16(share));
        }
        float total = _mm512_reduce_add_ps(sum);
        divide[i] = total == 0 ? 0.0f : 1.0f / total;
        of->normaliser[pair * of->queries + first + i] = top * of->scale + logf(total);
    }
    int64_t width = of->value_width;
    dw_product(shares, padded / 2, 1, of->packed_value + group * padded * width, width, sums, width, count, width,
               seen / 2, 0);
    bf16 *out = (bf16 *)rows_of(&of->out, batch, head) + first * of->out.row;
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < width; j += 16)
            _mm256_storeu_si256(
                (__m256i *)(out + i * of->out.row + j),
                narrow16(_mm512_mul_ps(_mm512_loadu_ps(sums + i * width + j), _mm512_set1_ps(divide[i]))));
}

/* Shares P and the gradient dS of a block's scores from scores S and dP, in place of which nothing is kept: both as rows
 * and as pairs of rows, which is what the products that follow read. */
INLINE void shares_of_pair(const dw_attention *of, int64_t batch, int64_t head, int64_t query, int64_t valid, int64_t key,
                           const float *scores, const float *inner, const float *normaliser, const float *along,
                           int32_t *shares, bf16 *rows, int32_t *pairs) {
    __m512 scale = _mm512_set1_ps(of->scale);
    for (int64_t j = 0; j < KEYS; j += 16) {
        __m256i share[2], slope[2];
        for (int r = 0; r < 2; r++) {
            if (r >= valid) {
                share[r] = slope[r] = _mm256_setzero_si256();
                continue;
            }
            __mmask16 some = seen16(of, batch, head, query + r, key + j);
            __m512 score = _mm512_loadu_ps(scores + r * KEYS + j);
            __m512 p = _mm512_maskz_mov_ps(
                some, exp16(_mm512_fmsub_ps(score, scale, _mm512_set1_ps(normaliser[r]))));
            __m512 d = _mm512_sub_ps(_mm512_loadu_ps(inner + r * KEYS + j), _mm512_set1_ps(along[r]));
            share[r] = narrow16(p);
            slope[r] = narrow16(_mm512_maskz_mul_ps(some, _mm512_mul_ps(p, d), scale));
            _mm256_storeu_si256((__m256i *)(rows + r * KEYS + j), slope[r]);
        }
        _mm512_storeu_si512(shares + j, _mm512_or_si512(_mm512_cvtepu16_epi32(share[0]),
                                                        _mm512_slli_epi32(_mm512_cvtepu16_epi32(share[1]), 16)));
        _mm512_storeu_si512(pairs + j, _mm512_or_si512(_mm512_cvtepu16_epi32(slope[0]),
                                                       _mm512_slli_epi32(_mm512_cvtepu16_epi32(slope[1]), 16)));
    }
}

/* All gradients of one head; those of its keys and values are its own, to be summed over the heads of a group. */
static void backward_head(const void *args, int64_t pair, char *scratch) {
    const dw_attention *of = args;
    int64_t padded = up_to(of->keys, KEYS), batch = pair / of->heads, head = pair % of->heads;
    int64_t group = batch * of->groups + head / (of->heads / of->groups);
    int64_t key_width = of->key_width, value_width = of->value_width;
    float *scores = (float *)scratch, *inner = scores + QUERIES * KEYS, *along = inner + QUERIES * KEYS;
    bf16 *rows = (bf16 *)(along + QUERIES), *queries = rows + QUERIES * KEYS, *grads = queries + QUERIES * key_width;
    int32_t *shares = (int32_t *)(grads + QUERIES * value_width), *pairs = shares + QUERIES / 2 * KEYS;
    const bf16 *columns = of->packed_key + group * padded * key_width;
    const bf16 *values = of->packed_value + group * padded * value_width;
    const bf16 *key_rows = of->packed_key_rows + group * padded * key_width;
    float *grad_key = of->grad_key + pair * of->keys * key_width;
    float *grad_value = of->grad_value + pair * of->keys * value_width;
    memset(grad_key, 0, (size_t)(of->keys * key_width) * 4);
    memset(grad_value, 0, (size_t)(of->keys * value_width) * 4);
    for (int64_t first = 0; first < of->queries; first += QUERIES) {
        int64_t last = first + QUERIES < of->queries ? first + QUERIES : of->queries, count = last - first;
        const bf16 *query = rows_of(&of->query, batch, head) + first * of->query.row;
        const bf16 *grad = rows_of(&of->grad, batch, head) + first * of->grad.row;
        const bf16 *out = rows_of(&of->out, batch, head) + first * of->out.row;
        const float *normaliser = of->normaliser + pair * of->queries + first;
        float *grad_query = of->grad_query + (pair * of->queries + first) * key_width;
        memset(grad_query, 0, (size_t)(count * key_width) * 4);
        dw_pack_rows(query, of->query.row, count, key_width, queries);
        dw_pack_rows(grad, of->grad.row, count, value_width, grads);
        for (int64_t i = 0; i < count; i++) {
            __m512 sum = _mm512_setzero_ps();
            for (int64_t j = 0; j < value_width; j += 16)
                sum = _mm512_fmadd_ps(wide16(grad + i * of->grad.row + j), wide16(out + i * of->out.row + j), sum);
            along[i] = _mm512_reduce_add_ps(sum);
        }
        for (int64_t key = 0; key < of->keys; key += KEYS) {
            int64_t key_end = key + KEYS < of->keys ? key + KEYS : of->keys, width = key_end - key;
            if (!any_seen(of, batch, head, first, last, key, key_end)) continue;
            dw_product(query, of->query.row / 2, 1, columns + key * 2, padded, scores, KEYS, count, KEYS, key_width / 2, 0);
            dw_product(grad, of->grad.row / 2, 1, values + key * 2, padded, inner, KEYS, count, KEYS, value_width / 2, 0);
            for (int64_t i = 0; i < count; i += 2)
                shares_of_pair(of, batch, head, first + i, count - i, key, scores + i * KEYS, inner + i * KEYS,
                               normaliser + i, along + i, shares + i / 2 * KEYS, rows + i * KEYS, pairs + i / 2 * KEYS);
            dw_product(rows, KEYS / 2, 1, key_rows + key * key_width, key_width, grad_query, key_width, count, key_width,
                       KEYS / 2, 1);
            dw_product(pairs, 1, KEYS, queries, key_width, grad_key + key * key_width, key_width, width, key_width,
                       (count + 1) / 2, 1);
            dw_product(shares, 1, KEYS, grads, value_width, grad_value + key * value_width, value_width, width,
                       value_width, (count + 1) / 2, 1);
        }
    }
}

/* ``out`` and ``normaliser`` from query, key and value. Not 0: there was no memory. */
int dw_attend(const dw_attention *of, dw_parallel parallel, int32_t threads) {
    dw_job pack = {pack_group, of, of->batch * of->groups, 0, 0, 0};
    if (dw_share(parallel, threads, &pack)) return 1;
    int64_t padded = up_to(of->keys, KEYS), blocks = (of->queries + QUERIES - 1) / QUERIES;
    int64_t scratch = QUERIES * (padded * 6 + of->value_width * 4 + 4) + 256;
    dw_job all = {forward_block, of, of->batch * of->heads * blocks, 0, scratch, 0};
    return dw_share(parallel, threads, &all);
}

/* The three gradients, in float32. Not 0: there was no memory. */
int dw_attend_backward(const dw_attention *of, dw_parallel parallel, int32_t threads) {
    dw_job pack = {pack_group, of, of->batch * of->groups, 0, 0, 0};
    if (dw_share(parallel, threads, &pack)) return 1;
    int64_t scratch = QUERIES * (KEYS * (4 + 4 + 2 + 2 + 2) + 4 + 2 * (of->key_width + of->value_width)) + 256;
    dw_job all = {backward_head, of, of->batch * of->heads, 0, scratch, 0};
    return dw_share(parallel, threads, &all);
}

int64_t dw_size_of_attention(void) { return sizeof(dw_attention); }
int64_t dw_padded_keys(int64_t keys) { return up_to(keys, KEYS); }
