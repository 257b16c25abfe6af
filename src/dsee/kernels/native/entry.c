/* Which instruction set, sound data, and the division of a product among threads. */
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "dsee_kernels.h"

/* queries, keys and values that a group of heads works on at a time */
#ifndef DSEE_SELF_FLOATS
#define DSEE_SELF_FLOATS (256 * 1024)
#endif

#if defined(__x86_64__)
/* VNNI on vectors of 256 bits without AVX-512, whose name older compilers do not know. Asked once: in a virtual machine
 * the instruction leaves the machine, which takes as long as a small product. */
static int has_avx_vnni(void) {
    static int known; /* 0: not asked yet, 1: no, 2: yes; threads that ask at once find the same */
    int answer = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!answer) {
        unsigned a, b, c, d;
        answer = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4) ? 2 : 1;
        __atomic_store_n(&known, answer, __ATOMIC_RELAXED);
    }
    return answer == 2;
}
#endif

static int32_t found(const dsee_path **paths) {
    int32_t n = 0;
    paths[n++] = &dsee_path_baseline;
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), avx512 = __builtin_cpu_supports("avx512f");
    if (dsee_path_avx2.run && avx2) paths[n++] = &dsee_path_avx2;
    if (dsee_path_avx2_vnni.run && avx2 && has_avx_vnni()) paths[n++] = &dsee_path_avx2_vnni;
    if (dsee_path_avx512.run && avx512) paths[n++] = &dsee_path_avx512;
    if (dsee_path_avx512_vnni.run && avx512 && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
        paths[n++] = &dsee_path_avx512_vnni;
#endif
    if (dsee_path_neon.run) paths[n++] = &dsee_path_neon;
    return n;
}

static const dsee_path *called(const char *name) {
    const dsee_path *paths[DSEE_MOST_PATHS];
    int32_t n = found(paths);
    while (n-- > 0)
        if (!strcmp(paths[n]->name, name)) return paths[n];
    return NULL;
}

int32_t dsee_paths(const char **names, int32_t most) {
    const dsee_path *paths[DSEE_MOST_PATHS];
    int32_t n = found(paths);
    for (int32_t i = 0; i < n && i < most; i++) names[i] = paths[i]->name;
    return n < most ? n : most;
}

int32_t dsee_panel(const char *path, int32_t kind) {
    const dsee_path *p = called(path);
    return p && (kind == DSEE_BLOCKS || kind == DSEE_WEIGHTS) ? p->panel[kind] : 0;
}

/* Nothing that passes can make a kernel read outside its arrays. The lengths are those of the arrays given. */
int32_t dsee_check(const dsee_matrix *m, int64_t starts, int64_t entries, int64_t values) {
    if (m->kind != DSEE_BLOCKS && m->kind != DSEE_WEIGHTS) return 1;
    if (m->chunk < 1 || m->chunk > DSEE_MAX_CHUNK) return 2;
    int64_t limit = INT32_MAX;
    if (m->rows < 1 || m->columns < 1 || m->rows > limit || m->columns > limit) return 3;
    int64_t tall = m->kind == DSEE_BLOCKS ? 4 : 1, chunks = (m->columns + m->chunk - 1) / m->chunk;
    if (m->groups != (m->rows + tall - 1) / tall) return 4;
    if (starts != chunks * m->groups + 1 || entries < 0 || entries > limit || values != entries * tall) return 5;
    if (m->start[0] != 0 || m->start[starts - 1] != entries) return 6;
    for (int64_t i = 1; i < starts; i++)
        if (m->start[i] < m->start[i - 1]) return 6;
    for (int64_t c = 0; c < chunks; c++) {
        int64_t wide = m->columns - c * m->chunk;
        if (wide > m->chunk) wide = m->chunk;
        for (int64_t j = m->start[c * m->groups]; j < m->start[(c + 1) * m->groups]; j++)
            if (m->column[j] >= wide) return 7;
    }
    return 0;
}

size_t dsee_scratch_floats(const dsee_part *part, int32_t panel) {
    int64_t rank = part->product->v ? part->product->v->rows + 3 : 0;
    /* a bias for each row in whole cache lines, and 64 more for vectors that reach beyond the end */
    return (size_t)panel * (size_t)(DSEE_MAX_CHUNK + 4 * part->quads + rank) + (size_t)(4 * part->quads) + 64 + 16;
}

typedef struct {
    const dsee_product *product;
    const dsee_path *path;
    int64_t token_step, quad_step, columns; /* columns: parts side by side */
    int32_t failed;
} work;

