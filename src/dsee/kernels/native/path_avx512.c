/* AVX-512: 32 registers of 16 floats. */
#if defined(__AVX512F__)
#define LANES 16
#define BLOCK_VECTORS 3
#define WEIGHT_VECTORS 4
#include "body.h"
const dsee_path dsee_path_avx512 = {"avx512", {BLOCK_VECTORS * LANES, WEIGHT_VECTORS * LANES}, run, attend, attention_floats, int8_panel, int8_floats, add_norm, run_pair, pair_floats, self_attend, self_floats};
#else
#include "dsee_kernels.h"
const dsee_path dsee_path_avx512 = {0, {0, 0}, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
#endif
