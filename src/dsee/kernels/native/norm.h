/* y = gain * (s - mean(s)) / sqrt(var(s) + eps) + shift for s = a + b, token by token. Included by body.h. */

/* the sum of a row's lanes, and of what no vector holds */
INLINE float lanes_sum(vec v) {
    float sum = 0.0f;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

static void add_norm(const dsee_norm *n, int64_t token, int64_t tokens) {
    enum { WIDE = 4 * LANES };
    int64_t width = n->width;
    for (int64_t t = token; t < token + tokens; t++) {
        const float *a = n->a + t * width, *b = n->b + t * width;
        float *y = n->y + t * width;
        vec part[4] = {{0}};
        float rest = 0.0f;
        int64_t k = 0;
        /* the sums go where the result will be; y may be a or b */
        for (; k + WIDE <= width; k += WIDE)
            for (int i = 0; i < 4; i++) {
                vec s = *(const vec *)(a + k + i * LANES) + *(const vec *)(b + k + i * LANES);
                part[i] += s;
                *(vec *)(y + k + i * LANES) = s;
            }
        for (; k < width; k++) rest += y[k] = a[k] + b[k];
        float mean = (lanes_sum((part[0] + part[1]) + (part[2] + part[3])) + rest) / (float)width;
        /* around the mean, not from the sum of squares: that loses all digits where the mean is large */
        memset(part, 0, sizeof part);
        rest = 0.0f;
        for (k = 0; k + WIDE <= width; k += WIDE)
            for (int i = 0; i < 4; i++) {
                vec d = *(const vec *)(y + k + i * LANES) - mean;
                part[i] += d * d;
            }
        for (; k < width; k++) rest += (y[k] - mean) * (y[k] - mean);
        float var = (lanes_sum((part[0] + part[1]) + (part[2] + part[3])) + rest) / (float)width;
        float by = 1.0f / sqrtf(var + n->eps);
        for (k = 0; k + LANES <= width; k += LANES)
            *(vec *)(y + k) = (*(const vec *)(y + k) - mean) * by * *(const vec *)(n->gain + k) + *(const vec *)(n->shift + k);
        for (; k < width; k++) y[k] = (y[k] - mean) * by * n->gain[k] + n->shift[k];
    }
}
