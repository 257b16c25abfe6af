/* The kernels, written once with the compiler's vectors and included for each instruction set.
 *
 * The including file defines LANES (floats in a vector), BLOCK_VECTORS (vectors of a full panel of blocks: with four
 * rows 4 x BLOCK_VECTORS sums, BLOCK_VECTORS activations and one weight have to fit the registers), WEIGHT_VECTORS
 * and PATH (the name of the table of functions).
 */
#include <math.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "dsee_kernels.h"

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float vec4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t ivec4 __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, (ivec4){i, j, k, l})
#endif

/* adding a scalar to a zero vector is how both compilers spell a broadcast */
#define BROADCAST(s) ((s) - (vec){0})
#define BROADCAST4(s) ((s) - (vec4){0})

#include "panels.h"
#include "activations.h"
#include "attention.h"
#include "int8.h"
#include "norm.h"

/* ---- one group of one chunk: part[row][token] (in the first chunk bias[row]) += value * panel[column][token] ---- */

#define DEFINE_BLOCKS(NV)                                                                                           \
    INLINE void blocks_##NV(const float *panel, const uint8_t *column, const float *value, int64_t n, const float *bias, \
                             float *part) { \
        enum { P = NV * LANES };                                                                                    \
        vec sum[4][NV];                                                                                             \
        for (int r = 0; r < 4; r++)                                                                                 \
            for (int v = 0; v < NV; v++)                                                                            \
                sum[r][v] = bias ? (vec)BROADCAST(bias[r]) : *(const vec *)(part + r * P + v * LANES);                   \
        for (int64_t j = 0; j < n; j++) {                                                                           \
            const float *at = panel + (size_t)column[j] * P;                                                        \
            vec x[NV];                                                                                              \
            for (int v = 0; v < NV; v++) x[v] = *(const vec *)(at + v * LANES);                                     \
            for (int r = 0; r < 4; r++) {                                                                           \
                vec w = BROADCAST(value[4 * j + r]);                                                                \
                for (int v = 0; v < NV; v++) sum[r][v] += w * x[v];                                                 \
            }                                                                                                       \
        }                                                                                                           \
        for (int r = 0; r < 4; r++)                                                                                 \
            for (int v = 0; v < NV; v++) *(vec *)(part + r * P + v * LANES) = sum[r][v];                            \
    }

#define DEFINE_WEIGHTS(NV)                                                                                           \
    INLINE void weights_##NV(const float *panel, const uint8_t *column, const float *value, int64_t n, const float *bias, \
                             float *part) { \
        enum { P = NV * LANES };                                                                                     \
        vec sum[NV];                                                                                                 \
        for (int v = 0; v < NV; v++) sum[v] = bias ? (vec)BROADCAST(*bias) : *(const vec *)(part + v * LANES);            \
        for (int64_t j = 0; j < n; j++) {                                                                            \
            const float *at = panel + (size_t)column[j] * P;                                                         \
            vec w = BROADCAST(value[j]);                                                                             \
            for (int v = 0; v < NV; v++) sum[v] += w * *(const vec *)(at + v * LANES);                               \
        }                                                                                                            \
        for (int v = 0; v < NV; v++) *(vec *)(part + v * LANES) = sum[v];                                            \
    }

/* few tokens: the rows of a block lie in the lanes; two sums a token hide the latency of the additions */
#define DEFINE_BLOCKS_FEW(T)                                                                                         \
    INLINE void blocks_few_##T(const float *panel, const uint8_t *column, const float *value, int64_t n, const float *bias, \
                             float *part) { \
        vec4 sum[T][2] = {{{0}}};                                                                                    \
        int64_t j = 0;                                                                                               \
        for (; j + 2 <= n; j += 2)                                                                                   \
            for (int u = 0; u < 2; u++) {                                                                            \
                vec4 w = *(const vec4 *)(value + 4 * (j + u));                                                       \
                for (int t = 0; t < T; t++) sum[t][u] += w * BROADCAST4(panel[(size_t)column[j + u] * T + t]);       \
            }                                                                                                        \
        for (; j < n; j++) {                                                                                         \
            vec4 w = *(const vec4 *)(value + 4 * j);                                                                 \
            for (int t = 0; t < T; t++) sum[t][0] += w * BROADCAST4(panel[(size_t)column[j] * T + t]);               \
        }                                                                                                            \
        for (int t = 0; t < T; t++)                                                                                  \
            for (int r = 0; r < 4; r++)                                                                              \
                part[r * T + t] = (bias ? bias[r] : part[r * T + t]) + (sum[t][0][r] + sum[t][1][r]);                \
    }

