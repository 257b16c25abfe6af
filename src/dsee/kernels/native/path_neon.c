/* NEON on 64-bit ARM: 32 registers of 4 floats. */
#if defined(__aarch64__)
#define LANES 4
#define BLOCK_VECTORS 6
#define WEIGHT_VECTORS 8
#include "body.h"
const dsee_path dsee_path_neon = {"neon", {BLOCK_VECTORS * LANES, WEIGHT_VECTORS * LANES}, run, attend, attention_floats, 0, 0, add_norm, run_pair, pair_floats, self_attend, self_floats};
#else
#include "dsee_kernels.h"
const dsee_path dsee_path_neon = {0, {0, 0}, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
#endif
