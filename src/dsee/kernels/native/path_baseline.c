/* Whatever the compiler targets by default; runs on every machine that can run the file. */
#define LANES 4
#define BLOCK_VECTORS 3
#define WEIGHT_VECTORS 8
#include "body.h"
const dsee_path dsee_path_baseline = DSEE_PATH("baseline");
