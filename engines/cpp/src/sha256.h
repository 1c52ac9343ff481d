// SHA-256 (FIPS 180-4), which binds a manifest to its files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace r2mrf_internal {

class Sha256 {
 public:
  void update(const std::uint8_t *data, std::size_t size);
  // The digest in lower-case hex. update() must not be called afterwards.
  [[nodiscard]] std::string hex();

 private:
  void block(const std::uint8_t *bytes);

  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::uint8_t, 64> pending_{};
  std::size_t filled_ = 0;
  std::uint64_t length_ = 0;
};

// The digest of a file. Throws ArtifactError if it cannot be read.
std::string sha256_of(const std::filesystem::path &file);

}  // namespace r2mrf_internal
