/* Activation functions on vectors. Included by body.h. */

#define SELECT(condition, a, b) ((vec)(((ivec)(a) & (condition)) | ((ivec)(b) & ~(condition))))

/* e^x for x <= 0, to 2 units in the last place: 2^n e^r with |r| <= ln(2) / 2 and Taylor's series of degree 7 */
INLINE vec exp_negative(vec x) {
    /* below that the result is no normal number; NaN compares false and goes on */
    x = SELECT(x < -87.0f, BROADCAST(-87.0f), x);
    vec shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to a whole number in the low bits */
    vec n = shifted - 12582912.0f;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts (Cody and Waite) */
    vec p = BROADCAST(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    ivec power = ((ivec)shifted - 0x4B400000 + 127) << 23;
    return p * (vec)power;
}

INLINE vec absolute(vec x) { return (vec)((ivec)x & 0x7FFFFFFF); }

/* 1 / (1 + e^-x), from the negative side, where nothing overflows */
INLINE vec sigmoid(vec x) {
    vec e = exp_negative(-absolute(x));
    vec small = e / (1.0f + e);
    return SELECT(x < 0.0f, small, 1.0f - small);
}

/* x Phi(x). Phi by Abramowitz and Stegun 7.1.26, error 1.5e-7 of erf: below the rounding of 1 + erf in fp32 */
INLINE vec gelu(vec x) {
    vec z = absolute(x) * 0.70710678f;
    vec t = 1.0f / (1.0f + 0.3275911f * z);
    vec p = BROADCAST(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vec tail = 0.5f * p * t * exp_negative(-z * z); /* Phi(-|x|) */
    return x * SELECT(x < 0.0f, tail, 1.0f - tail);
}

INLINE vec gelu_tanh(vec x) { return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }

INLINE vec relu(vec x) { return SELECT(x <= 0.0f, (vec){0}, x); } /* NaN stays */

INLINE vec x_sigmoid(vec x) { return x * sigmoid(x); }

#define FOR_ALL(f) \
    for (int64_t i = 0; i < n; i += LANES) *(vec *)(x + i) = f(*(const vec *)(x + i))

/* in place; x has room for LANES - 1 more */
static void activate(int32_t activation, float *x, int64_t n) {
    switch (activation) {
        case DSEE_RELU: FOR_ALL(relu); break;
        case DSEE_GELU: FOR_ALL(gelu); break;
        case DSEE_GELU_TANH: FOR_ALL(gelu_tanh); break;
        case DSEE_SILU: FOR_ALL(x_sigmoid); break;
        default: break;
    }
}
