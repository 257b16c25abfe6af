/* Softmax attention of one head: out = softmax(scale q k' + mask) v, six queries at a time. Included by body.h.
 *
 * Keys and values are first laid out in tiles of two vectors (2 * LANES keys or value features side by side), so that
 * both products are one small kernel: six broadcasts against two vectors, twelve sums in registers.
 */

enum { TILE = 2 * LANES, QUERIES = 6 };

INLINE int64_t tiles(int64_t n) { return (n + TILE - 1) / TILE; }

/* c[i][0..TILE) = sum over k of a[i][k * step] b[k][0..TILE) */
INLINE void tile(const float *const *a, int64_t step, const float *b, int64_t depth, float *c, int64_t ldc) {
    vec sum[QUERIES][2];
    for (int i = 0; i < QUERIES; i++) sum[i][0] = sum[i][1] = (vec){0};
    for (int64_t k = 0; k < depth; k++, b += TILE) {
        vec b0 = *(const vec *)b, b1 = *(const vec *)(b + LANES);
        for (int i = 0; i < QUERIES; i++) {
            vec w = BROADCAST(a[i][k * step]);
            sum[i][0] += w * b0;
            sum[i][1] += w * b1;
        }
    }
    for (int i = 0; i < QUERIES; i++) {
        *(vec *)(c + i * ldc) = sum[i][0];
        *(vec *)(c + i * ldc + LANES) = sum[i][1];
    }
}

/* k[key][feature] to tiles[tile][feature][key]; keys that are not there are zeros */
static void key_tiles(const float *k, int64_t from, int64_t keys, int64_t dim, float *to) {
    for (int64_t at = 0; at < keys; at += TILE, to += TILE * dim)
        to_panel(k + at * from, from, keys - at < TILE ? keys - at : TILE, dim, to, TILE);
}

/* v[key][feature] to tiles[tile][key][feature]; features that are not there are zeros */
static void value_tiles(const float *v, int64_t from, int64_t keys, int64_t dim, float *to) {
    for (int64_t at = 0; at < dim; at += TILE) {
        int64_t wide = dim - at < TILE ? dim - at : TILE;
        for (int64_t j = 0; j < keys; j++, to += TILE) {
            if (wide == TILE) {
                *(vec *)to = *(const vec *)(v + j * from + at);
                *(vec *)(to + LANES) = *(const vec *)(v + j * from + at + LANES);
            } else
                for (int64_t d = 0; d < TILE; d++) to[d] = d < wide ? v[j * from + at + d] : 0.0f;
        }
    }
}

/* Larger of two, in one instruction where the compiler would not find it; a NaN in b stays. */
#if defined(__AVX512F__)
#define LARGER(a, b) ((vec)_mm512_max_ps((__m512)(a), (__m512)(b)))
#elif defined(__AVX2__)
#define LARGER(a, b) ((vec)_mm256_max_ps((__m256)(a), (__m256)(b)))
#else
#define LARGER(a, b) SELECT((a) >= (b), (a), (b))
#endif

/* 2^x for x <= 0; 0 below -125. 2^n by the exponent's bits, 2^f for |f| <= 1/2 by a polynomial of degree 6 fitted to
 * the relative error there (1e-8, below fp32's rounding). */
INLINE vec power_of_two(vec x) {
    vec y = LARGER(BROADCAST(-125.0f), x);
    vec shifted = y + 12582912.0f; /* 1.5 * 2^23: rounds to a whole number in the low bits */
    vec f = y - (shifted - 12582912.0f);
    vec p = BROADCAST(1.5353362e-4f);
    p = p * f + 1.3398874e-3f;
    p = p * f + 9.6184373e-3f;
    p = p * f + 5.5503324e-2f;
    p = p * f + 2.4022648e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    vec found = (vec)((ivec)p + ((ivec)shifted << 23));
    return (vec)((ivec)found & ~(x < -125.0f));
}

/* The scores of one query to probabilities times what is returned, which divides them; a forbidden key gets exactly 0,
 * and so does every key of a query that may see none. `keys` of them are there, `seen` may be seen, `padded` are room. */
