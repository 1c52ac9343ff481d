#include "plan_header.h"

#include <array>
#include <cstring>
#include <sstream>

#include "error.h"

namespace r2mrf_internal {
namespace {

// A little-endian number of `width` bytes.
std::uint64_t unsigned_at(const std::uint8_t *bytes, unsigned width) {
  std::uint64_t value = 0;
  for (unsigned i = 0; i < width; ++i) value |= std::uint64_t{bytes[i]} << (8U * i);
  return value;
}

// What the bits of a TensorRT-RTX header stand for, from the lowest.
constexpr std::array<const char *, 6> kComputeCapabilities{"7.5", "8.0", "8.6", "8.9", "12.0", "12.1"};

// The first three numbers of "1.7.1.116".
std::array<int, 3> numbers(const std::string &version) {
  std::array<int, 3> found{};
  std::istringstream text(version);
  char dot = '.';
  for (int &n : found) text >> n >> dot;
  return found;
}

std::string joined(const std::vector<std::string> &words) {
  std::string text;
  for (const std::string &word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

void check_same(const char *what, const std::string &said, const std::string &found, const std::string &name) {
  if (said == found) return;
  throw ArtifactError(name + ": its manifest says " + what + " " + said + ", but the plan itself says " + found +
                      "; build it again");
}

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
    throw ArtifactError(name + " is damaged: its header says " + std::to_string(said) + " bytes, but the file has " +
                        std::to_string(size) + "; build it again");
  }
  const auto bits = unsigned_at(head + 32, 4);
  for (unsigned i = 0; i < kComputeCapabilities.size(); ++i) {
    if ((bits >> i) & 1U) header.compute_capabilities.emplace_back(kComputeCapabilities[i]);
  }
  return header;
}

void check_plan_manifest(const PlanHeader &header, const Manifest &manifest, const std::string &name) {
  if (!manifest.target) throw ArtifactError(name + ": its manifest does not say what it was built for");
  check_same("runtime", manifest.target->runtime, header.flavour, name);
  check_same("version", manifest.target->version, header.version, name);
  if (!header.compute_capabilities.empty()) {
    check_same("compute capabilities", joined(manifest.target->compute_capabilities), joined(header.compute_capabilities),
               name);
  }
}

void check_plan_version(const PlanHeader &header, const std::string &installed, bool version_compatible,
                        const std::string &name) {
  const auto wrote = numbers(header.version);
  const auto runs = numbers(installed);
  if (wrote == runs || (version_compatible && wrote[0] == runs[0] && wrote < runs)) return;
  throw ArtifactError(name + " was built by " + header.flavour + " " + header.version + ", but " + installed +
                      " is installed: build it again with `r2mrf build`, or install that version");
}

}  // namespace r2mrf_internal