static void one(void *argument, int64_t i) {
    work *all = argument;
    const dsee_product *d = all->product;
    int64_t quads = (d->w->rows + 3) / 4;
    dsee_part part = {d, i / all->columns * all->token_step, all->token_step, i % all->columns * all->quad_step,
                      all->quad_step};
    if (part.token + part.tokens > d->tokens) part.tokens = d->tokens - part.token;
    if (part.quad + part.quads > quads) part.quads = quads - part.quad;
    float *scratch = dsee_scratch(dsee_scratch_floats(&part, all->path->panel[d->w->kind]));
    if (scratch)
        all->path->run(&part, scratch);
    else
        all->failed = 1;
}

int32_t dsee_run(const dsee_product *d, const char *name, int32_t threads) {
    const dsee_path *path = called(name);
    if (!path) return 1;
    if (d->tokens < 1) return 0;
    int64_t quads = (d->w->rows + 3) / 4, panel = path->panel[d->w->kind];
    int64_t panels = (d->tokens + panel - 1) / panel;
    work all = {d, path, d->tokens, quads, 1, 0};
    if (threads > 1) {
        if (panels >= 2 * threads)
            /* whole panels, as even as they go; a row of parts reads all weights once */
            all.token_step = (panels + threads - 1) / threads * panel;
        else {
            all.columns = threads < quads ? threads : quads;
            all.quad_step = (quads + all.columns - 1) / all.columns;
            all.columns = (quads + all.quad_step - 1) / all.quad_step;
        }
    }
    int64_t rows = (d->tokens + all.token_step - 1) / all.token_step;
    dsee_parallel(rows * all.columns, threads, one, &all);
    return all.failed ? 2 : 0;
}

int32_t dsee_linear(const dsee_matrix *w, const float *bias, const float *x, float *y, int64_t tokens,
                    int32_t activation, const char *path, int32_t threads) {
    dsee_product product = {w, NULL, NULL, bias, x, y, tokens, w->columns, w->rows, activation};
    return dsee_run(&product, path, threads);
}

typedef struct {
    dsee_pair pair;
    const dsee_path *path;
    int64_t step;
    int32_t failed;
} pairs;

static void some_panels(void *argument, int64_t i) {
    pairs *all = argument;
    int64_t token = i * all->step, left = all->pair.tokens - token;
    float *scratch = dsee_scratch(all->path->pair_floats(&all->pair, all->path->panel[all->pair.first->kind]));
    if (scratch)
        all->path->run_pair(&all->pair, token, left < all->step ? left : all->step, scratch);
    else
        all->failed = 1;
}

int32_t dsee_linears(const dsee_matrix *first, const float *first_bias, int32_t first_activation,
                     const dsee_matrix *second, const float *second_bias, int32_t second_activation, const float *x,
                     float *y, int64_t tokens, const char *name, int32_t threads) {
    pairs all = {{first, second, first_bias, second_bias, x, y, tokens, first_activation, second_activation},
                 called(name), 0, 0};
    if (!all.path) return 1;
    if (first->kind != second->kind || first->rows != second->columns) return 3;
    if (tokens < 1) return 0;
    int64_t panel = all.path->panel[first->kind], panels = (tokens + panel - 1) / panel;
    if (threads < 1) threads = 1;
    /* whole panels, as even as they go */
    all.step = (panels + threads - 1) / threads * panel;
    dsee_parallel((tokens + all.step - 1) / all.step, threads, some_panels, &all);
    return all.failed ? 2 : 0;
}

typedef struct {
    const dsee_attention *attention;
    const dsee_path *path;
    int32_t failed;
} attending;

static void one_head(void *argument, int64_t i) {
    attending *all = argument;
    const dsee_attention *a = all->attention;
    float *scratch = dsee_scratch(all->path->attention_floats(a));
    if (scratch)
        all->path->attend(a, i / a->heads, i % a->heads, scratch);
    else
        all->failed = 1;
}

int32_t dsee_attend(const dsee_attention *a, const char *name, int32_t threads) {
    attending all = {a, called(name), 0};
    if (!all.path) return 1;
    if (a->kv_heads < 1 || a->heads % a->kv_heads || a->dim < 1 || a->keys < 1) return 3;
    dsee_parallel(a->batch * a->heads, threads, one_head, &all);
    return all.failed ? 2 : 0;
}

typedef struct {
    const dsee_self *attention;
    const dsee_path *path;
    const float *hidden;  /* panels of all sequences, or NULL */
    int64_t stride;       /* floats from one sequence's to the next one's */
    int64_t groups, step; /* groups of heads, heads of a group */
    int32_t failed;
} selves;

static void some_heads(void *argument, int64_t i) {
    selves *all = argument;
    const dsee_self *d = all->attention;
    int64_t first = i % all->groups * all->step, left = d->attention.heads - first;
    int64_t heads = left < all->step ? left : all->step;
    float *scratch = dsee_scratch(all->path->self_floats(d, heads, all->path->panel[d->w[0]->kind]));
    if (scratch)
        all->path->self_attend(d, all->hidden ? all->hidden + i / all->groups * all->stride : NULL, i / all->groups,
                               first, heads, scratch);
    else
        all->failed = 1;
}