static float softmax(float *s, int64_t keys, int64_t seen, int64_t padded, float scale, const uint8_t *allowed,
                     const float *bias) {
    const float log2e = 1.44269504f;
    if (bias || !(scale > 0)) {
        /* below, -infinity has to stay what it is when the scale comes in */
        for (int64_t j = 0; j < keys; j++) s[j] *= scale;
        if (bias)
            for (int64_t j = 0; j < keys; j++) s[j] += bias[j];
        scale = 1.0f;
    }
    if (allowed)
        for (int64_t j = 0; j < keys; j++) s[j] = allowed[j] ? s[j] : -INFINITY;
    for (int64_t j = seen; j < padded; j++) s[j] = -INFINITY;
    vec by = BROADCAST(scale * log2e), most = BROADCAST(-INFINITY), total = {0};
    for (int64_t j = 0; j < padded; j += LANES) {
        vec x = by * *(const vec *)(s + j);
        most = LARGER(most, x);
    }
    float top = most[0], sum = 0.0f;
    for (int i = 1; i < LANES; i++) top = most[i] <= top ? top : most[i];
    if (top == -INFINITY) {
        /* nothing but forbidden keys and NaN, which no comparison has seen */
        for (int64_t j = 0; j < keys; j++) s[j] = s[j] == s[j] ? 0.0f : s[j];
        memset(s + keys, 0, sizeof(float) * (size_t)(padded - keys));
        return 1.0f;
    }
    for (int64_t j = 0; j < padded; j += LANES) {
        vec e = power_of_two(by * *(const vec *)(s + j) - top);
        *(vec *)(s + j) = e;
        total += e;
    }
    for (int i = 0; i < LANES; i++) sum += total[i];
    return sum;
}

/* floats of scratch that a head needs, and a vector more for what reaches beyond the end */
static size_t attention_floats(const dsee_attention *a) {
    size_t padded = (size_t)tiles(a->keys) * TILE, wide = (size_t)tiles(a->dim) * TILE;
    return padded * (size_t)a->dim + (size_t)a->keys * wide + QUERIES * (padded + wide) + LANES;
}

/* All queries of one head, its keys and values in tiles. Tokens of q are q_token apart, its features q_feature.
 * `s` has room for the scores of QUERIES queries, `o` for what they return. */
INLINE void attend_tiles(const dsee_attention *a, int64_t batch, int64_t head, const float *q, int64_t q_token,
                         int64_t q_feature, const float *kt, const float *vt, float *s, float *o) {
    int64_t keys = a->keys, padded = tiles(keys) * TILE, dim = a->dim, wide = tiles(dim) * TILE;
    for (int64_t first = 0; first < a->queries; first += QUERIES) {
        int64_t n = a->queries - first < QUERIES ? a->queries - first : QUERIES;
        const float *row[QUERIES];
        float total[QUERIES];
        /* the last row again in place of those that are not there */
        for (int64_t i = 0; i < QUERIES; i++) row[i] = q + (first + (i < n ? i : n - 1)) * q_token;
        int64_t seen = a->causal && first + n < keys ? first + n : keys, span = tiles(seen) * TILE;
        for (int64_t at = 0; at < span; at += TILE) tile(row, q_feature, kt + at * dim, dim, s + at, padded);
        for (int64_t i = 0; i < QUERIES; i++) {
            int64_t query = first + (i < n ? i : n - 1);
            int64_t mask = batch * a->mask_batch + head * a->mask_head + query * a->mask_query;
            total[i] = softmax(s + i * padded, seen, a->causal && query + 1 < seen ? query + 1 : seen, span, a->scale,
                               a->allowed ? a->allowed + mask : NULL, a->bias ? a->bias + mask : NULL);
            row[i] = s + i * padded;
        }
        for (int64_t at = 0; at < wide; at += TILE) tile(row, 1, vt + at * keys, seen, o + at, wide);
        for (int64_t i = 0; i < n; i++) {
            float *out = a->out + batch * a->out_batch + (first + i) * a->out_token + head * a->out_head;
            float by = 1.0f / total[i];
            for (int64_t d = 0; d < dim; d++) out[d] = o[i * wide + d] * by;
        }
    }
}

static void attend(const dsee_attention *a, int64_t batch, int64_t head, float *scratch) {
    int64_t keys = a->keys, padded = tiles(keys) * TILE, dim = a->dim, wide = tiles(dim) * TILE;
    int64_t shared = head / (a->heads / a->kv_heads);
    float *kt = scratch, *vt = kt + padded * dim, *s = vt + keys * wide, *o = s + QUERIES * padded;
    key_tiles(a->k + batch * a->k_batch + shared * a->k_head, a->k_token, keys, dim, kt);
    value_tiles(a->v + batch * a->v_batch + shared * a->v_head, a->v_token, keys, dim, vt);
    attend_tiles(a, batch, head, a->q + batch * a->q_batch + head * a->q_head, a->q_token, 1, kt, vt, s, o);
}
