/* Threads that carry out a program. They sleep between steps, and wait awake within one. */

#define _GNU_SOURCE
#include "program.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MOST_THREADS 64
#define SIGN 128u
#define AWAKE 4000 /* looks at what one waits for before the core is offered to others */
#define AWAKE_AFTER_A_STEP 1000000 /* nanoseconds in which the next step of a stream usually comes */

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

typedef struct {
    void *memory;
    size_t bytes;
} arena;

static struct {
    pthread_mutex_t running, lock;
    pthread_cond_t wake;
    int32_t started; /* threads that exist, the caller's not counted */
    atomic_uint sign; /* to begin: a count of programs, times SIGN, plus how many threads are to work */
    const dw_op *ops;
    int32_t count;
    const dw_batch *batch;
    atomic_int *next; /* [count] */
    int32_t next_size;
    atomic_int waiting, round;
    arena own[MOST_THREADS], shared;
} pool = {.running = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static int grown(arena *a, size_t bytes) {
    if (bytes <= a->bytes) return 1;
    free(a->memory);
    a->bytes = 0;
    a->memory = aligned_alloc(DW_ALIGN, dw_padded(bytes + bytes / 4));
    if (!a->memory) return 0;
    a->bytes = bytes;
    return 1;
}

void dw_wait_for_all(const dw_thread *thread) {
    if (thread->threads == 1) return;
    int round = atomic_load_explicit(&pool.round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool.waiting, 1, memory_order_acq_rel) == thread->threads - 1) {
        atomic_store_explicit(&pool.waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&pool.round, round + 1, memory_order_release);
        return;
    }
    for (int looks = 0; atomic_load_explicit(&pool.round, memory_order_acquire) == round;) {
        if (++looks < AWAKE) PAUSE();
        else sched_yield();
    }
}

static void work(int32_t id, int32_t threads) {
    /* Whoever leaves the last barrier late must not look at what the next program has put into the pool. */
    const dw_op *ops = pool.ops;
    atomic_int *next = pool.next;
    int32_t count = pool.count;
    dw_thread thread = {.id = id, .threads = threads, .batch = pool.batch, .scratch = pool.own[id].memory,
                        .shared = pool.shared.memory};
    for (int32_t i = 0; i < count; i++) {
        const dw_op *op = ops + i;
        thread.next = next + i;
        switch (op->kind) {
        case DW_NORM: dw_norm(op, &thread); break;
        case DW_LINEAR: dw_linear(op, &thread); break;
        case DW_ROPE: dw_rope(op, &thread); break;
        case DW_STORE: dw_store(op, &thread); break;
        case DW_ATTEND: dw_attend(op, &thread); break;
        case DW_SWIGLU: dw_swiglu(op, &thread); break;
        case DW_EXPERTS: dw_mix_experts(op, &thread); break;
        default: dw_copy(op, &thread); break;
        }
        dw_wait_for_all(&thread);
    }
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

typedef struct {
    int32_t id;
    unsigned seen;
} birth;

static void *serve(void *argument) {
    birth *given = argument;
    int32_t id = given->id;
    unsigned seen = given->seen;
    free(given);
    for (;;) {
        int64_t until = nanoseconds() + AWAKE_AFTER_A_STEP;
        for (int looks = 1; atomic_load_explicit(&pool.sign, memory_order_acquire) == seen; looks++) {
            PAUSE();
            if (looks % 64) continue;
            if (nanoseconds() < until) {
                sched_yield();
                continue;
            }
            pthread_mutex_lock(&pool.lock);
            while (atomic_load_explicit(&pool.sign, memory_order_acquire) == seen)
                pthread_cond_wait(&pool.wake, &pool.lock);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = atomic_load_explicit(&pool.sign, memory_order_acquire);
        if ((unsigned)id < seen % SIGN) work(id, (int32_t)(seen % SIGN));
    }
    return NULL;
}

static int started(int32_t threads) {
    while (pool.started < threads - 1) {
        pthread_t thread;
        birth *given = malloc(sizeof *given);
        if (!given) return 0;
        *given = (birth){.id = pool.started + 1, .seen = atomic_load(&pool.sign)};
        if (pthread_create(&thread, NULL, serve, given)) {
            free(given);
            return 0;
        }
        pthread_detach(thread);
        pool.started++;
    }
    return 1;
}

/* A child of fork has no threads of its own yet. */
static void forget(void) {
    pool.started = 0;
    atomic_store(&pool.waiting, 0);
    pthread_mutex_init(&pool.running, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
}

static void remember_forks(void) { pthread_atfork(NULL, NULL, forget); }

static int prepared(const dw_op *ops, int32_t count, const dw_batch *batch, int32_t threads) {
    dw_needs most = {0};
    if (count > pool.next_size) {
        atomic_int *next = realloc(pool.next, (size_t)count * sizeof *next);
        if (!next) return 0;
        pool.next = next;
        pool.next_size = count;
    }
    for (int32_t i = 0; i < count; i++) {
        dw_needs needs = {0};
        if (ops[i].kind == DW_LINEAR) needs = dw_linear_needs(ops + i, batch);
        if (ops[i].kind == DW_ATTEND) needs = dw_attend_needs(ops + i, batch);
        if (ops[i].kind == DW_EXPERTS) needs = dw_mix_experts_needs(ops + i, batch);
        most.own = needs.own > most.own ? needs.own : most.own;
        most.shared = needs.shared > most.shared ? needs.shared : most.shared;
        atomic_init(pool.next + i, 0);
    }
    if (!grown(&pool.shared, most.shared + DW_ALIGN)) return 0;
    for (int32_t id = 0; id < threads; id++)
        if (!grown(pool.own + id, most.own + DW_ALIGN)) return 0;
    return started(threads);
}

/* Carries out a program; 0, or 1 where memory or threads cannot be had (nothing has been done then). */
int32_t dw_run(const dw_op *ops, int32_t count, const dw_batch *batch) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int32_t threads = batch->threads < 1 ? 1 : batch->threads > MOST_THREADS ? MOST_THREADS : batch->threads;
    pthread_once(&once, remember_forks);
    pthread_mutex_lock(&pool.running);
    int ready = prepared(ops, count, batch, threads);
    if (ready) {
        pool.ops = ops;
        pool.count = count;
        pool.batch = batch;
        if (threads > 1) {
            unsigned programs = atomic_load(&pool.sign) / SIGN + 1;
            pthread_mutex_lock(&pool.lock);
            atomic_store_explicit(&pool.sign, programs * SIGN + (unsigned)threads, memory_order_release);
            pthread_cond_broadcast(&pool.wake);
            pthread_mutex_unlock(&pool.lock);
        }
        work(0, threads);
    }
    pthread_mutex_unlock(&pool.running);
    return !ready;
}

/* What this build was made for, and how large its structures are, so that Python can compare. */
const char *dw_instructions(void) {
#ifdef __AVX2__
    return "avx2";
#else
    return "generic";
#endif
}

/* Whether this processor has what the AVX2 build needs. */
int32_t dw_has_avx2(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
    return 0;
#endif
}

int32_t dw_size_of(int32_t which) {
    static const int32_t sizes[] = {sizeof(dw_op), sizeof(dw_batch), sizeof(dw_matrix), sizeof(dw_experts), sizeof(dw_stretch)};
    return sizes[which];
}
