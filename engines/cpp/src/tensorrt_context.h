// One thread's way through a plan: an execution context, a stream, pinned memory and a CUDA graph of its own.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "cuda.h"

namespace r2mrf_internal {

// What TensorRT last complained of in this thread, in one line.
std::string last_complaint();

class TensorRTContext final : public ExecutionContext {
 public:
  // engine must outlive the context and was opened on `device`, which is the thread's current one now; later the context sees to
  // that. TensorRT-RTX's plans run without a CUDA graph. Throws Unavailable where the device has no room for another
  // context.
  TensorRTContext(nvinfer1::ICudaEngine &engine, TensorSpec input, int device, bool rtx);

  // Throws InputError where the plan's profile does not have the shape.
  void *input(const Shape &shape) override;
  // Should it fail, the next call begins again as with a new shape.
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
  bool ready_ = false;  // one inference was done at this shape, and the last one did not fail
  Graph graph_;
};

}  // namespace r2mrf_internal
