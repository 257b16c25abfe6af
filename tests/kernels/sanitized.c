/* Random products and random damage, every array exactly as long as it has to be, for the compiler's sanitizers.
 * Compiled and run by test_sanitizers.py. Prints the largest difference from a plain triple loop. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dsee_kernels.h"

static uint64_t state;
static uint32_t below(uint32_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 33) % n;
}
static float value(void) { return (float)below(2001) / 1000.0f - 1.0f; }

typedef struct {
    dsee_matrix m;
    int32_t *start;
    uint8_t *column;
    float *value;
    int64_t starts, entries, values;
} owned;

static owned make(int32_t kind, int32_t chunk, int64_t rows, int64_t columns, uint32_t percent) {
    int64_t tall = kind == DSEE_BLOCKS ? 4 : 1, groups = (rows + tall - 1) / tall, chunks = (columns + chunk - 1) / chunk;
    owned o = {.starts = chunks * groups + 1};
    o.start = malloc(sizeof(int32_t) * (size_t)o.starts);
    o.column = malloc((size_t)(groups * columns) + 1);
    o.value = malloc(sizeof(float) * (size_t)(groups * columns * tall) + 4);
    o.start[0] = 0;
    for (int64_t c = 0; c < chunks; c++)
        for (int64_t g = 0; g < groups; g++) {
            for (int64_t k = c * chunk; k < columns && k < (c + 1) * chunk; k++)
                if (below(100) < percent) o.column[o.entries++] = (uint8_t)(k - c * chunk);
            o.start[c * groups + g + 1] = (int32_t)o.entries;
        }
    o.values = o.entries * tall;
    for (int64_t i = 0; i < o.values; i++) o.value[i] = value();
    /* exactly as long as they have to be, so that one byte beyond is found */
    o.column = realloc(o.column, o.entries ? (size_t)o.entries : 1);
    o.value = realloc(o.value, o.values ? sizeof(float) * (size_t)o.values : 1);
    o.m = (dsee_matrix){kind, chunk, rows, columns, groups, o.start, o.column, o.value};
    return o;
}

static void drop(owned *o) {
    free(o->start);
    free(o->column);
    free(o->value);
}

static float *floats(int64_t n) {
    float *f = malloc(sizeof(float) * (size_t)(n ? n : 1));
    for (int64_t i = 0; i < n; i++) f[i] = value();
    return f;
}

/* A side branch of a matrix, or none. */
typedef struct {
    owned v;
    float *u;
} branch;

static branch beside(const dsee_matrix *w) {
    branch b = {.u = NULL};
    if (!below(2)) return b;
    int64_t rank = 1 + below(6);
    b.v = make(w->kind, w->chunk, rank, w->columns, 100);
    for (int64_t j = 0; j < b.v.values; j++) b.v.value[j] *= 0.1f;
    b.u = floats((w->rows + 3) / 4 * 4 * rank);
    return b;
}

static void cut_off(branch *b) {
    if (b->u) drop(&b->v);
    free(b->u);
}

static int32_t product(const dsee_matrix *w, const dsee_matrix *v, const float *u, const float *bias, const float *x,
                       float *y, int64_t tokens, int32_t activation, const char *path) {
    dsee_product p = {w, v, u, bias, x, y, tokens, w->columns, w->rows, activation};
    return dsee_run(&p, path, 1);
}

static double at(const owned *o, int64_t row, int64_t token, const float *x) {
    int64_t tall = o->m.kind == DSEE_BLOCKS ? 4 : 1;
    int64_t chunks = (o->m.columns + o->m.chunk - 1) / o->m.chunk, g = row / tall;
    double sum = 0;
    for (int64_t c = 0; c < chunks; c++)
        for (int32_t j = o->start[c * o->m.groups + g]; j < o->start[c * o->m.groups + g + 1]; j++)
            sum += (double)o->value[j * tall + row % tall] * x[token * o->m.columns + c * o->m.chunk + o->column[j]];
    return sum;
}

