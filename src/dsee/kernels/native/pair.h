/* Two products in a row, y = act2(act1(x W1' + b1) W2' + b2), without layout between them. Included by body.h.
 *
 * What the first product leaves, row by row with the tokens side by side, is the panel that the second one reads: it
 * is neither turned around nor written out, and no memory for it is asked for.
 */

static int64_t in_fours(int64_t rows) { return (rows + 3) / 4 * 4; }

/* panels of the widest kind that a path has, in floats */
static size_t pair_floats(const dsee_pair *d, int32_t panel) {
    int64_t rows = in_fours(d->first->rows) + in_fours(d->second->rows);
    return (size_t)rows + (size_t)panel * (size_t)(DSEE_MAX_CHUNK + rows) + 64 + 16;
}

static void run_pair(const dsee_pair *d, int64_t token, int64_t left, float *scratch) {
    const dsee_matrix *a = d->first, *b = d->second;
    int64_t inner = in_fours(a->rows), outer = in_fours(b->rows);
    float *bias1 = scratch, *bias2 = bias1 + inner, *panel = scratch + in_lines(inner + outer);
    fill(d->first_bias, inner, a->rows, bias1);
    fill(d->second_bias, outer, b->rows, bias2);
    while (left > 0) {
        const width *now = choose(a->kind, left);
        int64_t P = now->tokens, n = left < P ? left : P;
        float *middle = panel + DSEE_MAX_CHUNK * P, *part = middle + inner * P;
        for (int64_t at = 0, c = 0; at < a->columns; at += a->chunk, c++) {
            int64_t wide = a->columns - at < a->chunk ? a->columns - at : a->chunk;
            to_panel(d->x + token * a->columns + at, a->columns, n, wide, panel, P);
            now->run(a, c, 0, a->groups, panel, c ? NULL : bias1, middle);
        }
        /* blocks make whole fours of rows, of which the second product reads those that are there */
        activate(d->first_activation, middle, a->rows * P);
        for (int64_t at = 0, c = 0; at < b->columns; at += b->chunk, c++)
            now->run(b, c, 0, b->groups, middle + at * P, c ? NULL : bias2, part);
        activate(d->second_activation, part, b->rows * P);
        from_panel(part, P, b->rows, n, d->y + token * b->rows, b->rows);
        token += n;
        left -= n;
    }
}
