/* Sparse linear layers on CPUs: y = act(x W' + b + (x V') U'), W sparse, fp32, row-major in and out.
 *
 * W (rows x columns) is cut into vertical chunks of at most 256 columns. Inside a chunk the weights lie group by
 * group: four output rows that share their columns ("blocks", four values for each column), or one row ("weights").
 * A chunk of the activations, turned into a panel with the tokens of one feature side by side, fits the first-level
 * cache, which is what makes scattered columns cheap; and with 256 columns a column number is one byte.
 */
#ifndef DSEE_KERNELS_H
#define DSEE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { DSEE_BLOCKS = 0, DSEE_WEIGHTS = 1 };
enum { DSEE_NONE = 0, DSEE_RELU = 1, DSEE_GELU = 2, DSEE_GELU_TANH = 3, DSEE_SILU = 4 };
enum { DSEE_MAX_CHUNK = 256 };

/* One sparse matrix. Group g of chunk c has the entries start[c * groups + g] to start[c * groups + g + 1]. */
typedef struct {
    int32_t kind;          /* DSEE_BLOCKS: 4 rows a group; DSEE_WEIGHTS: 1 */
    int32_t chunk;         /* columns of a chunk, 1 to 256; the last one may be narrower */
    int64_t rows, columns; /* of W */
    int64_t groups;        /* ceil(rows / 4), or rows */
    const int32_t *start;  /* chunks * groups + 1 */
    const uint8_t *column; /* entries; within the chunk */
    const float *value;    /* entries * 4 with the group's rows side by side, or entries */
} dsee_matrix;

/* One product. y may not overlap x. */
typedef struct {
    const dsee_matrix *w;
    const dsee_matrix *v;  /* rank x columns, same kind and chunk as w; NULL without a side branch */
    const float *u;        /* ceil(rows / 4) x rank x 4, the scale in it; NULL without a side branch */
    const float *bias;     /* rows, or NULL */
    const float *x;        /* tokens x columns */
    float *y;              /* tokens x rows */
    int64_t tokens, ldx, ldy; /* distances between tokens, in floats */
    int32_t activation;
} dsee_product;

/* A part of a product: some tokens, some groups of four rows. */
typedef struct {
    const dsee_product *product;
    int64_t token, tokens; /* first, how many */
    int64_t quad, quads;   /* first and number of groups of four rows of y */
} dsee_part;

/* Two products in a row: y = act2(act1(x W1' + b1) W2' + b2). Both of one kind; the second's columns are the first's rows. */
typedef struct {
    const dsee_matrix *first, *second;
    const float *first_bias, *second_bias; /* or NULL */
    const float *x;                        /* tokens x first->columns */
    float *y;                              /* tokens x second->rows */
    int64_t tokens;
    int32_t first_activation, second_activation;
} dsee_pair;

/* Attention: out = softmax(scale q k' + mask) v. Distances are in floats (bytes for `allowed`) and may be 0 in masks;
 * the features of a head, and the keys of a mask, lie side by side. */
typedef struct {
    const float *q, *k, *v;  /* batch x heads (kv_heads) x queries (keys) x dim */
    float *out;
    const uint8_t *allowed;  /* 0 where a query may not see a key, or NULL */
    const float *bias;       /* added to the scores, or NULL */
    int64_t batch, heads, kv_heads, queries, keys, dim;
    int64_t q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, out_batch, out_head, out_token;
    int64_t mask_batch, mask_head, mask_query;
    float scale;
    int32_t causal;          /* query i sees keys 0 to i */
} dsee_attention;

/* Self-attention of the hidden states x: q, k and v are x W' + b + (x V') U', all of as many rows as the heads have features. */
typedef struct {
    dsee_attention attention; /* without q, k and v; queries, keys and kv_heads as tokens and heads */
    const dsee_matrix *w[3];  /* query, key, value; of one kind, one chunk and one shape */
    const float *bias[3];     /* or NULL */
    const dsee_matrix *v[3];  /* side branches, as in dsee_product; NULL without one */
    const float *u[3];
    const float *x;           /* batch x tokens x columns */
} dsee_self;

/* One product of 8-bit integers: y = act(dequantised + bias). Group g has the 4 x 4 blocks start[g] to start[g + 1]. */
typedef struct {
    int64_t rows, columns, groups; /* groups: ceil(rows / 4) */
    const int32_t *start;    /* groups + 1 */
    const uint16_t *column;  /* blocks; the first of its four columns, over 4 */
    const int8_t *value;     /* blocks x 4 rows x 4 columns, -127 to 127 */
    const float *scale;      /* rows */
    const float *sum;        /* rows; of a row's values */
    const float *bias;       /* rows, or NULL */
    const float *x;          /* tokens x columns */
    float *y;                /* tokens x rows */
    int64_t tokens;
    int32_t activation;
} dsee_int8;

/* y = gain * (a + b - mean) / sqrt(var + eps) + shift over the last dimension; y may be a or b. */
typedef struct {
    const float *a, *b;         /* tokens x width */
    const float *gain, *shift;  /* width */
    float *y;                   /* tokens x width */
    int64_t tokens, width;
    float eps;
} dsee_norm;

/* A layer of an encoder: h = norm1(attention(h) Wo' + bo + h), then h = norm2(act(h W1' + b1) W2' + b2 + h). Each W may
 * have a side branch. */
typedef struct {
    const dsee_matrix *w[6];  /* query, key, value, o, 1 and 2; of one kind, the first three of one chunk and shape */
    const float *bias[6];     /* or NULL */
    const dsee_matrix *v[6];  /* side branches, as in dsee_product; NULL without one */
    const float *u[6];
    const float *gain[2], *shift[2]; /* width */
    int64_t heads;
    float eps[2], scale;
    int32_t activation;
} dsee_layer;

