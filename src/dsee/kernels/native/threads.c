/* A few threads that wait for work, and scratch memory for each.
 *
 * Plain POSIX threads: a second OpenMP runtime beside torch's own would fight with it for the cores. The number of
 * threads is given with each call, so torch's setting is followed.
 */
#include <pthread.h>
#include <stdlib.h>

#include "dsee_kernels.h"

enum { MOST = 64 };

static pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER; /* held by the caller whose work runs */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* guards what follows */
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static int32_t workers, wanted, running;
static uint64_t round_number;
static int64_t next_i, last_i;
static void (*job)(void *, int64_t);
static void *job_argument;

static void drain(void) {
    for (;;) {
        int64_t i = __atomic_fetch_add(&next_i, 1, __ATOMIC_RELAXED);
        if (i >= last_i) return;
        job(job_argument, i);
    }
}

static void *worker(void *number) {
    int32_t own = (int32_t)(intptr_t)number;
    uint64_t seen = 0;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (seen == round_number || own >= wanted) {
            seen = round_number;
            pthread_cond_wait(&wake, &lock);
        }
        seen = round_number;
        pthread_mutex_unlock(&lock);
        drain();
        pthread_mutex_lock(&lock);
        if (--running == 0) pthread_cond_signal(&done);
    }
    return NULL;
}

/* a child of fork() has none of the threads, and perhaps locks that nobody will open */
static void forget(void) {
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t still = PTHREAD_COND_INITIALIZER;
    in_use = lock = fresh;
    wake = done = still;
    workers = wanted = running = 0;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t memory;
typedef struct {
    float *floats;
    size_t count;
} arena;

static void release(void *a) {
    free(((arena *)a)->floats);
    free(a);
}

static void prepare(void) {
    pthread_key_create(&memory, release);
    pthread_atfork(NULL, NULL, forget);
}

float *dsee_scratch(size_t floats) {
    pthread_once(&once, prepare);
    arena *a = pthread_getspecific(memory);
    if (!a) {
        if (!(a = calloc(1, sizeof *a))) return NULL;
        pthread_setspecific(memory, a);
    }
    if (a->count < floats) {
        free(a->floats);
        a->count = 0;
        if (posix_memalign((void **)&a->floats, 64, floats * sizeof(float))) {
            a->floats = NULL;
            return NULL;
        }
        a->count = floats;
    }
    return a->floats;
}

void dsee_parallel(int64_t count, int32_t threads, void (*task)(void *, int64_t), void *argument) {
    pthread_once(&once, prepare);
    if (threads > count) threads = (int32_t)count;
    if (threads > MOST) threads = MOST;
    /* somebody else's work is under way: the cores are taken, so go on alone */
    if (threads < 2 || pthread_mutex_trylock(&in_use)) {
        for (int64_t i = 0; i < count; i++) task(argument, i);
        return;
    }
    pthread_mutex_lock(&lock);
    while (workers < threads - 1) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)workers)) break;
        pthread_detach(thread);
        workers++;
    }
    wanted = workers < threads - 1 ? workers : threads - 1;
    running = wanted;
    job = task;
    job_argument = argument;
    next_i = 0;
    last_i = count;
    round_number++;
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
    drain();
    pthread_mutex_lock(&lock);
    while (running) pthread_cond_wait(&done, &lock);
    wanted = 0;
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&in_use);
}
