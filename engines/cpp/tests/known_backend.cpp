// Replaces OpenVINO with a backend that computes the map of the test artifacts itself: 0.5 R + 0.3 G + 0.2 B. The code
// around a backend can then be tested without OpenVINO, and fast.
#include <array>
#include <fstream>

#include "error.h"
#include "known_backend.h"

namespace r2mrf_internal {
namespace {

constexpr std::array<float, 3> kWeights{0.5F, 0.3F, 0.2F};

class KnownContext final : public ExecutionContext {
 public:
  explicit KnownContext(bool bytes) : bytes_(bytes) { ++known_contexts; }

  void *input(const Shape &shape) override {
    shape_ = shape;
    input_.resize(element_count(shape));
    return input_.data();
  }

  RawMap infer() override {
    const std::size_t y = bytes_ ? 1 : 2;
    const auto height = static_cast<std::uint32_t>(shape_[y]);
    const auto width = static_cast<std::uint32_t>(shape_[y + 1]);
    const std::size_t plane = std::size_t{height} * width;
    map_.assign(plane, 0);
    const auto *bytes = reinterpret_cast<const std::uint8_t *>(input_.data());
    for (std::size_t i = 0; i < plane; ++i) {
      for (std::size_t c = 0; c < 3; ++c) {
        map_[i] += kWeights[c] * (bytes_ ? static_cast<float>(bytes[3 * i + c]) / 255.0F : input_[c * plane + i]);
      }
    }
    return {map_.data(), Dtype::float32, height, width, {1, 0, 1, 0}};
  }

 private:
  bool bytes_;
  Shape shape_;
  std::vector<float> input_;  // or as many bytes
  std::vector<float> map_;
};

class KnownBackend final : public Backend {
 public:
  explicit KnownBackend(bool bytes) : bytes_(bytes) {}
  [[nodiscard]] std::string device() const override { return "known"; }
  std::unique_ptr<ExecutionContext> context() override { return std::make_unique<KnownContext>(bytes_); }

 private:
  bool bytes_;
};

}  // namespace

std::optional<std::string> contract_in_openvino(const std::filesystem::path & /*artifact*/) { return std::nullopt; }

std::unique_ptr<Backend> open_openvino(const std::filesystem::path &artifact, const Manifest &manifest,
                                       std::uint32_t) {
  std::ifstream file(artifact, std::ios::binary);
  if (const int first = file.get(); first != 8 && first != '<') {  // ONNX begins with its version field, IR with a tag
    throw ArtifactError("cannot open " + artifact.string());
  }
  // the map of every test model has the size of its input
  TensorSpec map{"map", "float32", manifest.inputs[0].shape, ""};
  const std::size_t y = manifest.inputs[0].layout == "NHWC" ? 1 : 2;
  map.shape = {map.shape[0], 1, map.shape[y], map.shape[y + 1]};
  check_agreement(manifest.inputs, {map}, manifest, artifact.string());
  return std::make_unique<KnownBackend>(manifest.inputs[0].layout == "NHWC");
}

}  // namespace r2mrf_internal
