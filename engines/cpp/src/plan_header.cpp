#include "plan_header.h"

#include <cstring>

#include "error.h"

namespace r2mrf_internal {
namespace {

// Little-endian, from the first byte of the value.
std::uint64_t unsigned_at(const std::uint8_t *bytes, unsigned width) {
  std::uint64_t value = 0;
  for (unsigned i = 0; i < width; ++i) value |= std::uint64_t{bytes[i]} << (8U * i);
  return value;
}

// The bits of a TensorRT-RTX header, in order.
constexpr std::array<const char *, 6> kComputeCapabilities{"7.5", "8.0", "8.6", "8.9", "12.0", "12.1"};

}  // namespace

PlanHeader parse_plan_header(const std::uint8_t *head, std::size_t length, std::uint64_t size, const std::string &name) {
  const bool rtx = length >= 4 && std::memcmp(head, "vtrt", 4) == 0;
  if (!rtx && (length < 4 || std::memcmp(head, "ftrt", 4) != 0)) {
    throw ArtifactError(name + " is not a TensorRT plan (it does not start with ftrt or vtrt)");
  }
  if (length < kPlanHeaderLength) {
    throw ArtifactError(name + " is truncated after " + std::to_string(length) + " bytes: build it again");
  }
  if (const auto zero = unsigned_at(head + 4, 4); zero != 0) {
    throw ArtifactError(name + " is damaged: its header holds " + std::to_string(zero) +
                        " where a plan has 0; build it again");
  }
  PlanHeader header{rtx ? "tensorrt_rtx" : "tensorrt", "", {}};
  for (unsigned i = 24; i < 28; ++i) header.version += (i > 24 ? "." : "") + std::to_string(head[i]);
  if (!rtx) return header;
  if (const auto said = unsigned_at(head + 16, 8); said != size) {
    throw ArtifactError(name + " is damaged: its header says " + std::to_string(said) + " bytes, the file has " +
                        std::to_string(size) + "; build it again");
  }
  const auto bits = unsigned_at(head + 32, 4);
  for (unsigned i = 0; i < kComputeCapabilities.size(); ++i) {
    if ((bits >> i) & 1U) header.compute_capabilities.emplace_back(kComputeCapabilities[i]);
  }
  return header;
}

}  // namespace r2mrf_internal
