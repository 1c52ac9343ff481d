// The interface between the engine and a library that runs models.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "manifest.h"

namespace r2mrf_internal {

// Milliseconds. The transfers are 0 for a backend that runs on the CPU.
struct InferenceTimes {
  double enqueue = 0;
  double h2d = 0;
  double compute = 0;
  double d2h = 0;
};

// The network's output, in the backend's memory; valid until the context's next inference.
struct RawMap {
  const void *data;
  Dtype dtype;
  std::uint32_t height;
  std::uint32_t width;
  InferenceTimes times;
};

// What one inference needs for itself. One thread at a time may use it.
class ExecutionContext {
 public:
  ExecutionContext() = default;
  ExecutionContext(const ExecutionContext &) = delete;
  ExecutionContext &operator=(const ExecutionContext &) = delete;
  virtual ~ExecutionContext() = default;

  // Memory for an input of this shape, to be filled before infer().
  virtual void *input(const Shape &shape) = 0;
  virtual RawMap infer() = 0;
};

// An opened model. Any thread may call context(); the contexts must not outlive the backend.
class Backend {
 public:
  Backend() = default;
  Backend(const Backend &) = delete;
  Backend &operator=(const Backend &) = delete;
  virtual ~Backend() = default;

  [[nodiscard]] virtual std::string device() const = 0;
  virtual std::unique_ptr<ExecutionContext> context() = 0;
};

// The backends of this build, separated by spaces.
const char *backend_names();

// Throws ArtifactError unless a backend opens files of this name; the message says what to make of a checkpoint.
void check_suffix(const std::filesystem::path &artifact);

// Opens `artifact`, whose SHA-256 has been checked, with the backend for its file type. Throws ArtifactError if the model is
// damaged or differs from its manifest, and Unavailable if this build or machine lacks the backend.
std::unique_ptr<Backend> open_backend(const std::filesystem::path &artifact, const Manifest &manifest,
                                      std::uint32_t threads);

// The manifest of `artifact`, or if there is none the contract inside an .onnx or .xml file.
// Throws ArtifactError if there is neither, or if it is damaged.
Manifest contract_of(const std::filesystem::path &artifact);

// The text of the contract inside a file that OpenVINO reads; nullopt if there is none. Throws like open_openvino().
std::optional<std::string> contract_in_openvino(const std::filesystem::path &artifact);

// The backends. Each is compiled in if CMake finds its library.
std::unique_ptr<Backend> open_openvino(const std::filesystem::path &artifact, const Manifest &manifest,
                                       std::uint32_t threads);
std::unique_ptr<Backend> open_tensorrt(const std::filesystem::path &artifact, const Manifest &manifest);

// Throws ArtifactError unless the shape of the output "map" is [N, 1, H, W].
void check_map_shape(const Shape &shape);

}  // namespace r2mrf_internal
