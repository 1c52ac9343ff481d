// OpenVINO on the CPU. It reads its own .xml models and ONNX files.
#include <algorithm>
#include <chrono>
#include <openvino/openvino.hpp>
#include <thread>

#include "backend.h"
#include "error.h"
#include "message.h"

namespace r2mrf_internal {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// OpenVINO's messages have many lines. The last one says what was wrong.
std::string last_line(const std::exception &e) {
  std::string text = e.what();
  text.erase(text.find_last_not_of(" \n\r\t") + 1);
  return text.substr(text.find_last_of('\n') + 1);
}

// Runs `work`. Exceptions that OpenVINO throws become ArtifactError; `failing` begins the message.
template <typename Work>
auto asked(const std::string &failing, Work work) {
  try {
    return work();
  } catch (const Failure &) {
    throw;
  } catch (const std::bad_alloc &) {
    throw;
  } catch (const std::exception &e) {
    throw ArtifactError(failing + ": " + last_line(e));
  }
}

std::string numpy_name(const ov::element::Type &type) {
  if (type == ov::element::f32) return "float32";
  if (type == ov::element::f16) return "float16";
  if (type == ov::element::u8) return "uint8";
  return type.get_type_name();
}

// When OpenVINO drops a node that changes nothing, a tensor gets several names: the manifest's is taken.
std::string name_of(const ov::Output<const ov::Node> &port, const std::vector<TensorSpec> &said) {
  const auto &names = port.get_names();
  const auto known =
      std::find_if(said.begin(), said.end(), [&](const TensorSpec &spec) { return names.count(spec.name) != 0; });
  return known == said.end() ? port.get_any_name() : known->name;
}

TensorSpec spec_of(const ov::Output<const ov::Node> &port, const std::vector<TensorSpec> &said) {
  TensorSpec spec{name_of(port, said), numpy_name(port.get_element_type()), {}, ""};
  for (const auto &d : port.get_partial_shape()) spec.shape.push_back(d.is_static() ? d.get_length() : kFree);
  return spec;
}

template <typename Ports>
std::vector<TensorSpec> specs_of(const Ports &ports, const std::vector<TensorSpec> &said) {
  std::vector<TensorSpec> specs;
  for (const auto &port : ports) specs.push_back(spec_of(port, said));
  return specs;
}

class OpenVINOContext final : public ExecutionContext {
 public:
  OpenVINOContext(ov::InferRequest request, std::string input, ov::element::Type type)
      : request_(std::move(request)), input_(std::move(input)), type_(type) {}

  void *input(const Shape &shape) override {
    return asked("OpenVINO rejected an input of this size", [&] {
      const ov::Shape wanted(shape.begin(), shape.end());
      if (!tensor_ || tensor_.get_shape() != wanted) {
        tensor_ = ov::Tensor(type_, wanted);
        request_.set_tensor(input_, tensor_);
      }
      return tensor_.data();
    });
  }

  RawMap infer() override {
    return asked("OpenVINO failed to run the model", [&] {
      const auto start = Clock::now();
      request_.infer();
      const double ms = ms_since(start);
      const ov::Tensor map = request_.get_tensor("map");
      const ov::Shape shape = map.get_shape();
      check_map_shape(Shape(shape.begin(), shape.end()));
      return RawMap{map.data(), dtype_of(numpy_name(map.get_element_type())), static_cast<std::uint32_t>(shape[2]),
                    static_cast<std::uint32_t>(shape[3]), {ms, 0, ms, 0}};
    });
  }

 private:
  ov::InferRequest request_;
  std::string input_;
  ov::element::Type type_;
  ov::Tensor tensor_;
};

class OpenVINO final : public Backend {
 public:
  OpenVINO(ov::CompiledModel model, std::string precision) : model_(std::move(model)) {
    device_ = "OpenVINO " + version() + ", CPU, " +
              counted(static_cast<std::uint64_t>(model_.get_property(ov::inference_num_threads)), "thread") + ", " +
              std::move(precision);
  }

  [[nodiscard]] std::string device() const override { return device_; }

  std::unique_ptr<ExecutionContext> context() override {
    return asked("OpenVINO failed to create another inference request", [&] {
      const auto &input = model_.input();
      return std::make_unique<OpenVINOContext>(model_.create_infer_request(), input.get_any_name(), input.get_element_type());
    });
  }

 private:
  // major.minor.patch, without the build number and branch
  static std::string version() {
    const std::string whole = ov::get_openvino_version().buildNumber;
    return whole.substr(0, whole.find('-'));
  }

  ov::CompiledModel model_;
  std::string device_;
};

// All engines share one core, because loading the plugin takes longer than opening a small model.
ov::Core &core_with_cpu() {
  try {
    static ov::Core core;
    if (core.get_versions("CPU").empty()) throw std::runtime_error("no such plugin is registered");
    return core;
  } catch (const std::exception &e) {
    throw Unavailable("OpenVINO has no CPU plugin (" + last_line(e) + "): install all of OpenVINO");
  }
}

ov::AnyMap settings(const std::string &precision, std::uint32_t threads) {
  // By default the CPU plugin computes FP32 graphs in BF16 on CPUs that support it.
  ov::AnyMap chosen{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                    ov::hint::inference_precision(precision == "bf16" ? ov::element::bf16 : ov::element::f32)};
  if (threads != 0) chosen.insert(ov::inference_num_threads(static_cast<std::int32_t>(threads)));
  return chosen;
}

}  // namespace

std::optional<std::string> contract_in_openvino(const std::filesystem::path &artifact) {
  ov::Core &core = core_with_cpu();
  return asked("OpenVINO cannot open " + artifact.string(), [&]() -> std::optional<std::string> {
    const auto model = core.read_model(artifact.string());
    if (model->has_rt_info("r2mrf")) return model->get_rt_info<std::string>("r2mrf");
    // OpenVINO puts the metadata_props of an ONNX file here
    if (model->has_rt_info("framework", "r2mrf")) return model->get_rt_info<std::string>("framework", "r2mrf");
    return std::nullopt;
  });
}

std::unique_ptr<Backend> open_openvino(const std::filesystem::path &artifact, const Manifest &manifest,
                                       std::uint32_t threads) {
  if (threads > 1024) throw UsageError("threads must be at most 1024");
  ov::Core &core = core_with_cpu();
  return asked("OpenVINO cannot open " + artifact.string(), [&] {
    ov::CompiledModel model = core.compile_model(artifact.string(), "CPU", settings(manifest.precision, threads));
    check_agreement(specs_of(model.inputs(), manifest.inputs), specs_of(model.outputs(), manifest.outputs), manifest,
                    artifact.string());
    return std::make_unique<OpenVINO>(std::move(model), manifest.precision == "bf16" ? "bf16" : "f32");
  });
}

}  // namespace r2mrf_internal
