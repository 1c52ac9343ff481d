// Makes error messages safe to print: they quote paths, manifest fields and other libraries' messages.
#pragma once

#include <string>
#include <string_view>

namespace r2mrf_internal {

// The text as one line of valid UTF-8: control characters become spaces, and bytes that are not UTF-8 question marks.
std::string one_line(std::string_view text);

}  // namespace r2mrf_internal
