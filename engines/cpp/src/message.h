// Error messages quote what somebody else wrote: paths, fields of a manifest, another library's words.
#pragma once

#include <string>
#include <string_view>

namespace r2mrf_internal {

// The text as one line of valid UTF-8: a space for each control character, a question mark for each byte that is no UTF-8.
std::string one_line(std::string_view text);

}  // namespace r2mrf_internal
