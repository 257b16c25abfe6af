/* NEON on 64-bit ARM: 32 registers of 4 floats. */
#if defined(__aarch64__)
#define LANES 4
#define BLOCK_VECTORS 6
#define WEIGHT_VECTORS 8
#include "body.h"
const dsee_path dsee_path_neon = DSEE_PATH("neon");
#else
#include "dsee_kernels.h"
const dsee_path dsee_path_neon = {0};
#endif
