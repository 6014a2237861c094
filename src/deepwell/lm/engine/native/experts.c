/* Mixture of experts: the choice of deepwell.lm.model.moe.Gate, and the chosen experts' products.
 *
 * Pairs (row, expert) are sorted by expert, so that a panel of an expert's matrix is read once for all of its rows. What
 * a row's experts say is added up in the order of its choice. */

#include "program.h"
#include "vectors.h"

#include <math.h>

static void softmax(float *scores, int32_t count) {
    float top = scores[0], sum = 0;
    for (int32_t i = 1; i < count; i++) top = scores[i] > top ? scores[i] : top;
    for (int32_t i = 0; i < count; i++) sum += scores[i] = expf(scores[i] - top);
    for (int32_t i = 0; i < count; i++) scores[i] /= sum;
}

static int32_t best_of(const float *values, int32_t count) {
    int32_t best = 0;
    for (int32_t i = 1; i < count; i++)
        if (values[i] > values[best]) best = i;
    return best;
}

/* Experts outside of the best groups fall to -inf. V3 ranks a group by its two best, V2 by its best. */
static void limit_groups(const dw_experts *e, float *biased) {
    int32_t each = e->experts / e->groups;
    float ranks[e->groups];
    for (int32_t g = 0; g < e->groups; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (int32_t i = g * each; i < (g + 1) * each; i++) {
            if (biased[i] > first) second = first, first = biased[i];
            else if (biased[i] > second) second = biased[i];
        }
        ranks[g] = e->best_two ? first + second : first;
    }
    char kept[e->groups];
    memset(kept, 0, sizeof kept);
    for (int32_t i = 0; i < e->kept_groups; i++) {
        int32_t best = best_of(ranks, e->groups);
        kept[best] = 1;
        ranks[best] = -INFINITY;
    }
    for (int32_t g = 0; g < e->groups; g++)
        for (int32_t i = g * each; !kept[g] && i < (g + 1) * each; i++) biased[i] = -INFINITY;
}

/* `scores` [experts] are logits and become scores; the row's choice, best first, -1 where dynamic gating took fewer. */
static void choose(const dw_experts *e, float *scores, int32_t *choice, float *weights) {
    float biased[e->experts];
    if (e->sigmoid)
        for (int32_t i = 0; i < e->experts; i++) scores[i] = 1.0f / (1.0f + expf(-scores[i]));
    else
        softmax(scores, e->experts);
    for (int32_t i = 0; i < e->experts; i++) biased[i] = scores[i] + (e->bias ? e->bias[i] : 0.0f);
    if (e->groups > 1) limit_groups(e, biased);
    float mass = 0, taken = 0, sum = 0;
    for (int32_t i = 0; i < e->experts; i++) mass += biased[i] == -INFINITY ? 0 : scores[i];
    for (int32_t k = 0; k < e->chosen; k++) {
        int32_t best = best_of(biased, e->experts);
        int enough = e->share >= 0 && k >= e->minimum && taken / mass >= e->share;
        choice[k] = enough ? -1 : best;
        taken += scores[best];
        biased[best] = -INFINITY;
        weights[k] = enough ? 0 : e->weighed ? scores[best] : 1;
        sum += weights[k];
    }
    for (int32_t k = 0; k < e->chosen; k++) {
        if (e->normalised && e->weighed) weights[k] /= sum + 1e-20f;
        weights[k] *= e->factor;
    }
}

/* Which rows go to which expert: pairs [starts[i], starts[i + 1]) are those of expert i, in the order of rows. */
static void sort_pairs(const dw_experts *e, int32_t rows) {
    memset(e->starts, 0, ((size_t)e->experts + 1) * 4);
    for (int32_t i = 0; i < rows * e->chosen; i++)
        if (e->choice[i] >= 0) e->starts[e->choice[i] + 1]++;
    for (int32_t i = 0; i < e->experts; i++) e->starts[i + 1] += e->starts[i];
    for (int32_t i = 0; i < rows * e->chosen; i++)
        if (e->choice[i] >= 0) e->pairs[e->starts[e->choice[i]]++] = i;
    for (int32_t i = e->experts; i > 0; i--) e->starts[i] = e->starts[i - 1];
    e->starts[0] = 0;
}

/* The scratch of all threads: inputs of the first product, of the second, and for each pair its row. */
static size_t inputs_of(const dw_experts *e, int32_t rows) {
    return dw_padded(dw_input_bytes(e->gate_up, rows)) + dw_padded(dw_input_bytes(e->down, rows * e->chosen));
}

dw_needs dw_mix_experts_needs(const dw_op *op, const dw_batch *batch) {
    const dw_experts *e = op->matrix;
    size_t one = dw_panel_bytes(e->gate_up), other = dw_panel_bytes(e->down);
    return (dw_needs){.own = one > other ? one : other,
                      .shared = inputs_of(e, batch->rows) + (size_t)batch->rows * (size_t)e->chosen * 4};
}

