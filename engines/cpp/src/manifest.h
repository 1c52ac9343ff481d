// The manifest beside an artifact: the fields that a program needs to run it. r2mrf_deploy/manifest.py writes it.
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

// One input or output. A free dimension is kFree.
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
  std::int64_t longest_side = 640;  // of a photograph, in pixels, where the input's size is free
  bool letterbox = false;           // whether a photograph keeps its aspect in an input of fixed size
};

// What a plan was built with.
struct Target {
  std::string runtime;
  std::string version;
  std::vector<std::string> compute_capabilities;
  bool version_compatible = false;
};

struct Manifest {
  std::string source = "its manifest";  // or "the contract inside it"; for messages
  std::string kind;
  std::string sha256;
  std::map<std::string, std::string> companions;  // file name -> SHA-256
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::map<std::string, Shape> smallest;  // input name -> the smallest shape in its profile, if that says so
  std::map<std::string, Shape> largest;
  std::optional<Preprocess> preprocess;
  std::string precision = "fp32";
  std::optional<Target> target;
};

// Number of elements of a tensor whose shape has no free dimension.
std::size_t element_count(const Shape &shape);

// Parses a manifest; `name` is its file's. Fields that this library does not need are ignored.
// Throws ArtifactError if the text is not a manifest, is longer than 64 MiB or nests too deeply.
Manifest parse_manifest(std::string_view text, const std::string &name);

// The same for a contract, which is a manifest without the SHA-256 and lies inside the model file `name`.
Manifest parse_contract(std::string_view text, const std::string &name);

// The manifest beside `artifact`, after the SHA-256 of the artifact's files was checked; nullopt if there is none.
// Throws ArtifactError if it is damaged, or if the files are not those that it was written for.
std::optional<Manifest> manifest_beside(const std::filesystem::path &artifact);

// Throws ArtifactError unless the inputs and outputs of the model `name` are those in its manifest: names, dtypes, ranks,
// sizes. A free dimension agrees with any size, because libraries infer shapes differently.
void check_agreement(const std::vector<TensorSpec> &inputs, const std::vector<TensorSpec> &outputs,
                     const Manifest &manifest, const std::string &name);

}  // namespace r2mrf_internal
