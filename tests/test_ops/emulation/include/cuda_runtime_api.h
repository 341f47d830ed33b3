// What the launchers name of the CUDA runtime.
#pragma once
#include <cstddef>
#include <cstdint>

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
