#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define LAUD_ISA avx2
#define LAUD_VECTOR_BYTES 32
#define LAUD_PANEL_VECTORS 2
#include "row_gemm_impl.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
