#include "half.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace r2mrf_internal {

std::uint16_t half_from(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<std::uint16_t>((bits >> 16U) & 0x8000U);
  const float size = std::abs(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | 0x7e00U);
  if (size >= 65520.0F) return static_cast<std::uint16_t>(sign | 0x7c00U);  // half-way from 65504, the largest, to 65536
  if (size == 0.0F) return sign;
  // The unit in the last place is 2^-24 for subnormals and grows with the exponent; rint rounds ties to even.
  int exponent = 0;
  std::frexp(size, &exponent);
  const int unit = std::max(exponent - 11, -24);
  const auto units = static_cast<std::uint32_t>(std::rint(std::ldexp(size, -unit)));
  // A full significand carries into the exponent by itself.
  return static_cast<std::uint16_t>(sign | ((static_cast<std::uint32_t>(unit + 24) << 10U) + units));
}

float float_from(std::uint16_t half) {
  const unsigned exponent = (half >> 10U) & 31U;
  const unsigned fraction = half & 1023U;
  const float sign = (half & 0x8000U) ? -1.0F : 1.0F;
  if (exponent == 31) return fraction ? std::nanf("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(fraction + 1024U), static_cast<int>(exponent) - 25);
}

}  // namespace r2mrf_internal
