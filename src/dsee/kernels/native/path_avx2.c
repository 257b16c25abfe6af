/* AVX2 with fused multiply-add: 16 registers of 8 floats. */
#if defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#define BLOCK_VECTORS 3
#define WEIGHT_VECTORS 8
#include "body.h"
const dsee_path dsee_path_avx2 = DSEE_PATH("avx2");
#else
#include "dsee_kernels.h"
const dsee_path dsee_path_avx2 = {0};
#endif
