/* AVX2 with VNNI, as CPUs without AVX-512 may have it: 8-bit products by one instruction, fp32 as without. */
#if defined(__AVX2__) && defined(__FMA__) && defined(__AVXVNNI__)
#define LANES 8
#define BLOCK_VECTORS 3
#define WEIGHT_VECTORS 8
#include "body.h"
const dsee_path dsee_path_avx2_vnni = {"avx2_vnni", {BLOCK_VECTORS * LANES, WEIGHT_VECTORS * LANES}, run, attend, attention_floats, int8_panel, int8_floats, add_norm, run_pair, pair_floats, self_attend, self_floats};
#else
#include "dsee_kernels.h"
const dsee_path dsee_path_avx2_vnni = {0, {0, 0}, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
#endif