#define DEFINE_WEIGHTS_FEW(T)                                                                                        \
    INLINE void weights_few_##T(const float *panel, const uint8_t *column, const float *value, int64_t n, const float *bias, \
                             float *part) { \
        float sum[4][T] = {{0}};                                                                                     \
        int64_t j = 0;                                                                                               \
        for (; j + 4 <= n; j += 4)                                                                                   \
            for (int u = 0; u < 4; u++)                                                                              \
                for (int t = 0; t < T; t++) sum[u][t] += value[j + u] * panel[(size_t)column[j + u] * T + t];        \
        for (; j < n; j++)                                                                                           \
            for (int t = 0; t < T; t++) sum[0][t] += value[j] * panel[(size_t)column[j] * T + t];                    \
        for (int t = 0; t < T; t++)                                                                                  \
            part[t] = (bias ? *bias : part[t]) + ((sum[0][t] + sum[1][t]) + (sum[2][t] + sum[3][t]));                \
    }

/* ---- all groups of one chunk ---- */

#define DEFINE_CHUNK(NAME, VALUES, P)                                                                                \
    static void chunk_##NAME(const dsee_matrix *m, int64_t c, int64_t first, int64_t last, const float *panel,       \
                             const float *bias, float *part) {                                                       \
        const int32_t *start = m->start + c * m->groups;                                                             \
        for (int64_t g = first; g < last; g++) {                                                                     \
            int64_t at = start[g];                                                                                   \
            NAME(panel, m->column + at, m->value + at * VALUES, start[g + 1] - at, bias, part);                      \
            part += VALUES * (P);                                                                                    \
            if (bias) bias += VALUES;                                                                                \
        }                                                                                                            \
    }

