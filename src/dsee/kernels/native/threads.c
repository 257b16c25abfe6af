/* Torch's threads, or a few of our own that wait for work, and scratch memory for each.
 *
 * Ours are plain POSIX threads: a second OpenMP runtime beside torch's own would fight with it for the cores. The number of
 * threads is given with each call, so torch's setting is followed.
 */
#include <pthread.h>
#include <stdlib.h>

#include "dsee_kernels.h"

enum { MOST = 64 };

static pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER; /* held by the caller whose work runs */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* guards what follows */
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static int32_t workers, wanted, running, asleep; /* running: those that have joined the round */
static uint64_t round_number;
static int64_t next_i, last_i;
static void (*job)(void *, int64_t);
static void *job_argument;

static void post(void (*task)(void *, int64_t), void *argument, int64_t count) {
    job = task;
    job_argument = argument;
    next_i = 0;
    last_i = count;
}

static void drain(void) {
    for (;;) {
        int64_t i = __atomic_fetch_add(&next_i, 1, __ATOMIC_RELAXED);
        if (i >= last_i) return;
        job(job_argument, i);
    }
}

static void breathe(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Whoever waits looks again so often before it sleeps: 20 to 80 microseconds. The parts of an encoder follow each other
 * sooner, and a thread that sleeps is woken later than that. */
enum { LOOKS = 2000 };

static void *worker(void *number) {
    int32_t own = (int32_t)(intptr_t)number;
    uint64_t seen = 0;
    for (;;) {
        for (int i = 0; i < LOOKS && __atomic_load_n(&round_number, __ATOMIC_RELAXED) == seen; i++) breathe();
        pthread_mutex_lock(&lock);
        while (seen == round_number || own >= wanted) {
            seen = round_number;
            asleep++;
            pthread_cond_wait(&wake, &lock);
            asleep--;
        }
        seen = round_number;
        __atomic_store_n(&running, running + 1, __ATOMIC_RELAXED);
        pthread_mutex_unlock(&lock);
        drain();
        pthread_mutex_lock(&lock);
        __atomic_store_n(&running, running - 1, __ATOMIC_RELAXED);
        if (!running) pthread_cond_signal(&done);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

/* torch's own threads, if they are libgomp's: GOMP_parallel(task, argument, threads, flags). After torch's last operation
 * they look out for work for a while, on cores that threads of ours would have to share with them. */
static void (*torch_parallel)(void (*)(void *), void *, unsigned, unsigned);

static void drain_in_team(void *unused) {
    (void)unused;
    drain();
}

/* a child of fork() has none of the threads, and perhaps locks that nobody will open; libgomp would wait for them */
static void forget(void) {
    torch_parallel = NULL;
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t still = PTHREAD_COND_INITIALIZER;
    in_use = lock = fresh;
    wake = done = still;
    workers = wanted = running = asleep = 0;
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
    if (torch_parallel) {
        post(task, argument, count);
        torch_parallel(drain_in_team, NULL, (unsigned)threads, 0);
        pthread_mutex_unlock(&in_use);
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
    post(task, argument, count);
    __atomic_store_n(&round_number, round_number + 1, __ATOMIC_RELAXED);
    if (asleep) pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
    drain();
    pthread_mutex_lock(&lock);
    /* who has not come until now finds nothing to do: nobody waits for it */
    wanted = 0;
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < LOOKS && __atomic_load_n(&running, __ATOMIC_RELAXED); i++) breathe();
    pthread_mutex_lock(&lock);
    while (running) pthread_cond_wait(&done, &lock);
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&in_use);
}

void dsee_share_threads(void (*parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    pthread_once(&once, prepare);
    pthread_mutex_lock(&in_use);
    torch_parallel = parallel;
    pthread_mutex_unlock(&in_use);
}
