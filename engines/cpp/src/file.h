// What may be opened as a file. A FIFO would block for ever, and opening a device can have effects of its own.
#pragma once

#include <filesystem>
#include <string>

namespace r2mrf_internal {

// Why `path` cannot be opened as a regular file, as a sentence that begins with the path; "" if it can be. Follows symbolic
// links.
std::string why_not_a_file(const std::filesystem::path &path);

}  // namespace r2mrf_internal
