// What the launchers name of the CUDA runtime.
#pragma once
#include <cstddef>
#include <cstdint>

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
