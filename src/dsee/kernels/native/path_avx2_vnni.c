/* AVX2 with VNNI, as CPUs without AVX-512 may have it: 8-bit products by one instruction, fp32 as without. */
#if defined(__AVX2__) && defined(__FMA__) && defined(__AVXVNNI__)
#define LANES 8
#define BLOCK_VECTORS 3
#define WEIGHT_VECTORS 8
#include "body.h"
const dsee_path dsee_path_avx2_vnni = DSEE_PATH("avx2_vnni");
#else
#include "dsee_kernels.h"
const dsee_path dsee_path_avx2_vnni = {0};
#endif
