#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,fma,prefer-vector-width=512")
#endif
#define LAUD_ISA avx512
#define LAUD_VECTOR_BYTES 64
#define LAUD_PANEL_VECTORS 4
#include "row_gemm_impl.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
