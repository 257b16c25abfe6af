/* Between row-major activations (token by token) and panels (feature by feature). Included by body.h. */

/* 0 only for benchmarks/bench_layout.py: results are then worthless, and times those of everything but the layout */
#ifndef DSEE_LAYOUT
#define DSEE_LAYOUT 1
#endif

INLINE void transpose4(const float *in, int64_t from, float *out, int64_t to) {
    vec4 a = *(const vec4 *)in, b = *(const vec4 *)(in + from), c = *(const vec4 *)(in + 2 * from),
         d = *(const vec4 *)(in + 3 * from);
    vec4 e = SHUFFLE4(a, b, 0, 4, 1, 5), f = SHUFFLE4(a, b, 2, 6, 3, 7);
    vec4 g = SHUFFLE4(c, d, 0, 4, 1, 5), h = SHUFFLE4(c, d, 2, 6, 3, 7);
    *(vec4 *)out = SHUFFLE4(e, g, 0, 1, 4, 5);
    *(vec4 *)(out + to) = SHUFFLE4(e, g, 2, 3, 6, 7);
    *(vec4 *)(out + 2 * to) = SHUFFLE4(f, h, 0, 1, 4, 5);
    *(vec4 *)(out + 3 * to) = SHUFFLE4(f, h, 2, 3, 6, 7);
}

#if LANES >= 8
typedef float vec8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t ivec8 __attribute__((vector_size(32)));
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE8(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE8(a, b, ...) __builtin_shuffle(a, b, (ivec8){__VA_ARGS__})
#endif

INLINE void transpose8(const float *in, int64_t from, float *out, int64_t to) {
    vec8 x[8], y[8];
    for (int i = 0; i < 8; i++) x[i] = *(const vec8 *)(in + i * from);
    /* pairs of rows, then fours, then both halves */
    for (int i = 0; i < 8; i += 2) {
        y[i] = SHUFFLE8(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        y[i + 1] = SHUFFLE8(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            x[i + 2 * k] = SHUFFLE8(y[i + k], y[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            x[i + 2 * k + 1] = SHUFFLE8(y[i + k], y[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        *(vec8 *)(out + i * to) = SHUFFLE8(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        *(vec8 *)(out + (i + 4) * to) = SHUFFLE8(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}
#endif

/* n rows x m columns, `from` floats apart, into columns x rows, `to` apart; whole cache lines of the input at a time */
static void transpose(const float *in, int64_t from, int64_t n, int64_t m, float *out, int64_t to) {
    int64_t i = 0;
    if (!DSEE_LAYOUT) return;
#if LANES >= 8
    for (; i + 8 <= n; i += 8) {
        int64_t j = 0;
        for (; j + 8 <= m; j += 8) transpose8(in + i * from + j, from, out + j * to + i, to);
        for (; j < m; j++)
            for (int64_t a = 0; a < 8; a++) out[j * to + i + a] = in[(i + a) * from + j];
    }
#endif
    for (; i + 4 <= n; i += 4) {
        int64_t j = 0;
        for (; j + 4 <= m; j += 4) transpose4(in + i * from + j, from, out + j * to + i, to);
        for (; j < m; j++)
            for (int64_t a = 0; a < 4; a++) out[j * to + i + a] = in[(i + a) * from + j];
    }
    for (; i < n; i++)
        for (int64_t j = 0; j < m; j++) out[j * to + i] = in[i * from + j];
}

/* x[token][feature] to panel[feature][token]; tokens that are not there are zeros */
static void to_panel(const float *x, int64_t ldx, int64_t n, int64_t columns, float *panel, int64_t P) {
    if (!DSEE_LAYOUT) return;
    if (n < P)
        for (int64_t k = 0; k < columns; k++)
            for (int64_t t = n; t < P; t++) panel[k * P + t] = 0.0f;
    transpose(x, ldx, n, columns, panel, P);
}

/* part[row][token] to y[token][row], sixteen rows at a time: a cache line of y */
static void from_panel(const float *part, int64_t P, int64_t rows, int64_t n, float *y, int64_t ldy) {
    if (!DSEE_LAYOUT) return;
    for (int64_t o = 0; o < rows; o += 16) {
        int64_t wide = rows - o < 16 ? rows - o : 16, t = 0;
#if LANES >= 8
        for (; t + 8 <= n; t += 8) transpose(part + o * P + t, P, wide, 8, y + t * ldy + o, ldy);
#endif
        for (; t + 4 <= n; t += 4) transpose(part + o * P + t, P, wide, 4, y + t * ldy + o, ldy);
        for (; t < n; t++)
            for (int64_t a = 0; a < wide; a++) y[t * ldy + o + a] = part[(o + a) * P + t];
    }
}
