// The manifest beside an artifact, as far as a program that runs it has to know; r2mrf_deploy/manifest.py writes it.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace r2mrf_internal {

enum class Dtype { uint8, float16, float32, other };

Dtype dtype_of(std::string_view name);
std::size_t size_of(Dtype dtype);

inline constexpr std::int64_t kFree = -1;

using Shape = std::vector<std::int64_t>;

// One input or output; a free dimension is kFree.
struct TensorSpec {
  std::string name;
  std::string dtype;  // numpy's name
  Shape shape;
  std::string layout;  // "NHWC", "NCHW" or ""

  [[nodiscard]] std::string words() const;
};

struct Preprocess {
  std::array<float, 3> mean{0, 0, 0};
  std::array<float, 3> std{1, 1, 1};
};

// What a plan was built with.
struct Target {
  std::string runtime;
  std::string version;
  std::vector<std::string> compute_capabilities;
  bool version_compatible = false;
};

struct Manifest {
  std::string kind;
  std::string sha256;
  std::map<std::string, std::string> companions;  // file name -> SHA-256
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::map<std::string, Shape> largest;  // input with free dimensions -> the largest shape of its profile
  std::optional<Preprocess> preprocess;
  std::string precision = "fp32";
  std::optional<Target> target;
};

// Throws ArtifactError where the text is not a manifest; `name` says whose. Fields that this library does not need are
// not looked at. A contract is the same without a SHA-256: it lies inside the file.
Manifest parse_manifest(std::string_view text, const std::string &name);
Manifest parse_contract(std::string_view text, const std::string &name);

// The manifest beside `artifact`, with the SHA-256 of the artifact's files checked; nothing where there is none.
// Throws ArtifactError where it is damaged, or the files are not those that it was written for.
std::optional<Manifest> manifest_beside(const std::filesystem::path &artifact);

// Throws ArtifactError unless a model has the inputs or outputs that its manifest says: names, dtypes, ranks, sizes. A free
// dimension agrees with any, since libraries do not all infer the same.
void check_agreement(const std::vector<TensorSpec> &found, const std::vector<TensorSpec> &said, const std::string &name);

}  // namespace r2mrf_internal