/* Attention on arrays that end where they have to: any read or write beyond them stops the program. Returns the error. */
static double attend(const char *path) {
    int64_t groups = 1 + below(3), kv = 1 + below(3), heads = kv * groups, batch = 1 + below(2);
    int64_t queries = 1 + below(30), keys = 1 + below(50), dim = 1 + below(40);
    int32_t causal = (int32_t)below(2), masked = (int32_t)below(3);
    float *q = floats(batch * heads * queries * dim), *k = floats(batch * kv * keys * dim);
    float *v = floats(batch * kv * keys * dim), *out = floats(batch * heads * queries * dim), *bias = floats(queries * keys);
    uint8_t *allowed = malloc((size_t)(queries * keys));
    for (int64_t i = 0; i < queries * keys; i++) allowed[i] = (uint8_t)below(2);
    dsee_attention a = {q, k, v, out, masked == 1 ? allowed : NULL, masked == 2 ? bias : NULL,
                        batch, heads, kv, queries, keys, dim,
                        heads * queries * dim, queries * dim, dim, kv * keys * dim, keys * dim, dim,
                        kv * keys * dim, keys * dim, dim, queries * heads * dim, dim, heads * dim,
                        0, 0, keys, 0.3f, causal};
    double worst = dsee_attend(&a, path, 1 + (int32_t)below(3)) ? 1.0 : 0.0;
    for (int64_t u = 0; u < batch * heads * queries; u++) {
        int64_t i = u % queries, h = u / queries % heads, b = u / queries / heads, shared = b * kv + h / groups;
        double total = 0, sum[64] = {0};
        for (int64_t j = 0; j < keys; j++) {
            if ((causal && j > i) || (masked == 1 && !allowed[i * keys + j])) continue;
            double score = masked == 2 ? bias[i * keys + j] : 0.0;
            for (int64_t d = 0; d < dim; d++) score += 0.3 * q[u * dim + d] * k[(shared * keys + j) * dim + d];
            double weight = exp(score);
            total += weight;
            for (int64_t d = 0; d < dim; d++) sum[d] += weight * v[(shared * keys + j) * dim + d];
        }
        for (int64_t d = 0; d < dim; d++) {
            double want = total > 0 ? sum[d] / total : 0.0;
            double error = fabs(want - out[((b * queries + i) * heads + h) * dim + d]) / (1.0 + fabs(want));
            if (error > worst) worst = error;
        }
    }
    free(q), free(k), free(v), free(out), free(bias), free(allowed);
    return worst;
}

/* Query, key, value and attention in one call are those four calls, but for sums in another order. Returns the error. */
static double self(const char *path) {
    int32_t kind = (int32_t)below(2), chunk = 1 + (int32_t)below(256), threads = 1 + (int32_t)below(3);
    int64_t heads = 1 + below(5), dim = 4 * (1 + below(9)), rows = heads * dim, columns = 1 + below(300);
    int64_t batch = 1 + below(3), tokens = 1 + below(60), all = batch * tokens * rows;
    owned w[3];
    branch side[3];
    float *x = floats(batch * tokens * columns), *bias = floats(rows), *of[3], *apart = floats(all), *one = floats(all);
    uint8_t *allowed = malloc((size_t)(batch * tokens));
    for (int64_t i = 0; i < batch * tokens; i++) allowed[i] = (uint8_t)below(2);
    int32_t failed = 0;
    for (int i = 0; i < 3; i++) {
        w[i] = make(kind, chunk, rows, columns, below(101));
        /* scores of a size at which rounding stays rounding */
        for (int64_t j = 0; j < w[i].values; j++) w[i].value[j] *= 0.1f;
        of[i] = floats(all);
        side[i] = beside(&w[i].m);
        failed |= product(&w[i].m, side[i].u ? &side[i].v.m : NULL, side[i].u, i ? NULL : bias, x, of[i], batch * tokens, 0, path);
    }
    dsee_attention a = {of[0], of[1], of[2], apart, allowed, NULL, batch, heads, heads, tokens, tokens, dim,
                        tokens * rows, dim, rows, tokens * rows, dim, rows, tokens * rows, dim, rows,
                        tokens * rows, dim, rows, tokens, 0, 0, 0.2f, 0};
    failed |= dsee_attend(&a, path, 1);
    dsee_self d = {a, {&w[0].m, &w[1].m, &w[2].m}, {bias, NULL, NULL}, {NULL}, {NULL}, x};
    for (int i = 0; i < 3; i++) d.v[i] = side[i].u ? &side[i].v.m : NULL, d.u[i] = side[i].u;
    d.attention.q = d.attention.k = d.attention.v = NULL;
    d.attention.out = one;
    failed |= dsee_self_attend(&d, path, threads);
    double worst = failed ? 1.0 : 0.0;
    for (int64_t i = 0; i < all; i++) {
        double error = fabs((double)apart[i] - one[i]) / (1.0 + fabs((double)apart[i]));
        if (!(error <= worst)) worst = error;
    }
    d.w[1] = &w[0].m;
    d.attention.dim += 4;
    if (dsee_self_attend(&d, path, threads) != 3) worst = 1.0;
    d.attention.dim -= 4;
    /* a branch that reads other panels */
    owned other = make(kind, chunk, 2, columns + 1, 100);
    d.v[1] = &other.m;
    if (dsee_self_attend(&d, path, threads) != 3) worst = 1.0;
    drop(&other);
    for (int i = 0; i < 3; i++) drop(&w[i]), cut_off(&side[i]), free(of[i]);
    free(x), free(bias), free(apart), free(one), free(allowed);
    return worst;
}

