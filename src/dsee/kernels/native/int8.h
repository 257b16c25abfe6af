/* Products of 8-bit integers: blocks of 4 rows x 4 columns, any share of them stored. Included by body.h.
 *
 * A token's features become 7-bit unsigned numbers q with x = low + step q, so that two products of a pair fit 16 bits
 * and maddubs cannot saturate; weights are signed 8-bit numbers with a scale for each row. Then
 *     y[row] = scale[row] (step sum_k w[row][k] q[k] + low sum_k w[row][k]) + bias[row].
 * A panel holds four features of a token side by side in 32 bits, so eight tokens in a vector of 256 bits and sixteen in
 * one of 512. VNNI does in one instruction what takes three without, with the same sums; vectors of 512 bits are for it.
 */
#if defined(__AVX2__) && LANES >= 8

#if defined(__AVX512VNNI__) && LANES == 16
typedef __m512i bytes;
typedef vec fvec;
enum { INT8_LANES = 16 };
#define BYTES_LOAD(at) _mm512_loadu_si512(at)
#define BYTES_ALL(four) _mm512_set1_epi32(four)
#define BYTES_ZERO _mm512_setzero_si512()
#define BYTES_FLOATS(sum) ((fvec)_mm512_cvtepi32_ps(sum))
#define BYTES_DOT(sum, x, w) _mm512_dpbusd_epi32(sum, x, w)
#else
typedef __m256i bytes;
typedef vec8 fvec;
enum { INT8_LANES = 8 };
#define BYTES_LOAD(at) _mm256_loadu_si256((const __m256i *)(at))
#define BYTES_ALL(four) _mm256_set1_epi32(four)
#define BYTES_ZERO _mm256_setzero_si256()
#define BYTES_FLOATS(sum) ((fvec)_mm256_cvtepi32_ps(sum))
#if defined(__AVXVNNI__)
#define BYTES_DOT(sum, x, w) _mm256_dpbusd_avx_epi32(sum, x, w)
#else
#define BYTES_DOT(sum, x, w) \
    _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)))
#endif
#endif
/* two vectors of tokens: with four, what they leave outgrows the second-level cache before it is turned around */
enum { INT8_TOKENS = 2 * INT8_LANES };

/* x to q, low and step of one token; the columns up to `padded` are zeros, which no weight meets */
static void quantise(const float *x, int64_t columns, int64_t padded, uint8_t *q, float *low, float *step) {
    float least = x[0], most = x[0];
    int32_t odd = x[0] != x[0];
    int64_t k = 0;
    if (columns >= 8) {
        __m256 a = _mm256_loadu_ps(x), b = a, unknown = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
        for (k = 8; k + 8 <= columns; k += 8) {
            __m256 v = _mm256_loadu_ps(x + k);
            a = _mm256_min_ps(v, a);
            b = _mm256_max_ps(v, b);
            unknown = _mm256_or_ps(unknown, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        }
        odd |= _mm256_movemask_ps(unknown);
        for (int i = 0; i < 8; i++) {
            least = a[i] < least ? a[i] : least;
            most = b[i] > most ? b[i] : most;
        }
    }
    for (; k < columns; k++) {
        least = x[k] < least ? x[k] : least;
        most = x[k] > most ? x[k] : most;
        odd |= x[k] != x[k];
    }
    /* no integer stands for NaN or infinity: the whole token becomes NaN */
    if (odd || !(most - least <= 3.4e38f)) {
        *low = *step = NAN;
        memset(q, 0, (size_t)padded);
        return;
    }
    float by = most > least ? 127.0f / (most - least) : 0.0f;
    *low = least;
    *step = most > least ? (most - least) / 127.0f : 0.0f;
    __m256 offset = _mm256_set1_ps(least), factor = _mm256_set1_ps(by);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (k = 0; k + 32 <= columns; k += 32) {
        __m256i n[4];
        for (int i = 0; i < 4; i++)
            n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + k + 8 * i), offset), factor));
        __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
        _mm256_storeu_si256((__m256i *)(q + k), _mm256_permutevar8x32_epi32(bytes, order));
    }
    for (; k < columns; k++) q[k] = (uint8_t)lrintf((x[k] - least) * by);
    for (; k < padded; k++) q[k] = 0;
}

