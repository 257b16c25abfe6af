/* Products of 8-bit integers: blocks of 4 rows x 4 columns, any share of them stored. Included by body.h.
 *
 * A token's features become 7-bit unsigned numbers q with x = low + step q, so that two products of a pair fit 16 bits
 * and maddubs cannot saturate; weights are signed 8-bit numbers with a scale for each row. Then
 *     y[row] = scale[row] (step sum_k w[row][k] q[k] + low sum_k w[row][k]) + bias[row].
 * A panel holds four features of a token side by side in 32 bits, eight tokens in a vector of 256 bits, on wider paths
 * too. VNNI does in one instruction what takes three without, with the same sums.
 */
#if defined(__AVX2__) && LANES >= 8

enum { INT8_TOKENS = 16 };

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
INLINE __m256i dot4(__m256i sum, __m256i x, __m256i w) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sum, x, w);
#elif defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, x, w);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
#endif
}

INLINE void int8_group(const uint8_t *panel, const uint16_t *column, const int8_t *value, int64_t n, __m256i sum[4][2]) {
    for (int r = 0; r < 4; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    for (int64_t j = 0; j < n; j++) {
        const __m256i *at = (const __m256i *)(panel + (size_t)column[j] * 4 * INT8_TOKENS);
        __m256i x0 = _mm256_loadu_si256(at), x1 = _mm256_loadu_si256(at + 1);
        for (int r = 0; r < 4; r++) {
            int32_t four;
            memcpy(&four, value + 16 * j + 4 * r, 4);
            __m256i w = _mm256_set1_epi32(four);
            sum[r][0] = dot4(sum[r][0], x0, w);
            sum[r][1] = dot4(sum[r][1], x1, w);
        }
    }
}

/* up to 16 tokens from `token` on */
static void int8_panel(const dsee_int8 *d, int64_t token, int64_t n, float *scratch) {
    int64_t columns = d->columns, quads = (columns + 3) / 4, padded = 4 * quads, rows = 4 * d->groups;
    float *low = scratch, *step = low + INT8_TOKENS, *part = step + INT8_TOKENS;
    uint8_t *flat = (uint8_t *)(part + rows * INT8_TOKENS + 16), *panel = flat + padded * INT8_TOKENS + 32;
    for (int64_t t = 0; t < n; t++)
        quantise(d->x + (token + t) * columns, columns, padded, flat + t * padded, low + t, step + t);
    for (int64_t t = n; t < INT8_TOKENS; t++) {
        memset(flat + t * padded, 0, (size_t)padded);
        low[t] = step[t] = 0.0f;
    }
    transpose((const float *)flat, quads, INT8_TOKENS, quads, (float *)panel, INT8_TOKENS);
    vec8 l0 = *(const vec8 *)low, l1 = *(const vec8 *)(low + 8), s0 = *(const vec8 *)step, s1 = *(const vec8 *)(step + 8);
    for (int64_t g = 0; g < d->groups; g++) {
        __m256i sum[4][2];
        int64_t at = d->start[g];
        int8_group(panel, d->column + at, d->value + 16 * at, d->start[g + 1] - at, sum);
        for (int r = 0; r < 4; r++) {
            int64_t row = 4 * g + r;
            float scale = row < d->rows ? d->scale[row] : 0.0f, bias = row < d->rows && d->bias ? d->bias[row] : 0.0f;
            float all = row < d->rows ? d->sum[row] : 0.0f;
            float *to = part + row * INT8_TOKENS;
            *(vec8 *)to = scale * ((vec8)_mm256_cvtepi32_ps(sum[r][0]) * s0 + l0 * all) + bias;
            *(vec8 *)(to + 8) = scale * ((vec8)_mm256_cvtepi32_ps(sum[r][1]) * s1 + l1 * all) + bias;
        }
    }
    activate(d->activation, part, rows * INT8_TOKENS);
    from_panel(part, INT8_TOKENS, d->rows, n, d->y + token * d->rows, d->rows);
}

static size_t int8_floats(const dsee_int8 *d) {
    size_t padded = (size_t)(d->columns + 3) / 4 * 4;
    return 2 * INT8_TOKENS + 4 * (size_t)d->groups * INT8_TOKENS + 16 + (2 * padded * INT8_TOKENS + 64) / 4 + 16;
}

#endif
