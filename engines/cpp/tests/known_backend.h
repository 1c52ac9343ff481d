// What known_backend.cpp reports to the tests.
#pragma once

#include <atomic>

#include "backend.h"

namespace r2mrf_internal {

inline std::atomic<int> known_contexts{0};  // made since the program began

}  // namespace r2mrf_internal