/* Two layers in one call are those two calls, to the bit. Returns 1 where they are not. */
static double in_a_row(const char *path) {
    int32_t kind = (int32_t)below(2), act = (int32_t)below(5), threads = 1 + (int32_t)below(3);
    int64_t in = 1 + below(300), middle = 1 + below(300), out = 1 + below(40), tokens = below(90);
    owned a = make(kind, 1 + (int32_t)below(256), middle, in, below(101));
    owned b = make(kind, 1 + (int32_t)below(256), out, middle, below(101));
    float *x = floats(tokens * in), *h = floats(tokens * middle), *y = floats(tokens * out), *z = floats(tokens * out);
    float *bias = floats(middle);
    int32_t failed = dsee_linear(&a.m, bias, x, h, tokens, act, path, 1) || dsee_linear(&b.m, NULL, h, y, tokens, 0, path, 1) ||
                     dsee_linears(&a.m, bias, act, &b.m, NULL, 0, x, z, tokens, path, threads);
    double worst = failed ? 1.0 : 0.0;
    /* a thread's share of the tokens may end in narrower panels, summed in another order */
    for (int64_t i = 0; i < tokens * out; i++) {
        double error = fabs((double)y[i] - z[i]) / (1.0 + fabs((double)y[i]));
        if (error > worst) worst = error;
    }
    drop(&a), drop(&b);
    free(x), free(h), free(y), free(z), free(bias);
    return worst;
}

/* Sum and layer norm, in place and not. Returns the error. */
static double norm(const char *path) {
    int64_t tokens = below(20), width = 1 + below(100);
    float *a = floats(tokens * width), *b = floats(tokens * width), *gain = floats(width), *shift = floats(width);
    float *y = floats(tokens * width);
    double worst = dsee_add_norm(a, b, gain, shift, y, tokens, width, 0.1f, path, 1 + (int32_t)below(3)) ? 1.0 : 0.0;
    for (int64_t t = 0; t < tokens; t++) {
        double mean = 0, var = 0;
        for (int64_t k = 0; k < width; k++) mean += ((double)a[t * width + k] + b[t * width + k]) / (double)width;
        for (int64_t k = 0; k < width; k++) var += pow((double)a[t * width + k] + b[t * width + k] - mean, 2) / (double)width;
        for (int64_t k = 0; k < width; k++) {
            double s = (double)a[t * width + k] + b[t * width + k];
            double error = fabs((s - mean) / sqrt(var + 0.1) * gain[k] + shift[k] - y[t * width + k]);
            if (error > worst) worst = error;
        }
    }
    if (dsee_add_norm(a, b, gain, shift, a, tokens, width, 0.1f, path, 1) || memcmp(a, y, sizeof(float) * (size_t)(tokens * width)))
        worst = 1.0;
    free(a), free(b), free(gain), free(shift), free(y);
    return worst;
}

