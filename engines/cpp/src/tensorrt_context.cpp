#include "tensorrt_context.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "error.h"

namespace r2mrf_internal {
namespace {

nvinfer1::Dims dims_of(const Shape &shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

// No type is wider than 8 bytes. TensorRT's own function returns -1 since 10.1, unless the tensor is vectorized.
std::size_t element_bytes(nvinfer1::DataType type) {
  if (type == nvinfer1::DataType::kHALF) return 2;
  return type == nvinfer1::DataType::kFLOAT ? 4 : 8;
}

std::unique_ptr<nvinfer1::IExecutionContext> new_context(nvinfer1::ICudaEngine &engine) {
  std::unique_ptr<nvinfer1::IExecutionContext> context(engine.createExecutionContext());
  if (!context) throw Unavailable("TensorRT failed to create another execution context: " + last_complaint());
  return context;
}

}  // namespace

TensorRTContext::TensorRTContext(nvinfer1::ICudaEngine &engine, TensorSpec input, int device, bool rtx)
    : cuda_(Cuda::get()),
      device_(device),
      engine_(engine),
      rtx_(rtx),
      spec_(std::move(input)),
      stream_(cuda_.stream()),
      trt_context_(new_context(engine)),
      device_input_(nullptr, nullptr),
      host_input_(nullptr, nullptr),
      host_map_(nullptr, nullptr),
      marks_{cuda_.event(), cuda_.event(), cuda_.event(), cuda_.event()},
      graph_(cuda_.no_graph()) {
  if (trt_context_->getOptimizationProfile() != 0 && !trt_context_->setOptimizationProfileAsync(0, stream_.get())) {
    throw Unavailable("TensorRT rejected the plan's profile: " + last_complaint());
  }
}

void *TensorRTContext::input(const Shape &shape) {
  const OnDevice here(cuda_, device_);
  if (shape != shape_) set_shape(shape);
  return host_input_.get();
}

// Makes everything that depends on the shape. If that fails half-way, the next call starts afresh.
void TensorRTContext::set_shape(const Shape &shape) {
  shape_.clear();
  ready_ = false;
  graph_.reset();
  if (!trt_context_->setInputShape(spec_.name.c_str(), dims_of(shape))) {
    TensorSpec refused = spec_;
    refused.shape = shape;
    throw InputError("the plan's profile does not allow " + refused.words() + ": " + last_complaint());
  }
  input_bytes_ = element_count(shape) * size_of(dtype_of(spec_.dtype));
  device_input_ = cuda_.device_memory(input_bytes_);
  host_input_ = cuda_.pinned_memory(input_bytes_);
  if (!trt_context_->setTensorAddress(spec_.name.c_str(), device_input_.get())) {
    throw ArtifactError("TensorRT rejected the address of the input: " + last_complaint());
  }
  make_outputs();
  shape_ = shape;
}

// Allocates device memory for every output, and host memory for the map.
void TensorRTContext::make_outputs() {
  outputs_.clear();
  for (std::int32_t i = 0; i < engine_.getNbIOTensors(); ++i) {
    const char *name = engine_.getIOTensorName(i);
    if (engine_.getTensorIOMode(name) != nvinfer1::TensorIOMode::kOUTPUT) continue;
    const nvinfer1::Dims dims = trt_context_->getTensorShape(name);
    const Shape shape(dims.d, dims.d + std::max(dims.nbDims, 0));
    if (dims.nbDims < 0 || std::any_of(shape.begin(), shape.end(), [](std::int64_t d) { return d < 0; })) {
      throw ArtifactError(std::string("the size of output \"") + name + "\" depends on the data, which is not supported");
    }
    const std::size_t bytes = element_count(shape) * element_bytes(engine_.getTensorDataType(name));
    outputs_.push_back({name, cuda_.device_memory(std::max(bytes, std::size_t{1}))});
    if (!trt_context_->setTensorAddress(name, outputs_.back().memory.get())) {
      throw ArtifactError(std::string("TensorRT rejected the address of the output \"") + name + "\": " + last_complaint());
    }
    if (outputs_.back().name == "map") {
      check_map_shape(shape);
      map_shape_ = shape;
      map_bytes_ = bytes;
      map_dtype_ = engine_.getTensorDataType(name) == nvinfer1::DataType::kHALF ? Dtype::float16 : Dtype::float32;
      device_map_ = outputs_.back().memory.get();
      host_map_ = cuda_.pinned_memory(bytes);
    }
  }
}

// The first inference at a shape allocates and compiles, which cannot be captured, so it runs before the capture.
// TensorRT-RTX can be captured only if the application allocates its memory and isStreamCapturable() agrees.
void TensorRTContext::first_inference() {
  graph_.reset();
  cuda_.copy_in(device_input_.get(), host_input_.get(), input_bytes_, stream_);
  enqueue();
  cuda_.synchronize(stream_);
  if (!rtx_) graph_ = cuda_.capture(stream_, [this] { return trt_context_->enqueueV3(stream_.get()); });
}

void TensorRTContext::enqueue() {
  if (graph_) {
    cuda_.launch(graph_, stream_);
  } else if (!trt_context_->enqueueV3(stream_.get())) {
    throw Unavailable("TensorRT failed to run the plan: " + last_complaint());
  }
}

RawMap TensorRTContext::infer() {
  const OnDevice here(cuda_, device_);
  if (!std::exchange(ready_, false)) first_inference();
  cuda_.record(marks_[0], stream_);
  cuda_.copy_in(device_input_.get(), host_input_.get(), input_bytes_, stream_);
  cuda_.record(marks_[1], stream_);
  const auto start = std::chrono::steady_clock::now();
  enqueue();
  const std::chrono::duration<double, std::milli> enqueued = std::chrono::steady_clock::now() - start;
  cuda_.record(marks_[2], stream_);
  cuda_.copy_out(host_map_.get(), device_map_, map_bytes_, stream_);
  cuda_.record(marks_[3], stream_);
  cuda_.wait(marks_[3]);
  const InferenceTimes times{enqueued.count(), cuda_.elapsed(marks_[0], marks_[1]), cuda_.elapsed(marks_[1], marks_[2]),
                             cuda_.elapsed(marks_[2], marks_[3])};
  ready_ = true;
  return {host_map_.get(), map_dtype_, static_cast<std::uint32_t>(map_shape_[2]),
          static_cast<std::uint32_t>(map_shape_[3]), times};
}

}  // namespace r2mrf_internal
