#include "file.h"

namespace r2mrf_internal {

std::string why_not_a_file(const std::filesystem::path &path) {
  using std::filesystem::file_type;
  std::error_code why;
  switch (std::filesystem::status(path, why).type()) {
    case file_type::regular:
      return "";
    case file_type::directory:
      return path.string() + " is a folder: name a file";
    case file_type::none:
    case file_type::not_found:  // also a name that is too long, or a loop of links: there is no such file either
      return path.string() + (why == std::errc::permission_denied ? " cannot be read: permission denied" : ": no such file");
    default:
      return path.string() + " is a FIFO, a socket or a device: only regular files are read";
  }
}

}  // namespace r2mrf_internal
