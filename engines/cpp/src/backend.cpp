#include "backend.h"

#include <algorithm>
#include <cctype>

#include "error.h"
#include "file.h"

namespace r2mrf_internal {
namespace {

[[noreturn, maybe_unused]] void refuse(const std::filesystem::path &artifact, const char *backend, const char *cure) {
  throw Unavailable(artifact.string() + " needs the backend " + backend + ", which this build does not include (it has: " +
                    (*backend_names() ? backend_names() : "none") + "); configure it with " + cure);
}

std::string lower_suffix(const std::filesystem::path &artifact) {
  std::string suffix = artifact.extension().string();
  std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) {
    return static_cast<char>(std::tolower(c));
  });
  return suffix;
}

void check_kind(const std::filesystem::path &artifact, const Manifest &manifest, const char *kind) {
  if (manifest.kind != kind) {
    throw ArtifactError(artifact.string() + ": " + manifest.source + " describes a file of kind \"" + manifest.kind +
                        "\", but the suffix is that of kind \"" + kind + '"');
  }
}

// OpenVINO opens the .bin beside an .xml by itself.
[[maybe_unused]] void check_weights(const std::filesystem::path &artifact) {
  const auto why = why_not_a_file(std::filesystem::path(artifact).replace_extension(".bin"));
  if (!why.empty()) throw ArtifactError(why + "; it belongs to " + artifact.filename().string());
}

}  // namespace

const char *backend_names() {
#if defined(R2MRF_WITH_OPENVINO) && defined(R2MRF_WITH_TENSORRT)
  return "openvino tensorrt";
#elif defined(R2MRF_WITH_OPENVINO)
  return "openvino";
#elif defined(R2MRF_WITH_TENSORRT)
  return "tensorrt";
#else
  return "";
#endif
}

void check_suffix(const std::filesystem::path &artifact) {
  const std::string suffix = lower_suffix(artifact);
  if (suffix == ".onnx" || suffix == ".xml" || suffix == ".plan") return;
  const auto name = artifact.string();
  // PyTorch's weights, also as x.pth.tar
  if (suffix == ".pth" || suffix == ".pt" || suffix == ".ckpt" || suffix == ".tar" || suffix == ".safetensors") {
    throw ArtifactError(name + " is a checkpoint, which has to be exported first: r2mrf export " + name + " -o " +
                        artifact.stem().string() + ".onnx");
  }
  throw ArtifactError(name + ": no backend opens \"" + suffix + "\" files, only .onnx, .xml and .plan");
}

Manifest contract_of(const std::filesystem::path &artifact) {
  if (auto manifest = manifest_beside(artifact)) return *manifest;
  [[maybe_unused]] const std::string suffix = lower_suffix(artifact);
#ifdef R2MRF_WITH_OPENVINO
  if (suffix == ".xml") check_weights(artifact);
  if (suffix == ".onnx" || suffix == ".xml") {
    if (const auto text = contract_in_openvino(artifact)) return parse_contract(*text, artifact.string());
  }
#endif
  throw ArtifactError(artifact.string() + " has no manifest beside it (" + artifact.filename().string() +
                      ".json) and no contract inside it: copy the manifest here too");
}

std::unique_ptr<Backend> open_backend(const std::filesystem::path &artifact, const Manifest &manifest,
                                      std::uint32_t threads) {
  const std::string suffix = lower_suffix(artifact);
  if (suffix == ".plan") {
    check_kind(artifact, manifest, "plan");
    if (threads != 0) throw UsageError("a plan runs on the GPU: threads must be 0");
#ifdef R2MRF_WITH_TENSORRT
    return open_tensorrt(artifact, manifest);
#else
    refuse(artifact, "tensorrt", "-DTENSORRT_ROOT=... (TensorRT's headers)");
#endif
  }
  check_kind(artifact, manifest, suffix == ".xml" ? "openvino" : "onnx");
#ifdef R2MRF_WITH_OPENVINO
  return open_openvino(artifact, manifest, threads);
#else
  refuse(artifact, "openvino", "-DOpenVINO_DIR=... (OpenVINO's CMake files)");
#endif
}

void check_map_shape(const Shape &shape) {
  if (shape.size() != 4 || shape[0] < 1 || shape[1] != 1 || shape[2] < 1 || shape[3] < 1) {
    throw ArtifactError("the output \"map\" is not [N, 1, H, W]");
  }
}

}  // namespace r2mrf_internal
