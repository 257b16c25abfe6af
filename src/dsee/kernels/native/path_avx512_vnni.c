/* AVX-512 with VNNI: 8-bit products by one instruction, fp32 as without. */
#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define LANES 16
#define BLOCK_VECTORS 3
#define WEIGHT_VECTORS 4
#include "body.h"
const dsee_path dsee_path_avx512_vnni = {"avx512_vnni", {BLOCK_VECTORS * LANES, WEIGHT_VECTORS * LANES}, run, attend, attention_floats, int8_panel, int8_floats, add_norm, run_pair, pair_floats, self_attend, self_floats};
#else
#include "dsee_kernels.h"
const dsee_path dsee_path_avx512_vnni = {0, {0, 0}, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
#endif
