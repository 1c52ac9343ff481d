// The library's exceptions. The C API turns them into a status and a message.
#pragma once

#include <r2mrf/r2mrf.h>

#include <stdexcept>
#include <string>

namespace r2mrf_internal {

class Failure : public std::runtime_error {
 public:
  Failure(r2mrf_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
  [[nodiscard]] r2mrf_status status() const noexcept { return status_; }

 private:
  r2mrf_status status_;
};

struct UsageError : Failure {
  explicit UsageError(const std::string &m) : Failure(R2MRF_USAGE, m) {}
};
struct InputError : Failure {
  explicit InputError(const std::string &m) : Failure(R2MRF_INPUT, m) {}
};
struct ArtifactError : Failure {
  explicit ArtifactError(const std::string &m) : Failure(R2MRF_ARTIFACT, m) {}
};
struct Unavailable : Failure {
  explicit Unavailable(const std::string &m) : Failure(R2MRF_UNAVAILABLE, m) {}
};

}  // namespace r2mrf_internal
