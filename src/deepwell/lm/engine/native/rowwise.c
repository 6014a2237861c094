/* What is done to each row by itself: norms, turns, stores into the cache, gates. */

#include "program.h"
#include "vectors.h"

#include <math.h>

/* y = x / rms(x) * weight (arXiv 1910.07467); y may be x. */
void dw_norm(const dw_op *op, const dw_thread *thread) {
    const float *weight = op->matrix;
    int32_t first, last, width = op->width, whole = width / 8 * 8;
    dw_share(thread, thread->batch->rows, &first, &last);
    for (int64_t row = first; row < last; row++) {
        const float *x = op->x + row * op->x_row;
        float *y = op->y + row * op->y_row;
        f32x8 lanes[2] = {all8(0.0f), all8(0.0f)};
        float squares = 0;
        for (int32_t i = 0; i < whole; i += 8) lanes[i / 8 & 1] += load8(x + i) * load8(x + i);
        for (int32_t i = whole; i < width; i++) squares += x[i] * x[i];
        float scale = 1.0f / sqrtf((sum_of8(lanes[0] + lanes[1]) + squares) / (float)width + op->number);
        for (int32_t i = 0; i < whole; i += 8) store8(y + i, load8(x + i) * scale * load8(weight + i));
        for (int32_t i = whole; i < width; i++) y[i] = x[i] * scale * weight[i];
    }
}

/* Pairs (j, j + width / 2) of each head by the row's angles (arXiv 2104.09864); y may be x. */
void dw_rope(const dw_op *op, const dw_thread *thread) {
    int32_t first, last, half = op->width / 2;
    dw_share(thread, thread->batch->rows, &first, &last);
    for (int64_t row = first; row < last; row++) {
        const float *cosine = thread->batch->cosine + row * half, *sine = thread->batch->sine + row * half;
        for (int64_t head = 0; head < op->heads; head++) {
            const float *x = op->x + row * op->x_row + head * op->x_head;
            float *y = op->y + row * op->y_row + head * op->y_head;
            int32_t i = 0;
            for (; i + 8 <= half; i += 8) {
                f32x8 left = load8(x + i), right = load8(x + half + i), c = load8(cosine + i), s = load8(sine + i);
                store8(y + i, left * c - right * s);
                store8(y + half + i, right * c + left * s);
            }
            for (; i < half; i++) {
                float left = x[i], right = x[half + i];
                y[i] = left * cosine[i] - right * sine[i];
                y[half + i] = right * cosine[i] + left * sine[i];
            }
        }
    }
}

/* Rows into the cache, at their slots. */
void dw_store(const dw_op *op, const dw_thread *thread) {
    int32_t first, last, width = op->width;
    dw_share(thread, thread->batch->rows, &first, &last);
    for (int64_t row = first; row < last; row++) {
        const float *x = op->x + row * op->x_row;
        int64_t at = thread->batch->slots[row] * op->cache_width;
        if (op->cache_format == DW_F32) {
            memcpy((float *)op->cache + at, x, (size_t)width * 4);
        } else {
            uint16_t *to = (uint16_t *)op->cache + at;
            for (int32_t i = 0; i < width; i++) to[i] = to_bf16(x[i]);
        }
    }
}

/* x holds gate, then up, `width` each: y = silu(gate) * up (arXiv 2002.05202). */
void dw_swiglu(const dw_op *op, const dw_thread *thread) {
    int32_t first, last, width = op->width;
    dw_share(thread, thread->batch->rows, &first, &last);
    for (int64_t row = first; row < last; row++) {
        const float *gate = op->x + row * op->x_row, *up = gate + width;
        float *y = op->y + row * op->y_row;
        int32_t i = 0;
        for (; i + 8 <= width; i += 8) {
            f32x8 value = load8(gate + i);
            store8(y + i, value / (1.0f + exp8(-value)) * load8(up + i));
        }
        if (i < width) {
            float rest[8] = {0};
            memcpy(rest, gate + i, (size_t)(width - i) * 4);
            f32x8 value = load8(rest), gated = value / (1.0f + exp8(-value));
            for (int32_t j = 0; i < width; i++, j++) y[i] = gated[j] * up[i];
        }
    }
}

void dw_copy(const dw_op *op, const dw_thread *thread) {
    int32_t first, last;
    dw_share(thread, thread->batch->rows, &first, &last);
    for (int64_t row = first; row < last; row++)
        memcpy(op->y + row * op->y_row, op->x + row * op->x_row, (size_t)op->width * 4);
}
