/* AVX-512: 32 registers of 16 floats. */
#if defined(__AVX512F__)
#define LANES 16
#define BLOCK_VECTORS 3
#define WEIGHT_VECTORS 4
#include "body.h"
const dsee_path dsee_path_avx512 = DSEE_PATH("avx512");
#else
#include "dsee_kernels.h"
const dsee_path dsee_path_avx512 = {0};
#endif
