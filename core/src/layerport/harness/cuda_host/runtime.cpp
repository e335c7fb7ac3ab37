// The part of the host harness that no kernel changes, compiled once and linked to every kernel's program.

#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#include "driver.h"
