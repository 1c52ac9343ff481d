// What is checked before TensorRT starts, and when a context uses a CUDA graph. CUDA and TensorRT are replaced.
#include <array>
#include <cstring>
#include <fstream>

#include "check.h"
#include "error.h"
#include "host_cuda.h"
#include "tensorrt_context.h"

using namespace r2mrf_internal;

namespace {

// One input "x" and one output "map", both float32 [1, 1, 2, 3]; the map is the input.
class Context final : public nvinfer1::IExecutionContext {
 public:
  explicit Context(int &enqueued) : enqueued_(enqueued) {}
  std::int32_t getOptimizationProfile() const override { return 0; }
  bool setOptimizationProfileAsync(std::int32_t, cudaStream_t) override { return true; }
  bool setInputShape(const char *, const nvinfer1::Dims &) override { return true; }
  bool setTensorAddress(const char *name, void *memory) override {
    (*name == 'x' ? input_ : map_) = memory;
    return true;
  }
  nvinfer1::Dims getTensorShape(const char *) const override { return {4, {1, 1, 2, 3}}; }
  bool enqueueV3(cudaStream_t) override {
    ++enqueued_;
    std::memcpy(map_, input_, 6 * sizeof(float));
    return true;
  }

 private:
  int &enqueued_;
  void *input_ = nullptr;
  void *map_ = nullptr;
};

class Plan final : public nvinfer1::ICudaEngine {
 public:
  std::int32_t getNbIOTensors() const override { return 2; }
  const char *getIOTensorName(std::int32_t index) const override { return index == 0 ? "x" : "map"; }
  nvinfer1::TensorIOMode getTensorIOMode(const char *name) const override {
    return *name == 'x' ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
  }
  nvinfer1::Dims getTensorShape(const char *) const override { return {4, {1, 1, 2, 3}}; }
  nvinfer1::DataType getTensorDataType(const char *) const override { return nvinfer1::DataType::kFLOAT; }
  std::int32_t getTensorBytesPerComponent(const char *) const override { return -1; }  // it is not vectorized
  nvinfer1::IExecutionContext *createExecutionContext() override { return new Context(enqueued); }

  int enqueued = 0;
};

const Shape kShape{1, 1, 2, 3};

float first_of_map(TensorRTContext &context, float value) {
  static_cast<float *>(context.input(kShape))[0] = value;
  return *static_cast<const float *>(context.infer().data);
}

void test_a_graph_replaces_enqueueing() {
  host_cuda() = {};
  Plan plan;
  {
    TensorRTContext context(plan, {"x", "float32", kShape, "NCHW"}, 0, false);
    for (int i = 0; i < 3; ++i) CHECK(first_of_map(context, 7) == 7);
    CHECK(plan.enqueued == 2);  // once to warm up, once to capture
    CHECK(host_cuda().graphs == 1);
  }
  CHECK(host_cuda().graphs == 0);
}

void test_without_a_graph_each_run_enqueues(bool rtx, bool instantiates, int captures) {
  host_cuda() = {};
  host_cuda().instantiates = instantiates;
  Plan plan;
  TensorRTContext context(plan, {"x", "float32", kShape, "NCHW"}, 0, rtx);
  for (int i = 0; i < 3; ++i) CHECK(first_of_map(context, static_cast<float>(i)) == static_cast<float>(i));
  CHECK(plan.enqueued == 4 + captures);
  CHECK(host_cuda().captures == captures);
  CHECK(host_cuda().graphs == 0);
}

void test_a_failed_run_is_followed_by_a_first_one() {
  host_cuda() = {};
  Plan plan;
  TensorRTContext context(plan, {"x", "float32", kShape, "NCHW"}, 0, false);
  CHECK(first_of_map(context, 1) == 1);
  host_cuda().launches = false;
  CHECK_THROWS(Unavailable, first_of_map(context, 2), "CUDA error 999");
  host_cuda().launches = true;
  CHECK(first_of_map(context, 3) == 3);
  CHECK(plan.enqueued == 4);  // warmed up and captured again
  CHECK(host_cuda().captures == 2);
  CHECK(host_cuda().graphs == 1);
}

// TensorRT returns an invalid pointer here, so a check that comes too late crashes the program.
void test_a_plan_without_cuda() {
  std::array<char, 64> plan{'f', 't', 'r', 't'};
  plan[24] = 10;
  plan[26] = 1;
  const std::string path = "tensorrt_test.plan";
  std::ofstream(path, std::ios::binary).write(plan.data(), plan.size());
  Manifest manifest;
  manifest.inputs = {{"x", "float32", kShape, "NCHW"}};
  manifest.target = Target{"tensorrt", "10.0.1.0", {}, false};
  host_cuda() = {};
  host_cuda().driver = 0;
  CHECK_THROWS(Unavailable, open_tensorrt(path, manifest), "there is no NVIDIA driver");
  host_cuda().driver = 12080;
  CHECK_THROWS(Unavailable, open_tensorrt(path, manifest), "the NVIDIA driver is for CUDA 12.8");
  host_cuda() = {};
  host_cuda().devices = 0;
  CHECK_THROWS(Unavailable, open_tensorrt(path, manifest), "there is no CUDA device");
  host_cuda() = {};
  CHECK_THROWS(Unavailable, open_tensorrt(path, manifest), "TensorRT 10.0.1 does not start: CUDA init");
}

}  // namespace

int main() {
  test_a_graph_replaces_enqueueing();
  test_without_a_graph_each_run_enqueues(true, true, 0);    // TensorRT-RTX is not captured
  test_without_a_graph_each_run_enqueues(false, false, 1);  // a graph that cannot be instantiated
  test_a_failed_run_is_followed_by_a_first_one();
  test_a_plan_without_cuda();
  return exit_code();
}