/* An encoder in one call is its layers' calls one by one, but for sums in another order. Returns the error. */
static double encoder(const char *path) {
    enum { MOST_LAYERS = 2 };
    int32_t kind = (int32_t)below(2), threads = 1 + (int32_t)below(3), layers = 1 + (int32_t)below(MOST_LAYERS), failed = 0;
    int64_t width = 8 + below(90), batch = 1 + below(4), tokens = 1 + below(60), all = batch * tokens * width, joined = 0;
    owned w[MOST_LAYERS][6];
    branch side[MOST_LAYERS][6];
    float *bias[MOST_LAYERS][6], *gain = floats(width), *shift = floats(width);
    dsee_layer layer[MOST_LAYERS];
    uint8_t *allowed = malloc((size_t)(batch * tokens));
    for (int64_t i = 0; i < batch * tokens; i++) allowed[i] = (uint8_t)below(2);
    float *x = floats(all), *h = floats(all), *y = floats(all), *t = floats(all);
    memcpy(h, x, sizeof(float) * (size_t)all);
    for (int l = 0; l < layers; l++) {
        int64_t heads = 1 + below(4), dim = 4 * (1 + below(6)), rows = heads * dim, inner = 1 + below(120);
        int64_t high[6] = {rows, rows, rows, width, inner, width}, wide[6] = {width, width, width, rows, width, inner};
        int32_t chunk = 1 + (int32_t)below(256);
        if (rows > joined) joined = rows;
        layer[l] = (dsee_layer){.gain = {gain, gain}, .shift = {shift, shift}, .heads = heads, .eps = {0.1f, 0.2f},
                                .scale = 0.2f, .activation = (int32_t)below(5)};
        for (int i = 0; i < 6; i++) {
            w[l][i] = make(kind, i < 3 ? chunk : 1 + (int32_t)below(256), high[i], wide[i], below(101));
            for (int64_t j = 0; j < w[l][i].values; j++) w[l][i].value[j] *= 0.1f;
            bias[l][i] = floats(high[i]);
            layer[l].w[i] = &w[l][i].m;
            layer[l].bias[i] = below(4) ? bias[l][i] : NULL;
            side[l][i] = beside(&w[l][i].m);
            layer[l].v[i] = side[l][i].u ? &side[l][i].v.m : NULL;
            layer[l].u[i] = side[l][i].u;
        }
        const dsee_layer *d = &layer[l];
        float *seen = floats(batch * tokens * rows), *middle = floats(batch * tokens * inner);
        dsee_attention a = {.out = seen, .allowed = allowed, .batch = batch, .heads = heads, .kv_heads = heads,
                            .queries = tokens, .keys = tokens, .dim = dim, .out_batch = tokens * rows, .out_head = dim,
                            .out_token = rows, .mask_batch = tokens, .scale = 0.2f};
        dsee_self self = {a, {d->w[0], d->w[1], d->w[2]}, {d->bias[0], d->bias[1], d->bias[2]},
                          {d->v[0], d->v[1], d->v[2]}, {d->u[0], d->u[1], d->u[2]}, h};
        failed |= dsee_self_attend(&self, path, 1);
        failed |= product(d->w[3], d->v[3], d->u[3], d->bias[3], seen, t, batch * tokens, 0, path);
        failed |= dsee_add_norm(t, h, gain, shift, h, batch * tokens, width, 0.1f, path, 1);
        failed |= product(d->w[4], d->v[4], d->u[4], d->bias[4], h, middle, batch * tokens, d->activation, path);
        failed |= product(d->w[5], d->v[5], d->u[5], d->bias[5], middle, t, batch * tokens, 0, path);
        failed |= dsee_add_norm(t, h, gain, shift, h, batch * tokens, width, 0.2f, path, 1);
        free(seen), free(middle);
    }
    float *hidden = floats(dsee_encoder_room(kind, batch, tokens, width, path)), *context = floats(batch * tokens * joined);
    dsee_encoder e = {.layer = layer, .x = x, .y = y, .hidden = hidden, .context = context, .allowed = allowed,
                      .mask_batch = tokens, .layers = layers, .batch = batch, .tokens = tokens, .width = width};
    failed |= dsee_encode(&e, path, threads);
    double worst = failed ? 1.0 : 0.0;
    for (int64_t i = 0; i < all; i++) {
        double error = fabs((double)h[i] - y[i]) / (1.0 + fabs((double)h[i]));
        if (!(error <= worst)) worst = error;
    }
    /* parts that do not follow each other, and heads that are none */
    const dsee_matrix *last = layer[0].w[5];
    layer[0].w[5] = layer[0].w[0];
    if (w[0][0].m.columns != w[0][4].m.rows && dsee_encode(&e, path, threads) != 3) worst = 1.0;
    layer[0].w[5] = last;
    layer[0].heads = 0;
    if (dsee_encode(&e, path, threads) != 3) worst = 1.0;
    for (int l = 0; l < layers; l++)
        for (int i = 0; i < 6; i++) drop(&w[l][i]), cut_off(&side[l][i]), free(bias[l][i]);
    free(gain), free(shift), free(allowed), free(x), free(h), free(y), free(t), free(hidden), free(context);
    return worst;
}