/* All panels of all experts that have rows: y[pair] = x[index of pair] W^T. */
static void products(const dw_experts *e, const dw_matrix *matrices, const dw_input *input, const int32_t *index, float *y,
                     const dw_thread *thread) {
    int32_t panels = (matrices->out + DW_PANEL - 1) / DW_PANEL, at;
    int32_t piece = panels / (2 * thread->threads);
    piece = piece < 1 ? 1 : piece > 16 ? 16 : piece;
    int32_t pieces = (panels + piece - 1) / piece;
    while (dw_take(thread, e->experts * pieces, 1, &at)) {
        int32_t expert = at / pieces, panel = at % pieces * piece;
        int32_t first = e->starts[expert], rows = e->starts[expert + 1] - first;
        if (!rows) continue;
        int32_t here = panels - panel < piece ? panels - panel : piece;
        if (index) {
            dw_panels(matrices + expert, input, index + first, rows, panel, here, y + (int64_t)first * matrices->out,
                      matrices->out, 0, thread->scratch);
        } else {
            dw_input own = *input;
            int32_t groups = dw_groups(matrices);
            int size = matrices->format == DW_INT8 ? 2 : 1;
            own.rows += first * input->step;
            if (matrices->format >= DW_INT8) {
                own.integers = (char *)own.integers + (int64_t)first * groups * DW_GROUP * size;
                own.scales += (int64_t)first * groups;
                own.sums += (int64_t)first * groups;
            }
            dw_panels(matrices + expert, &own, NULL, rows, panel, here, y + (int64_t)first * matrices->out, matrices->out,
                      0, thread->scratch);
        }
    }
}

/* y += the weighted sum of each row's experts, for the rows x [rows, hidden]. */
void dw_mix_experts(const dw_op *op, const dw_thread *thread) {
    const dw_experts *e = op->matrix;
    int32_t rows = thread->batch->rows, first, last, hidden = e->gate_up->in, width = e->width;
    dw_share(thread, rows, &first, &last);

    char *memory = thread->shared;
    dw_input input = {.rows = op->x, .step = op->x_row}, middle = {.rows = e->middle, .step = 2 * width};
    dw_input_place(&input, e->gate_up, rows, memory);
    memory += dw_padded(dw_input_bytes(e->gate_up, rows));
    dw_input_place(&middle, e->down, rows * e->chosen, memory);
    memory += dw_padded(dw_input_bytes(e->down, rows * e->chosen));
    int32_t *row_of = (int32_t *)memory;

    dw_matrix router = {.format = DW_F32, .in = hidden, .out = e->experts, .panels = e->router};
    int32_t panels = (e->experts + DW_PANEL - 1) / DW_PANEL;
    if (first < last) {
        dw_input mine = {.rows = op->x + first * op->x_row, .step = op->x_row};
        dw_panels(&router, &mine, NULL, last - first, 0, panels, e->scores + (int64_t)first * e->experts, e->experts, 0,
                  thread->scratch);
        dw_input_make(&input, e->gate_up, first, last);
    }
    for (int64_t row = first; row < last; row++)
        choose(e, e->scores + row * e->experts, e->choice + row * e->chosen, e->weights + row * e->chosen);
    dw_wait_for_all(thread);
    if (thread->id == 0) {
        sort_pairs(e, rows);
        for (int32_t i = 0; i < e->starts[e->experts]; i++) row_of[i] = e->pairs[i] / e->chosen;
    }
    dw_wait_for_all(thread);

    int32_t pairs = e->starts[e->experts];
    products(e, e->gate_up, &input, row_of, e->middle, thread);
    dw_wait_for_all(thread);
    if (thread->id == 0) atomic_store(thread->next, 0);
    dw_share(thread, pairs, &first, &last);
    for (int64_t pair = first; pair < last; pair++) {
        float *gate = e->middle + pair * 2 * width, *up = gate + width, weight = e->weights[e->pairs[pair]];
        int32_t i = 0;
        for (; i + 8 <= width; i += 8) {
            f32x8 value = load8(gate + i);
            store8(gate + i, value / (1.0f + exp8(-value)) * load8(up + i) * weight);
        }
        for (; i < width; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i] * weight;
    }
    dw_input_make(&middle, e->down, first, last);
    dw_wait_for_all(thread);
    products(e, e->down, &middle, NULL, e->out, thread);
    dw_wait_for_all(thread);

    /* Where each pair of a row went: `choice` is not needed any more and becomes that place. */
    dw_share(thread, pairs, &first, &last);
    for (int32_t pair = first; pair < last; pair++) e->choice[e->pairs[pair]] = pair;
    dw_wait_for_all(thread);
    dw_share(thread, rows, &first, &last);
    for (int64_t row = first; row < last; row++) {
        float *y = op->y + row * op->y_row;
        for (int32_t k = 0; k < e->chosen; k++) {
            int32_t pair = e->choice[row * e->chosen + k];
            if (pair < 0) continue;
            const float *from = e->out + (int64_t)pair * hidden;
            for (int32_t i = 0; i < hidden; i++) y[i] += from[i];
        }
    }
}
