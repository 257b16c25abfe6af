/* Whatever the compiler targets by default; runs on every machine that can run the file. */
#define LANES 4
#define BLOCK_VECTORS 3
#define WEIGHT_VECTORS 8
#include "body.h"
const dsee_path dsee_path_baseline = {"baseline", {BLOCK_VECTORS * LANES, WEIGHT_VECTORS * LANES}, run, attend, attention_floats, 0, 0, add_norm, run_pair, pair_floats, self_attend, self_floats};