/* 8-bit products, sound and damaged. Returns by how much more than rounding they are off. */
static double integers(const char *path) {
    int64_t rows = 1 + below(40), columns = 1 + below(200), tokens = below(40);
    int64_t groups = (rows + 3) / 4, quads = (columns + 3) / 4, blocks = 0;
    int32_t *start = malloc(sizeof(int32_t) * (size_t)(groups + 1));
    uint16_t *column = malloc(sizeof(uint16_t) * (size_t)(groups * quads));
    uint32_t percent = below(101);
    start[0] = 0;
    for (int64_t g = 0; g < groups; g++) {
        for (int64_t k = 0; k < quads; k++)
            if (below(100) < percent) column[blocks++] = (uint16_t)k;
        start[g + 1] = (int32_t)blocks;
    }
    column = realloc(column, blocks ? sizeof(uint16_t) * (size_t)blocks : 1);
    int8_t *weight = malloc(blocks ? (size_t)(16 * blocks) : 1);
    float *scale = floats(rows), *sum = floats(rows), *x = floats(tokens * columns), *y = floats(tokens * rows);
    memset(sum, 0, sizeof(float) * (size_t)rows);
    for (int64_t g = 0; g < groups; g++)
        for (int64_t j = start[g]; j < start[g + 1]; j++)
            for (int64_t i = 0; i < 16; i++) {
                int there = 4 * g + i / 4 < rows && 4 * column[j] + i % 4 < columns;
                weight[16 * j + i] = there ? (int8_t)((int32_t)below(255) - 127) : 0;
                if (there) sum[4 * g + i / 4] += weight[16 * j + i];
            }
    dsee_int8 d = {rows, columns, groups, start, column, weight, scale, sum, NULL, x, y, tokens, 0};
    double worst = dsee_int8_check(&d, groups + 1, blocks, 16 * blocks) ? 1.0 : 0.0;
    if (dsee_int8_can(path)) {
        if (dsee_int8_run(&d, path, 1 + (int32_t)below(3))) worst = 1.0;
        for (int64_t t = 0; t < tokens; t++) {
            float least = 1.0f, most = -1.0f;
            for (int64_t k = 0; k < columns; k++) {
                float v = x[t * columns + k];
                least = v < least ? v : least;
                most = v > most ? v : most;
            }
            for (int64_t o = 0; o < rows; o++) {
                double want = 0, size = 0;
                for (int64_t j = start[o / 4]; j < start[o / 4 + 1]; j++)
                    for (int64_t i = 0; i < 4 && 4 * column[j] + i < columns; i++) {
                        double w = weight[16 * j + o % 4 * 4 + i];
                        want += w * x[t * columns + 4 * column[j] + i];
                        size += fabs(w);
                    }
                /* half a step for each weight */
                double allowed = fabs((double)scale[o]) * size * ((most - least) / 254.0 + 1e-5) + 1e-6;
                double error = fabs(want * scale[o] - y[t * rows + o]) - allowed;
                if (error > worst) worst = error;
            }
        }
    }
    if (blocks) {
        column[below((uint32_t)blocks)] = (uint16_t)(quads + below(9));
        if (!dsee_int8_check(&d, groups + 1, blocks, 16 * blocks)) worst = 1.0;
    }
    free(start), free(column), free(weight), free(scale), free(sum), free(x), free(y);
    return worst;
}

