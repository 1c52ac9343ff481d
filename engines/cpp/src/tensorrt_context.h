// What one inference with a plan needs: an execution context, a stream, pinned memory and a CUDA graph.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "cuda.h"

namespace r2mrf_internal {

// TensorRT's last error message in this thread.
std::string last_complaint();

class TensorRTContext final : public ExecutionContext {
 public:
  // `engine` must outlive the context. `device` is where it was opened, and must be the calling thread's current device.
  // The other functions make it so themselves. Plans of TensorRT-RTX run without a CUDA graph.
  // Throws Unavailable if the device has no memory for another context.
  TensorRTContext(nvinfer1::ICudaEngine &engine, TensorSpec input, int device, bool rtx);

  // Throws InputError if the plan's profile does not allow the shape.
  void *input(const Shape &shape) override;
  // After a failure, the next call starts afresh, as with a new shape.
  RawMap infer() override;

 private:
  struct Output {
    std::string name;
    DeviceMemory memory;
  };

  void set_shape(const Shape &shape);
  void make_outputs();
  void first_inference();
  void enqueue();

  const Cuda &cuda_;
  int device_;
  nvinfer1::ICudaEngine &engine_;
  bool rtx_;
  TensorSpec spec_;
  Stream stream_;
  std::unique_ptr<nvinfer1::IExecutionContext> trt_context_;
  Shape shape_;
  std::size_t input_bytes_ = 0;
  DeviceMemory device_input_;
  PinnedMemory host_input_;
  std::vector<Output> outputs_;
  Shape map_shape_;
  Dtype map_dtype_ = Dtype::float32;
  std::size_t map_bytes_ = 0;
  const void *device_map_ = nullptr;  // one of outputs_
  PinnedMemory host_map_;
  std::array<Event, 4> marks_;
  bool ready_ = false;  // there was an inference at this shape, and the last one did not fail
  Graph graph_;
};

}  // namespace r2mrf_internal
