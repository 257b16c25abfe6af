/* A whole encoder whose layers end both halves by the norm of a sum, in one call. Included by body.h.
 *
 *     h = norm1(attention(h) Wo' + bo + h),  h = norm2(act(h W1' + b1) W2' + b2 + h)
 *
 * The hidden states stay in panels from the first layer to the last: panels are of one sequence each, and hold
 * features by tokens, so that both products of a half, the sum and the norm need no layout between them.
 */

/* One panel of a sequence. */
typedef struct {
    const width *how;
    int64_t token, n, before; /* first token, how many, and tokens with room for them in the panels before */
} place;

static place place_of(int32_t kind, int64_t tokens, int64_t index) {
    place p = {choose(kind, tokens), 0, 0, 0};
    for (; index > 0; index--) {
        p.before += p.how->tokens;
        p.token += p.how->tokens;
        p.how = choose(kind, tokens - p.token);
    }
    p.n = tokens - p.token < p.how->tokens ? tokens - p.token : p.how->tokens;
    return p;
}

/* how many panels a sequence has, and tokens that there is room for in them */
static int64_t panels_of(int32_t kind, int64_t tokens, int64_t *room) {
    int64_t panels = 0;
    *room = 0;
    for (int64_t token = 0; token < tokens; panels++) {
        int32_t P = choose(kind, tokens - token)->tokens;
        token += P;
        *room += P;
    }
    return panels;
}

/* h = gain * (s - mean(s)) / sqrt(var(s) + eps) + shift for s = part + h, token by token, NV vectors of them at once */
INLINE void norm_strip(int NV, const float *part, float *h, int64_t features, int64_t P, const float *gain,
                       const float *shift, float eps) {
    vec sum[4], mean[4], by[4];
    for (int v = 0; v < NV; v++) sum[v] = (vec){0};
    for (int64_t k = 0; k < features; k++)
        for (int v = 0; v < NV; v++) {
            vec *at = (vec *)(h + k * P + v * LANES);
            *at += *(const vec *)(part + k * P + v * LANES);
            sum[v] += *at;
        }
    for (int v = 0; v < NV; v++) mean[v] = sum[v] / (float)features, sum[v] = (vec){0};
    for (int64_t k = 0; k < features; k++)
        for (int v = 0; v < NV; v++) {
            vec d = *(const vec *)(h + k * P + v * LANES) - mean[v];
            sum[v] += d * d;
        }
    for (int v = 0; v < NV; v++)
        for (int i = 0; i < LANES; i++) by[v][i] = 1.0f / sqrtf(sum[v][i] / (float)features + eps);
    for (int64_t k = 0; k < features; k++) {
        vec g = BROADCAST(gain[k]), s = BROADCAST(shift[k]);
        for (int v = 0; v < NV; v++) {
            vec *at = (vec *)(h + k * P + v * LANES);
            *at = (*at - mean[v]) * by[v] * g + s;
        }
    }
}

static void norm_panel(const float *part, float *h, int64_t features, int64_t P, const float *gain, const float *shift,
                       float eps) {
    int64_t t = 0;
    for (; t + 3 * LANES <= P; t += 3 * LANES) norm_strip(3, part + t, h + t, features, P, gain, shift, eps);
    for (; t + LANES <= P; t += LANES) norm_strip(1, part + t, h + t, features, P, gain, shift, eps);
    for (; t < P; t++) {
        float sum[4] = {0}, mean, by;
        for (int64_t k = 0; k < features; k++) sum[k & 3] += h[k * P + t] += part[k * P + t];
        mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)features;
        memset(sum, 0, sizeof sum);
        for (int64_t k = 0; k < features; k++) sum[k & 3] += (h[k * P + t] - mean) * (h[k * P + t] - mean);
        by = 1.0f / sqrtf(((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)features + eps);
        for (int64_t k = 0; k < features; k++) h[k * P + t] = (h[k * P + t] - mean) * by * gain[k] + shift[k];
    }
}

/* y = W x + b + U V x for a panel x of all columns and one of a layer's matrices */
static void product_panel(const dsee_layer *l, int m, const width *how, const float *x, const float *bias, float *y,
                          float *side) {
    const dsee_matrix *w = l->w[m], *v = l->v[m];
    if (v) memset(side, 0, sizeof(float) * (size_t)(in_fours(v->rows) * how->tokens));
    for (int64_t at = 0, c = 0; at < w->columns; at += w->chunk, c++) {
        how->run(w, c, 0, w->groups, x + at * how->tokens, c ? NULL : bias, y);
        if (v) how->run(v, c, 0, v->groups, x + at * how->tokens, NULL, side);
    }
    if (v) add_side(l->u[m], v->rows, side, in_fours(w->rows) / 4, how->tokens, y);
}

/* Floats of scratch for the second part of a layer. */
static size_t encoder_floats(const dsee_layer *l, int32_t panel) {
    int64_t outer = in_fours(l->w[3]->rows), inner = in_fours(l->w[4]->rows), joined = l->w[3]->columns;
    return (size_t)(2 * outer + inner) + (size_t)panel * (size_t)(outer + (inner > joined ? inner : joined) + side_rows(l->v + 3, 3)) + 64 + 16;
}

/* The hidden states of a panel come in, from rows. */
static void encoder_enter(const dsee_encoder *e, int64_t batch, int64_t index) {
    place p = place_of(e->kind, e->tokens, index);
    to_panel(e->x + (batch * e->tokens + p.token) * e->width, e->width, p.n, e->width,
             e->hidden + (batch * e->room + p.before) * e->width, p.how->tokens);
}

/* Everything of a layer behind attention, for one panel; from the last layer it goes out to rows. */
static void encoder_layer(const dsee_encoder *e, int64_t layer, int64_t batch, int64_t index, float *scratch) {
    const dsee_layer *l = e->layer + layer;
    const dsee_matrix *o = l->w[3], *a = l->w[4], *b = l->w[5];
    place p = place_of(e->kind, e->tokens, index);
    int64_t P = p.how->tokens, outer = in_fours(o->rows), inner = in_fours(a->rows), width = e->width;
    float *h = e->hidden + (batch * e->room + p.before) * width;
    float *bias_o = scratch, *bias_a = bias_o + outer, *bias_b = bias_a + inner, *part = scratch + in_lines(2 * outer + inner);
    float *middle = part + outer * P, *side = middle + (inner > o->columns ? inner : o->columns) * P;
    fill(l->bias[3], outer, o->rows, bias_o);
    fill(l->bias[4], inner, a->rows, bias_a);
    fill(l->bias[5], outer, b->rows, bias_b);
    to_panel(e->context + (batch * e->tokens + p.token) * o->columns, o->columns, p.n, o->columns, middle, P);
    product_panel(l, 3, p.how, middle, bias_o, part, side);
    norm_panel(part, h, width, P, l->gain[0], l->shift[0], l->eps[0]);
    product_panel(l, 4, p.how, h, bias_a, middle, side);
    activate(l->activation, middle, a->rows * P);
    product_panel(l, 5, p.how, middle, bias_b, part, side);
    norm_panel(part, h, width, P, l->gain[1], l->shift[1], l->eps[1]);
    if (layer == e->layers - 1) from_panel(h, P, width, p.n, e->y + (batch * e->tokens + p.token) * width, width);
}
