// What a TensorRT plan says of itself, read without TensorRT; the same facts as r2mrf_deploy/runtimes/plan_header.py.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "manifest.h"

namespace r2mrf_internal {

struct PlanHeader {
  std::string flavour;  // "tensorrt" or "tensorrt_rtx"
  std::string version;  // of the library that wrote it: major.minor.patch.build
  std::vector<std::string> compute_capabilities;  // only a TensorRT-RTX plan says them
};

inline constexpr std::size_t kPlanHeaderLength = 64;

// head: the file's first `length` bytes, 64 or fewer; size: the whole file's.
// Throws ArtifactError where they are not the start of a plan, or the plan is truncated.
PlanHeader parse_plan_header(const std::uint8_t *head, std::size_t length, std::uint64_t size, const std::string &name);

// Throws ArtifactError where a plan's manifest says another library, version or target than its header.
void check_plan_manifest(const PlanHeader &header, const Manifest &manifest, const std::string &name);

// Throws ArtifactError where the installed library, of version major.minor.patch, does not open the plan: only the version
// that wrote it does, or any later one of the same major version where the plan is version-compatible.
void check_plan_version(const PlanHeader &header, const std::string &installed, bool version_compatible,
                        const std::string &name);

}  // namespace r2mrf_internal