/* sum + x[0] w[0] + ... + x[3] w[3] in each 32 bits; x without a sign and below 128, w with one */
INLINE bytes dot4(bytes sum, bytes x, bytes w) { return BYTES_DOT(sum, x, w); }

/* All rows of a panel of NV vectors of tokens. */
INLINE void int8_rows(const int NV, const dsee_int8 *d, const uint8_t *panel, const float *low, const float *step,
                      float *part) {
    const int64_t P = NV * INT8_LANES;
    for (int64_t g = 0; g < d->groups; g++) {
        bytes sum[4][2];
        for (int r = 0; r < 4; r++)
            for (int v = 0; v < NV; v++) sum[r][v] = BYTES_ZERO;
        for (int64_t j = d->start[g]; j < d->start[g + 1]; j++) {
            const uint8_t *at = panel + (size_t)d->column[j] * 4 * (size_t)P;
            bytes x[2];
            for (int v = 0; v < NV; v++) x[v] = BYTES_LOAD(at + v * 4 * INT8_LANES);
            for (int r = 0; r < 4; r++) {
                int32_t four;
                memcpy(&four, d->value + 16 * j + 4 * r, 4);
                for (int v = 0; v < NV; v++) sum[r][v] = dot4(sum[r][v], x[v], BYTES_ALL(four));
            }
        }
        for (int r = 0; r < 4; r++) {
            int64_t row = 4 * g + r;
            float scale = row < d->rows ? d->scale[row] : 0.0f, bias = row < d->rows && d->bias ? d->bias[row] : 0.0f;
            float all = row < d->rows ? d->sum[row] : 0.0f;
            for (int v = 0; v < NV; v++) {
                fvec l = *(const fvec *)(low + v * INT8_LANES), s = *(const fvec *)(step + v * INT8_LANES);
                *(fvec *)(part + row * P + v * INT8_LANES) = scale * (BYTES_FLOATS(sum[r][v]) * s + l * all) + bias;
            }
        }
    }
}

/* up to INT8_TOKENS tokens from `token` on, in a panel of one vector or two */
static void int8_panel(const dsee_int8 *d, int64_t token, int64_t n, float *scratch) {
    int64_t columns = d->columns, quads = (columns + 3) / 4, padded = 4 * quads, rows = 4 * d->groups;
    int64_t P = n <= INT8_LANES ? INT8_LANES : INT8_TOKENS;
    float *low = scratch, *step = low + P, *part = step + P;
    uint8_t *flat = (uint8_t *)(part + rows * P + LANES), *panel = flat + padded * P + 64;
    for (int64_t t = 0; t < n; t++)
        quantise(d->x + (token + t) * columns, columns, padded, flat + t * padded, low + t, step + t);
    for (int64_t t = n; t < P; t++) {
        memset(flat + t * padded, 0, (size_t)padded);
        low[t] = step[t] = 0.0f;
    }
    transpose((const float *)flat, quads, P, quads, (float *)panel, P);
    if (P == INT8_LANES)
        int8_rows(1, d, panel, low, step, part);
    else
        int8_rows(2, d, panel, low, step, part);
    activate(d->activation, part, rows * P);
    from_panel(part, P, d->rows, n, d->y + token * d->rows, d->rows);
}

static size_t int8_floats(const dsee_int8 *d) {
    size_t padded = (size_t)(d->columns + 3) / 4 * 4;
    return 2 * INT8_TOKENS + 4 * (size_t)d->groups * INT8_TOKENS + LANES + (2 * padded * INT8_TOKENS + 128) / 4 + 16;
}

#endif
