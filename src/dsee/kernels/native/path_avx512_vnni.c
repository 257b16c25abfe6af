/* AVX-512 with VNNI: 8-bit products by one instruction, fp32 as without. */
#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define LANES 16
#define BLOCK_VECTORS 3
#define WEIGHT_VECTORS 4
#include "body.h"
const dsee_path dsee_path_avx512_vnni = DSEE_PATH("avx512_vnni");
#else
#include "dsee_kernels.h"
const dsee_path dsee_path_avx512_vnni = {0};
#endif