/* An encoder. `hidden` has room for dsee_encoder_room floats, `context` for batch x tokens x the most columns of a Wo. */
typedef struct {
    const dsee_layer *layer;
    const float *x;           /* batch x tokens x width */
    float *y, *hidden, *context;
    const uint8_t *allowed;   /* of attention, as in dsee_attention; the same for every layer */
    const float *mask;
    int64_t mask_batch, mask_head, mask_query;
    int64_t layers, batch, tokens, width;
    int64_t room;             /* set by the call: tokens that a sequence's panels have room for */
    int32_t kind;             /* set by the call: of all matrices */
} dsee_encoder;

/* One instruction set. */
typedef struct {
    const char *name;
    int32_t panel[2];      /* tokens of a full panel, by kind */
    void (*run)(const dsee_part *part, float *scratch);
    void (*attend)(const dsee_attention *a, int64_t batch, int64_t head, float *scratch);
    size_t (*attention_floats)(const dsee_attention *a);
    void (*int8_panel)(const dsee_int8 *d, int64_t token, int64_t n, float *scratch); /* NULL: has none */
    size_t (*int8_floats)(const dsee_int8 *d);
    int64_t int8_tokens;   /* how many int8_panel takes at most */
    void (*add_norm)(const dsee_norm *n, int64_t token, int64_t tokens);
    void (*run_pair)(const dsee_pair *d, int64_t token, int64_t tokens, float *scratch);
    size_t (*pair_floats)(const dsee_pair *d, int32_t panel);
    /* `panels`: the hidden states of the sequence in panels, in place of d->x; or NULL */
    void (*self_attend)(const dsee_self *d, const float *panels, int64_t batch, int64_t first_head, int64_t heads, float *scratch);
    size_t (*self_floats)(const dsee_self *d, int64_t heads, int32_t panel);
    int64_t (*panels_of)(int32_t kind, int64_t tokens, int64_t *room);
    size_t (*encoder_floats)(const dsee_layer *l, int32_t panel);
    void (*encoder_enter)(const dsee_encoder *e, int64_t batch, int64_t index);
    void (*encoder_layer)(const dsee_encoder *e, int64_t layer, int64_t batch, int64_t index, float *scratch);
} dsee_path;

extern const dsee_path dsee_path_baseline, dsee_path_avx2, dsee_path_avx2_vnni, dsee_path_avx512, dsee_path_avx512_vnni,
    dsee_path_neon;
enum { DSEE_MOST_PATHS = 6 };

/* Floats of scratch that a part needs with panels of so many tokens. */
size_t dsee_scratch_floats(const dsee_part *part, int32_t panel);

/* Call task(argument, i) for i in 0..count-1 on up to `threads` threads, the caller's among them. */
void dsee_parallel(int64_t count, int32_t threads, void (*task)(void *argument, int64_t i), void *argument);

/* This thread's scratch memory, at least so many floats, 64-byte aligned; NULL without memory. */
float *dsee_scratch(size_t floats);

/* What Python calls. */
#define PUBLIC __attribute__((visibility("default")))
PUBLIC int32_t dsee_paths(const char **names, int32_t most);             /* those this machine can run, best last */
/* Compute on the threads of an OpenMP runtime, given its GOMP_parallel; NULL: on threads of our own. */
PUBLIC void dsee_share_threads(void (*parallel)(void (*)(void *), void *, unsigned, unsigned));
PUBLIC int32_t dsee_panel(const char *path, int32_t kind);               /* 0: unknown path */
PUBLIC int32_t dsee_check(const dsee_matrix *m, int64_t starts, int64_t entries, int64_t values); /* 0: sound */
/* The same without a side branch, whole rows close together: a call by numbers is several times cheaper from Python. */
PUBLIC int32_t dsee_linear(const dsee_matrix *w, const float *bias, const float *x, float *y, int64_t tokens,
                           int32_t activation, const char *path, int32_t threads);
PUBLIC int32_t dsee_run(const dsee_product *product, const char *path, int32_t threads); /* 0: done; 1: unknown path; 2: no memory */
/* as dsee_run; 3: the two do not follow each other */
PUBLIC int32_t dsee_linears(const dsee_matrix *first, const float *first_bias, int32_t first_activation,
                            const dsee_matrix *second, const float *second_bias, int32_t second_activation, const float *x,
                            float *y, int64_t tokens, const char *path, int32_t threads);
PUBLIC int32_t dsee_attend(const dsee_attention *a, const char *path, int32_t threads); /* as dsee_run; 3: no such heads */
/* as dsee_run; 3: the parts do not fit each other */
PUBLIC int32_t dsee_self_attend(const dsee_self *d, const char *path, int32_t threads);
/* floats that `hidden` of an encoder needs; 0: unknown path or nothing to compute */
PUBLIC int64_t dsee_encoder_room(int32_t kind, int64_t batch, int64_t tokens, int64_t width, const char *path);
/* as dsee_run; 3: the parts do not fit each other */
PUBLIC int32_t dsee_encode(dsee_encoder *e, const char *path, int32_t threads);
/* 0: sound */
PUBLIC int32_t dsee_int8_check(const dsee_int8 *d, int64_t starts, int64_t blocks, int64_t values);
PUBLIC int32_t dsee_int8_run(const dsee_int8 *d, const char *path, int32_t threads); /* as dsee_run; 3: not on this path */
PUBLIC int32_t dsee_int8_can(const char *path);                                      /* 1: this path has 8-bit products */
PUBLIC int32_t dsee_add_norm(const float *a, const float *b, const float *gain, const float *shift, float *y, int64_t tokens,
                             int64_t width, float eps, const char *path, int32_t threads); /* 0: done; 1: unknown path */

#endif
