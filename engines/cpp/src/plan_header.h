// The header of a TensorRT plan, read without TensorRT; as in r2mrf_deploy/formats/plan.py.
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
  std::vector<std::string> compute_capabilities;  // empty for plans of TensorRT, which do not say
};

inline constexpr std::size_t kPlanHeaderLength = 64;

// head: the first `length` bytes of the file, 64 or fewer. size: of the whole file, in bytes.
// Throws ArtifactError if they are not the start of a plan, or if the plan is truncated.
PlanHeader parse_plan_header(const std::uint8_t *head, std::size_t length, std::uint64_t size, const std::string &name);

// Throws ArtifactError if the library, version or compute capabilities in the manifest differ from the header's.
void check_plan_manifest(const PlanHeader &header, const Manifest &manifest, const std::string &name);

// Throws ArtifactError if the installed library, of version major.minor.patch, cannot open the plan. Only the version that
// built the plan can, or if the plan is version-compatible, any later version with the same major number.
void check_plan_version(const PlanHeader &header, const std::string &installed, bool version_compatible,
                        const std::string &name);

}  // namespace r2mrf_internal
