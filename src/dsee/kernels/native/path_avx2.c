/* AVX2 with fused multiply-add: 16 registers of 8 floats. */
#if defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#define BLOCK_VECTORS 3
#define WEIGHT_VECTORS 8
#include "body.h"
const dsee_path dsee_path_avx2 = {"avx2", {BLOCK_VECTORS * LANES, WEIGHT_VECTORS * LANES}, run, attend, attention_floats, int8_panel, int8_floats, add_norm, run_pair, pair_floats, self_attend, self_floats};
#else
#include "dsee_kernels.h"
const dsee_path dsee_path_avx2 = {0, {0, 0}, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
#endif
