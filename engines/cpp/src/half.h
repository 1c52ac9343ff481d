// IEEE 754 binary16, which C++17 has no type for.
#pragma once

#include <cstdint>

namespace r2mrf_internal {

// To the nearest, halves to even, as numpy converts.
std::uint16_t half_from(float value);
float float_from(std::uint16_t half);

}  // namespace r2mrf_internal
