// What the backend of known maps says of itself.
#pragma once

#include <atomic>

#include "backend.h"

namespace r2mrf_internal {

inline std::atomic<int> known_contexts{0};  // that were ever made

}  // namespace r2mrf_internal
