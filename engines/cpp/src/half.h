// IEEE 754 binary16, for which C++17 has no type.
#pragma once

#include <cstdint>

namespace r2mrf_internal {

// Rounds to the nearest value, ties to even, like numpy.
std::uint16_t half_from(float value);
float float_from(std::uint16_t half);

}  // namespace r2mrf_internal
