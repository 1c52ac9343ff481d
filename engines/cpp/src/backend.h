// What a library that runs a model has to offer, and nothing of how: the engine above sees only this.
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

// Milliseconds; a backend without a device has no transfers.
struct InferenceTimes {
  double enqueue = 0;
  double h2d = 0;
  double compute = 0;
  double d2h = 0;
};

// The map as the network gives it, in the backend's memory until the context's next inference.
struct RawMap {
  const void *data;
  Dtype dtype;
  std::uint32_t height;
  std::uint32_t width;
  InferenceTimes times;
};

// One thread's way through a model. It is used by one thread at a time.
class ExecutionContext {
 public:
  ExecutionContext() = default;
  ExecutionContext(const ExecutionContext &) = delete;
  ExecutionContext &operator=(const ExecutionContext &) = delete;
  virtual ~ExecutionContext() = default;

  // Memory for the input at this shape, to be filled before infer().
  virtual void *input(const Shape &shape) = 0;
  virtual RawMap infer() = 0;
};

// An opened model. context() may be called by any thread; contexts do not outlive it.
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

// Open `artifact`, which matches `manifest`, with the backend of its kind of file. Throws ArtifactError where the model is
// damaged or not as its manifest says, Unavailable where this build or machine has no such backend.
std::unique_ptr<Backend> open_backend(const std::filesystem::path &artifact, const Manifest &manifest,
                                      std::uint32_t threads);

// What is known of `artifact`: its manifest, or where there is none the contract that lies inside an .onnx or .xml file.
// Throws ArtifactError where there is neither, or it is damaged.
Manifest contract_of(const std::filesystem::path &artifact);

// The text of the contract inside a file that OpenVINO reads; nothing where there is none. Throws as open_openvino.
std::optional<std::string> contract_in_openvino(const std::filesystem::path &artifact);

// The backends themselves, each compiled in where CMake finds its library.
std::unique_ptr<Backend> open_openvino(const std::filesystem::path &artifact, const Manifest &manifest,
                                       std::uint32_t threads);
std::unique_ptr<Backend> open_tensorrt(const std::filesystem::path &artifact, const Manifest &manifest);

// The output called "map", [N, 1, H, W]: its height and width. Throws ArtifactError where a shape is no map's.
void check_map_shape(const Shape &shape);

}  // namespace r2mrf_internal