int main(int count, char **arguments) {
    int rounds = count > 1 ? atoi(arguments[1]) : 300;
    const char *paths[8];
    int32_t n = dsee_paths(paths, 8);
    double worst = 0;
    long refused = 0, run = 0;
    for (int round = 0; round < rounds; round++) {
        state = (uint64_t)round * 977 + 1;
        int32_t kind = (int32_t)below(2), chunk = 1 + (int32_t)below(256);
        int64_t rows = 1 + below(40), columns = 1 + below(400), tokens = below(80), rank = below(9);
        owned w = make(kind, chunk, rows, columns, below(101));
        owned v = make(kind, chunk, rank ? rank : 1, columns, 100);
        if (dsee_check(&w.m, w.starts, w.entries, w.values)) return puts("a sound matrix was refused"), 1;
        int damaged = below(3) == 0;
        if (damaged) {
            switch (below(4)) {
                case 0: w.start[below((uint32_t)w.starts)] = (int32_t)(below(1u << 31) - (1u << 30)); break;
                case 1: if (w.entries) w.column[below((uint32_t)w.entries)] = (uint8_t)below(256); break;
                case 2: w.m.chunk = (int32_t)below(600) - 100; break;
                default: w.m.rows += (int64_t)below(9) - 4; break;
            }
            if (dsee_check(&w.m, w.starts, w.entries, w.values) || w.m.chunk != chunk) {
                refused++;
                drop(&w);
                drop(&v);
                continue;
            }
        }
        rows = w.m.rows;
        float *x = floats(tokens * columns), *y = floats(tokens * rows), *bias = floats(rows);
        float *u = floats((rows + 3) / 4 * 4 * (rank ? rank : 1));
        dsee_product product = {&w.m, rank ? &v.m : NULL, rank ? u : NULL, below(2) ? bias : NULL, x, y, tokens, columns,
                                rows, 0};
        for (int32_t p = 0; p < n; p++) {
            product.activation = 0;
            if (dsee_run(&product, paths[p], 1 + (int32_t)below(4))) return puts("a product failed"), 1;
            run++;
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t o = 0; o < rows; o++) {
                    double want = at(&w, o, t, x) + (product.bias ? bias[o] : 0.0f);
                    for (int64_t k = 0; k < rank; k++)
                        want += (double)u[(o / 4 * rank + k) * 4 + o % 4] * at(&v, k, t, x);
                    double error = fabs(want - y[t * rows + o]) / (1.0 + fabs(want));
                    if (error > worst) worst = error;
                }
            double errors[] = {attend(paths[p]), in_a_row(paths[p]), norm(paths[p]), integers(paths[p]), self(paths[p]),
                               encoder(paths[p])};
            for (int i = 0; i < 6; i++)
                if (errors[i] > worst) worst = errors[i];
            product.activation = (int32_t)below(5);
            if (dsee_run(&product, paths[p], 1)) return puts("a product failed"), 1;
        }
        drop(&w);
        drop(&v);
        free(x), free(y), free(bias), free(u);
    }
    printf("%ld products on %d instruction sets, %ld damaged matrices refused, largest difference %.1e\n", run, n, refused,
           worst);
    return worst < 1e-3 ? 0 : 1;
}
