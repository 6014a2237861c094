/* A network as a list of operations over a batch of rows, and what they are made of.
 *
 * Python (deepwell.lm.engine.program) writes the list once for a network; dw_run carries it out for the rows of one
 * step, all operations in one call, every thread through the same list with a barrier behind each.
 *
 * Rows do not influence each other, and a row's result has the same bits whatever stands beside it, however many threads
 * work and however a prompt is cut into pieces: every sum runs in an order that depends on the row alone. */

#ifndef DEEPWELL_PROGRAM_H
#define DEEPWELL_PROGRAM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { DW_F32, DW_BF16, DW_INT8, DW_INT4 };

enum { DW_NORM, DW_LINEAR, DW_ROPE, DW_STORE, DW_ATTEND, DW_SWIGLU, DW_EXPERTS, DW_COPY };

/* y += instead of y = */
enum { DW_ADD = 1 };

#define DW_PANEL 16 /* outputs of a matrix that lie together */
#define DW_GROUP 32 /* inputs that share a scale */
#define DW_ALIGN 64

/* A matrix [out, in] in panels of 16 outputs; the layouts stand at the tiles in linear.c. */
typedef struct {
    int32_t format, in, out, unused;
    const void *panels;
    const float *bias; /* [out] or NULL */
} dw_matrix;

static inline int32_t dw_groups(const dw_matrix *matrix) { return (matrix->in + DW_GROUP - 1) / DW_GROUP; }

/* Experts of one layer, and how tokens are sent to them (deepwell.lm.model.moe). */
typedef struct {
    int32_t experts, chosen, groups, kept_groups, width, sigmoid, best_two, normalised, weighed, minimum;
    float share, factor; /* share < 0: no dynamic gating */
    const float *router; /* panels of a DW_F32 matrix [experts, hidden] */
    const float *bias;   /* [experts] or NULL */
    const dw_matrix *gate_up, *down; /* one for each expert */
    int32_t *choice;     /* [rows, chosen], scratch like the rest */
    float *weights, *scores, *middle, *out; /* [rows, chosen], [rows, experts], [pairs, 2 width], [pairs, hidden] */
    int32_t *pairs, *starts; /* [rows * chosen], [experts + 1] */
} dw_experts;

typedef struct {
    int32_t kind, flags;
    int32_t width;  /* of a norm, a turned part, a stored row, half a swiglu; inputs of experts */
    int32_t heads;  /* matrices side by side, turned parts, heads of attention */
    const float *x;
    int64_t x_row, x_head; /* floats from row to row, from head to head */
    float *y;
    int64_t y_row, y_head;
    const void *matrix; /* dw_matrix[heads], norm weights, dw_experts */
    void *cache;        /* of this layer */
    int32_t cache_format, cache_width, key, key_group, value, value_group; /* where a group's key and value lie in a row */
    int32_t groups, key_width, value_width, window; /* window 0: everything */
    float number; /* epsilon of a norm, scale of scores */
    int32_t unused;
} dw_op;

/* Rows first..last-1 are consecutive tokens of one sequence, from place `start` on. */
typedef struct {
    int32_t first, last, start, table; /* where its blocks begin in `tables` */
} dw_stretch;

typedef struct {
    int32_t rows, stretches, block, threads;
    const float *cosine, *sine; /* [rows, width / 2] */
    const int64_t *slots;       /* [rows], where each row is stored */
    const dw_stretch *stretch;
    const int32_t *tables; /* the blocks of all sequences */
} dw_batch;

/* ---- inside ---- */

/* What one thread knows while it works. */
typedef struct {
    int32_t id, threads;
    const dw_batch *batch;
    atomic_int *next;      /* of this operation: the next piece of work that nobody has taken */
    void *scratch, *shared; /* this thread's own memory and that of all, both as large as dw_needs said */
} dw_thread;

/* Bytes of scratch that an operation wants for a batch. */
typedef struct {
    size_t own, shared;
} dw_needs;

/* The caller waits for all threads. */
void dw_wait_for_all(const dw_thread *thread);

/* Takes the next `count` of `all` pieces of work; returns how many it got, from *first on. */
static inline int32_t dw_take(const dw_thread *thread, int32_t all, int32_t count, int32_t *first) {
    *first = atomic_fetch_add_explicit(thread->next, count, memory_order_relaxed);
    int32_t left = all - *first;
    return left <= 0 ? 0 : left < count ? left : count;
}

/* The rows of a thread where each row is as much work as any other. */
static inline void dw_share(const dw_thread *thread, int32_t rows, int32_t *first, int32_t *last) {
    int32_t threads = rows < 4 ? 1 : thread->threads;
    *first = thread->id < threads ? (int32_t)((int64_t)rows * thread->id / threads) : rows;
    *last = thread->id < threads ? (int32_t)((int64_t)rows * (thread->id + 1) / threads) : rows;
}

static inline size_t dw_padded(size_t bytes) { return (bytes + DW_ALIGN - 1) / DW_ALIGN * DW_ALIGN; }

/* Rows as a matrix of some format wants them: float32 as they are, or integers with a scale a group. */
typedef struct {
    const float *rows;
    int64_t step;          /* floats from row to row */
    void *integers;        /* int8 or int16 [rows, in rounded up to groups] */
    float *scales, *sums;  /* [rows, groups]; sums are of int4 alone: a group's activations together */
} dw_input;

size_t dw_input_bytes(const dw_matrix *matrix, int32_t rows);
void dw_input_place(dw_input *input, const dw_matrix *matrix, int32_t rows, void *memory);
void dw_input_make(const dw_input *input, const dw_matrix *matrix, int32_t first, int32_t last);

/* y[r, 16 panel..] (+)= x[index[r]] W^T + bias, for `count` panels and all rows; index NULL: row r itself.
 * `scratch` has dw_panel_bytes. */
size_t dw_panel_bytes(const dw_matrix *matrix);
void dw_panels(const dw_matrix *matrix, const dw_input *input, const int32_t *index, int32_t rows, int32_t panel,
               int32_t count, float *y, int64_t y_row, int32_t add, void *scratch);

dw_needs dw_linear_needs(const dw_op *op, const dw_batch *batch);
dw_needs dw_attend_needs(const dw_op *op, const dw_batch *batch);
dw_needs dw_mix_experts_needs(const dw_op *op, const dw_batch *batch);
void dw_linear(const dw_op *op, const dw_thread *thread);
void dw_norm(const dw_op *op, const dw_thread *thread);
void dw_rope(const dw_op *op, const dw_thread *thread);
void dw_store(const dw_op *op, const dw_thread *thread);
void dw_swiglu(const dw_op *op, const dw_thread *thread);
void dw_copy(const dw_op *op, const dw_thread *thread);
void dw_attend(const dw_op *op, const dw_thread *thread);
void dw_mix_experts(const dw_op *op, const dw_thread *thread);

#endif