#define BLOCK_WIDTH(NV) DEFINE_BLOCKS(NV) DEFINE_CHUNK(blocks_##NV, 4, NV * LANES)
#define WEIGHT_WIDTH(NV) DEFINE_WEIGHTS(NV) DEFINE_CHUNK(weights_##NV, 1, NV * LANES)
#define FEW_WIDTH(T) \
    DEFINE_BLOCKS_FEW(T) DEFINE_CHUNK(blocks_few_##T, 4, T) DEFINE_WEIGHTS_FEW(T) DEFINE_CHUNK(weights_few_##T, 1, T)

typedef void (*chunk_fn)(const dsee_matrix *, int64_t, int64_t, int64_t, const float *, const float *, float *);
typedef struct {
    int32_t tokens;
    chunk_fn run;
} width;

FEW_WIDTH(1)
FEW_WIDTH(2)
FEW_WIDTH(3)
FEW_WIDTH(4)
#if BLOCK_VECTORS == 6
BLOCK_WIDTH(2)
BLOCK_WIDTH(4)
BLOCK_WIDTH(6)
#else
BLOCK_WIDTH(1)
BLOCK_WIDTH(2)
BLOCK_WIDTH(3)
#endif
#if LANES > 4
WEIGHT_WIDTH(1)
#endif
WEIGHT_WIDTH(2)
WEIGHT_WIDTH(4)
#if WEIGHT_VECTORS == 8
WEIGHT_WIDTH(8)
#endif

/* widest first */
static const width widths[2][9] = {
    {
#if BLOCK_VECTORS == 6
        {6 * LANES, chunk_blocks_6},
        {4 * LANES, chunk_blocks_4},
        {2 * LANES, chunk_blocks_2},
#else
        {3 * LANES, chunk_blocks_3},
        {2 * LANES, chunk_blocks_2},
        {1 * LANES, chunk_blocks_1},
#endif
        {4, chunk_blocks_few_4},
        {3, chunk_blocks_few_3},
        {2, chunk_blocks_few_2},
        {1, chunk_blocks_few_1},
        {0, 0}},
    {
#if WEIGHT_VECTORS == 8
        {8 * LANES, chunk_weights_8},
#endif
        {4 * LANES, chunk_weights_4},
        {2 * LANES, chunk_weights_2},
#if LANES > 4
        {1 * LANES, chunk_weights_1},
#endif
        {4, chunk_weights_few_4},
        {3, chunk_weights_few_3},
        {2, chunk_weights_few_2},
        {1, chunk_weights_few_1},
        {0, 0}}};

/* The width for the next tokens: the narrowest that holds them all if it wastes at most a quarter, else the widest
 * that is full. Two of the second width go before one of the first and a narrow rest, which is hardly cheaper than a
 * wide one: with one vector a sum waits for the last. */
static const width *choose(int32_t kind, int64_t tokens) {
    const width *w = widths[kind], *best = w;
    if (tokens > w->tokens && tokens <= 2 * w[1].tokens) return w + 1;
    while (w->tokens) {
        if (w->tokens >= tokens && 4 * tokens >= 3 * w->tokens) best = w;
        if (w->tokens <= tokens) return best->tokens >= tokens && 4 * tokens >= 3 * best->tokens ? best : w;
        w++;
    }
    return best;
}

/* four rows of the side branch, NV vectors of tokens */
INLINE void side_strip(int NV, const float *u, int64_t rank, const float *z, int64_t P, float *part) {
    vec sum[4][2];
    for (int r = 0; r < 4; r++)
        for (int v = 0; v < NV; v++) sum[r][v] = *(const vec *)(part + r * P + v * LANES);
    for (int64_t k = 0; k < rank; k++)
        for (int r = 0; r < 4; r++)
            for (int v = 0; v < NV; v++) sum[r][v] += u[4 * k + r] * *(const vec *)(z + k * P + v * LANES);
    for (int r = 0; r < 4; r++)
        for (int v = 0; v < NV; v++) *(vec *)(part + r * P + v * LANES) = sum[r][v];
}

/* part[row][token] += u[row] z[token]: the side branch, four rows at a time */
static void add_side(const float *u, int64_t rank, const float *z, int64_t quads, int64_t P, float *part) {
    for (int64_t q = 0; q < quads; q++, part += 4 * P, u += 4 * rank) {
        int64_t t = 0;
        for (; t + 2 * LANES <= P; t += 2 * LANES) side_strip(2, u, rank, z + t, P, part + t);
        for (; t + LANES <= P; t += LANES) side_strip(1, u, rank, z + t, P, part + t);
        for (int64_t k = 0; t < P && k < rank; k++)
            for (int r = 0; r < 4; r++)
                for (int64_t i = t; i < P; i++) part[r * P + i] += u[4 * k + r] * z[k * P + i];
    }
}

/* the bias of some rows, 0 where there is none */
static void fill(const float *bias, int64_t rows, int64_t valid, float *to) {
    for (int64_t o = 0; o < rows; o++) to[o] = bias && o < valid ? bias[o] : 0.0f;
}

/* so many floats in whole cache lines: a vector across two of them costs two loads */
static int64_t in_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

static void run(const dsee_part *p, float *scratch) {
    const dsee_product *d = p->product;
    const dsee_matrix *w = d->w, *v = d->v;
    int64_t left = p->tokens, token = p->token, chunks = (w->columns + w->chunk - 1) / w->chunk;
    int64_t row = 4 * p->quad, rows = 4 * p->quads;
    int64_t valid = w->rows - row < rows ? w->rows - row : rows;
    int64_t first = w->kind == DSEE_BLOCKS ? p->quad : row;
    int64_t last = w->kind == DSEE_BLOCKS ? p->quad + p->quads : row + valid;
    float *bias = scratch, *panel = bias + in_lines(rows);
    fill(d->bias ? d->bias + row : NULL, rows, valid, bias);
    while (left > 0) {
        const width *now = choose(w->kind, left);
        int64_t P = now->tokens, n = left < P ? left : P;
        float *part = panel + DSEE_MAX_CHUNK * P, *z = part + rows * P;
        /* rows of the last quad that are not there are computed by no group of single weights */
        if (last - first < rows && w->kind == DSEE_WEIGHTS) memset(part + valid * P, 0, sizeof(float) * (size_t)((rows - valid) * P));
        if (v) memset(z, 0, sizeof(float) * (size_t)(v->rows + 3) * (size_t)P);
        for (int64_t c = 0; c < chunks; c++) {
            int64_t at = c * w->chunk, wide = w->columns - at < w->chunk ? w->columns - at : w->chunk;
            to_panel(d->x + token * d->ldx + at, d->ldx, n, wide, panel, P);
            now->run(w, c, first, last, panel, c ? NULL : bias, part);
            if (v) now->run(v, c, 0, v->groups, panel, NULL, z);
        }
        if (v) add_side(d->u + 4 * p->quad * v->rows, v->rows, z, p->quads, P, part);
        activate(d->activation, part, rows * P);
        from_panel(part, P, valid, n, d->y + token * d->ldy + row, d->ldy);
        token += n;
        left -= n;
    }
}

#include "pair.h"
#include "self_attention.h"
#include "encoder.h"

/* 8-bit products need whole vectors of 256 bits */
#if defined(__AVX2__) && LANES >= 8
#define DSEE_INT8 int8_panel, int8_floats, INT8_TOKENS
#else
#define DSEE_INT8 0, 0, 0
#endif
#define DSEE_PATH(NAME) \
    {NAME, {BLOCK_VECTORS * LANES, WEIGHT_VECTORS * LANES}, run, attend, attention_floats, DSEE_INT8, add_norm, \
     run_pair, pair_floats, self_attend, self_floats, panels_of, encoder_floats, encoder_enter, encoder_layer}
