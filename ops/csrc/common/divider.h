// Division by a number that is fixed for a launch, without a divide instruction.
#pragma once
#include "geometry.h"

namespace laud {

// Quotients of 0 <= n < 2^31 by 1 <= d < 2^31: (n * (2^32 + magic) / 2^32) >> shift.
struct Divider {
  uint32_t divisor = 1, magic = 1, shift = 0;

  static Divider by(int64_t d) {
    if (d < 1) return {};  // of a range that is empty: nothing is divided
    uint32_t shift = 0;
    while ((int64_t{1} << shift) < d) shift++;
    const uint64_t rest = (uint64_t{1} << shift) - uint64_t(d);
    return {uint32_t(d), uint32_t((rest << 32) / uint64_t(d) + 1), shift};
  }
  LAUD_HOST_DEVICE int32_t quotient(int32_t n) const {
    const uint32_t high = uint32_t((uint64_t(uint32_t(n)) * magic) >> 32);
    return int32_t((high + uint32_t(n)) >> shift);
  }
  LAUD_HOST_DEVICE int32_t remainder(int32_t n) const {
    return n - quotient(n) * int32_t(divisor);
  }
};

}  // namespace laud