/* Groups of heads. Each makes its own panels of x, so there are no more of them than threads want, and than fit a cache. */
static void group_heads(selves *all, int32_t threads) {
    const dsee_attention *a = &all->attention->attention;
    int64_t wanted = threads > 1 && a->batch < 2 * threads ? (2 * threads + a->batch - 1) / a->batch : 1;
    int64_t most = DSEE_SELF_FLOATS / (3 * a->dim * a->keys);
    all->step = (a->heads + wanted - 1) / wanted;
    if (most < all->step) all->step = most < 1 ? 1 : most;
    all->groups = (a->heads + all->step - 1) / all->step;
    /* as even as they go */
    all->step = (a->heads + all->groups - 1) / all->groups;
}

/* whether there is no side branch, or one that reads the panels of its matrix */
static int side_fits(const dsee_matrix *w, const dsee_matrix *v, const float *u) {
    return !v || (u && v->kind == w->kind && v->chunk == w->chunk && v->columns == w->columns);
}

static int three_fit(const dsee_self *d) {
    const dsee_attention *a = &d->attention;
    if (a->heads < 1 || a->dim < 4 || a->dim % 4 || a->kv_heads != a->heads || a->queries != a->keys) return 0;
    for (int m = 0; m < 3; m++) {
        const dsee_matrix *w = d->w[m];
        if (w->kind != d->w[0]->kind || w->chunk != d->w[0]->chunk || w->columns != d->w[0]->columns) return 0;
        if (w->rows != a->heads * a->dim || !side_fits(w, d->v[m], d->u[m])) return 0;
    }
    return 1;
}

int32_t dsee_self_attend(const dsee_self *d, const char *name, int32_t threads) {
    selves all = {d, called(name), NULL, 0, 1, 0, 0};
    if (!all.path) return 1;
    if (!three_fit(d)) return 3;
    if (d->attention.batch < 1 || d->attention.keys < 1) return 0;
    group_heads(&all, threads);
    dsee_parallel(d->attention.batch * all.groups, threads, some_heads, &all);
    return all.failed ? 2 : 0;
}

int64_t dsee_encoder_room(int32_t kind, int64_t batch, int64_t tokens, int64_t width, const char *name) {
    const dsee_path *path = called(name);
    int64_t room = 0;
    if (!path || batch < 1 || tokens < 1 || (kind != DSEE_BLOCKS && kind != DSEE_WEIGHTS)) return 0;
    path->panels_of(kind, tokens, &room);
    return batch * room * width;
}

typedef struct {
    const dsee_encoder *encoder;
    const dsee_path *path;
    selves *heads; /* of the layer */
    int64_t layer, panels;
    int32_t failed;
} encoding;

static void enter_panel(void *argument, int64_t i) {
    encoding *all = argument;
    all->path->encoder_enter(all->encoder, i / all->panels, i % all->panels);
}

static void layer_panel(void *argument, int64_t i) {
    encoding *all = argument;
    const dsee_encoder *e = all->encoder;
    float *scratch = dsee_scratch(all->path->encoder_floats(e->layer + all->layer, all->path->panel[e->kind]));
    if (scratch)
        all->path->encoder_layer(e, all->layer, i / all->panels, i % all->panels, scratch);
    else
        all->failed = 1;
}

/* A sequence's attention and then the rest of the layer, while its hidden states are in the cache. */
static void layer_sequence(void *argument, int64_t batch) {
    encoding *all = argument;
    for (int64_t i = 0; i < all->heads->groups; i++) some_heads(all->heads, batch * all->heads->groups + i);
    for (int64_t i = 0; i < all->panels; i++) layer_panel(all, batch * all->panels + i);
}

static dsee_self attention_of(const dsee_encoder *e, int64_t layer) {
    const dsee_layer *l = e->layer + layer;
    int64_t heads = l->heads < 1 ? 1 : l->heads, rows = l->w[0]->rows, dim = rows / heads;
    dsee_attention a = {.out = e->context, .allowed = e->allowed, .bias = e->mask, .batch = e->batch, .heads = heads,
                        .kv_heads = heads, .queries = e->tokens, .keys = e->tokens, .dim = dim,
                        .out_batch = e->tokens * rows, .out_head = dim, .out_token = rows, .mask_batch = e->mask_batch,
                        .mask_head = e->mask_head, .mask_query = e->mask_query, .scale = l->scale};
    return (dsee_self){a, {l->w[0], l->w[1], l->w[2]}, {l->bias[0], l->bias[1], l->bias[2]},
                       {l->v[0], l->v[1], l->v[2]}, {l->u[0], l->u[1], l->u[2]}, NULL};
}

