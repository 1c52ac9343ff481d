// What is asked before TensorRT starts, on stand-ins that only keep account.
#include <array>
#include <fstream>

#include "backend.h"
#include "check.h"
#include "error.h"
#include "host_cuda.h"

using namespace r2mrf_internal;

namespace {

const Shape kShape{1, 1, 2, 3};

// TensorRT returns a pointer to nothing here, so whatever comes too late ends the program.
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
  test_a_plan_without_cuda();
  return exit_code();
}
