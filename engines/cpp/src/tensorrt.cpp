// TensorRT and TensorRT-RTX run plans on an NVIDIA GPU; the one that built a plan also runs it.
//
// What is used here of their interfaces is the same. Either library is loaded when a plan needs it.
#include <NvInferRuntime.h>

#include <algorithm>
#include <fstream>

#include "cuda.h"
#include "error.h"
#include "plan_header.h"
#include "tensorrt_context.h"

namespace r2mrf_internal {
namespace {

thread_local std::string complaint;

// TensorRT needs one logger for the whole process. Any thread may call it.
class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char *message) noexcept override {
    if (severity > Severity::kERROR) return;
    try {
      complaint = message;
    } catch (...) {
      complaint.clear();  // no memory even for the message
    }
  }
};

Logger logger;

// One of the two libraries, loaded.
struct Library {
  explicit Library(bool is_rtx)
      : rtx(is_rtx),
        title(rtx ? "TensorRT-RTX" : "TensorRT"),
        library({rtx ? "libtensorrt_rtx.so.1" : "libnvinfer.so." R2MRF_TENSORRT_MAJOR},
                "install the library that built the plan, or name its folder in LD_LIBRARY_PATH") {
    for (const char *name : {"getInferLibMajorVersion", "getInferLibMinorVersion", "getInferLibPatchVersion"}) {
      std::int32_t (*part)() = library.symbol(name);
      version += (version.empty() ? "" : ".") + std::to_string(part());
    }
  }

  static const Library &get(bool rtx) {
    if (rtx && NV_TENSORRT_MAJOR < 10) {  // their sizes are 32-bit, but TensorRT-RTX returns 64-bit ones
      throw Unavailable("the library was built with the headers of TensorRT " R2MRF_TENSORRT_MAJOR
                        ", which do not fit TensorRT-RTX: build it with those of 10 or later");
    }
    if (rtx) {
      static const Library one(true);
      return one;
    }
    static const Library other(false);
    return other;
  }

  bool rtx;
  std::string title;
  std::string version;  // major.minor.patch
  SharedLibrary library;
  decltype(createInferRuntime_INTERNAL) *create_runtime = library.symbol("createInferRuntime_INTERNAL");
};

std::vector<char> bytes_of(const std::filesystem::path &plan) {
  std::ifstream in(plan, std::ios::binary);
  std::vector<char> bytes(static_cast<std::size_t>(std::filesystem::file_size(plan)));
  if (!in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
    throw ArtifactError(plan.string() + " cannot be read to the end");
  }
  return bytes;
}

std::string numpy_name(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT: return "float32";
    case nvinfer1::DataType::kHALF: return "float16";
    case nvinfer1::DataType::kUINT8: return "uint8";
    case nvinfer1::DataType::kINT8: return "int8";
    case nvinfer1::DataType::kINT32: return "int32";
#if NV_TENSORRT_MAJOR >= 9
    case nvinfer1::DataType::kBF16: return "bfloat16";
    case nvinfer1::DataType::kINT64: return "int64";
#endif
    default: return "type " + std::to_string(static_cast<int>(type));
  }
}

std::vector<TensorSpec> specs_of(const nvinfer1::ICudaEngine &engine, nvinfer1::TensorIOMode mode) {
  std::vector<TensorSpec> specs;
  for (std::int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
    const char *name = engine.getIOTensorName(i);
    if (engine.getTensorIOMode(name) != mode) continue;
    const nvinfer1::Dims dims = engine.getTensorShape(name);
    specs.push_back({name, numpy_name(engine.getTensorDataType(name)), Shape(dims.d, dims.d + std::max(dims.nbDims, 0)), ""});
  }
  return specs;  // a free dimension is -1, like kFree
}

class TensorRT final : public Backend {
 public:
  TensorRT(const std::filesystem::path &artifact, const Manifest &manifest, const Library &library)
      : input_(manifest.inputs.at(0)), rtx_(library.rtx), runtime_(create(library)) {
    // a version-compatible plan contains its own runtime, which is host code
    if (manifest.target->version_compatible) runtime_->setEngineHostCodeAllowed(true);
    const std::vector<char> plan = bytes_of(artifact);
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    const std::string why = last_complaint();
    const std::string capability = Cuda::get().compute_capability();
    cuda_device_ = Cuda::get().device();
    if (!engine_) {
      throw ArtifactError(artifact.string() + " does not open on a GPU of compute capability " + capability + ": " + why +
                          "; build it for this GPU with `r2mrf build`");
    }
    check_agreement(specs_of(*engine_, nvinfer1::TensorIOMode::kINPUT),
                    specs_of(*engine_, nvinfer1::TensorIOMode::kOUTPUT), manifest, artifact.string());
    device_ = library.title + " " + library.version + ", GPU of compute capability " + capability;
  }

  [[nodiscard]] std::string device() const override { return device_; }
  std::unique_ptr<ExecutionContext> context() override {
    const OnDevice here(Cuda::get(), cuda_device_);
    return std::make_unique<TensorRTContext>(*engine_, input_, cuda_device_, rtx_);
  }

 private:
  static nvinfer1::IRuntime *create(const Library &library) {
    void *runtime = library.create_runtime(&logger, NV_TENSORRT_VERSION);
    // if CUDA does not start, TensorRT 11.4 reports an error and returns an invalid pointer, not null
    if (runtime == nullptr || !complaint.empty()) {
      throw Unavailable(library.title + " " + library.version + " does not start: " + last_complaint());
    }
    return static_cast<nvinfer1::IRuntime *>(runtime);
  }

  TensorSpec input_;
  bool rtx_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;  // destroyed before runtime_
  int cuda_device_ = 0;  // the device on which the plan was opened
  std::string device_;
};

}  // namespace

std::string last_complaint() { return complaint.empty() ? "it gave no reason" : complaint; }

std::unique_ptr<Backend> open_tensorrt(const std::filesystem::path &artifact, const Manifest &manifest) {
  std::array<char, kPlanHeaderLength> head{};
  std::ifstream in(artifact, std::ios::binary);
  in.read(head.data(), head.size());
  const PlanHeader header =
      parse_plan_header(reinterpret_cast<const std::uint8_t *>(head.data()), static_cast<std::size_t>(in.gcount()),
                        std::filesystem::file_size(artifact), artifact.string());
  check_plan_manifest(header, manifest, artifact.string());
  const Library &library = Library::get(header.flavour == "tensorrt_rtx");
  check_plan_version(header, library.version, manifest.target->version_compatible, artifact.string());
  Cuda::get().check_driver();
  complaint.clear();
  return std::make_unique<TensorRT>(artifact, manifest, library);
}

}  // namespace r2mrf_internal
