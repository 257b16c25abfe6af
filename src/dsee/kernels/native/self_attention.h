/* Self-attention from the hidden states on: query, key, value and what attention makes of them, in one call. Included
 * by body.h.
 *
 * A panel of the hidden states is made once for three products. What they leave, feature by feature with the tokens
 * side by side, is what attention wants of queries and keys, so neither is turned around; values are, into their tiles.
 */

/* queries of a feature lie a cache line further apart than there are keys: no power of two between features */
INLINE int64_t query_stride(int64_t padded) { return padded + 16; }

/* rows that side branches need between their two products */
static int64_t side_rows(const dsee_matrix *const *v, int64_t count) {
    int64_t rows = 0;
    for (int64_t m = 0; m < count; m++) rows += v[m] ? in_fours(v[m]->rows) : 0;
    return rows;
}

/* floats that a part of so many heads needs, with panels of the widest kind that a path has */
static size_t self_floats(const dsee_self *d, int64_t heads, int32_t panel) {
    const dsee_attention *a = &d->attention;
    size_t padded = (size_t)tiles(a->keys) * TILE, wide = (size_t)tiles(a->dim) * TILE, rows = (size_t)(heads * a->dim);
    return rows * (3 + (size_t)query_stride((int64_t)padded) + padded) + (size_t)heads * (size_t)a->keys * wide +
           QUERIES * (padded + wide) + (size_t)panel * (DSEE_MAX_CHUNK + 3 * rows + (size_t)side_rows(d->v, 3)) + 64 + 16;
}

/* n tokens of some features, P apart, to tiles of tokens; `at` tokens are there already */
static void to_key_tiles(const float *part, int64_t P, int64_t n, int64_t dim, int64_t at, float *kt) {
    if (!DSEE_LAYOUT) return;
    for (int64_t t = 0, run; t < n; t += run, at += run) {
        run = TILE - at % TILE < n - t ? TILE - at % TILE : n - t;
        float *to = kt + at / TILE * TILE * dim + at % TILE;
        const float *from = part + t;
        if (run == TILE)
            for (int64_t f = 0; f < dim; f++, to += TILE, from += P) {
                *(vec *)to = *(const vec *)from;
                *(vec *)(to + LANES) = *(const vec *)(from + LANES);
            }
        else if (run == LANES)
            for (int64_t f = 0; f < dim; f++, to += TILE, from += P) *(vec *)to = *(const vec *)from;
        else
            for (int64_t f = 0; f < dim; f++, to += TILE, from += P) memcpy(to, from, sizeof(float) * (size_t)run);
    }
}

/* n tokens of some features to tiles of features, token by token; features that are not there are zeros already */
static void to_value_tiles(const float *part, int64_t P, int64_t n, int64_t dim, int64_t keys, int64_t at, float *vt) {
    for (int64_t f = 0; f < dim; f += TILE, vt += TILE * keys, part += TILE * P)
        transpose(part, P, dim - f < TILE ? dim - f : TILE, n, vt + at * TILE, TILE);
}

/* Heads first_head to first_head + heads of one sequence. Its hidden states are rows of d->x, or `hidden`: panels of all
 * their columns, one after the other, of the widths that are chosen here. */
static void self_attend(const dsee_self *d, const float *hidden, int64_t batch, int64_t first_head, int64_t heads,
                        float *scratch) {
    const dsee_attention *a = &d->attention;
    const dsee_matrix *w = d->w[0];
    int64_t keys = a->keys, padded = tiles(keys) * TILE, dim = a->dim, wide = tiles(dim) * TILE;
    int64_t rows = heads * dim, row = first_head * dim, tall = w->kind == DSEE_BLOCKS ? 4 : 1, ldq = query_stride(padded);
    float *bias = scratch, *q = bias + in_lines(3 * rows), *kt = q + rows * ldq, *vt = kt + rows * padded;
    float *s = vt + heads * keys * wide, *o = s + QUERIES * padded, *part = o + QUERIES * wide;
    for (int m = 0; m < 3; m++) fill(d->bias[m] ? d->bias[m] + row : NULL, rows, rows, bias + m * rows);
    if (wide > dim) memset(vt, 0, sizeof(float) * (size_t)(heads * keys * wide));
    if (padded > keys)
        for (int64_t h = 0; h < heads; h++) memset(kt + ((h + 1) * padded - TILE) * dim, 0, sizeof(float) * (size_t)(TILE * dim));
    for (int64_t token = 0; token < keys;) {
        const width *now = choose(w->kind, keys - token);
        int64_t P = now->tokens, n = keys - token < P ? keys - token : P;
        float *panel = part + 3 * rows * P, *sides = panel + DSEE_MAX_CHUNK * P;
        memset(sides, 0, sizeof(float) * (size_t)(side_rows(d->v, 3) * P));
        for (int64_t at = 0, c = 0; at < w->columns; at += w->chunk, c++) {
            int64_t across = w->columns - at < w->chunk ? w->columns - at : w->chunk;
            const float *in = hidden ? hidden + at * P : panel;
            if (!hidden) to_panel(d->x + (batch * keys + token) * w->columns + at, w->columns, n, across, panel, P);
            for (int m = 0; m < 3; m++) {
                now->run(d->w[m], c, row / tall, (row + rows) / tall, in, c ? NULL : bias + m * rows, part + m * rows * P);
                if (d->v[m]) now->run(d->v[m], c, 0, d->v[m]->groups, in, NULL, sides + side_rows(d->v, m) * P);
            }
        }
        for (int m = 0; m < 3; m++)
            if (d->v[m])
                add_side(d->u[m] + row * d->v[m]->rows, d->v[m]->rows, sides + side_rows(d->v, m) * P, rows / 4, P,
                         part + m * rows * P);
        if (hidden) hidden += w->columns * P;
        for (int64_t r = 0; DSEE_LAYOUT && r < rows; r++) memcpy(q + r * ldq + token, part + r * P, sizeof(float) * (size_t)n);
        for (int64_t h = 0; h < heads; h++) {
            to_key_tiles(part + (rows + h * dim) * P, P, n, dim, token, kt + h * padded * dim);
            to_value_tiles(part + (2 * rows + h * dim) * P, P, n, dim, keys, token, vt + h * keys * wide);
        }
        token += n;
    }
    for (int64_t h = 0; h < heads; h++)
        attend_tiles(a, batch, first_head + h, q + h * dim * ldq, 1, ldq, kt + h * padded * dim, vt + h * keys * wide, s, o);
}