static int layer_fits(const dsee_encoder *e, int64_t layer) {
    const dsee_layer *l = e->layer + layer;
    const dsee_matrix *const *w = l->w;
    dsee_self d = attention_of(e, layer);
    for (int m = 0; m < 6; m++)
        if (w[m]->kind != e->layer[0].w[0]->kind || !side_fits(w[m], l->v[m], l->u[m])) return 0;
    return l->heads >= 1 && three_fit(&d) && w[0]->columns == e->width && w[3]->columns == w[0]->rows &&
           w[3]->rows == e->width && w[4]->columns == e->width && w[5]->columns == w[4]->rows && w[5]->rows == e->width;
}

int32_t dsee_encode(dsee_encoder *e, const char *name, int32_t threads) {
    encoding all = {e, called(name), NULL, 0, 0, 0};
    if (!all.path) return 1;
    if (e->layers < 1) return 3;
    for (int64_t i = 0; i < e->layers; i++)
        if (!layer_fits(e, i)) return 3;
    if (e->batch < 1 || e->tokens < 1) return 0;
    e->kind = e->layer[0].w[0]->kind;
    all.panels = all.path->panels_of(e->kind, e->tokens, &e->room);
    dsee_parallel(e->batch * all.panels, threads, enter_panel, &all);
    for (; all.layer < e->layers && !all.failed; all.layer++) {
        dsee_self d = attention_of(e, all.layer);
        selves heads = {&d, all.path, e->hidden, e->room * e->width, 1, 0, 0};
        all.heads = &heads;
        group_heads(&heads, threads);
        if (threads < 2 || e->batch >= 2 * threads)
            dsee_parallel(e->batch, threads, layer_sequence, &all);
        else {
            dsee_parallel(e->batch * heads.groups, threads, some_heads, &heads);
            dsee_parallel(e->batch * all.panels, threads, layer_panel, &all);
        }
        all.failed |= heads.failed;
    }
    return all.failed ? 2 : 0;
}

int32_t dsee_int8_check(const dsee_int8 *d, int64_t starts, int64_t blocks, int64_t values) {
    int64_t limit = INT32_MAX, quads = (d->columns + 3) / 4;
    if (d->rows < 1 || d->columns < 1 || d->rows > limit || quads > UINT16_MAX) return 3;
    if (d->groups != (d->rows + 3) / 4) return 4;
    if (starts != d->groups + 1 || blocks < 0 || blocks > limit || values != 16 * blocks) return 5;
    if (d->start[0] != 0 || d->start[starts - 1] != blocks) return 6;
    for (int64_t i = 1; i < starts; i++)
        if (d->start[i] < d->start[i - 1]) return 6;
    for (int64_t j = 0; j < blocks; j++)
        if (d->column[j] >= quads) return 7;
    return 0;
}

typedef struct {
    const dsee_int8 *product;
    const dsee_path *path;
    int32_t failed;
} panels8;

static void one_panel8(void *argument, int64_t i) {
    panels8 *all = argument;
    const dsee_int8 *d = all->product;
    float *scratch = dsee_scratch(all->path->int8_floats(d));
    int64_t most = all->path->int8_tokens, left = d->tokens - most * i;
    if (scratch)
        all->path->int8_panel(d, most * i, left < most ? left : most, scratch);
    else
        all->failed = 1;
}

int32_t dsee_int8_run(const dsee_int8 *d, const char *name, int32_t threads) {
    panels8 all = {d, called(name), 0};
    if (!all.path) return 1;
    if (!all.path->int8_panel) return 3;
    dsee_parallel((d->tokens + all.path->int8_tokens - 1) / all.path->int8_tokens, threads, one_panel8, &all);
    return all.failed ? 2 : 0;
}

int32_t dsee_int8_can(const char *name) {
    const dsee_path *path = called(name);
    return path && path->int8_panel;
}

typedef struct {
    dsee_norm norm;
    const dsee_path *path;
    int64_t step;
} norming;

static void some_tokens(void *argument, int64_t i) {
    norming *all = argument;
    int64_t token = i * all->step, left = all->norm.tokens - token;
    all->path->add_norm(&all->norm, token, left < all->step ? left : all->step);
}

int32_t dsee_add_norm(const float *a, const float *b, const float *gain, const float *shift, float *y, int64_t tokens,
                      int64_t width, float eps, const char *name, int32_t threads) {
    norming all = {{a, b, gain, shift, y, tokens, width, eps}, called(name), 0};
    if (!all.path) return 1;
    if (tokens < 1 || width < 1) return 0;
    all.step = threads > 1 ? (tokens + threads - 1) / threads : tokens;
    dsee_parallel((tokens + all.step - 1) / all.step, threads, some_tokens, &all);
    return 0;
}
